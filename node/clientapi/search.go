package clientapi

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/search"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of a search, which looks at the newest of each room first. What is behind them is not found, and not in the count.
const (
	// maxSearchedEvents is how many events that are in no segment of the index are read, of all rooms together, at some 15 µs each.
	maxSearchedEvents = 60_000
	// maxCandidates is how many of those are read that the index names, at some 20 µs each. A word of which there are more is one that nobody
	// finds anything by.
	maxCandidates = 30_000
	// maxSearchedSegments is how many segments are looked through, at some 0.1 ms each: five million events.
	maxSearchedSegments = 5000
	// A room has a fair part of what those before it have left of these, and no less than this many events, candidates and segments, however many
	// rooms there are.
	minSearchedEvents, minCandidates, minSearchedSegments = 1000, 200, 20

	// maxSearch bounds the body, in bytes, as maxFilter a filter; maxSearchTypes are patterns of types, tried on each event.
	maxSearch      = maxFilter
	maxSearchTypes = 100

	maxSearchWords = 20
	usualResults   = 10
	mostResults    = 100
	usualContext   = 5 // events before, and as many after
	mostContext    = 50
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

// searchedKeys are all that may be asked for; search.Said says of which events.
var searchedKeys = []string{"content.body", "content.name", "content.topic"}

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
	raw, err := q.body()
	if err != nil {
		return nil, err
	}
	if len(raw) > maxSearch {
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The search is too large.")
	}
	if err := decodeJSON(raw, &body); err != nil {
		return nil, err
	}
	s := body.Categories.Events
	if s == nil {
		return map[string]any{"search_categories": map[string]any{}}, nil
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	var after *found
	if token := q.URL.Query().Get("next_batch"); token != "" {
		if after = parseSearchToken(token); after == nil {
			return nil, invalidParam("next_batch is not a token of this server.")
		}
	}
	answer := map[string]any{}
	err = a.Store.View(func(r *store.Reader) error {
		all, highlights, err := a.find(q, r, s)
		if err != nil {
			return err
		}
		slices.SortFunc(all, s.before)
		shown := all
		if after != nil {
			shown = all[sort.Search(len(all), func(i int) bool { return s.before(*after, all[i]) < 0 }):]
		}
		limit := min(max(s.Filter.limit(usualResults, mostResults), 1), mostResults)
		shown = shown[:min(limit, len(shown))]
		answer["count"], answer["highlights"] = len(all), highlights
		if len(shown) == limit { // that it was the last page is found out with the next
			answer["next_batch"] = shown[limit-1].token()
		}
		if groups := s.groups(shown); len(groups) > 0 {
			answer["groups"] = groups
		}
		return a.showFound(q, r, s, shown, answer)
	})
	return map[string]any{"search_categories": map[string]any{"room_events": answer}}, err
}

// before says in which order results stand.
func (s *searchQuery) before(x, y found) int {
	newest := cmp.Or(cmp.Compare(y.ts, x.ts), cmp.Compare(x.id, y.id))
	if s.Order == "recent" {
		return newest
	}
	return cmp.Or(cmp.Compare(y.rank, x.rank), newest)
}

// token names the place of a result among all, whether it is there or not: so a next page does not shift with what is said meanwhile, nor does the
// server remember anything.
func (f found) token() string {
	place := strconv.FormatFloat(f.rank, 'g', -1, 64) + " " + strconv.FormatInt(f.ts, 10) + " " + string(f.id)
	return base64.RawURLEncoding.EncodeToString([]byte(place))
}

// parseSearchToken is nil for what token did not make.
func parseSearchToken(token string) *found {
	place, err := base64.RawURLEncoding.DecodeString(token)
	rank, rest, _ := strings.Cut(string(place), " ")
	ts, id, ok := strings.Cut(rest, " ")
	f := &found{id: eventgraph.EventID(id)}
	var badRank, badTime error
	f.rank, badRank = strconv.ParseFloat(rank, 64)
	f.ts, badTime = strconv.ParseInt(ts, 10, 64)
	if !ok || errors.Join(err, badRank, badTime) != nil || math.IsNaN(f.rank) {
		return nil
	}
	return f
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
		s.Keys = searchedKeys
	}
	for _, key := range s.Keys {
		if !slices.Contains(searchedKeys, key) {
			return invalidParam("There is no key " + strconv.Quote(key) + ".")
		}
	}
	s.words = search.Words(s.Term)
	if len(s.words) > maxSearchWords {
		return invalidParam("There are too many words in the search term.")
	}
	if len(s.Filter.Types)+len(s.Filter.NotTypes) > maxSearchTypes {
		return invalidParam("The filter names too many types.")
	}
	s.Keys = slices.Compact(slices.Sorted(slices.Values(s.Keys)))
	return nil
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
	events, candidates, segments := maxSearchedEvents, maxCandidates, maxSearchedSegments
	for i, room := range in {
		part := func(left, least int) int { return max(least, left/(len(in)-i)) }
		w := &searchWalk{
			ctx: q.Context(), read: r, room: room, words: s.words,
			events: part(events, minSearchedEvents), candidates: part(candidates, minCandidates), segments: part(segments, minSearchedSegments),
		}
		had := *w
		err := w.walk(func(e *store.StoredEvent) error {
			if v.hides(r, e) {
				return nil
			}
			shown, err := a.Rooms.ShownToUser(q.user, e)
			if err != nil {
				return err
			}
			rank, matched := s.match(shown)
			if rank == 0 {
				return nil
			}
			if see, err := a.Rooms.MaySeeUser(q.user, e); !see || err != nil {
				return err
			}
			for _, word := range matched {
				if len(highlighted) < mostResults {
					highlighted[word] = true
				}
			}
			all = append(all, found{e.ID(), room, e.Sender(), e.OriginServerTS(), rank})
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
		events, candidates, segments = events-had.events+w.events, candidates-had.candidates+w.candidates, segments-had.segments+w.segments
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
	key, text := search.Said(shown)
	if key == "" || !slices.Contains(s.Keys, "content."+key) || !s.Filter.event(shown) {
		return 0, nil
	}
	in := search.Words(text)
	hits := 0
	for _, word := range s.words {
		before := hits
		for _, w := range in {
			if search.Fits(w, word) {
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
