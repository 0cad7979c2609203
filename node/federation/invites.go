package federation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// An invite link carries a token. Who presents it is served as those are who share a room with us, so that it need not wait behind
// strangers before it shares one (design.md §7). It gives no other right: rooms let in whom their rules let in.

// protocolInvite is spoken on streams of its own: the token, and an empty answer if it is valid. To all else there is no answer.
const protocolInvite = "/plexus/invite/1"

const (
	// DefaultInviteLife is how long an invite link is valid unless somebody says otherwise.
	DefaultInviteLife = 7 * 24 * time.Hour
	// MaxInviteLife: what is valid for ever is forgotten, and found by somebody.
	MaxInviteLife = 366 * 24 * time.Hour
	// maxPresent bounds a presented token; ours has 26 characters.
	maxPresent = 256
	// presentTimeout bounds one presentation; presentedAtOnce are served at one time, of all peers.
	presentTimeout  = 5 * time.Second
	presentedAtOnce = 8
	// presentDialTimeout is for reaching the inviter, too.
	presentDialTimeout = 30 * time.Second
	// tokenID is how many bytes of a token's hash name it to its owner.
	tokenID = 4
)

var (
	// ErrInviteRefused: the inviter does not know the token; it may have expired, or been revoked.
	ErrInviteRefused = errors.New("the inviter does not accept this link: it may have expired or been revoked")
	// ErrNoInvite: no invite link has that ID.
	ErrNoInvite = errors.New("there is no such invite link")
)

type inviteMessage struct {
	Token string `json:"token,omitempty"`
}

// invitees is what is valid of the store's tokens, so that strangers with wrong ones cost no disk.
type invitees struct {
	mu      sync.Mutex
	tokens  map[store.TokenHash]int64   // until when they are valid, ms
	holders map[eventgraph.PeerID]int64 // until when they hold one
}

// holds says whether the peer has presented a token that is still valid.
func (i *invitees) holds(peer eventgraph.PeerID, now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.holders[peer] > now.UnixMilli()
}

func (i *invitees) valid(h store.TokenHash, now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.tokens[h] > now.UnixMilli()
}

// loadInvitees reads the tokens from the store.
func (f *Federation) loadInvitees() error {
	tokens, holders := map[store.TokenHash]int64{}, map[eventgraph.PeerID]int64{}
	err := f.Store.View(func(r *store.Reader) error {
		return r.InviteTokens(func(t *store.InviteToken) (bool, error) {
			tokens[t.Hash] = t.ExpiresTS
			for _, p := range t.Holders {
				holders[p] = max(holders[p], t.ExpiresTS)
			}
			return true, nil
		})
	})
	if err != nil {
		return err
	}
	f.invitees.mu.Lock()
	defer f.invitees.mu.Unlock()
	f.invitees.tokens, f.invitees.holders = tokens, holders
	return nil
}

// invited says whether a connected peer of the server holds an invite token of ours.
func (f *Federation) invited(server eventgraph.ServerName) bool {
	for _, peer := range f.peers.of(server) {
		if f.invitees.holds(peer, f.Now()) {
			return true
		}
	}
	return false
}

// InviteLink is an invite link as its owner sees it afterwards: the token is known to nobody but who has the link.
type InviteLink struct {
	ID      string // of the token, not the token
	For     string // the user or room ID
	Expires time.Time
	Holders int // devices that have presented the token
}

func newInviteLink(t *store.InviteToken) InviteLink {
	return InviteLink{hex.EncodeToString(t.Hash[:tokenID]), t.For, time.UnixMilli(t.ExpiresTS), len(t.Holders)}
}

// CreateInvite makes a token for a link to a user or room, valid for the time given, at most MaxInviteLife. Error: store.ErrTooManyTokens.
func (f *Federation) CreateInvite(ctx context.Context, about string, life time.Duration) (token string, link InviteLink, err error) {
	if life <= 0 || life > MaxInviteLife {
		return "", InviteLink{}, errors.New("an invite link is valid for more than nothing and at most a year")
	}
	token = rand.Text() // at least 128 bits
	now := f.Now()
	t := &store.InviteToken{Hash: sha256.Sum256([]byte(token)), For: about, CreatedTS: now.UnixMilli(), ExpiresTS: now.Add(life).UnixMilli()}
	if _, err := f.Store.Update(ctx, func(tx *store.Tx) error { return tx.AddInviteToken(t) }); err != nil {
		return "", InviteLink{}, err
	}
	return token, newInviteLink(t), f.loadInvitees()
}

// Invites lists the links that are valid.
func (f *Federation) Invites() (links []InviteLink, err error) {
	now := f.Now().UnixMilli()
	err = f.Store.View(func(r *store.Reader) error {
		return r.InviteTokens(func(t *store.InviteToken) (bool, error) {
			if t.ExpiresTS > now {
				links = append(links, newInviteLink(t))
			}
			return true, nil
		})
	})
	return links, err
}

// RevokeInvite ends a link, and what it gave to those who have presented it. Error: ErrNoInvite.
func (f *Federation) RevokeInvite(ctx context.Context, id string) error {
	_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
		found := map[store.TokenHash]bool{}
		err := tx.InviteTokens(func(t *store.InviteToken) (bool, error) {
			if newInviteLink(t).ID == id {
				found[t.Hash] = true
			}
			return true, nil
		})
		if err == nil && len(found) == 0 {
			err = ErrNoInvite
		}
		for h := range maps.Keys(found) {
			err = errors.Join(err, tx.DeleteInviteToken(h))
		}
		return err
	})
	if err != nil {
		return err
	}
	return f.loadInvitees()
}

// handleInvites serves those who present a token.
func (f *Federation) handleInvites() {
	slots := make(chan struct{}, presentedAtOnce)
	f.Transport.Handle(protocolInvite, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		ctx, cancel := context.WithTimeout(ctx, presentTimeout)
		defer cancel()
		defer context.AfterFunc(ctx, func() { reset(stream) })()
		if err := f.admitInvitee(ctx, peer, stream, slots); err != nil {
			if errors.Is(err, errTooLong) {
				reset(stream)
			}
			f.Log.Debug("invite token refused", "peer", peer, "err", err)
		}
	})
}

// admitInvitee reads a token and answers if it is valid. It takes a slot when it has read and been admitted: who sends nothing has a stream of those that
// strangers have, and keeps nobody out.
func (f *Federation) admitInvitee(ctx context.Context, peer eventgraph.PeerID, s io.ReadWriter, slots chan struct{}) error {
	var m inviteMessage
	if err := readMessage(s, maxPresent, &m); err != nil {
		return err
	}
	h := store.TokenHash(sha256.Sum256([]byte(m.Token)))
	valid := f.invitees.valid(h, f.Now())
	if !valid || f.Friend(peer) { // who comes with a valid token for the first time does not wait behind strangers
		if err := f.admitStream(ctx, peer); err != nil {
			return err
		}
	}
	if !valid {
		return ErrInviteRefused
	}
	release, err := take(ctx, slots)
	if err != nil {
		return err
	}
	defer release()
	_, err = f.Store.Update(ctx, func(tx *store.Tx) error {
		_, err := tx.PresentInviteToken(h, peer, f.Now().UnixMilli())
		return err
	})
	if err != nil {
		return err
	}
	if err := f.loadInvitees(); err != nil {
		return err
	}
	return writeMessage(s, inviteMessage{})
}

// PresentInvite shows a token to the peer that made it, which is dialled if need be, also through the relays that the link names, and learns for
// which server it speaks. Errors: ErrInviteRefused, ErrUnreachable, that of ctx.
func (f *Federation) PresentInvite(ctx context.Context, peer eventgraph.PeerID, token string, relays ...eventgraph.PeerID) error {
	ctx, cancel := context.WithTimeout(ctx, presentDialTimeout)
	defer cancel()
	s, err := f.reachInviter(ctx, peer, token, relays)
	if err != nil {
		return err
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { reset(s) })()
	if err := writeMessage(s, inviteMessage{Token: token}); err != nil {
		return err
	}
	var answer inviteMessage
	switch err := readMessage(s, maxPresent, &answer); {
	case err == nil:
		_, err := f.asker(ctx, peer) // so that what follows finds the server at this peer
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrInviteRefused
	default:
		return err
	}
}
