package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxListedState bounds the events in one answer about a room's state, some 6 MB; a type can be asked for.
	maxListedState = 10_000
	// purgeReportEvery is how often a purge says how far it is.
	purgeReportEvery = 500 * time.Millisecond
)

// RoomInfo is a room as "plexus room list" shows it.
type RoomInfo struct {
	Room        eventgraph.RoomID      `json:"room_id"`
	Version     eventgraph.RoomVersion `json:"version"`
	Name        string                 `json:"name,omitempty"`
	Alias       string                 `json:"canonical_alias,omitempty"`
	Members     int                    `json:"joined_members"`
	LocalUsers  []eventgraph.UserID    `json:"local_users,omitempty"` // joined
	Servers     int                    `json:"servers"`               // with a joined user
	Extremities int                    `json:"extremities"`
	Events      int64                  `json:"events"` // in the room's order, without purged ones
	Purged      int64                  `json:"purged,omitempty"`
}

// RoomList lists the rooms held here, those with most members first.
func (n *Node) RoomList() ([]RoomInfo, error) {
	list := []RoomInfo{}
	err := n.store.View(func(r *store.Reader) error {
		return r.Rooms(func(room *store.Room) (bool, error) {
			info := RoomInfo{Room: room.ID, Version: room.Version, Extremities: len(room.Forward), Purged: room.Purged}
			info.Events = room.NextOrder - room.PrevOrder - 2 - room.Skipped - room.Purged
			summary, err := n.rooms.Summary(room.ID)
			if err != nil {
				return false, err
			}
			servers, err := n.rooms.Servers(room.ID)
			if err != nil {
				return false, err
			}
			info.Name, info.Alias, info.Members, info.Servers = summary.Name, summary.CanonicalAlias, summary.Joined, len(servers)
			list = append(list, info)
			return true, nil
		})
	})
	if err != nil {
		return nil, err
	}
	at := map[eventgraph.RoomID]int{}
	slices.SortFunc(list, func(a, b RoomInfo) int { return cmp.Or(cmp.Compare(b.Members, a.Members), cmp.Compare(a.Room, b.Room)) })
	for i, info := range list {
		at[info.Room] = i
	}
	err = n.store.View(func(r *store.Reader) error {
		return r.Accounts(func(a *store.Account) (bool, error) {
			return true, r.RoomsOf(a.User, func(m *store.Member) (bool, error) {
				if i, held := at[m.Room]; held && m.Membership == "join" && !m.Outside {
					list[i].LocalUsers = append(list[i].LocalUsers, a.User)
				}
				return true, nil
			})
		})
	})
	return list, err
}

// StateEvent is an event of a room's state.
type StateEvent struct {
	Type    string             `json:"type"`
	Key     string             `json:"state_key"`
	Sender  eventgraph.UserID  `json:"sender"`
	TS      int64              `json:"origin_server_ts"`
	Event   eventgraph.EventID `json:"event_id"`
	Content json.RawMessage    `json:"content"`
}

// RoomState is the current state of a room, or what was asked for of it, by type and key. LeftOut counts what is beyond maxListedState.
type RoomState struct {
	Room    eventgraph.RoomID `json:"room_id"`
	State   []StateEvent      `json:"state"`
	LeftOut int               `json:"left_out,omitempty"`
}

// RoomStateOf reads the state events that wanted says yes to.
func (n *Node) RoomStateOf(room eventgraph.RoomID, wanted func(eventgraph.StateTuple) bool) (*RoomState, error) {
	current, err := n.rooms.CurrentState(room)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("there is no room %s here", room)
	}
	if err != nil {
		return nil, err
	}
	answer := &RoomState{Room: room, State: []StateEvent{}}
	type entry struct {
		tuple eventgraph.StateTuple
		id    eventgraph.EventID
	}
	var entries []entry
	err = current.Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		switch {
		case !wanted(t):
		case len(entries) == maxListedState:
			answer.LeftOut++
		default:
			entries = append(entries, entry{t, id})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.tuple.Type, b.tuple.Type), cmp.Compare(a.tuple.Key, b.tuple.Key))
	})
	err = n.store.View(func(r *store.Reader) error {
		for _, entry := range entries {
			e, err := r.Event(entry.id)
			if err != nil {
				return err
			}
			answer.State = append(answer.State, StateEvent{
				entry.tuple.Type, entry.tuple.Key, e.Sender(), e.OriginServerTS(), e.ID(), json.RawMessage(e.Shown().Content()),
			})
		}
		return nil
	})
	return answer, err
}

// roomNamed finds a room by ID or local alias. It need not be held here.
func (n *Node) roomNamed(name string) (room eventgraph.RoomID, err error) {
	if !strings.HasPrefix(name, "#") {
		if room, err = eventgraph.ParseRoomID(name); err != nil {
			return "", fmt.Errorf("a room is named by its ID (!…) or an alias (#…), not %q", name)
		}
		return room, nil
	}
	if !strings.Contains(name, ":") {
		name += ":" + string(n.keys.server)
	}
	err = n.store.View(func(r *store.Reader) error {
		alias, err := r.Alias(eventgraph.RoomAlias(name))
		if errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("no room here has the alias %s", name)
		}
		if err == nil {
			room = alias.Room
		}
		return err
	})
	return room, err
}

// adminRooms adds what "plexus room" asks for.
func (n *Node) adminRooms(mux *http.ServeMux) {
	mux.HandleFunc("GET /rooms", func(w http.ResponseWriter, r *http.Request) {
		list, err := n.RoomList()
		answerAdmin(w, list, err)
	})
	mux.HandleFunc("GET /rooms/{room}/state", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		var state *RoomState
		room, err := n.roomNamed(r.PathValue("room"))
		if err == nil {
			state, err = n.RoomStateOf(room, func(t eventgraph.StateTuple) bool {
				return (!query.Has("type") || t.Type == query.Get("type")) && (!query.Has("key") || t.Key == query.Get("key"))
			})
		}
		answerAdmin(w, state, err)
	})
	mux.HandleFunc("POST /rooms/{room}/leave", func(w http.ResponseWriter, r *http.Request) {
		left := []eventgraph.UserID{}
		room, err := n.roomNamed(r.PathValue("room"))
		var user eventgraph.UserID
		if name := r.URL.Query().Get("user"); err == nil && name != "" {
			var account *store.Account
			if account, err = n.account(name); err == nil {
				user = account.User
			}
		}
		if err == nil {
			left, err = n.api.LeaveRoom(r.Context(), room, user)
		}
		answerAdmin(w, map[string]any{"left": left}, err)
	})
	mux.HandleFunc("POST /rooms/{room}/purge", func(w http.ResponseWriter, r *http.Request) {
		limit, err := purgeLimit(r)
		var room eventgraph.RoomID
		if err == nil {
			room, err = n.roomNamed(r.PathValue("room"))
		}
		if err != nil {
			answerAdmin(w, nil, err)
			return
		}
		io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxAdminBody)) // only then is it noticed that the asker goes away
		n.purge(r.Context(), w, room, limit)
	})
}

func purgeLimit(r *http.Request) (limit rooms.PurgeLimit, err error) {
	query := r.URL.Query()
	if limit.Event = eventgraph.EventID(query.Get("event")); limit.Event == "" {
		limit.Time, err = strconv.ParseInt(query.Get("time"), 10, 64)
	}
	return limit, err
}

// PurgeLine is a line of the answer to a purge: how far it is, and at the end Done or Error.
type PurgeLine struct {
	rooms.PurgeProgress
	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

// purge purges a room and tells how far it is, in a line of JSON now and then. It ends when the asker goes away; what is done is done.
func (n *Node) purge(ctx context.Context, w http.ResponseWriter, room eventgraph.RoomID, limit rooms.PurgeLimit) {
	w.Header().Set("Content-Type", "application/json")
	lines := json.NewEncoder(w)
	told := time.Now()
	done, err := n.rooms.Purge(ctx, room, limit, func(p rooms.PurgeProgress) {
		if time.Since(told) < purgeReportEvery {
			return
		}
		told = time.Now()
		lines.Encode(PurgeLine{PurgeProgress: p}) // the asker has gone if this fails, and ctx ends
		http.NewResponseController(w).Flush()
	})
	last := PurgeLine{PurgeProgress: done, Done: err == nil}
	switch {
	case errors.Is(err, store.ErrNotFound):
		last.Error = fmt.Sprintf("there is no room %s here", room)
	case err != nil:
		last.Error = err.Error()
	}
	lines.Encode(last)
}
