package rooms

import (
	"cmp"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// maxSummaries bounds the summaries kept in memory: a search of the directory looks at all published rooms.
const maxSummaries = 1024

// Summary is what a room looks like to who is not in it (CS API, room_summary.yaml; server-server public_rooms_chunk.yaml is a part of it).
type Summary struct {
	RoomID         eventgraph.RoomID      `json:"room_id"`
	Name           string                 `json:"name,omitempty"`
	Topic          string                 `json:"topic,omitempty"`
	CanonicalAlias string                 `json:"canonical_alias,omitempty"`
	AvatarURL      string                 `json:"avatar_url,omitempty"`
	JoinRule       string                 `json:"join_rule,omitempty"`
	RoomType       string                 `json:"room_type,omitempty"`
	Joined         int                    `json:"num_joined_members"`
	WorldReadable  bool                   `json:"world_readable"`
	GuestCanJoin   bool                   `json:"guest_can_join"`
	Allowed        []eventgraph.RoomID    `json:"allowed_room_ids,omitempty"` // whose members a restricted room lets in
	Encryption     string                 `json:"encryption,omitempty"`       // the algorithm
	Version        eventgraph.RoomVersion `json:"room_version,omitempty"`
}

// Size is about how many bytes of memory the summary takes.
func (s *Summary) Size() int {
	const fixed, perString = 256, 16
	size := fixed + len(s.RoomID) + len(s.Name) + len(s.Topic) + len(s.CanonicalAlias) + len(s.AvatarURL) + len(s.JoinRule) + len(s.RoomType) +
		len(s.Encryption) + len(s.Version)
	for _, room := range s.Allowed {
		size += perString + len(room)
	}
	return size
}

// Open says whether somebody who is not in the room, nor invited, may look at it, join it or knock on it (CS API, GET hierarchy); in says
// what other rooms they are in. A join rule that was not said means public (public_rooms_chunk.yaml).
func (s *Summary) Open(in func(eventgraph.RoomID) bool) bool {
	switch s.JoinRule {
	case "", "public", "knock", "knock_restricted":
		return true
	case "restricted":
		if slices.ContainsFunc(s.Allowed, in) {
			return true
		}
	}
	return s.WorldReadable
}

// summarized is a summary with the state that it is of.
type summarized struct {
	root    eventgraph.Hash
	summary *Summary
}

// Summary is what the room looks like now; store.ErrNotFound if it is not held. It is not to be changed.
func (r *Rooms) Summary(room eventgraph.RoomID) (*Summary, error) {
	l, err := r.liveRoom(room)
	if err != nil {
		return nil, err
	}
	if kept, ok := r.summaries.Get(room); ok && kept.root == l.State {
		return kept.summary, nil
	}
	s, err := r.summarize(room, newState(r, l.State))
	if err != nil {
		return nil, err
	}
	c, err := r.census(room, l.State)
	if err != nil {
		return nil, err
	}
	for _, n := range c.joined {
		s.Joined += n
	}
	r.summaries.Add(room, summarized{l.State, s})
	return s, nil
}

// summarize reads all of a summary but the number of members.
func (r *Rooms) summarize(room eventgraph.RoomID, state *State) (*Summary, error) {
	var content struct {
		Name       string `json:"name"`
		Topic      string `json:"topic"`
		Alias      string `json:"alias"`
		URL        string `json:"url"`
		JoinRule   string `json:"join_rule"`
		Type       string `json:"type"`
		Visibility string `json:"history_visibility"`
		Guests     string `json:"guest_access"`
		Algorithm  string `json:"algorithm"`
		Allow      []struct {
			Type string            `json:"type"`
			Room eventgraph.RoomID `json:"room_id"`
		} `json:"allow"`
	}
	s := &Summary{RoomID: room}
	for _, t := range []string{"m.room.create", "m.room.name", "m.room.topic", "m.room.canonical_alias", "m.room.avatar",
		"m.room.join_rules", "m.room.history_visibility", "m.room.guest_access", "m.room.encryption"} {
		e, err := state.Event(eventgraph.StateTuple{Type: t})
		if err != nil {
			return nil, err
		}
		if e == nil {
			continue
		}
		part := content
		if json.Unmarshal(e.Content(), &part) == nil { // members of another type are as absent
			content = part
		}
		s.Version = e.Version()
	}
	s.Name, s.Topic, s.CanonicalAlias, s.AvatarURL = content.Name, content.Topic, content.Alias, content.URL
	s.RoomType, s.Encryption = content.Type, content.Algorithm
	s.JoinRule = cmp.Or(content.JoinRule, "invite") // what the authorization rules take for granted
	s.WorldReadable, s.GuestCanJoin = content.Visibility == "world_readable", content.Guests == "can_join"
	if s.JoinRule == "restricted" || s.JoinRule == "knock_restricted" {
		for _, a := range content.Allow {
			if a.Type == "m.room_membership" && a.Room != "" {
				s.Allowed = append(s.Allowed, a.Room)
			}
		}
	}
	return s, nil
}

const (
	maxPublicRooms = 100     // of one page of the directory
	maxPublicTerm  = 1 << 10 // bytes to search for in each published room's name, topic and alias
	maxPublicTypes = 100     // to choose rooms by
)

// PublicQuery asks for a page of the directory of published rooms: the body of POST /publicRooms in both APIs.
type PublicQuery struct {
	Limit  int    `json:"limit,omitempty"`
	Since  string `json:"since,omitempty"`
	Filter struct {
		Term      string    `json:"generic_search_term,omitempty"`
		RoomTypes []*string `json:"room_types,omitempty"` // null: rooms without a type; absent: all
	} `json:"filter"`
	AllNetworks bool   `json:"include_all_networks,omitempty"`    // those that application services publish, too
	Network     string `json:"third_party_instance_id,omitempty"` // those of one of their networks alone
}

// PublicPage is a page of the directory (public_rooms_response.yaml).
type PublicPage struct {
	Chunk     []*Summary `json:"chunk"`
	NextBatch string     `json:"next_batch,omitempty"`
	PrevBatch string     `json:"prev_batch,omitempty"`
	Total     int        `json:"total_room_count_estimate"`
}

// listed are the rooms of the directory that is asked for: ours, that of a network of an application service, or all together.
func listed(r *store.Reader, q PublicQuery) ([]eventgraph.RoomID, error) {
	if q.Network != "" && !q.AllNetworks {
		service, network, _ := strings.Cut(q.Network, "|") // appservice.InstanceID
		if service == "" {
			return nil, nil
		}
		return r.NetworkRooms(service, network)
	}
	ids, err := r.PublishedRooms()
	if err != nil || !q.AllNetworks {
		return ids, err
	}
	more, err := r.NetworkRooms("", "")
	ids = append(ids, more...)
	slices.Sort(ids)
	return slices.Compact(ids), err
}

// Check refuses what no client asks for, and would cost much for each published room: *Refusal M_INVALID_PARAM.
func (q *PublicQuery) Check() error {
	switch {
	case len(q.Filter.Term) > maxPublicTerm:
		return &Refusal{Code: "M_INVALID_PARAM", Reason: "generic_search_term is too long"}
	case len(q.Filter.RoomTypes) > maxPublicTypes:
		return &Refusal{Code: "M_INVALID_PARAM", Reason: "there are too many room_types"}
	}
	return nil
}

// Public is a page of our published rooms, the largest first; tokens are the number of rooms before the page. *Refusal M_INVALID_PARAM.
func (r *Rooms) Public(q PublicQuery) (*PublicPage, error) {
	if err := q.Check(); err != nil {
		return nil, err
	}
	if q.Limit <= 0 || q.Limit > maxPublicRooms {
		q.Limit = maxPublicRooms
	}
	first := 0
	if q.Since != "" {
		var err error
		if first, err = strconv.Atoi(q.Since); err != nil || first < 0 {
			return nil, &Refusal{Code: "M_INVALID_PARAM", Reason: "since is not a token of this server"}
		}
	}
	var ids []eventgraph.RoomID
	if err := r.store.View(func(read *store.Reader) (err error) {
		ids, err = listed(read, q)
		return err
	}); err != nil {
		return nil, err
	}
	term := strings.ToLower(strings.TrimSpace(q.Filter.Term))
	var found []*Summary
	for _, id := range ids {
		s, err := r.Summary(id)
		if errors.Is(err, store.ErrNotFound) {
			continue // published, and gone since
		}
		if err != nil {
			return nil, err
		}
		if s.mentions(term) && s.isOneOf(q.Filter.RoomTypes) {
			found = append(found, s)
		}
	}
	slices.SortFunc(found, func(x, y *Summary) int {
		return cmp.Or(cmp.Compare(y.Joined, x.Joined), cmp.Compare(x.RoomID, y.RoomID))
	})
	page := &PublicPage{Chunk: []*Summary{}, Total: len(found)}
	first = min(first, len(found))
	end := min(first+q.Limit, len(found))
	page.Chunk = append(page.Chunk, found[first:end]...)
	if end < len(found) {
		page.NextBatch = strconv.Itoa(end)
	}
	if first > 0 {
		page.PrevBatch = strconv.Itoa(max(0, first-q.Limit))
	}
	return page, nil
}

// mentions says whether name, topic or alias contain the term, which is in lower case.
func (s *Summary) mentions(term string) bool {
	return term == "" || slices.ContainsFunc([]string{s.Name, s.Topic, s.CanonicalAlias}, func(text string) bool {
		return strings.Contains(strings.ToLower(text), term)
	})
}

// isOneOf applies the filter room_types, in which null means rooms without a type.
func (s *Summary) isOneOf(types []*string) bool {
	return types == nil || slices.ContainsFunc(types, func(t *string) bool {
		return t == nil && s.RoomType == "" || t != nil && *t == s.RoomType
	})
}
