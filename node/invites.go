package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/store"
)

// joinTimeout bounds "plexus join": reaching the inviter, and a join of a large room over a slow link.
const joinTimeout = 5 * time.Minute

// InviteStatus is an invite link as "plexus invite --list" shows it. Devices is how many have presented its token.
type InviteStatus struct {
	ID      string    `json:"id"`
	For     string    `json:"for"`
	Expires time.Time `json:"expires"`
	Devices int       `json:"devices"`
}

func inviteStatus(l federation.InviteLink) InviteStatus {
	return InviteStatus{ID: l.ID, For: l.For, Expires: l.Expires, Devices: l.Holders}
}

// Invite makes a link to a local user or to a room that is held here, valid for the time given; 0 is federation.DefaultInviteLife. about is a
// user's name or ID, a room ID or a local alias; "" is the node's only user.
func (n *Node) Invite(ctx context.Context, about string, life time.Duration) (Link, InviteStatus, error) {
	l, err := n.linkTo(about)
	if err != nil {
		return l, InviteStatus{}, err
	}
	var made federation.InviteLink
	if l.Token, made, err = n.fed.CreateInvite(ctx, cmp.Or(string(l.User), string(l.Room)), cmp.Or(life, federation.DefaultInviteLife)); err != nil {
		return l, InviteStatus{}, err
	}
	l.Peer, l.Addrs = n.keys.peer, linkAddrs(n.P2PAddrs())
	return l, inviteStatus(made), nil
}

// RevokeInvite ends an invite link, known by its ID, and what it gave to those who have used it. Error: federation.ErrNoInvite.
func (n *Node) RevokeInvite(ctx context.Context, id string) error { return n.fed.RevokeInvite(ctx, id) }

// linkTo finds what a link is to be about.
func (n *Node) linkTo(about string) (l Link, err error) {
	err = n.store.View(func(r *store.Reader) error {
		switch {
		case strings.HasPrefix(about, "#"):
			if !strings.Contains(about, ":") {
				about += ":" + string(n.keys.server)
			}
			alias, err := r.Alias(eventgraph.RoomAlias(about))
			if err != nil {
				return fmt.Errorf("no room here has the alias %s", about)
			}
			about = string(alias.Room)
		case about == "":
			var all []string
			err := r.Accounts(func(a *store.Account) (bool, error) {
				if !a.Deactivated {
					all = append(all, string(a.User))
				}
				return true, nil
			})
			if err != nil {
				return err
			}
			if len(all) != 1 {
				return fmt.Errorf("this node has %d users; say whom the link is about, or which room", len(all))
			}
			about = all[0]
		}
		if strings.HasPrefix(about, "!") {
			l.Room, l.Via = eventgraph.RoomID(about), []eventgraph.ServerName{n.keys.server}
			if !n.rooms.InRoom(l.Room, n.keys.server) {
				return fmt.Errorf("nobody here is in the room %s", about)
			}
			return nil
		}
		l.User, err = n.localUser(r, about)
		return err
	})
	return l, err
}

// localUser finds the account of a user given by name or ID.
func (n *Node) localUser(r *store.Reader, name string) (eventgraph.UserID, error) {
	user := n.userID(name)
	if a, err := r.Account(user); errors.Is(err, store.ErrNotFound) || err == nil && a.Deactivated {
		return "", fmt.Errorf("this node has no user %s", user)
	} else if err != nil {
		return "", err
	}
	return user, nil
}

// Joined is what JoinLink did: Peer was reached; Membership is that of User in Room, join or knock, if the link is of a room.
type Joined struct {
	Peer       eventgraph.PeerID `json:"peer_id"`
	User       eventgraph.UserID `json:"user_id,omitempty"` // of a user link: the user to talk to
	Room       eventgraph.RoomID `json:"room_id,omitempty"`
	Membership string            `json:"membership,omitempty"`
}

// JoinLink reaches the inviter's node and presents the link's token. If the link is of a room, the local user joins it, or knocks if the room
// lets nobody in without being asked; user is needed for that alone.
func (n *Node) JoinLink(ctx context.Context, link, user string) (Joined, error) {
	l, err := ParseLink(link)
	if err != nil {
		return Joined{}, err
	}
	if l.Peer == n.keys.peer {
		return Joined{}, errors.New("the link is this node's own; it is for others")
	}
	var local eventgraph.UserID
	if l.Room != "" {
		if user == "" {
			return Joined{}, errors.New("the link is of a room: say who joins it, with --user NAME")
		}
		err := n.store.View(func(r *store.Reader) (err error) { local, err = n.localUser(r, user); return err })
		if err != nil {
			return Joined{}, err
		}
	}
	n.transport.AddAddrs(p2ptransport.PeerID(l.Peer), l.Addrs)
	if err := n.fed.PresentInvite(ctx, l.Peer, l.Token, n.relaysOf(l)...); err != nil {
		return Joined{}, err
	}
	done := Joined{Peer: l.Peer, User: l.User, Room: l.Room}
	if l.Room != "" {
		done.Membership, err = n.joinOrKnock(ctx, l.Room, local, l.Via)
	}
	return done, err
}

// relaysOf are the relays that a link's addresses go through; the transport is told where they are.
func (n *Node) relaysOf(l Link) (relays []eventgraph.PeerID) {
	for _, a := range l.Addrs {
		at, _, circuit := strings.Cut(a, "/p2p-circuit")
		_, id, named := strings.Cut(at, "/p2p/")
		relay := eventgraph.PeerID(id)
		if !circuit || !named || relay.PublicKey() == nil {
			continue
		}
		n.transport.AddAddrs(p2ptransport.PeerID(relay), []string{at})
		if !slices.Contains(relays, relay) {
			relays = append(relays, relay)
		}
	}
	return relays
}

// joinOrKnock brings the user into the room, or to its door.
func (n *Node) joinOrKnock(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID, via []eventgraph.ServerName) (string, error) {
	content := map[string]json.RawMessage{}
	var member *store.Member
	err := n.store.View(func(r *store.Reader) error {
		profile, err := r.Profile(user)
		for _, field := range []string{"displayname", "avatar_url"} {
			if v, ok := profile[field]; ok {
				content[field] = v
			}
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if member, err = r.Member(room, user); errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	if err != nil {
		return "", err
	}
	if member != nil && member.Membership == "join" && !member.Outside {
		return "join", nil
	}
	raw, err := json.Marshal(content)
	if err != nil {
		return "", err
	}
	err = n.fed.Join(ctx, room, user, via, raw)
	if err == nil {
		return "join", nil
	}
	var refusal *rooms.Refusal
	if !errors.As(err, &refusal) || refusal.Code != "M_FORBIDDEN" {
		return "", fmt.Errorf("join %s: %w", room, err)
	}
	if n.fed.Knock(ctx, room, user, via, raw) != nil {
		return "", fmt.Errorf("the room lets in only whom somebody there invites; ask for an invitation of %s (%w)", user, err)
	}
	return "knock", nil
}

// adminInvites adds what "plexus invite" and "plexus join" ask for.
func (n *Node) adminInvites(mux *http.ServeMux) {
	decode := func(w http.ResponseWriter, r *http.Request, v any) error {
		return json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody)).Decode(v)
	}
	mux.HandleFunc("GET /invites", func(w http.ResponseWriter, r *http.Request) {
		links, err := n.fed.Invites()
		slices.SortFunc(links, func(a, b federation.InviteLink) int { return a.Expires.Compare(b.Expires) })
		list := []InviteStatus{}
		for _, l := range links {
			list = append(list, inviteStatus(l))
		}
		answerAdmin(w, list, err)
	})
	mux.HandleFunc("POST /invites", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			About      string `json:"about"`
			LifetimeMS int64  `json:"lifetime_ms"`
		}
		var l Link
		var made InviteStatus
		err := decode(w, r, &body)
		if err == nil {
			l, made, err = n.Invite(r.Context(), body.About, time.Duration(body.LifetimeMS)*time.Millisecond)
		}
		answerAdmin(w, map[string]any{"link": l.String(), "invite": made}, err)
	})
	mux.HandleFunc("DELETE /invites/{id}", func(w http.ResponseWriter, r *http.Request) {
		answerAdmin(w, struct{}{}, n.RevokeInvite(r.Context(), r.PathValue("id")))
	})
	mux.HandleFunc("POST /join", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Link, User string }
		var done Joined
		err := decode(w, r, &body)
		if err == nil {
			ctx, cancel := context.WithTimeout(r.Context(), joinTimeout)
			defer cancel()
			done, err = n.JoinLink(ctx, body.Link, body.User)
		}
		answerAdmin(w, done, err)
	})
}
