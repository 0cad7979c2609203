package clientapi

import (
	"cmp"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of a search. There is no index: each request looks through the newest events of the rooms.
const (
	maxSearchedEvents = 60_000 // of all rooms together, at some 15 µs each
	minSearchedEvents = 1000   // of each room, however many there are
	maxSearchWords    = 20
	usualResults      = 10
	mostResults       = 100
	usualContext      = 5 // events before, and as many after
	mostContext       = 50
)

// searchQuery is what is searched for (CS API, POST /search, room_events).
type searchQuery struct {
	Term    string      `json:"search_term"`
	Keys    []string    `json:"keys"`
	Filter  eventFilter `json:"filter"`
	Order   string      `json:"order_by"`
	Context *struct {
		Before   *int `json:"before_limit"`
		After    *int `json:"after_limit"`
		Profiles bool `json:"include_profile"`
	} `json:"event_context"`
	State     bool `json:"include_state"`
	Groupings struct {
		By []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`

	words []string // of Term, in lower case
}

// searchedKeys says where a key of the request is found, and all that may be asked for.
var searchedKeys = map[string]string{"content.body": "body", "content.name": "name", "content.topic": "topic"}

// found is an event that a search has found.
type found struct {
	id     eventgraph.EventID
	room   eventgraph.RoomID
	sender eventgraph.UserID
	ts     int64
	rank   float64
}

// search is POST /search.
func (a *API) search(q *request) (any, error) {
	var body struct {
		Categories struct {
			Events *searchQuery `json:"room_events"`
		} `json:"search_categories"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	s := body.Categories.Events
	if s == nil {
		return map[string]any{"search_categories": map[string]any{}}, nil
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	skip := 0
	if token := q.URL.Query().Get("next_batch"); token != "" {
		var err error
		if skip, err = strconv.Atoi(token); err != nil || skip < 0 {
			return nil, invalidParam("next_batch is not a token of this server.")
		}
	}
	answer := map[string]any{}
	err := a.Store.View(func(r *store.Reader) error {
		all, highlights, err := a.find(q, r, s)
		if err != nil {
			return err
		}
		slices.SortFunc(all, func(x, y found) int {
			newest := cmp.Or(cmp.Compare(y.ts, x.ts), cmp.Compare(x.id, y.id))
			if s.Order == "recent" {
				return newest
			}
			return cmp.Or(cmp.Compare(y.rank, x.rank), newest)
		})
		limit := min(max(s.Filter.limit(usualResults, mostResults), 1), mostResults)
		shown := all[min(skip, len(all)):min(skip+limit, len(all))]
		answer["count"], answer["highlights"] = len(all), highlights
		if len(shown) == limit { // that it was the last page is found out with the next
			answer["next_batch"] = strconv.Itoa(skip + limit)
		}
		if groups := s.groups(shown); len(groups) > 0 {
			answer["groups"] = groups
		}
		return a.showFound(q, r, s, shown, answer)
	})
	return map[string]any{"search_categories": map[string]any{"room_events": answer}}, err
}

// check refuses what cannot be searched for, and splits the term.
func (s *searchQuery) check() error {
	if s.Term == "" {
		return missingParam("search_term is missing.")
	}
	if s.Order != "" && s.Order != "rank" && s.Order != "recent" {
		return invalidParam("order_by must be rank or recent.")
	}
	if s.Keys == nil {
		s.Keys = []string{"content.body", "content.name", "content.topic"}
	}
	for _, key := range s.Keys {
		if searchedKeys[key] == "" {
			return invalidParam("There is no key " + strconv.Quote(key) + ".")
		}
	}
	s.words = words(s.Term)
	if len(s.words) > maxSearchWords {
		return invalidParam("There are too many words in the search term.")
	}
	return nil
}

// words splits text into runs of letters and digits, in lower case.
func words(text string) []string {
	return strings.FieldsFunc(strings.ToLower(text), func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsNumber(c) && !unicode.IsMark(c) })
}

// find looks through the rooms that the user is or was in.
func (a *API) find(q *request, r *store.Reader, s *searchQuery) (all []found, highlights []string, err error) {
	highlights = []string{}
	if len(s.words) == 0 {
		return nil, highlights, nil
	}
	var in []eventgraph.RoomID
	err = r.RoomsOf(q.user, func(m *store.Member) (bool, error) {
		if (isJoined(m) || m.WasJoined && !m.Forgotten) && s.Filter.room(m.Room) {
			in = append(in, m.Room)
		}
		return true, nil
	})
	if err != nil {
		return nil, nil, err
	}
	highlighted := map[string]bool{}
	v := a.newViewer(q.user, q.device)
	for _, room := range in {
		left := max(minSearchedEvents, maxSearchedEvents/len(in))
		err := r.Timeline(room, math.MaxInt64, true, func(e *store.StoredEvent) (bool, error) {
			left--
			if v.hides(r, e) {
				return left > 0, nil
			}
			shown, err := a.Rooms.ShownToUser(q.user, e)
			if err != nil {
				return false, err
			}
			rank, matched := s.match(shown)
			if rank > 0 {
				see, err := a.Rooms.MaySeeUser(q.user, e)
				if err != nil {
					return false, err
				}
				if see {
					for _, word := range matched {
						if len(highlighted) < mostResults {
							highlighted[word] = true
						}
					}
					all = append(all, found{e.ID(), room, e.Sender(), e.OriginServerTS(), rank})
				}
			}
			return left > 0, q.Context().Err()
		})
		if err != nil {
			return nil, nil, err
		}
	}
	for word := range highlighted {
		highlights = append(highlights, word)
	}
	slices.Sort(highlights)
	return all, highlights, nil
}

// match says how well the event fits, 0 if not, and by which of its words: all words of the term must be in it, each as the beginning of a word. What
// of the event was redacted is not looked at.
func (s *searchQuery) match(shown *eventgraph.Event) (rank float64, matched []string) {
	var key string
	switch shown.Type() {
	case "m.room.name", "m.room.topic":
		key = "content." + strings.TrimPrefix(shown.Type(), "m.room.")
	case "m.room.message":
		key = "content.body"
	default:
		return 0, nil
	}
	if !slices.Contains(s.Keys, key) || !s.Filter.event(shown) {
		return 0, nil
	}
	var content map[string]json.RawMessage
	var text string
	if json.Unmarshal(shown.Content(), &content) != nil || json.Unmarshal(content[searchedKeys[key]], &text) != nil {
		return 0, nil
	}
	in := words(text)
	hits := 0
	for _, word := range s.words {
		before := hits
		for _, w := range in {
			// Scripts that put no spaces between words have the word anywhere.
			if strings.HasPrefix(w, word) || word[0] >= 0xE2 && strings.Contains(w, word) {
				hits++
				matched = append(matched, w)
			}
		}
		if hits == before {
			return 0, nil
		}
	}
	return float64(hits) / float64(len(in)), matched[:min(len(matched), maxSearchWords)]
}

// groups counts the shown results by room or sender, as asked for.
func (s *searchQuery) groups(shown []found) map[string]any {
	type group struct {
		Results []eventgraph.EventID `json:"results"`
		Order   int                  `json:"order"`
	}
	groups := map[string]any{}
	for _, by := range s.Groupings.By {
		if by.Key != "room_id" && by.Key != "sender" {
			continue
		}
		of := map[string]*group{}
		for _, f := range shown {
			name := string(f.room)
			if by.Key == "sender" {
				name = string(f.sender)
			}
			if of[name] == nil {
				of[name] = &group{Order: len(of)}
			}
			of[name].Results = append(of[name].Results, f.id)
		}
		groups[by.Key] = of
	}
	return groups
}

// showFound writes the results out, with what stands around them and the rooms' state where that was asked for.
func (a *API) showFound(q *request, r *store.Reader, s *searchQuery, shown []found, answer map[string]any) error {
	v := a.viewerOf(q)
	results := []map[string]any{}
	states := map[eventgraph.RoomID]any{}
	for _, f := range shown {
		e, err := r.Event(f.id)
		if err != nil {
			return err
		}
		result := map[string]any{"rank": f.rank}
		if result["result"], err = a.clientEvent(r, e, v); err != nil {
			return err
		}
		if s.Context != nil {
			if result["context"], err = a.around(q, r, s, f.room, e, v); err != nil {
				return err
			}
		}
		results = append(results, result)
		if s.State && states[f.room] == nil {
			root, err := a.readableState(r, f.room, q.user)
			if err != nil {
				return err
			}
			if states[f.room], err = a.stateEvents(r, root, v, func(eventgraph.StateTuple) bool { return true }); err != nil {
				return err
			}
		}
	}
	answer["results"] = results
	if s.State {
		answer["state"] = states
	}
	return nil
}

// around is the context of a result: events before it, the nearest first, and after it.
func (a *API) around(q *request, r *store.Reader, s *searchQuery, room eventgraph.RoomID, e *store.StoredEvent, v *viewer) (map[string]any, error) {
	many := func(n *int) int {
		if n == nil {
			return usualContext
		}
		return min(max(*n, 0), mostContext)
	}
	everything := &eventFilter{}
	before, err := a.readPage(r, room, v, e.Order-1, math.MinInt64, true, everything, many(s.Context.Before), nil)
	if err != nil {
		return nil, err
	}
	after, err := a.readPage(r, room, v, e.Order, math.MaxInt64, false, everything, many(s.Context.After), nil)
	if err != nil {
		return nil, err
	}
	context := map[string]any{
		"start": a.roomToken(pointAfter(before, e.Order-1, true)), "end": a.roomToken(pointAfter(after, e.Order, false)),
	}
	if context["events_before"], err = a.clientEvents(r, before.events, v); err != nil {
		return nil, err
	}
	if context["events_after"], err = a.clientEvents(r, after.events, v); err != nil {
		return nil, err
	}
	if s.Context.Profiles {
		profiles := map[eventgraph.UserID]map[string]json.RawMessage{}
		for _, other := range append(append(before.events, e), after.events...) {
			member, err := stateEvent(r, stateRoot(other), "m.room.member", string(other.Sender()))
			if err != nil {
				return nil, err
			}
			if member != nil {
				shown, err := a.Rooms.ShownToUser(q.user, member)
				if err != nil {
					return nil, err
				}
				profiles[other.Sender()] = profileOfMember(shown)
			}
		}
		context["profile_info"] = profiles
	}
	return context, nil
}
