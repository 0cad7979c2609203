package federation

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/store"
)

// Presence is told when it changes, and to a server that has not been told: one that was met, or with which a join made a room shared. Receivers
// forget: who is online goes idle there after ephemeral.IdleAfter, and anybody offline after ephemeral.OfflineAfter, so it is repeated before. Of
// users who are idle or away nothing is said again but that they are idle, and for each server what is due goes at once, in one transaction.
const (
	repeatActive = ephemeral.IdleAfter / 2
	repeatIdle   = ephemeral.OfflineAfter / 2
	// repeatLook is how often is looked at what is due: repeatActive and this are less than IdleAfter, with the half minute that a client's last
	// poll lies back.
	repeatLook = time.Minute
)

// audience is who was told of local users' presence since they were met last, and when.
type audience struct {
	f       *Federation
	senders *couriers
	told    map[eventgraph.UserID]map[eventgraph.ServerName]time.Time // of followEphemeral's goroutine; of users who are present, or were lately

	mu    sync.Mutex
	fresh []eventgraph.ServerName // met since the goroutine last looked
}

// met notes that servers were met, which may know nothing any more.
func (a *audience) met(contacts []contact) {
	a.mu.Lock()
	for _, c := range contacts {
		a.fresh = append(a.fresh, c.Server)
	}
	a.mu.Unlock()
	signal(a.f.company)
}

// followEphemeral tells the couriers of typing and presence of local users.
func (f *Federation) followEphemeral(ctx context.Context, watched *audience) error {
	look := time.NewTicker(repeatLook)
	defer look.Stop()
	from := f.Ephemeral.Counter()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.Ephemeral.Moved(from):
			upTo := f.Ephemeral.Counter()
			changed, users := f.Ephemeral.Changed(from)
			f.noteTyping(watched.senders, changed)
			for _, user := range users {
				if err := watched.tell(user, true); err != nil {
					return err
				}
			}
			from = upTo
			continue
		case <-f.company:
		case <-look.C:
		}
		if err := watched.tellRest(); err != nil {
			return err
		}
	}
}

func (f *Federation) noteTyping(senders *couriers, changed []eventgraph.RoomID) {
	for _, room := range changed {
		servers, err := f.Rooms.Servers(room)
		if err != nil {
			continue // the room has gone
		}
		for _, s := range servers {
			if s != f.server && f.peers.isConnected(s) {
				senders.note(s, room, "")
			}
		}
	}
}

// tellRest tells whom nobody has told, and repeats what is about to be forgotten.
func (a *audience) tellRest() error {
	a.mu.Lock()
	fresh := a.fresh
	a.fresh = nil
	a.mu.Unlock()
	for _, servers := range a.told {
		for _, s := range fresh {
			delete(servers, s)
		}
	}
	present := map[eventgraph.UserID]bool{}
	for _, user := range a.f.Ephemeral.Present() {
		present[user] = true
		if err := a.tell(user, false); err != nil {
			return err
		}
	}
	for user := range a.told {
		if !present[user] {
			delete(a.told, user)
		}
	}
	return nil
}

// tell has the user's presence told to the connected servers that share a room with them: to those for which it is due, or, if it has changed, to all.
func (a *audience) tell(user eventgraph.UserID, changed bool) error {
	f := a.f
	p, known := f.Ephemeral.Presence(user)
	if !known || user.Server() != f.server {
		return nil
	}
	var servers []eventgraph.ServerName
	err := f.Store.View(func(r *store.Reader) (err error) {
		servers, err = f.sharing(r, user)
		return err
	})
	if err != nil {
		return fmt.Errorf("servers that share a room with %s: %w", user, err)
	}
	before, now := a.told[user], f.Now()
	told := map[eventgraph.ServerName]time.Time{} // without those that have gone
	a.told[user] = told
	for _, s := range servers {
		if s == f.server || !f.peers.isConnected(s) {
			continue
		}
		told[s] = before[s]
		if changed || due(&p, told[s], now) {
			told[s] = now
			a.senders.note(s, "", user)
		}
	}
	return nil
}

// due says whether a server that was told of a presence at a time, or never, is to be told now, though it has not changed.
func due(p *ephemeral.Presence, told, now time.Time) bool {
	ago := now.Sub(told)
	switch {
	case told.IsZero():
		return true
	case p.State == "offline":
		return false
	case p.State == "online" && p.LastActive.After(told):
		return ago >= repeatActive
	}
	return ago >= repeatIdle
}
