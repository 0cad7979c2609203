package federation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// The senders' bundles that go with carried messages:
//
//	giver  keep or give, users   each with the digest of the newest bundle that it has
//	taker  want                  those of whom it has none, or an older one; if there are any
//	giver  bundles               them (giveBundles)
//	taker  done
//
// The taker keeps them before it takes the messages. The update of a device list waits for its server, so this is the only way to the destination
// while that is away. A bundle proves itself, so whoever has carried it gains nothing by it.

// offeredBundle tells which bundle of a user the giver has.
type offeredBundle struct {
	Digest []byte `json:"digest"`
	TS     int64  `json:"origin_server_ts"`
}

// sendersOf are those of the messages.
func sendersOf(messages []json.RawMessage) []eventgraph.UserID {
	senders := map[eventgraph.UserID]bool{}
	for _, raw := range messages {
		if _, d, err := parseCarried(raw); err == nil {
			senders[d.Sender] = true
		}
	}
	return slices.Sorted(maps.Keys(senders))
}

// ownBundles are those of the local users who are in a room with the server, by whose ACL it is not denied.
func (f *Federation) ownBundles(server eventgraph.ServerName, users []eventgraph.UserID) (map[eventgraph.UserID]json.RawMessage, error) {
	shared, err := f.meetings.sharing.roomsWith(server)
	if err != nil {
		return nil, err
	}
	bundles := map[eventgraph.UserID]json.RawMessage{}
	for _, user := range users {
		var in bool
		err := f.Store.View(func(r *store.Reader) (err error) {
			in, err = isInOne(r, user, shared)
			return err
		})
		if err != nil {
			return nil, err
		}
		if !in {
			continue
		}
		if raw, _ := f.ownBundle(user); raw != nil {
			bundles[user] = raw
		}
	}
	return bundles, nil
}

// takeKeys asks for the bundles that we have not of the senders of messages that are ours to carry or to take, and keeps them.
func (k *carrying) takeKeys(ctx context.Context, x *exchangeStream, from contact, m *carryMessage) error {
	f := k.f
	wanted := map[eventgraph.UserID]bool{}
	for _, raw := range slices.Concat(m.Keep, m.Give) {
		message, d, err := parseCarried(raw)
		if err != nil {
			continue
		}
		ours := f.isToCarry(message, from.Server)
		if len(m.Give) > 0 {
			ours = f.isForUs(message)
		}
		offer, offered := m.Users[d.Sender]
		if !ours || !offered || wanted[d.Sender] {
			continue
		}
		if wanted[d.Sender], err = f.lacksBundle(d.Sender, offer); err != nil {
			return err
		}
	}
	maps.DeleteFunc(wanted, func(_ eventgraph.UserID, want bool) bool { return !want })
	if len(wanted) == 0 {
		return nil
	}
	if err := x.write(&carryMessage{Want: slices.Sorted(maps.Keys(wanted))}); err != nil {
		return err
	}
	return f.takeBundles(ctx, x, from.Peer, len(wanted), func(raw json.RawMessage) error {
		b, err := f.checkBundle(ctx, raw, from.Server)
		if err != nil || !wanted[b.User] {
			f.Log.Info("keys refused that came with carried messages", "server", from.Server, "err", err)
			return nil
		}
		delete(wanted, b.User)
		return f.keepNewer(ctx, b)
	})
}

// lacksBundle says whether the bundle offered is newer than what is held of the user.
func (f *Federation) lacksBundle(user eventgraph.UserID, offer offeredBundle) (lacks bool, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		held, err := r.HandedKeys(user)
		if errors.Is(err, store.ErrNotFound) {
			lacks = true
			return nil
		}
		lacks = err == nil && held.TS < offer.TS && !bytes.Equal(held.Digest, offer.Digest)
		return err
	})
	return lacks, err
}
