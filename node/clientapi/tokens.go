package clientapi

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/store"
)

// Tokens are opaque to clients. There are two kinds:
//
//	s<incarnation>_<position>_<to-device>_<boot>_<ephemeral>_<device>   since and next_batch of /sync
//	t<incarnation>_<order>                                              a point in one room's order
//
// Numbers are decimal, the rest is hexadecimal: incarnation 32 digits in s, its first 8 in t; boot and device 8.
// A point t<order> lies just after the event with that order: backwards from it come the events
// with order ≤ it, forwards those with order > it. Wherever a room's point is asked for, an s token serves too, and a pos of
// sliding sync (slidingToken).

// syncToken says what a client has been given.
type syncToken struct {
	incarnation store.Incarnation
	pos         store.Position    // all durable changes up to it
	toDevice    store.Position    // to-device messages up to it; less than pos where there were too many for one answer
	boot        uint32            // the process in which ephemeral counts
	ephemeral   ephemeral.Counter // typing and presence up to it
	device      uint32            // deviceTag of whom it was made for
}

func (t syncToken) String() string {
	return fmt.Sprintf("s%x_%d_%d_%08x_%d_%08x", t.incarnation[:], t.pos, t.toDevice, t.boot, t.ephemeral, t.device)
}

// deviceTag ties a token to its device, so that a token handed to another device never acknowledges that one's
// to-device messages.
func deviceTag(user eventgraph.UserID, device store.DeviceID) uint32 {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s\x00%s", user, device)
	return h.Sum32()
}

var errToken = errors.New("not a token of this server")

// parseSyncToken reads what syncToken.String wrote; errToken. Whether the incarnation is ours is the caller's question.
func parseSyncToken(s string) (syncToken, error) {
	var t syncToken
	rest, ok := strings.CutPrefix(s, "s")
	parts := strings.Split(rest, "_")
	if !ok || len(parts) != 6 || len(parts[0]) != 2*len(t.incarnation) {
		return syncToken{}, errToken
	}
	_, err := hex.Decode(t.incarnation[:], []byte(parts[0]))
	number := func(s string, base, bits int) uint64 {
		n, e := strconv.ParseUint(s, base, bits)
		err = errors.Join(err, e)
		return n
	}
	t.pos = store.Position(number(parts[1], 10, 64))
	t.toDevice = store.Position(number(parts[2], 10, 64))
	t.boot = uint32(number(parts[3], 16, 32))
	t.ephemeral = ephemeral.Counter(number(parts[4], 10, 64))
	t.device = uint32(number(parts[5], 16, 32))
	if err != nil || t.toDevice > t.pos {
		return syncToken{}, errToken
	}
	return t, nil
}

// roomToken names the point just after the event with this order.
func (a *API) roomToken(order int64) string {
	inc := a.Store.Incarnation()
	return fmt.Sprintf("t%x_%d", inc[:4], order)
}

// parseToken reads a token where a point in a room is asked for: prev_batch, start and end of /messages, next_batch
// of /sync. It answers M_INVALID_PARAM for what is none of ours, also for one of an older incarnation, whose orders
// may have been given anew since.
func (a *API) parseToken(r *store.Reader, room eventgraph.RoomID, token string) (order int64, err error) {
	inc := a.Store.Incarnation()
	if rest, ok := strings.CutPrefix(token, fmt.Sprintf("t%x_", inc[:4])); ok {
		if order, err = strconv.ParseInt(rest, 10, 64); err == nil {
			return order, nil
		}
	} else if t, err := parseSyncToken(token); err == nil && t.incarnation == inc {
		return a.orderAt(r, room, t.pos)
	} else if t, err := parseSlidingToken(token); err == nil && t.incarnation == inc {
		return a.orderAt(r, room, t.pos)
	}
	return 0, fail(http.StatusBadRequest, "M_INVALID_PARAM", "This token was not made by this server, or not lately")
}

// latestPosition lies after every change that there is.
const latestPosition = store.Position(math.MaxUint64 - 1)

// orderAt maps a position to the room's order: that of the newest event at or before it; 0, which is before all live
// events and after all backfilled ones, if there was none.
func (a *API) orderAt(r *store.Reader, room eventgraph.RoomID, pos store.Position) (int64, error) {
	e, err := eventAt(r, room, pos)
	if err != nil || e == nil {
		return 0, err
	}
	return e.Order, nil
}

// eventAt is the room's newest timeline event at or before the position; nil if there was none.
func eventAt(r *store.Reader, room eventgraph.RoomID, pos store.Position) (*store.StoredEvent, error) {
	var id eventgraph.EventID
	err := r.RoomChanges(room, pos, 0, func(_ store.Position, e eventgraph.EventID) (bool, error) {
		id = e
		return false, nil
	})
	if err != nil || id == "" {
		return nil, err
	}
	return r.Event(id)
}

// stateRoot is the room's resolved state once the event had been taken in.
func stateRoot(e *store.StoredEvent) eventgraph.Hash {
	if e.RoomState != (eventgraph.Hash{}) {
		return e.RoomState
	}
	return e.StateAfter // backfilled: never the newest of the room
}
