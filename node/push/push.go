// Package push tells push gateways what users are notified of (CS API, Push Notifications; Push Gateway API). It reads the store's changes as
// /sync does; what a change means to a user it asks its Source.
package push

import (
	"encoding/json"
	"errors"
	"net/url"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/outgoing"
	"github.com/plexus-p2p/plexus/store"
)

// Path is that of every push gateway's URL (CS API, POST /pushers/set, PusherData).
const Path = "/_matrix/push/v1/notify"

// Gateways says which push gateways may be called. Users of this node name them, and who may have an account here need not be one who may call
// whatever stands in this node's network. So by default they are on public addresses and spoken to over HTTPS, as the spec demands.
type Gateways struct {
	Private bool // also those in private networks and on this machine, there over HTTP too
	LANOnly bool // of these, only such as have an IP address in their URL: no packet goes out of private ranges
}

// reach says where gateways of a URL scheme may be.
func (g Gateways) reach(scheme string) outgoing.Reach {
	return outgoing.Reach{Public: !g.LANOnly && scheme == "https", Private: g.Private, Names: !g.LANOnly}
}

// Check says whether the URL is that of a gateway that may be called; the error tells a person why not. What its name leads to is seen when it is
// called.
func (g Gateways) Check(address string) error {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Path != Path || u.RawPath != "" || u.RawQuery != "" || u.Fragment != "":
		return errors.New("its path must be " + Path)
	case u.Scheme != "https" && !(u.Scheme == "http" && g.Private):
		return errors.New("it must begin with https://")
	}
	return g.reach(u.Scheme).Check(u)
}

// Source says what the store's changes mean to a user; *clientapi.API in a node.
type Source interface {
	// Notices says which of these events of one room, the oldest first, the user is to be told of and has not read: the newest of them, at
	// most so many, in the same order.
	Notices(r *store.Reader, user eventgraph.UserID, room eventgraph.RoomID, events []eventgraph.EventID, most int) ([]Notice, error)
	// Invitation is the notice of an invite to a room that is not held here; nil if the user is not to be told of it.
	Invitation(r *store.Reader, m *store.Member) (*Notice, error)
	// Unread counts the unread notifications of a room, in all threads; 0 if the user is not joined to it.
	Unread(r *store.Reader, user eventgraph.UserID, room eventgraph.RoomID) (int, error)
}

// Notice is an event that a user is to be told of, with what a push gateway may be given of it (Push Gateway API, Notification).
type Notice struct {
	Position   store.Position // of the change that brought it
	ReceivedTS int64          // ms, when the event came here; 0: not known
	Event      eventgraph.EventID
	Room       eventgraph.RoomID
	Type       string
	Sender     eventgraph.UserID
	SenderName string // in the room; "" if none
	RoomName   string // "" if it has none
	RoomAlias  string // likewise
	Target     bool   // the event is about the user's own membership
	Urgent     bool   // prio high
	Content    json.RawMessage
	Tweaks     map[string]json.RawMessage
}
