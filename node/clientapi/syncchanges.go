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
	receipts    map[eventgraph.RoomID][]receiptRef // that the user may see
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

func newChanges(user eventgraph.UserID, device store.DeviceID) *changes {
	return &changes{
		user: user, device: device,
		timeline:    map[eventgraph.RoomID]bool{},
		membership:  map[eventgraph.RoomID]bool{},
		receipts:    map[eventgraph.RoomID][]receiptRef{},
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
			if ref.visibleTo(c.user) && !slices.Contains(c.receipts[change.Room], ref) {
				c.receipts[change.Room] = append(c.receipts[change.Room], ref)
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
