package federation

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Who holds an invite link may share no room with the relay that the inviter is behind, and the inviter cannot tell the relay about somebody
// it has not met. So the holder shows the relay a pass, which follows from the token and is not the token, and the relay asks the inviter:
//
//	holder ── for inviter, pass ──▶ relay ── guest holder, pass ──▶ inviter
//	holder ◀───── until ────────── relay ◀──────── until ───────── inviter
//	holder ── circuit ── relay ── circuit ── inviter             then presents the token, as on a direct way
//
// The relay then lets this guest reach this inviter, and nobody else, for as long as the token is valid. It learns that somebody holds an
// invite of the inviter's, which it would see anyway; with the pass it can do nothing that it could not do before.

// protocolGuest is spoken on streams of its own: one question, and an answer if it is granted. To all else there is none.
const protocolGuest = "/plexus/guest/1"

const (
	// maxGuestMessage bounds a question: two peer IDs and a pass.
	maxGuestMessage = 512
	// guestTimeout bounds a question to a relay, which asks on.
	guestTimeout = 5 * time.Second
	// guestEvery and guestBurst bound what all strangers together make a relay ask its friends.
	guestEvery = time.Second
	guestBurst = 20
	// maxGuests of a relay, and maxGuestsFor one friend: whom a person invites in a week.
	maxGuests    = 256
	maxGuestsFor = 32
	// inviterDirect is how long the inviter is tried on the direct ways before its relays are asked.
	inviterDirect = 4 * time.Second
	// maxAskedRelays of one link.
	maxAskedRelays = 4
)

type guestMessage struct {
	For   eventgraph.PeerID `json:"for,omitempty"`   // to the relay: whom to reach
	Guest eventgraph.PeerID `json:"guest,omitempty"` // from the relay: who wants to come
	Pass  string            `json:"pass,omitempty"`
	Until int64             `json:"until_ts,omitempty"` // the answer
}

// passOf is what the holder of a token shows to a relay.
func passOf(h store.TokenHash) string {
	sum := sha256.Sum256(append([]byte("plexus relay pass\x00"), h[:]...))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// guests are who may reach whom through this relay.
type guests struct {
	asking *rate.Limiter

	mu    sync.Mutex
	until map[guest]int64 // ms
}

type guest struct{ from, to eventgraph.PeerID }

func newGuests() *guests {
	return &guests{asking: rate.NewLimiter(rate.Every(guestEvery), guestBurst), until: map[guest]int64{}}
}

func (g *guests) admitted(from, to eventgraph.PeerID, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.until[guest{from, to}] > now.UnixMilli()
}

// admit is false if there are too many.
func (g *guests) admit(from, to eventgraph.PeerID, until int64, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	same := 0
	for k, ends := range g.until {
		switch {
		case ends <= now.UnixMilli():
			delete(g.until, k)
		case k.to == to && k.from != from:
			same++
		}
	}
	key := guest{from, to}
	if _, known := g.until[key]; !known && (len(g.until) >= maxGuests || same >= maxGuestsFor) {
		return false
	}
	g.until[key] = until
	return true
}

// Guest says whether a stranger may reach a friend through the relay that this node is, for p2ptransport.Config: it holds an invite of his.
func (f *Federation) Guest(from, to eventgraph.PeerID) bool {
	return f.guests.admitted(from, to, f.Now()) && !f.peers.refuses(from)
}

// handleGuests answers guests and the relays that they have asked.
func (f *Federation) handleGuests() {
	slots := make(chan struct{}, presentedAtOnce)
	f.Transport.Handle(protocolGuest, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		ctx, cancel := context.WithTimeout(ctx, guestTimeout)
		defer cancel()
		defer context.AfterFunc(ctx, func() { reset(stream) })()
		var m guestMessage
		until, err := int64(0), readMessage(stream, maxGuestMessage, &m)
		if err == nil { // who sends nothing takes no slot
			var release func()
			if release, err = take(ctx, slots); err == nil {
				defer release()
			}
		}
		switch {
		case err != nil:
		case m.For != "":
			until, err = f.askForGuest(ctx, peer, m)
		default:
			until, err = f.vouchForGuest(peer, m)
		}
		if err == nil {
			err = writeMessage(stream, guestMessage{Until: until})
		}
		if err != nil {
			if errors.Is(err, errTooLong) {
				reset(stream)
			}
			f.Log.Debug("guest refused", "peer", peer, "err", err)
		}
	})
}

// askForGuest is the relay's part: it asks the friend that the guest wants to reach.
func (f *Federation) askForGuest(ctx context.Context, from eventgraph.PeerID, m guestMessage) (until int64, err error) {
	if _, connected := f.peers.since(m.For); !f.Relay || !connected || !f.Friend(m.For) || !f.guests.asking.Allow() {
		return 0, errors.New("not relayed")
	}
	answer, err := f.exchangeGuest(ctx, m.For, guestMessage{Guest: from, Pass: m.Pass})
	if err != nil {
		return 0, err
	}
	if !f.guests.admit(from, m.For, answer.Until, f.Now()) {
		return 0, errors.New("too many guests")
	}
	return answer.Until, nil
}

// vouchForGuest is the inviter's part: a friend that relays asks whether a guest holds a token.
func (f *Federation) vouchForGuest(relay eventgraph.PeerID, m guestMessage) (until int64, err error) {
	if !f.Friend(relay) || f.peers.refuses(m.Guest) {
		return 0, errors.New("asked by a stranger, or about who is blocked")
	}
	if until = f.invitees.passValid(m.Pass, f.Now()); until == 0 {
		return 0, ErrInviteRefused
	}
	return until, nil
}

// passValid says until when the token is valid that a pass follows from, in ms; 0 if there is none.
func (i *invitees) passValid(pass string, now time.Time) int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	for h, until := range i.tokens {
		if until > now.UnixMilli() && passOf(h) == pass {
			return until
		}
	}
	return 0
}

func (f *Federation) exchangeGuest(ctx context.Context, peer eventgraph.PeerID, m guestMessage) (answer guestMessage, err error) {
	s, err := f.Transport.OpenStream(ctx, peer, protocolGuest)
	if err != nil {
		return answer, err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { reset(s) })()
	if err := writeMessage(s, m); err != nil {
		return answer, err
	}
	if err := readMessage(s, maxGuestMessage, &answer); err != nil {
		return answer, err
	}
	if answer.Until <= f.Now().UnixMilli() {
		return answer, errors.New("the answer has expired")
	}
	return answer, nil
}

// reachInviter opens a stream to the peer that made a link, if need be as a guest of the relays that it is behind.
func (f *Federation) reachInviter(ctx context.Context, inviter eventgraph.PeerID, token string, relays []eventgraph.PeerID) (io.ReadWriteCloser, error) {
	if len(relays) == 0 {
		return f.Transport.OpenStream(ctx, inviter, protocolInvite)
	}
	direct, cancel := context.WithTimeout(ctx, inviterDirect)
	defer cancel()
	s, err := f.Transport.OpenStream(direct, inviter, protocolInvite)
	if err == nil || ctx.Err() != nil {
		return s, err
	}
	m := guestMessage{For: inviter, Pass: passOf(sha256.Sum256([]byte(token)))}
	var group errgroup.Group
	granted := make([]error, min(len(relays), maxAskedRelays))
	for i := range granted {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, guestTimeout)
			defer cancel()
			_, granted[i] = f.exchangeGuest(ctx, relays[i], m)
			return nil
		})
	}
	_ = group.Wait()
	for i, refused := range granted {
		if refused == nil {
			return f.Transport.OpenStream(ctx, inviter, protocolInvite)
		}
		err = fmt.Errorf("%w; relay %s: %v", err, relays[i], refused)
	}
	return nil, err
}
