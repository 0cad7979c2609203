package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	// MaxInviteTokens is how many invite tokens there may be at one time: a person hands out some a week, and each is valid for as long.
	MaxInviteTokens = 64
	// MaxTokenHolders is how many peers may present one token: a link on a poster brings a class or a village, not the world.
	MaxTokenHolders = 64
)

var (
	// ErrTooManyTokens: MaxInviteTokens are valid; one must be revoked or expire first.
	ErrTooManyTokens = errors.New("there are too many invite links; revoke one first")
	// ErrTokenUsedUp: MaxTokenHolders other peers have presented the token.
	ErrTokenUsedUp = errors.New("the invite link has been used by too many devices")
)

// InviteToken is what an invite link lets its holders do: be served as those who share a room with us are. The token itself is not stored.
type InviteToken struct {
	Hash      TokenHash           `json:"-"`
	For       string              `json:"for"` // the user or room ID that the link shows
	CreatedTS int64               `json:"created_ts"`
	ExpiresTS int64               `json:"expires_ts"` // ms; not valid from then on
	Holders   []eventgraph.PeerID `json:"holders,omitempty"`
}

// InviteTokens calls f for each token, expired ones among them.
func (r *Reader) InviteTokens(f func(*InviteToken) (bool, error)) error {
	return r.scan(key(tableInviteToken), nil, false, func(k, v []byte) (bool, error) {
		t := &InviteToken{}
		if len(k) != 1+len(t.Hash) {
			return false, fmt.Errorf("invite token in the store: key of %d bytes", len(k))
		}
		copy(t.Hash[:], k[1:])
		if err := json.Unmarshal(v, t); err != nil {
			return false, fmt.Errorf("invite token in the store: %w", err)
		}
		return f(t)
	})
}

// AddInviteToken keeps a new token and forgets those expired at its CreatedTS. Error: ErrTooManyTokens.
func (tx *Tx) AddInviteToken(t *InviteToken) error {
	count := 0
	err := tx.InviteTokens(func(other *InviteToken) (bool, error) {
		if other.ExpiresTS <= t.CreatedTS {
			return true, tx.DeleteInviteToken(other.Hash)
		}
		count++
		return true, nil
	})
	switch {
	case err != nil:
		return err
	case count >= MaxInviteTokens:
		return ErrTooManyTokens
	}
	return tx.putJSON(key(tableInviteToken).bytes(t.Hash[:]), t)
}

// PresentInviteToken notes that the peer has presented the token with that hash, and returns it. Errors: ErrNotFound, also if it has expired at
// now (ms), and ErrTokenUsedUp.
func (tx *Tx) PresentInviteToken(h TokenHash, peer eventgraph.PeerID, now int64) (*InviteToken, error) {
	t := &InviteToken{Hash: h}
	if err := tx.getJSON(key(tableInviteToken).bytes(h[:]), t); err != nil {
		return nil, err
	}
	switch {
	case t.ExpiresTS <= now:
		return nil, ErrNotFound
	case slices.Contains(t.Holders, peer):
		return t, nil
	case len(t.Holders) >= MaxTokenHolders:
		return nil, ErrTokenUsedUp
	}
	t.Holders = append(t.Holders, peer)
	return t, tx.putJSON(key(tableInviteToken).bytes(h[:]), t)
}

// DeleteInviteToken revokes a token, if it is there.
func (tx *Tx) DeleteInviteToken(h TokenHash) error {
	return tx.delete(key(tableInviteToken).bytes(h[:]))
}
