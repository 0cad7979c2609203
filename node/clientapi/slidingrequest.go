package clientapi

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Simplified sliding sync (MSC4186), in its unstable form, which is what clients speak: the client names windows of its list of rooms
// and single rooms, and is sent those of them that are new to it or have changed. Files: slidingrequest.go what is asked,
// slidinglist.go which rooms that is, sliding.go one call, slidingroom.go one room, slidingextensions.go the rest, slidingconn.go what the
// client has already.

// Bounds of a request (MSC4186, Top-level: 100 lists, 100 subscriptions).
const (
	maxSlidingLists  = 100
	maxSubscriptions = 100
	maxRanges        = 20    // of one list; clients have one
	maxRequiredState = 1_000 // patterns of all rules together; clients name some 20 in each
	maxConnID        = 255   // bytes; clients use 16
	maxFilterNames   = 100   // of each part of a list's filters: tags, types of rooms, spaces
	maxCovered       = 1_000 // lists and rooms that an extension names
)

// slidingRequest is one call.
type slidingRequest struct {
	ConnID        string                             `json:"conn_id"`
	Lists         map[string]*slidingList            `json:"lists"`
	Subscriptions map[eventgraph.RoomID]*slidingRule `json:"room_subscriptions"`
	Extensions    struct {
		ToDevice struct {
			Enabled bool   `json:"enabled"`
			Limit   *int   `json:"limit"`
			Since   string `json:"since"`
		} `json:"to_device"`
		E2EE struct {
			Enabled bool `json:"enabled"`
		} `json:"e2ee"`
		AccountData roomExtension `json:"account_data"`
		Receipts    roomExtension `json:"receipts"`
		Typing      roomExtension `json:"typing"`
	} `json:"extensions"`
}

// roomExtension configures an extension that is about rooms: those of the lists and subscriptions that it names, or of all.
type roomExtension struct {
	Enabled bool                 `json:"enabled"`
	Lists   *[]string            `json:"lists"`
	Rooms   *[]eventgraph.RoomID `json:"rooms"`

	lists map[string]bool // the same, by name
	rooms map[eventgraph.RoomID]bool
}

// prepare checks how much the extension names, and makes it ready to be asked.
func (e *roomExtension) prepare() error {
	if e.Lists != nil {
		if len(*e.Lists) > maxCovered {
			return invalidParam("An extension names too many lists.")
		}
		e.lists = setOf(*e.Lists)
	}
	if e.Rooms != nil {
		if len(*e.Rooms) > maxCovered {
			return invalidParam("An extension names too many rooms.")
		}
		e.rooms = setOf(*e.Rooms)
	}
	return nil
}

func setOf[T comparable](list []T) map[T]bool {
	set := make(map[T]bool, len(list))
	for _, v := range list {
		set[v] = true
	}
	return set
}

// covers says whether the extension is about a room of these lists.
func (e *roomExtension) covers(room eventgraph.RoomID, by *matched) bool {
	if by.subscribed && (e.Rooms == nil || e.rooms["*"] || e.rooms[room]) {
		return true
	}
	return slices.ContainsFunc(by.lists, func(list string) bool {
		return e.Lists == nil || e.lists["*"] || e.lists[list]
	})
}

// slidingRule says what is sent of the rooms that it matches.
type slidingRule struct {
	TimelineLimit int         `json:"timeline_limit"`
	RequiredState [][2]string `json:"required_state"`

	config roomConfig
}

// slidingList is a rule that matches windows of the user's rooms.
type slidingList struct {
	slidingRule
	Ranges  [][2]int       `json:"ranges"` // inclusive, from 0; none: all rooms
	Filters slidingFilters `json:"filters"`
}

// parseSliding reads the request; M_BAD_JSON, M_INVALID_PARAM.
func (a *API) parseSliding(q *request) (*slidingRequest, time.Duration, error) {
	var s slidingRequest
	if err := q.decode(&s); err != nil {
		return nil, 0, err
	}
	switch {
	case len(s.ConnID) > maxConnID:
		return nil, 0, invalidParam("conn_id is too long.")
	case len(s.Lists) > maxSlidingLists:
		return nil, 0, invalidParam("There are too many lists.")
	case len(s.Subscriptions) > maxSubscriptions:
		return nil, 0, invalidParam("There are too many room_subscriptions.")
	}
	for _, e := range []*roomExtension{&s.Extensions.AccountData, &s.Extensions.Receipts, &s.Extensions.Typing} {
		if err := e.prepare(); err != nil {
			return nil, 0, err
		}
	}
	patterns := 0
	rule := func(r *slidingRule) error {
		if r.TimelineLimit < 0 {
			return invalidParam("timeline_limit must not be negative.")
		}
		if patterns += len(r.RequiredState); patterns > maxRequiredState {
			return invalidParam("There is too much required_state.")
		}
		r.config = newRoomConfig(q.user, r)
		return nil
	}
	for name, list := range s.Lists {
		if list == nil {
			return nil, 0, badJSON("The list " + strconv.Quote(name) + " is null.")
		}
		if len(list.Ranges) > maxRanges {
			return nil, 0, invalidParam("A list has too many ranges.")
		}
		if f := &list.Filters; max(len(f.RoomTypes), len(f.NotRoomTypes), len(f.Spaces), len(f.Tags), len(f.NotTags)) > maxFilterNames {
			return nil, 0, invalidParam("A list's filters name too much.")
		}
		for _, r := range list.Ranges {
			if r[0] < 0 || r[1] < r[0] {
				return nil, 0, invalidParam("A range must go up from 0 or more.")
			}
		}
		if err := rule(&list.slidingRule); err != nil {
			return nil, 0, err
		}
	}
	for room, subscription := range s.Subscriptions {
		if subscription == nil || !strings.HasPrefix(string(room), "!") {
			return nil, 0, badJSON("A subscription is null, or not to a room.")
		}
		if err := rule(subscription); err != nil {
			return nil, 0, err
		}
	}
	timeout, err := parseTimeout(q.URL.Query().Get("timeout"))
	return &s, timeout, err
}

// roomConfig is what is sent of a room: the union of what the rules that match it ask for (MSC4186, Combining room configs).
type roomConfig struct {
	Limit int            `json:"limit"`          // of the timeline
	State []statePattern `json:"state"`          // sorted, no two the same
	Lazy  bool           `json:"lazy,omitempty"` // of members only those needed, beside the patterns
}

// statePattern matches state events by type and state key, "*" for any.
type statePattern struct {
	Type    string `json:"t"`
	Key     string `json:"k"`
	Members bool   `json:"m,omitempty"` // a Type of "*" is of members too: their rule does not load them lazily
}

// newRoomConfig reads a rule. State keys may be $ME, and of members $LAZY.
func newRoomConfig(user eventgraph.UserID, rule *slidingRule) roomConfig {
	c := roomConfig{Limit: min(rule.TimelineLimit, mostTimeline)}
	c.Lazy = slices.Contains(rule.RequiredState, [2]string{"m.room.member", "$LAZY"})
	for _, pair := range rule.RequiredState {
		p := statePattern{Type: pair[0], Key: pair[1]}
		switch p.Key {
		case "$LAZY":
			continue
		case "$ME":
			p.Key = string(user)
		}
		p.Members = p.Type == "*" && !c.Lazy
		c.State = append(c.State, p)
	}
	c.tidy()
	return c
}

func (c *roomConfig) tidy() {
	slices.SortFunc(c.State, func(x, y statePattern) int {
		return cmp.Or(cmp.Compare(x.Type, y.Type), cmp.Compare(x.Key, y.Key), cmp.Compare(strconv.FormatBool(x.Members), strconv.FormatBool(y.Members)))
	})
	c.State = slices.Compact(c.State)
	if c.Lazy && slices.ContainsFunc(c.State, func(p statePattern) bool { return p.matches("m.room.member", "*") }) {
		c.Lazy = false // all members are wanted anyhow
	}
}

// add makes c the union of both.
func (c *roomConfig) add(other *roomConfig) {
	c.Limit = max(c.Limit, other.Limit)
	c.State = slices.Concat(c.State, other.State)
	c.Lazy = c.Lazy || other.Lazy
	c.tidy()
}

func (p statePattern) matches(eventType, key string) bool {
	switch {
	case p.Key != "*" && p.Key != key:
		return false
	case p.Type == "*":
		return p.Members || eventType != "m.room.member"
	}
	return p.Type == eventType
}

// state says whether the tuple is asked for; lazily loaded members are not looked at.
func (c *roomConfig) state(t eventgraph.StateTuple) bool {
	return slices.ContainsFunc(c.State, func(p statePattern) bool { return p.matches(t.Type, t.Key) })
}

// exact are the tuples that c asks for; nil if there are patterns among them, so that the whole state must be looked through.
func (c *roomConfig) exact() []eventgraph.StateTuple {
	tuples := make([]eventgraph.StateTuple, 0, len(c.State))
	for _, p := range c.State {
		if p.Type == "*" || p.Key == "*" {
			return nil
		}
		tuples = append(tuples, eventgraph.StateTuple{Type: p.Type, Key: p.Key})
	}
	return tuples
}

// more is what c asks for of a room's state beyond old, as a config; false if that is nothing.
func (c *roomConfig) more(old *roomConfig) (roomConfig, bool) {
	var m roomConfig
	for _, p := range c.State {
		if !slices.Contains(old.State, p) {
			m.State = append(m.State, p)
		}
	}
	return m, len(m.State) > 0
}

// slidingFilters is SlidingRoomFilter, as its unstable form has it; all that are there must pass.
type slidingFilters struct {
	IsDM         *bool               `json:"is_dm"`
	IsEncrypted  *bool               `json:"is_encrypted"`
	IsInvite     *bool               `json:"is_invite"`
	RoomTypes    []*string           `json:"room_types"` // null: a room without a type
	NotRoomTypes []*string           `json:"not_room_types"`
	Spaces       []eventgraph.RoomID `json:"spaces"`
	Tags         []string            `json:"tags"`
	NotTags      []string            `json:"not_tags"`
}

// slidingToken is a pos: which state of the connection the client has, which extensions about rooms it had, and up to where.
//
//	p<generation>_<extensions>_<sync token>    hexadecimal
//
// The sync token's device is of the connection too, and its to-device position 0: that extension has a token of its own.
type slidingToken struct {
	generation uint64 // of slidingConn; 0: the client has no room
	had        extensionSet
	syncToken
}

// extensionSet is of roomExtensions.
type extensionSet uint8

const (
	accountDataExtension extensionSet = 1 << iota
	receiptsExtension
	typingExtension
)

func (t slidingToken) String() string {
	return "p" + strconv.FormatUint(t.generation, 16) + "_" + strconv.FormatUint(uint64(t.had), 16) + "_" + t.syncToken.String()
}

// parseSlidingToken reads what slidingToken.String wrote; errToken.
func parseSlidingToken(s string) (t slidingToken, err error) {
	parts := strings.SplitN(strings.TrimPrefix(s, "p"), "_", 3)
	if len(parts) != 3 || !strings.HasPrefix(s, "p") {
		return slidingToken{}, errToken
	}
	generation, err1 := strconv.ParseUint(parts[0], 16, 64)
	had, err2 := strconv.ParseUint(parts[1], 16, 8)
	inner, err3 := parseSyncToken(parts[2])
	if cmp.Or(err1, err2, err3) != nil {
		return slidingToken{}, errToken
	}
	return slidingToken{generation, extensionSet(had), inner}, nil
}

// connTag is deviceTag for one connection of the device.
func connTag(user eventgraph.UserID, device store.DeviceID, connID string) uint32 {
	return deviceTag(user, device+"\x00"+store.DeviceID(connID))
}

// listNames sorts the names of the lists, so that what follows from them does not depend on the order of a map.
func (s *slidingRequest) listNames() []string { return slices.Sorted(maps.Keys(s.Lists)) }
