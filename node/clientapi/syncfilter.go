package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// syncFilter is a Filter (CS API, Filtering; definitions/sync_filter.yaml). event_fields is not looked at: a server may
// include more fields than were asked for.
type syncFilter struct {
	EventFormat string      `json:"event_format"`
	Presence    eventFilter `json:"presence"`
	AccountData eventFilter `json:"account_data"`
	Room        struct {
		NotRooms     []eventgraph.RoomID `json:"not_rooms"`
		Rooms        []eventgraph.RoomID `json:"rooms"`
		Ephemeral    eventFilter         `json:"ephemeral"`
		IncludeLeave bool                `json:"include_leave"`
		State        eventFilter         `json:"state"`
		Timeline     eventFilter         `json:"timeline"`
		AccountData  eventFilter         `json:"account_data"`
	} `json:"room"`
}

// eventFilter is a RoomEventFilter; an EventFilter is one that does not use all of it. A list that is absent (nil) lets
// everything pass, an empty one nothing.
type eventFilter struct {
	Limit                     *int                `json:"limit"`
	NotSenders                []eventgraph.UserID `json:"not_senders"`
	Senders                   []eventgraph.UserID `json:"senders"`
	NotTypes                  []string            `json:"not_types"`
	Types                     []string            `json:"types"`
	NotRooms                  []eventgraph.RoomID `json:"not_rooms"`
	Rooms                     []eventgraph.RoomID `json:"rooms"`
	ContainsURL               *bool               `json:"contains_url"`
	LazyLoadMembers           bool                `json:"lazy_load_members"`
	IncludeRedundantMembers   bool                `json:"include_redundant_members"`
	UnreadThreadNotifications bool                `json:"unread_thread_notifications"`
	RelatedByRelTypes         []string            `json:"related_by_rel_types"` // MSC3440, Fetch all threads in a room
	RelatedBySenders          []eventgraph.UserID `json:"related_by_senders"`
}

// parseFilter reads a filter in JSON; M_BAD_JSON.
func parseFilter(raw []byte) (*syncFilter, error) {
	var f syncFilter
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fail(http.StatusBadRequest, "M_BAD_JSON", "The filter is not of the form that the specification gives.")
	}
	if err := checkIDs(f.Room.Rooms, f.Room.NotRooms, nil, nil); err != nil {
		return nil, err
	}
	for _, part := range []*eventFilter{&f.Presence, &f.AccountData, &f.Room.Ephemeral, &f.Room.State, &f.Room.Timeline, &f.Room.AccountData} {
		if err := checkIDs(part.Rooms, part.NotRooms, part.Senders, part.NotSenders); err != nil {
			return nil, err
		}
	}
	return &f, nil
}

// checkIDs answers M_BAD_JSON where a filter names what is neither a room nor a user: nothing would ever match it.
func checkIDs(rooms, notRooms []eventgraph.RoomID, senders, notSenders []eventgraph.UserID) error {
	for _, room := range slices.Concat(rooms, notRooms) {
		if !strings.HasPrefix(string(room), "!") {
			return badJSON("The filter names a room by what is not a room ID.")
		}
	}
	for _, user := range slices.Concat(senders, notSenders) {
		if !strings.HasPrefix(string(user), "@") {
			return badJSON("The filter names a sender by what is not a user ID.")
		}
	}
	return nil
}

// filterOf finds the filter that a request names: its ID or, if it begins with "{", the filter itself; "" passes all.
func (a *API) filterOf(user eventgraph.UserID, param string) (*syncFilter, error) {
	if param == "" {
		return &syncFilter{}, nil
	}
	if strings.HasPrefix(param, "{") {
		return parseFilter([]byte(param))
	}
	var stored *store.Filter
	err := a.Store.View(func(r *store.Reader) (err error) {
		stored, err = r.Filter(user, param)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, fail(http.StatusNotFound, "M_NOT_FOUND", "There is no filter with this ID.")
	}
	if err != nil {
		return nil, err
	}
	return parseFilter(stored.Body)
}

// room says whether anything of the room passes.
func (f *syncFilter) room(id eventgraph.RoomID) bool {
	return passes(f.Room.Rooms, f.Room.NotRooms, id)
}

// limit is how many events are asked for, within [0, most]. The specification asks for more than 0; clients that want no timeline say 0
// all the same.
func (f *eventFilter) limit(usual, most int) int {
	if f.Limit == nil {
		return usual
	}
	return min(max(*f.Limit, 0), most)
}

// room says whether anything of the room passes.
func (f *eventFilter) room(id eventgraph.RoomID) bool { return passes(f.Rooms, f.NotRooms, id) }

// kind says whether what has this type and sender passes; sender "" is not asked about.
func (f *eventFilter) kind(eventType string, sender eventgraph.UserID) bool {
	if sender != "" && !passes(f.Senders, f.NotSenders, sender) {
		return false
	}
	match := func(pattern string) bool { return wildcard(pattern, eventType) }
	return (f.Types == nil || slices.ContainsFunc(f.Types, match)) && !slices.ContainsFunc(f.NotTypes, match)
}

// event says whether a room's event passes.
func (f *eventFilter) event(e *eventgraph.Event) bool {
	if !f.kind(e.Type(), e.Sender()) {
		return false
	}
	if f.ContainsURL == nil {
		return true
	}
	var content struct {
		URL json.RawMessage `json:"url"`
	}
	return json.Unmarshal(e.Content(), &content) == nil && (content.URL != nil) == *f.ContainsURL
}

// relatedPass says whether the event passes what the filter asks of the events that relate to it. Of these at most maxAggregated are looked at.
func (a *API) relatedPass(r *store.Reader, f *eventFilter, e *store.StoredEvent, v *viewer) (bool, error) {
	if f.RelatedByRelTypes == nil && f.RelatedBySenders == nil {
		return true, nil
	}
	found, looked := false, 0
	err := r.Relations(e.ID(), "", "", func(child *store.StoredEvent) (bool, error) {
		if passes(f.RelatedByRelTypes, nil, relTypeOf(child)) && passes(f.RelatedBySenders, nil, child.Sender()) {
			var err error
			if found, err = a.showsChild(r, child, e.RoomID(), v); err != nil {
				return false, err
			}
		}
		looked++
		return !found && looked < maxAggregated, nil
	})
	return found, err
}

func passes[T comparable](only, not []T, v T) bool {
	return (only == nil || slices.Contains(only, v)) && !slices.Contains(not, v)
}

// wildcard matches s against a pattern in which "*" stands for any sequence of characters. Its cost is at most the product
// of the lengths.
func wildcard(pattern, s string) bool {
	first, rest, found := strings.Cut(pattern, "*")
	if !found {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, first)
	if !ok {
		return false
	}
	for {
		part, more, found := strings.Cut(rest, "*")
		if !found {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], more
	}
}
