package federation

import (
	"crypto/sha256"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// TestGuests: a relay lets through to a friend who shows a pass of a token that the friend has made, while it is valid; nobody else, to nobody
// else, and not if it is asked as no relay or by strangers.
func TestGuests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		inviter, relay, holder, stranger := newMemHost(t, n, "inviter"), newMemHost(t, n, "relay"), newMemHost(t, n, "holder"), newMemHost(t, n, "stranger")
		all := []*memHost{inviter, relay, holder, stranger}
		for _, h := range all {
			h.start()
		}
		time.Sleep(time.Minute)
		room := relay.create("12", "public", "shared")
		inviter.join(room, inviter.user("ann"), relay.host)
		token, _, err := inviter.CreateInvite(t.Context(), "", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		pass := passOf(sha256.Sum256([]byte(token)))
		ask := func(from *memHost, to eventgraph.PeerID, pass string) error {
			_, err := from.exchangeGuest(t.Context(), relay.peer, guestMessage{For: to, Pass: pass})
			return err
		}
		if ask(holder, inviter.peer, pass) == nil {
			t.Error("let through by a node that does not relay")
		}
		relay.Relay = true
		for name, m := range map[string]struct {
			to   eventgraph.PeerID
			pass string
		}{
			"a wrong pass":     {inviter.peer, passOf(sha256.Sum256([]byte("another")))},
			"the token":        {inviter.peer, token},
			"no pass":          {inviter.peer, ""},
			"to a stranger":    {stranger.peer, pass},
			"to who is not":    {"12D3KooWHfGR7Nr9vNs1pNQmH4yAtqEGPRCLPYVTmHwdvLBpRvBP", pass},
			"to itself":        {holder.peer, pass},
			"to the relay":     {relay.peer, pass},
			"more than a pass": {inviter.peer, string(make([]byte, maxGuestMessage))},
		} {
			if ask(holder, m.to, m.pass) == nil {
				t.Errorf("let through with %s", name)
			}
		}
		if _, err := stranger.exchangeGuest(t.Context(), inviter.peer, guestMessage{Guest: holder.peer, Pass: pass}); err == nil {
			t.Error("a stranger was told that a pass is valid")
		}
		if relay.Guest(holder.peer, inviter.peer) {
			t.Error("let through without having asked")
		}
		time.Sleep(time.Minute) // the questions above have their bound
		if err := ask(holder, inviter.peer, pass); err != nil {
			t.Fatal(err)
		}
		if !relay.Guest(holder.peer, inviter.peer) || relay.Guest(inviter.peer, holder.peer) || relay.Guest(holder.peer, stranger.peer) ||
			relay.Guest(stranger.peer, inviter.peer) {
			t.Error("let through are not just the holder to the inviter")
		}
		time.Sleep(time.Hour)
		if relay.Guest(holder.peer, inviter.peer) || ask(holder, inviter.peer, pass) == nil {
			t.Error("let through after the token has expired")
		}
		for _, h := range all {
			h.stop()
		}
	})
}

func TestGuestsBounds(t *testing.T) {
	now := time.Now()
	later := now.Add(time.Hour).UnixMilli()
	g := newGuests()
	name := func(kind string, i int) eventgraph.PeerID { return eventgraph.PeerID(kind + string(rune('a'+i))) }
	for i := range maxGuestsFor {
		if !g.admit(name("guest", i), "to", later, now) {
			t.Fatalf("guest %d is too many", i)
		}
	}
	if g.admit("one more", "to", later, now) {
		t.Error("one friend has too many guests")
	}
	if !g.admit(name("guest", 0), "to", later+1, now) || !g.admit("one more", "another", later, now) {
		t.Error("others were not let through")
	}
	for i := range maxGuests {
		g.admit("guest", name("to", i), later, now)
	}
	if len(g.until) != maxGuests {
		t.Errorf("%d guests", len(g.until))
	}
	if !g.admit("late", "to", later+1, now.Add(2*time.Hour)) || len(g.until) != 1 {
		t.Errorf("%d guests are kept when all have expired", len(g.until))
	}
}
