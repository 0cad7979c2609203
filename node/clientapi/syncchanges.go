package clientapi

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// changes is what happened in a span of the log, as far as one user may care. Spans are added one after
// another while a long poll waits.
type changes struct {
	user        eventgraph.UserID
	device      store.DeviceID
	upTo        store.Position                     // of the last span
	timeline    map[eventgraph.RoomID]bool         // rooms with new events, any room
	membership  map[eventgraph.RoomID]bool         // the user's membership changed outside a timeline
	receipts    map[eventgraph.RoomID]receiptMoves // that the user may see
	accountData map[eventgraph.RoomID][]string     // types; under "" the global ones
	deviceLists map[eventgraph.UserID]bool         // any user whose keys changed, and those whose keys the user signed
	toDevice    bool                               // messages were queued for the device
	keyCounts   bool                               // of the device
	keysLeft    *store.KeyCounts                   // of the device, as last read; nil: not read yet
}

type receiptRef struct {
	user        eventgraph.UserID
	receiptType string
}

// receiptMoves are the receipts of a room that have moved, with the events at which they were put; nil: at any.
type receiptMoves map[receiptRef]map[eventgraph.EventID]bool

// maxReceiptMoves is how many events are remembered for a user's receipts in one answer: beyond it all that they have there are told.
const maxReceiptMoves = 100

func (moves receiptMoves) add(ref receiptRef, event eventgraph.EventID) {
	events, known := moves[ref]
	switch {
	case known && events == nil:
	case event == "" || len(events) == maxReceiptMoves:
		moves[ref] = nil
	case !known:
		moves[ref] = map[eventgraph.EventID]bool{event: true}
	default:
		events[event] = true
	}
}

// of says whether receipts of that user's have moved.
func (moves receiptMoves) of(user eventgraph.UserID) bool {
	for ref := range moves {
		if ref.user == user {
			return true
		}
	}
	return false
}

func newChanges(user eventgraph.UserID, device store.DeviceID) *changes {
	return &changes{
		user: user, device: device,
		timeline:    map[eventgraph.RoomID]bool{},
		membership:  map[eventgraph.RoomID]bool{},
		receipts:    map[eventgraph.RoomID]receiptMoves{},
		accountData: map[eventgraph.RoomID][]string{},
		deviceLists: map[eventgraph.UserID]bool{},
	}
}

// gather adds the changes with after < position ≤ upTo.
func (c *changes) gather(r *store.Reader, after, upTo store.Position) error {
	c.upTo = upTo
	return r.Changes(after, upTo, func(_ store.Position, change store.Change) (bool, error) {
		switch change.Kind {
		case store.ChangeEvent:
			c.timeline[change.Room] = true
		case store.ChangeMembership:
			if change.User == c.user {
				c.membership[change.Room] = true
			}
		case store.ChangeReceipt:
			ref := receiptRef{change.User, change.Key}
			if ref.visibleTo(c.user) {
				if c.receipts[change.Room] == nil {
					c.receipts[change.Room] = receiptMoves{}
				}
				c.receipts[change.Room].add(ref, change.Event)
			}
		case store.ChangeAccountData:
			if change.User == c.user && !slices.Contains(c.accountData[change.Room], change.Key) {
				c.accountData[change.Room] = append(c.accountData[change.Room], change.Key)
			}
		case store.ChangeDeviceList:
			if signed, ok := change.SignedUser(); !ok {
				c.deviceLists[change.User] = true
			} else if change.User == c.user {
				c.deviceLists[signed] = true
			}
		case store.ChangeToDevice:
			c.toDevice = c.toDevice || change.User == c.user && change.Device == c.device
		case store.ChangeDeviceUnused:
			c.keyCounts = c.keyCounts || change.User == c.user && change.Device == c.device
		}
		return true, nil
	})
}

// visibleTo says whether the user may be told of the receipt: m.read.private is its user's alone.
func (ref receiptRef) visibleTo(user eventgraph.UserID) bool {
	return ref.receiptType != "m.read.private" || ref.user == user
}

// rooms lists the rooms in which anything durable changed that could concern the user, sorted.
func (c *changes) rooms() []eventgraph.RoomID {
	var rooms []eventgraph.RoomID
	for room := range c.timeline {
		rooms = append(rooms, room)
	}
	for room := range c.membership {
		rooms = append(rooms, room)
	}
	for room := range c.receipts {
		rooms = append(rooms, room)
	}
	for room := range c.accountData {
		if room != "" {
			rooms = append(rooms, room)
		}
	}
	slices.Sort(rooms)
	return slices.Compact(rooms)
}
