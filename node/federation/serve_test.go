package federation

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// get asks to for a target under federation/v1.
func (h *host) get(to *host, out any, query url.Values, endpoint string, parts ...string) error {
	h.t.Helper()
	return h.do(h.t.Context(), to.server, http.MethodGet, target(v1+endpoint, parts, query), nil, out)
}

func ids(t *testing.T, v eventgraph.RoomVersion, raws []json.RawMessage) []eventgraph.EventID {
	t.Helper()
	var all []eventgraph.EventID
	for _, raw := range raws {
		e, err := eventgraph.ParseEvent(v, raw)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.ID())
	}
	return all
}

// What looks through many events for one answer waits for a slot.
func TestHeavyAnswersWait(t *testing.T) {
	t.Parallel()
	a := newHosts(t, newWire(), "a")[0]
	room := a.create("12", "public", "shared")
	last := a.say(room, a.user("alice"), "last")
	for range maxHeavy {
		a.heavy <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		serve func(*request) (any, error)
		query string
	}{
		"backfill":           {a.serveBackfill, "limit=1&v=" + url.QueryEscape(string(last))},
		"timestamp_to_event": {a.serveTimestampToEvent, "dir=f&ts=0"},
	} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/?"+c.query, nil)
		if err != nil {
			t.Fatal(err)
		}
		q := &request{Request: r, origin: "stranger", params: map[string]string{"roomId": string(room)}}
		if _, err := c.serve(q); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, while all slots are taken: %v", name, err)
		}
	}
}

func TestServeEvents(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "stranger")
	a, b, stranger := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	// The event by which she may do this is one that is not in the state any more, only in its auth chain.
	a.setState(room, a.user("alice"), "m.room.power_levels", "", `{"users":{},"state_default":0}`)
	var said []eventgraph.EventID
	for i := range 5 {
		said = append(said, a.say(room, a.user("alice"), strconv.Itoa(i)))
	}
	b.join(room, b.user("bob"), a)
	id := string(room)

	var one pdus
	if err := b.get(a, &one, nil, "event", string(said[2])); err != nil || !slices.Equal(ids(t, "12", one.PDUs), said[2:3]) {
		t.Errorf("event: %v, %v", one, err)
	}
	var state struct {
		PDUs  []json.RawMessage `json:"pdus"`
		Chain []json.RawMessage `json:"auth_chain"`
	}
	at := url.Values{"event_id": {string(said[2])}}
	if err := b.get(a, &state, at, "state", id); err != nil {
		t.Fatal(err)
	}
	var names stateIDsAnswer
	if err := b.get(a, &names, at, "state_ids", id); err != nil {
		t.Fatal(err)
	}
	if len(names.PDUIDs) != 6 || len(state.Chain) != 1 || !slices.Equal(ids(t, "12", state.PDUs), names.PDUIDs) || !slices.Equal(ids(t, "12", state.Chain), names.AuthChainIDs) {
		t.Errorf("state: %d events and a chain of %d, IDs: %d and %d", len(state.PDUs), len(state.Chain), len(names.PDUIDs), len(names.AuthChainIDs))
	}
	var auth struct {
		Chain []json.RawMessage `json:"auth_chain"`
	}
	if err := b.get(a, &auth, nil, "event_auth", id, string(said[2])); err != nil || len(auth.Chain) < 2 || slices.Contains(ids(t, "12", auth.Chain), said[2]) {
		t.Errorf("event_auth: %d events, %v", len(auth.Chain), err)
	}
	var back pdus
	if err := b.get(a, &back, url.Values{"v": {string(said[3])}, "limit": {"3"}}, "backfill", id); err != nil {
		t.Fatal(err)
	}
	if want := []eventgraph.EventID{said[3], said[2], said[1]}; !slices.Equal(ids(t, "12", back.PDUs), want) {
		t.Errorf("backfill: %v, want %v", ids(t, "12", back.PDUs), want)
	}
	missing := func(from *host, q missingQuery) ([]eventgraph.EventID, error) {
		var answer struct {
			Events []json.RawMessage `json:"events"`
		}
		err := from.do(t.Context(), a.server, http.MethodPost, target(v1+"get_missing_events", []string{id}, nil), q, &answer)
		return ids(t, "12", answer.Events), err
	}
	got, err := missing(b, missingQuery{Earliest: []string{string(said[0])}, Latest: []string{string(said[4])}})
	if err != nil || !slices.Equal(got, said[1:4]) {
		t.Errorf("get_missing_events: %v, %v, want %v", got, err, said[1:4])
	}
	two := 2
	got, err = missing(b, missingQuery{Earliest: []string{string(said[0])}, Latest: []string{string(said[4])}, Limit: &two})
	if err != nil || !slices.Equal(got, said[2:4]) {
		t.Errorf("get_missing_events with a limit: %v, %v, want %v", got, err, said[2:4])
	}

	// A stranger gets none of it, and no different answer for a room that does not exist.
	for _, room := range []string{id, "!" + strings.Repeat("A", 43)} {
		for _, endpoint := range []string{"state", "state_ids"} {
			wantCode(t, stranger.get(a, nil, at, endpoint, room), "M_FORBIDDEN")
		}
		wantCode(t, stranger.get(a, nil, nil, "event_auth", room, string(said[2])), "M_FORBIDDEN")
		wantCode(t, stranger.get(a, nil, url.Values{"v": {string(said[3])}, "limit": {"3"}}, "backfill", room), "M_FORBIDDEN")
		wantCode(t, stranger.get(a, nil, url.Values{"ts": {"0"}, "dir": {"f"}}, "timestamp_to_event", room), "M_FORBIDDEN")
	}
	wantCode(t, stranger.get(a, nil, nil, "event", string(said[2])), "M_NOT_FOUND")
	_, err = missing(stranger, missingQuery{Latest: []string{string(said[4])}})
	wantCode(t, err, "M_FORBIDDEN")

	for _, bad := range []string{"?v=x&limit=1", "?v=" + url.QueryEscape(string(said[0])), "?limit=-1"} {
		wantCode(t, b.do(t.Context(), a.server, http.MethodGet, target(v1+"backfill", []string{id}, nil)+bad, nil, nil), "M_INVALID_PARAM")
	}

	// Denied by the ACL: nothing any more on the endpoints that the spec lists.
	a.setState(room, a.user("alice"), "m.room.server_acl", "", `{"allow":["*"],"deny":["`+string(b.server)+`"]}`)
	wantCode(t, b.get(a, nil, at, "state", id), "M_FORBIDDEN")
	wantCode(t, b.get(a, nil, at, "state_ids", id), "M_FORBIDDEN")
	wantCode(t, b.get(a, nil, nil, "event_auth", id, string(said[2])), "M_FORBIDDEN")
	wantCode(t, b.get(a, nil, url.Values{"v": {string(said[3])}, "limit": {"3"}}, "backfill", id), "M_FORBIDDEN")
	_, err = missing(b, missingQuery{Latest: []string{string(said[4])}})
	wantCode(t, err, "M_FORBIDDEN")
	for _, make := range []string{"make_join", "make_leave", "make_knock"} {
		wantCode(t, b.get(a, nil, url.Values{"ver": {"12"}}, make, id, string(b.user("bob"))), "M_FORBIDDEN")
	}
}

// TestHistoryForJoined: who joined later is not shown what was said before, only the shape of the graph.
func TestHistoryForJoined(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "stranger")
	a, b, stranger := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "joined")
	secret := a.say(room, a.user("alice"), "a secret")
	old := a.setState(room, a.user("alice"), "m.room.topic", "", `{"topic":"a secret"}`)
	topic := a.setState(room, a.user("alice"), "m.room.topic", "", `{"topic":"the topic of now"}`)
	b.join(room, b.user("bob"), a)
	after := a.say(room, a.user("alice"), "no secret")

	wantCode(t, b.get(a, nil, nil, "event", string(secret)), "M_NOT_FOUND")
	wantCode(t, b.get(a, nil, url.Values{"event_id": {string(secret)}}, "state", string(room)), "M_FORBIDDEN")
	wantCode(t, b.get(a, nil, url.Values{"event_id": {string(old)}}, "state", string(room)), "M_FORBIDDEN")
	wantCode(t, b.get(a, nil, nil, "event_auth", string(room), string(old)), "M_FORBIDDEN")
	// State events by their IDs, to a server in the room alone: what makes up the state now in whole, of others the shape.
	for id, want := range map[eventgraph.EventID]string{after: "no secret", topic: "the topic of now", old: `"content":{}`} {
		var one pdus
		if err := b.get(a, &one, nil, "event", string(id)); err != nil || len(one.PDUs) != 1 || !strings.Contains(string(one.PDUs[0]), want) {
			t.Errorf("event: %s, %v; want one with %s", one.PDUs, err, want)
		}
	}
	for _, id := range []eventgraph.EventID{secret, topic, old} {
		wantCode(t, stranger.get(a, nil, nil, "event", string(id)), "M_NOT_FOUND")
	}
	var back pdus
	if err := b.get(a, &back, url.Values{"v": {string(after)}, "limit": {"6"}}, "backfill", string(room)); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, "12", back.PDUs); !slices.Contains(got, secret) || got[0] != after {
		t.Errorf("backfill without the event: %v", got)
	}
	for _, raw := range back.PDUs {
		if strings.Contains(string(raw), "a secret") {
			t.Errorf("told: %s", raw)
		}
	}
	if !strings.Contains(string(back.PDUs[0]), "no secret") {
		t.Errorf("the newest is %s", back.PDUs[0])
	}
	if _, err := b.Backfill(t.Context(), room, 100); err != nil {
		t.Fatal(err)
	}
	if e := b.event(secret); !e.HashMismatch() || string(e.Content()) != "{}" {
		t.Errorf("the secret came as %s", e.Raw())
	}
}

func TestRouter(t *testing.T) {
	t.Parallel()
	f := idleHost(t, newWire(), "x").Federation
	r := f.handler.(*router)
	for path, want := range map[string]map[string]string{
		"/_matrix/federation/v1/event/%24a%2Fb":      {"eventId": "$a/b"},
		"/_matrix/federation/v1/event/$a%20b+c":      {"eventId": "$a b+c"},
		"/_matrix/federation/v1/make_join/!r:s/@u:s": {"roomId": "!r:s", "userId": "@u:s"},
		"/_matrix/federation/v1/event_auth/%21r/..":  {"roomId": "!r", "eventId": ".."},
		"/_matrix/federation/v1/event/a/b":           nil,
		"/_matrix/federation/v1/event/":              nil,
		"/_matrix/federation/v1//event/a":            nil,
		"/_matrix/federation/v1/x/../event/a":        nil,
		"/_matrix/federation/v1/event/%zz":           nil,
		"/_matrix/federation/%76%31/event/a":         nil,
		"/_matrix/federation/v1/event/a?not=cut":     {"eventId": "a?not=cut"},
	} {
		_, params, err := r.find("GET", path)
		if (err == nil) != (want != nil) || want != nil && !mapsEqual(params, want) {
			t.Errorf("%s: %v, %v, want %v", path, params, err, want)
		}
	}
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}
