package auth

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/eventgraph/internal/literal"
)

// script turns bytes into choices; it answers 0 when they are at their end.
type script struct{ rest []byte }

func (s *script) next(n int) int {
	if len(s.rest) == 0 {
		return 0
	}
	b := s.rest[0]
	s.rest = s.rest[1:]
	return int(b) % n
}

func pick[T any](s *script, of ...T) T { return of[s.next(len(of))] }

var (
	fuzzUsers   = []string{"@alice:a.example", "@bob:a.example", "@carol:b.example", "@dave:b.example", "@erin:c.example"}
	memberships = []string{"join", "invite", "leave", "ban", "knock", "org.example", ""}
	fuzzTypes   = []string{typeMember, typePower, typeJoinRules, typeThirdParty, typeAliases, "m.room.topic", "m.room.message", "m.room.redaction", typeCreate}
	fuzzNames   = []string{"membership", "users", "users_default", "events", "events_default", "state_default", "ban", "kick", "redact", "invite", "notifications", "room", "join_rule", "allow",
		"third_party_invite", "signed", "mxid", "token", "signatures", "public_key", "public_keys", "join_authorised_via_users_server", "creator", "additional_creators", "m.federate",
		"room_version", "aliases", "m.room.topic", "m.room.power_levels", "m.room.message", "Membership", ""}
)

// json writes a value made of what the rules look for, and of what they do not expect.
func (s *script) json(depth int) string {
	kind := s.next(10)
	if depth > 3 && kind >= 7 {
		kind -= 5
	}
	switch kind {
	case 0:
		return strconv.Quote(pick(s, fuzzUsers...))
	case 1:
		return strconv.Quote(pick(s, append(memberships, "public", "restricted", "knock_restricted", "private", "tok", "12", "3", "a.example", "@nobody", "A")...))
	case 2, 3:
		return pick(s, "0", "1", "50", "100", "-1", "49", "51", "99", "101", "9007199254740991", "-9007199254740991")
	case 4:
		return strconv.Quote(pick(s, "50", " 50 ", "-7", "+1", "1_0", "x", "", "0x10", "9007199254740993", "5e1"))
	case 5:
		return pick(s, "1.5", "1e2", "-0", "99999999999999999999", "9007199254740992", "50.99", "-0.5")
	case 6:
		return pick(s, "true", "false", "null", `""`, "[]", "{}")
	case 7:
		list := make([]string, s.next(4))
		for i := range list {
			list[i] = s.json(depth + 1)
		}
		return "[" + strings.Join(list, ",") + "]"
	default:
		return s.object(depth)
	}
}

func (s *script) object(depth int) string {
	var members []string
	var seen []string
	for range s.next(6) {
		name := pick(s, fuzzNames...)
		if s.next(3) == 0 {
			name = pick(s, fuzzUsers...)
		}
		if !slices.Contains(seen, name) {
			seen = append(seen, name)
			members = append(members, strconv.Quote(name)+":"+s.json(depth+1))
		}
	}
	return "{" + strings.Join(members, ",") + "}"
}

// levels are power levels that mostly mean something.
func (s *script) levels() string {
	if s.next(4) == 0 {
		return s.object(0)
	}
	var users []string
	for _, u := range fuzzUsers {
		if s.next(2) == 0 {
			users = append(users, strconv.Quote(u)+":"+pick(s, "0", "50", "100", "99", `"50"`, "49", "-1"))
		}
	}
	members := []string{`"users":{` + strings.Join(users, ",") + `}`}
	for _, name := range []string{"ban", "kick", "invite", "redact", "users_default", "events_default", "state_default"} {
		if s.next(3) == 0 {
			members = append(members, strconv.Quote(name)+":"+pick(s, "0", "50", "100", "51", "1", "null"))
		}
	}
	for _, name := range []string{"events", "notifications"} {
		if s.next(3) == 0 {
			members = append(members, strconv.Quote(name)+`:{"m.room.topic":`+pick(s, "0", "50", "100")+`,"room":`+pick(s, "1", "50", "100")+`}`)
		}
	}
	return "{" + strings.Join(members, ",") + "}"
}

// fuzzRoom is a room whose events nobody has signed or hashed: only what the rules look at is there.
type fuzzRoom struct {
	version eventgraph.RoomVersion
	traits  eventgraph.Traits
	room    eventgraph.RoomID
	events  []*eventgraph.Event
	state   given
}

// canonical is content as an event of the room can carry it; {} where it cannot.
func (r *fuzzRoom) canonical(content string) []byte {
	rules := canonicaljson.Lenient
	if r.traits.StrictJSON {
		rules = canonicaljson.Strict
	}
	canonical, err := canonicaljson.Canonicalize([]byte(content), rules)
	if err != nil || !canonicaljson.IsObject(canonical) {
		return []byte("{}")
	}
	return canonical
}

// event makes one; content that is no object of the room version's JSON becomes {}.
func (r *fuzzRoom) event(t *testing.T, typ, sender string, key *string, content string, prev, auth []eventgraph.EventID) *eventgraph.Event {
	t.Helper()
	canonical := r.canonical(content)
	quote := func(s string) []byte { return canonicaljson.AppendString(nil, s) }
	ids := func(list []eventgraph.EventID) []byte {
		quoted := make([]string, len(list))
		for i, id := range list {
			quoted[i] = string(quote(string(id)))
		}
		return []byte("[" + strings.Join(quoted, ",") + "]")
	}
	members := []canonicaljson.Member{
		{Key: "auth_events", Value: ids(auth)}, {Key: "content", Value: canonical}, {Key: "depth", Value: []byte("1")}, {Key: "hashes", Value: []byte("{}")}, {Key: "origin_server_ts", Value: []byte("1")},
		{Key: "prev_events", Value: ids(prev)}, {Key: "sender", Value: quote(sender)}, {Key: "signatures", Value: []byte("{}")}, {Key: "type", Value: quote(typ)},
	}
	if key != nil {
		members = append(members, canonicaljson.Member{Key: "state_key", Value: quote(*key)})
	}
	if r.room != "" {
		members = append(members, canonicaljson.Member{Key: "room_id", Value: quote(string(r.room))})
	}
	id := eventgraph.EventID(fmt.Sprintf("$%043d", len(r.events)))
	e, err := eventgraph.LoadEvent(r.version, id, canonicaljson.Join(members))
	if err != nil {
		t.Fatalf("%s with %s: %v", typ, canonical, err)
	}
	r.events = append(r.events, e)
	return e
}

// put makes a state event of the room.
func (r *fuzzRoom) put(t *testing.T, typ, sender, key, content string) {
	t.Helper()
	e := r.event(t, typ, sender, &key, content, nil, nil)
	tuple, _ := e.Tuple()
	r.state[tuple] = e
}

// newFuzzRoom reads a state: who created the room, who is what in it, power levels, join rules, an invitation.
func newFuzzRoom(t *testing.T, s *script, raw string) *fuzzRoom {
	t.Helper()
	versions := eventgraph.SupportedVersions()
	r := &fuzzRoom{version: versions[s.next(len(versions))], state: given{}}
	r.traits, _ = r.version.Traits()
	if !r.traits.RoomIDFromCreate {
		r.room = "!room:a.example"
	}
	content := pick(s, `{"creator":"@alice:a.example"}`, `{"creator":"@alice:a.example","additional_creators":["@bob:a.example"]}`, `{"creator":"@alice:a.example","m.federate":false}`, s.object(0), raw)
	r.put(t, typeCreate, fuzzUsers[0], "", content)
	r.room = r.state[tupleCreate].RoomID()
	for _, u := range fuzzUsers {
		if m := memberships[s.next(len(memberships))]; m != "" {
			r.put(t, typeMember, u, u, `{"membership":"`+m+`"}`)
		}
	}
	if s.next(4) != 0 {
		r.put(t, typePower, fuzzUsers[0], "", pick(s, s.levels(), s.levels(), s.object(0), raw))
	}
	if s.next(4) != 0 {
		rule := `{"join_rule":"` + pick(s, "public", "invite", "knock", "restricted", "knock_restricted", "private", "x") + `"}`
		r.put(t, typeJoinRules, fuzzUsers[0], "", pick(s, rule, rule, rule, raw))
	}
	if s.next(3) == 0 {
		r.put(t, typeThirdParty, pick(s, fuzzUsers...), pick(s, "tok", ""), pick(s, `{"public_key":"A"}`, s.object(0), raw))
	}
	if s.next(16) == 1 {
		delete(r.state, tupleCreate)
	}
	return r
}

// judged makes the event that is judged, with the auth events that the selection names.
func (r *fuzzRoom) judged(t *testing.T, s *script, raw string) *eventgraph.Event {
	t.Helper()
	typ, sender := pick(s, fuzzTypes...), pick(s, fuzzUsers...)
	var key *string
	if k := pick(s, fuzzUsers[0], fuzzUsers[1], fuzzUsers[2], fuzzUsers[3], fuzzUsers[4], sender, "", "-", "a.example", "@x"); k != "-" {
		key = &k
	}
	content := raw
	switch s.next(5) {
	case 0:
		content = s.object(0)
	case 1:
		content = `{"membership":"` + pick(s, memberships...) + `"}`
	case 2:
		content = s.levels()
	case 3:
		content = `{"membership":"` + pick(s, memberships...) + `",` + strings.TrimPrefix(s.object(1), "{")
		content = strings.Replace(content, ",}", "}", 1)
	}
	draft := eventgraph.Draft{Type: typ, Sender: eventgraph.UserID(sender), StateKey: key, Content: r.canonical(content)}
	var list []eventgraph.EventID
	for _, tuple := range Selection(r.version, draft) {
		if a := r.state[tuple]; a != nil {
			list = append(list, a.ID())
		}
	}
	var prev []eventgraph.EventID
	for range s.next(3) {
		prev = append(prev, r.events[s.next(len(r.events))].ID())
	}
	return r.event(t, typ, sender, key, content, prev, list)
}

// FuzzCheck: no event and no state make the rules panic; what they say is the same each time, by the state and by the auth
// events that the selection names, and is what package literal says.
func FuzzCheck(f *testing.F) {
	add := func(raw string, script ...byte) { f.Add(script, raw) }
	add(`{"membership":"join"}`)
	add(`{"users":{"@alice:a.example":100}}`, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 4)
	add(`{"membership":"invite","third_party_invite":{"signed":{"mxid":"@bob:a.example","token":"tok","signatures":{"x":{"ed25519:1":"AA"}}}}}`, 5, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	add(`{"membership":"join","join_authorised_via_users_server":"@alice:a.example"}`, 7, 1, 0, 1, 2, 3, 4, 5, 1, 1, 1, 1, 3, 0, 3, 0, 0, 0, 1, 1, 4)
	add(`{"membership":"knock"}`, 8, 0, 3, 3, 3, 3, 3, 3, 3, 1, 1, 2, 1, 1, 2, 2, 0, 4, 4)
	add(`{"users":{"@bob:a.example":"50","@carol:b.example":1.5},"events":{"m.room.topic":1e2},"notifications":{"room":51}}`, 2, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 255, 254, 253)
	for n := range byte(10) {
		add(`{"ban":null}`, n, n, 7, n, 40, 3*n, 77, n, 1, 9, 2, 200, n, 5, 13, 11, 19, 23, n, 29, 31, 3, 2, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6)
	}
	f.Fuzz(func(t *testing.T, choices []byte, raw string) {
		s := &script{choices}
		r := newFuzzRoom(t, s, raw)
		e := r.judged(t, s, raw)
		byState := verdict(t, Check(e, r.state))
		if again := verdict(t, Check(e, r.state)); again != byState {
			t.Fatalf("%s, and then %s", byState, again)
		}

		var held []*eventgraph.Event
		for _, a := range r.events[:len(r.events)-1] {
			if slices.Contains(e.AuthEvents(), a.ID()) || a.Type() == typeCreate && r.state[tupleCreate] != nil {
				held = append(held, a)
			}
		}
		byAuth := verdict(t, CheckAuthEvents(e, held, nil))
		slices.Reverse(held)
		if again := verdict(t, CheckAuthEvents(e, held, nil)); again != byAuth {
			t.Fatalf("the order of auth events matters: %s, and then %s", byAuth, again)
		}
		if byAuth != byState {
			t.Fatalf("%s against the state, %s against its auth events\n%s", byState, byAuth, r.show(e))
		}
		// The rule that a room begins with its create event is not among those that literal.Authorize has.
		if want := r.literally(t, e); (want == "") != (byState == "") && r.state[tupleCreate] != nil {
			t.Fatalf("%q, literally %q\n%s", byState, want, r.show(e))
		}
		if len(held) > 0 {
			dropped := held[0].ID()
			verdict(t, CheckAuthEvents(e, held, func(id eventgraph.EventID) bool { return id == dropped }))
		}
	})
}

// verdict is the rule that refuses, "" for none. Other errors there must not be.
func verdict(t *testing.T, err error) string {
	t.Helper()
	var refused *Refused
	if err != nil && !errors.As(err, &refused) {
		t.Fatalf("an error that is no verdict: %v", err)
	}
	if refused == nil {
		return ""
	}
	if refused.Rule == "" || refused.Reason == "" {
		t.Fatalf("a verdict without rule or reason: %v", err)
	}
	return refused.Rule
}

// literally is the verdict of package literal.
func (r *fuzzRoom) literally(t *testing.T, e *eventgraph.Event) string {
	t.Helper()
	events := map[string]*literal.Event{}
	for _, known := range r.events {
		l, err := literal.Parse(string(known.ID()), known.Raw())
		if err != nil {
			t.Fatal(err)
		}
		events[l.ID] = l
	}
	state := literal.State{}
	for tuple, held := range r.state {
		state[literal.Key{Type: tuple.Type, StateKey: tuple.Key}] = string(held.ID())
	}
	if err := literal.Authorize(string(r.version), events[string(e.ID())], state, func(id string) *literal.Event { return events[id] }); err != nil {
		return err.Error()
	}
	return ""
}

func (r *fuzzRoom) show(e *eventgraph.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version %s, %s\n", r.version, e.Raw())
	for _, held := range r.events[:len(r.events)-1] {
		fmt.Fprintf(&b, "  %s\n", held.Raw())
	}
	return b.String()
}
