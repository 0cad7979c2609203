package literal

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

const (
	alice = "@alice:a" // creates the rooms
	bob   = "@bob:b"
	carol = "@carol:c"
	dave  = "@dave:d"
)

type object = map[string]any

// history is a room under construction. Its time goes on by one with each event.
type history struct {
	t       *testing.T
	version string
	events  map[string]*Event
	create  string
	now     int
}

func newHistory(t *testing.T, version string, create object) *history {
	h := &history{t: t, version: version, events: map[string]*Event{}, create: "$create"}
	content := object{"room_version": version}
	if number(version) <= 10 {
		content["creator"] = alice
	}
	maps.Copy(content, create)
	h.add("$create", alice, "m.room.create", "", content, nil)
	if number(version) >= 12 {
		delete(h.events["$create"].JSON, "room_id")
	}
	return h
}

func (h *history) get(id string) *Event { return h.events[id] }

func (h *history) roomID() string {
	if number(h.version) >= 12 {
		return "!create"
	}
	return "!room:a"
}

// add adds an event. The state key "-" makes it a message event.
func (h *history) add(id, sender, typ, stateKey string, content object, auth []string, prev ...string) *Event {
	h.t.Helper()
	h.now++
	raw := object{"type": typ, "sender": sender, "room_id": h.roomID(), "content": content, "origin_server_ts": h.now,
		"auth_events": auth, "prev_events": prev}
	if auth == nil {
		raw["auth_events"] = []string{}
	}
	if stateKey != "-" {
		raw["state_key"] = stateKey
	}
	encoded, err := json.Marshal(raw)
	if err != nil {
		h.t.Fatal(err)
	}
	e, err := Parse(id, encoded)
	if err != nil {
		h.t.Fatal(err)
	}
	h.events[id] = e
	return e
}

// put adds a state event whose auth events are those of the state that its selection names, and sets it in the state.
func (h *history) put(state State, id, sender, typ, stateKey string, content object) *Event {
	h.t.Helper()
	e := h.add(id, sender, typ, stateKey, content, nil, "$previous")
	var auth []any
	for _, key := range AuthSelection(h.version, e) {
		if id, ok := state[key]; ok {
			auth = append(auth, id)
		}
	}
	e.JSON["auth_events"] = auth
	if key, ok := e.key(); ok {
		state[key] = id
	}
	return e
}

// base is a room where alice (100, creator), bob (50) and carol (0) are joined, and join_rule is rule.
func base(t *testing.T, version, rule string, levels object) (*history, State) {
	t.Helper()
	h := newHistory(t, version, nil)
	state := State{{"m.room.create", ""}: "$create"}
	h.put(state, "$alice", alice, "m.room.member", alice, object{"membership": "join"})
	users := object{alice: 100, bob: 50}
	if number(version) >= 12 {
		delete(users, alice)
	}
	content := object{"users": users}
	maps.Copy(content, levels)
	h.put(state, "$levels", alice, "m.room.power_levels", "", content)
	h.put(state, "$rules", alice, "m.room.join_rules", "", object{"join_rule": rule})
	h.put(state, "$bob", bob, "m.room.member", bob, object{"membership": "join"})
	h.put(state, "$carol", carol, "m.room.member", carol, object{"membership": "join"})
	return h, state
}

// wants checks a verdict: the rule that rejects, or "" for none.
func wants(t *testing.T, what string, err error, rule string) {
	t.Helper()
	got := ""
	if err != nil {
		got, _, _ = strings.Cut(err.Error(), ":")
	}
	if got != rule {
		t.Errorf("%s: rule %q (%v), want %q", what, got, err, rule)
	}
}

func TestSigningVectors(t *testing.T) {
	t.Parallel()
	// Appendices, Cryptographic Test Vectors.
	seed, err := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	for _, row := range []struct{ raw, hash, signature string }{
		{`{}`, "", "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"},
		{`{"two":"Two","one":1}`, "", "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"},
		{`{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,"signatures":{},"hashes":{},
			"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3,"unsigned":{"age_ts":1000000}}`,
			"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
			"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"},
		{`{"content":{"body":"Here is the message content"},"event_id":"$0:domain","origin":"domain","origin_server_ts":1000000,
			"type":"m.room.message","room_id":"!r:domain","sender":"@u:domain","signatures":{},"unsigned":{"age_ts":1000000}}`,
			"onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
			"Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA"},
	} {
		e, err := Parse("", []byte(row.raw))
		if err != nil {
			t.Fatal(err)
		}
		signed := e.JSON
		if row.hash != "" {
			if got := ContentHash(e.JSON); got != row.hash {
				t.Errorf("content hash %s, want %s", got, row.hash)
			}
			e.JSON["hashes"] = object{"sha256": row.hash}
			signed = Redact("3", e.JSON)
		}
		signed["signatures"] = object{"domain": object{"ed25519:1": row.signature}}
		if !anySignature(signed, []ed25519.PublicKey{key}) {
			t.Errorf("the signature of %s does not verify", row.raw)
		}
		signed["more"] = true
		if anySignature(signed, []ed25519.PublicKey{key}) {
			t.Errorf("the signature of %s verifies for another object", row.raw)
		}
	}
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		`{"b":"2","a":"1"}`:                  `{"a":"1","b":"2"}`,
		`{"本":2,"日":1}`:                      `{"日":1,"本":2}`,
		`{"a":"\u65E5"}`:                     `{"a":"日"}`,
		`{"a":null,"b":[true,false, 1.50]}`:  `{"a":null,"b":[true,false,1.50]}`,
		`{"a":"<&>\u2028\u007f\/"}`:          "{\"a\":\"<&>\u2028\u007f/\"}",
		`{"a":"\u0000\u001f\b\t\n\f\r\"\\"}`: `{"a":"\u0000\u001f\b\t\n\f\r\"\\"}`,
		`{"\ud83d\ude00":1,"\uffff":2}`:      "{\"\uffff\":2,\"\U0001f600\":1}",
	} {
		e, err := Parse("", []byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(canonical(e.JSON)); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{``, `null`, `[]`, `1`, `{`, `{} {}`} {
		if _, err := Parse("", []byte(raw)); err == nil {
			t.Errorf("%q is an event", raw)
		}
	}
}

func TestEventIDAlphabets(t *testing.T) {
	t.Parallel()
	event := object{"type": "X", "sender": "@a:b", "content": object{"body": "b"}, "hashes": object{"sha256": "x"}}
	for i := range 20 {
		event["depth"] = json.Number(fmt.Sprint(i))
		three, four := EventID("3", event), EventID("4", event)
		if len(three) != 44 || strings.NewReplacer("+", "-", "/", "_").Replace(three) != four {
			t.Errorf("%s in version 3 and %s in 4", three, four)
		}
		event["signatures"], event["unsigned"] = object{"a": 1}, object{}
		event["content"] = object{"body": fmt.Sprint(i)}
		if got := EventID("4", event); got != four {
			t.Errorf("the ID covers signatures, unsigned or redacted content: %s and %s", got, four)
		}
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	// The keys of content that each version keeps, of all keys that any version keeps of any type.
	all := []string{"membership", "join_authorised_via_users_server", "creator", "join_rule", "allow", "ban", "events",
		"events_default", "invite", "kick", "redact", "state_default", "users", "users_default", "aliases",
		"history_visibility", "redacts", "other"}
	levels := "ban events events_default kick redact state_default users users_default"
	for _, row := range []struct {
		from, to  int
		typ, keys string
	}{
		{3, 8, "m.room.member", "membership"},
		{9, 12, "m.room.member", "join_authorised_via_users_server membership"},
		{3, 10, "m.room.create", "creator"},
		{11, 12, "m.room.create", strings.Join(all, " ")},
		{3, 7, "m.room.join_rules", "join_rule"},
		{8, 12, "m.room.join_rules", "allow join_rule"},
		{3, 10, "m.room.power_levels", levels},
		{11, 12, "m.room.power_levels", levels + " invite"},
		{3, 5, "m.room.aliases", "aliases"},
		{6, 12, "m.room.aliases", ""},
		{3, 12, "m.room.history_visibility", "history_visibility"},
		{3, 10, "m.room.redaction", ""},
		{11, 12, "m.room.redaction", "redacts"},
		{3, 12, "m.room.message", ""},
	} {
		for v := row.from; v <= row.to; v++ {
			content := object{}
			for _, name := range all {
				content[name] = name
			}
			got := Redact(fmt.Sprint(v), object{"type": row.typ, "content": content})
			want := strings.Fields(row.keys)
			slices.Sort(want)
			if keys := slices.Sorted(maps.Keys(got["content"].(object))); !slices.Equal(keys, want) {
				t.Errorf("version %d keeps %v of %s, want %v", v, keys, row.typ, want)
			}
			if len(content) != len(all) {
				t.Fatal("the event itself was changed")
			}
		}
	}
}

func TestRedactTopLevelAndThirdPartyInvite(t *testing.T) {
	t.Parallel()
	always := []string{"event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth",
		"prev_events", "auth_events", "origin_server_ts"}
	for v := 3; v <= 12; v++ {
		want := slices.Clone(always)
		if v <= 10 {
			want = append(want, "prev_state", "origin", "membership")
		}
		event := object{"unsigned": 1, "redacts": 1, "other": 1, "prev_state": 1, "origin": 1, "membership": 1}
		for _, name := range always {
			event[name] = name
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(Redact(fmt.Sprint(v), event))); !slices.Equal(got, want) {
			t.Errorf("version %d keeps %v, want %v", v, got, want)
		}
		for invite, kept := range map[string]string{
			`{"signed":{"token":"t"},"display_name":"x"}`: `{"third_party_invite":{"signed":{"token":"t"}}}`,
			`{"display_name":"x"}`:                        `{"third_party_invite":{}}`,
			`"x"`:                                         `{}`,
		} {
			e, err := Parse("", []byte(`{"type":"m.room.member","content":{"third_party_invite":`+invite+`}}`))
			if err != nil {
				t.Fatal(err)
			}
			if v <= 10 {
				kept = `{}`
			}
			if got := string(canonical(Redact(fmt.Sprint(v), e.JSON)["content"])); got != kept {
				t.Errorf("version %d keeps %s of %s, want %s", v, got, invite, kept)
			}
		}
	}
}

func TestLevels(t *testing.T) {
	t.Parallel()
	const malformed = "malformed"
	for _, row := range []struct{ raw, before10, from10 string }{
		{`50`, "50", "50"},
		{`-50`, "-50", "-50"},
		{`"50"`, "50", malformed},
		{`" \t+00050\n "`, "50", malformed},
		{`"-7"`, "-7", malformed},
		{`"+-7"`, malformed, malformed},
		{`"--7"`, malformed, malformed},
		{`"1 0"`, malformed, malformed},
		{`"1.5"`, malformed, malformed},
		{`"1e3"`, malformed, malformed},
		{`"0x10"`, malformed, malformed},
		{`"1_0"`, malformed, malformed},
		{`"+"`, malformed, malformed},
		{`""`, malformed, malformed},
		{`5.114698E4`, "51146", malformed},
		{`50.57`, "50", malformed},
		{`-50.57`, "-50", malformed},
		{`-0.9`, "0", malformed},
		{`0.99999999999999999999999`, "0", malformed},
		{`9007199254740993.0`, "9007199254740993", malformed},
		{`1e-400`, "0", malformed},
		{`1e300`, "9223372036854775807", malformed},
		{`-1e300`, "-9223372036854775808", malformed},
		{`1e309`, malformed, malformed},
		{`99999999999999999999`, "9223372036854775807", "9223372036854775807"},
		{`"-99999999999999999999"`, "-9223372036854775808", malformed},
		{`true`, malformed, malformed},
		{`null`, malformed, malformed},
		{`[]`, malformed, malformed},
		{`{}`, malformed, malformed},
	} {
		e, err := Parse("", []byte(`{"level":`+row.raw+`}`))
		if err != nil {
			t.Fatal(err)
		}
		for v, want := range map[int]string{3: row.before10, 9: row.before10, 10: row.from10, 12: row.from10} {
			got := malformed
			if n, ok := level(v, e.JSON["level"]); ok {
				got = fmt.Sprint(n)
			}
			if got != want {
				t.Errorf("version %d reads %s as %s, want %s", v, row.raw, got, want)
			}
		}
	}
}

func TestUserIDs(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 252)
	for id, want := range map[string]bool{
		"@a:b": true, "@a:b:8448": true, "@:b": true, "@A é!:b.example": true, "@a:[1234:5678::abcd]:1": true, "@a:[::1]": true,
		"@" + long + ":b": true, "@" + long + "x:b": false,
		"": false, "a:b": false, "@a": false, "@a:": false, "@a:b:": false, "@a:b:123456": false, "@a:b:x": false,
		"@a:b_c": false, "@a\x00:b": false, "@a:[::1": false, "@a:[x]": false, "@a:b:c:1": false,
	} {
		if got := validUserID(id); got != want {
			t.Errorf("%q: %v", id, got)
		}
	}
}

func TestCreate(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		what, version string
		edit          func(e object)
		rule          string
	}{
		{"plain", "3", func(object) {}, ""},
		{"plain", "11", func(object) {}, ""},
		{"plain", "12", func(object) {}, ""},
		{"prev_events", "6", func(e object) { e["prev_events"] = []any{"$x"} }, "1.1"},
		{"domain", "6", func(e object) { e["room_id"] = "!room:b" }, "1.2"},
		{"room_id", "12", func(e object) { e["room_id"] = "!room" }, "1.2"},
		{"room_version", "6", func(e object) { e["content"].(object)["room_version"] = "13" }, "1.3"},
		{"room_version", "6", func(e object) { e["content"].(object)["room_version"] = json.Number("6") }, "1.3"},
		{"room_version", "6", func(e object) { delete(e["content"].(object), "room_version") }, ""},
		{"creator", "10", func(e object) { delete(e["content"].(object), "creator") }, "1.4"},
		{"creators", "11", func(e object) { e["content"].(object)["additional_creators"] = "x" }, ""},
		{"creators", "12", func(e object) { e["content"].(object)["additional_creators"] = "x" }, "1.4"},
		{"creators", "12", func(e object) { e["content"].(object)["additional_creators"] = []any{bob, "bob"} }, "1.4"},
		{"creators", "12", func(e object) { e["content"].(object)["additional_creators"] = []any{bob} }, ""},
	} {
		h := newHistory(t, row.version, nil)
		create := h.get("$create")
		row.edit(create.JSON)
		wants(t, row.version+" "+row.what, AuthorizeByAuthEvents(row.version, create, h.get), row.rule)
	}
}

func TestAuthEvents(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"3", "9", "11", "12"} {
		h, state := base(t, version, "public", nil)
		rule, create := "2", []any{"$create"}
		if version == "12" {
			rule, create = "3", nil
		}
		with := func(ids ...any) *Event {
			e := h.add("$e", carol, "m.room.message", "-", object{}, nil, "$previous")
			e.JSON["auth_events"] = append(slices.Clone(create), ids...)
			return e
		}
		check := func(what string, e *Event, rule string) {
			t.Helper()
			wants(t, version+" "+what, AuthorizeByAuthEvents(version, e, h.get), rule)
		}
		h.put(maps.Clone(state), "$levels2", alice, "m.room.power_levels", "", object{})
		h.add("$elsewhere", carol, "m.room.member", carol, object{"membership": "join"}, nil).JSON["room_id"] = "!other:a"
		h.put(maps.Clone(state), "$rejected", carol, "m.room.member", carol, object{"membership": "join"}).Rejected = true
		check("good", with("$levels", "$carol"), "")
		check("no member event", with("$levels"), map[string]string{"3": "6", "9": "5", "11": "5", "12": "6"}[version])
		check("same event twice", with("$levels", "$carol", "$carol"), rule+".1")
		check("two power levels", with("$levels", "$levels2", "$carol"), rule+".1")
		check("needless", with("$levels", "$carol", "$rules"), rule+".2")
		check("rejected", with("$levels", "$rejected"), rule+".3")
		check("unknown", with("$levels", "$nothing"), rule)
		check("other room", with("$elsewhere"), rule+".5")
		if version == "12" {
			check("create", with("$create", "$levels", "$carol"), "3.2")
			h.get("$create").Rejected = true
			check("rejected create", with("$levels", "$carol"), "2")
			e := with("$levels", "$carol")
			e.JSON["room_id"] = "!carol"
			check("room ID of no create event", e, "2")
		} else {
			create = nil
			check("no create", with("$levels", "$carol"), "2.4")
		}
	}
}

func TestFederateAndAliases(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"5", "6", "12"} {
		h, state := base(t, version, "public", nil)
		check := func(what, sender, typ, stateKey, rule string) {
			t.Helper()
			e := h.add("$e", sender, typ, stateKey, object{}, nil, "$previous")
			wants(t, version+" "+what, Authorize(version, e, state, h.get), rule)
		}
		last := map[string]string{"5": "", "6": "5", "12": "6"}[version]
		check("aliases by a stranger", dave, "m.room.aliases", "d", last)
		check("aliases of another domain", dave, "m.room.aliases", "a", map[string]string{"5": "4.2", "6": "5", "12": "6"}[version])
		check("aliases message", dave, "m.room.aliases", "-", map[string]string{"5": "4.1", "6": "5", "12": "6"}[version])
		h.get("$create").content()["m.federate"] = false
		federate := map[string]string{"5": "3", "6": "3", "12": "4"}[version]
		check("other server", bob, "m.room.message", "-", federate)
		check("own server", alice, "m.room.message", "-", "")
		h.get("$create").content()["m.federate"] = "false"
		check("a string is not false", bob, "m.room.message", "-", "")
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	type row struct {
		version, rule, before string // membership of dave before, "" for none
		via                   any
		want                  string
	}
	for _, row := range []row{
		{"3", "public", "", nil, ""}, {"3", "public", "ban", nil, "5.2.3"}, {"3", "invite", "", nil, "5.2.6"},
		{"3", "invite", "invite", nil, ""}, {"3", "invite", "leave", nil, "5.2.6"}, {"6", "knock", "invite", nil, "4.2.6"},
		{"7", "knock", "invite", nil, ""}, {"7", "knock", "knock", nil, "4.2.6"}, {"7", "restricted", "invite", nil, "4.2.6"},
		{"8", "restricted", "invite", nil, ""}, {"8", "restricted", "", nil, "4.3.5.2"}, {"8", "restricted", "", bob, ""},
		{"8", "restricted", "ban", bob, "4.3.3"}, {"8", "restricted", "", dave, "4.3.5.2"}, {"8", "restricted", "", carol, "4.3.5.2"},
		{"8", "restricted", "", "bob", "4.2.1"}, {"8", "public", "", 7, "4.2.1"}, {"7", "public", "", 7, ""},
		{"9", "knock_restricted", "invite", nil, "4.3.7"}, {"10", "knock_restricted", "", bob, ""},
		{"11", "knock_restricted", "", carol, "4.3.5.2"}, {"12", "knock_restricted", "", alice, ""},
		{"12", "private", "invite", nil, "5.3.7"}, {"11", "", "join", nil, ""}, {"11", "", "", nil, "4.3.7"},
	} {
		h, state := base(t, row.version, row.rule, object{"invite": 10})
		if row.rule == "" {
			delete(state, Key{"m.room.join_rules", ""})
		}
		if row.before != "" {
			h.put(state, "$dave", dave, "m.room.member", dave, object{"membership": row.before})
		}
		content := object{"membership": "join"}
		if row.via != nil {
			content["join_authorised_via_users_server"] = row.via
		}
		e := h.add("$e", dave, "m.room.member", dave, content, nil, "$previous")
		e.JSON["signatures"] = object{}
		if via, ok := row.via.(string); ok {
			server, _ := domain(via)
			e.JSON["signatures"] = object{server: object{"ed25519:1": "AA"}}
		}
		wants(t, fmt.Sprintf("%+v", row), Authorize(row.version, e, state, h.get), row.want)
	}
	for _, version := range []string{"3", "10", "11", "12"} {
		h := newHistory(t, version, nil)
		state := State{{"m.room.create", ""}: "$create"}
		first := h.add("$alice", alice, "m.room.member", alice, object{"membership": "join"}, nil, "$create")
		wants(t, version+" creator's join", Authorize(version, first, state, h.get), "")
		other := h.add("$bob", bob, "m.room.member", bob, object{"membership": "join"}, nil, "$create")
		if Authorize(version, other, state, h.get) == nil {
			t.Errorf("version %s: somebody else joins after the create event", version)
		}
		later := h.add("$later", alice, "m.room.member", alice, object{"membership": "join"}, nil, "$create", "$bob")
		if Authorize(version, later, state, h.get) == nil {
			t.Errorf("version %s: the creator joins after two events", version)
		}
	}
}

func TestOtherMemberships(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ version, rule, before, sender, membership, want string }{
		{"3", "invite", "", bob, "invite", ""}, {"3", "invite", "", dave, "invite", "5.3.2"},
		{"3", "invite", "ban", bob, "invite", "5.3.3"}, {"11", "invite", "join", bob, "invite", "4.4.3"},
		{"11", "invite", "", carol, "invite", "4.4.5"}, {"12", "invite", "knock", alice, "invite", ""},
		{"3", "invite", "invite", dave, "leave", ""}, {"3", "invite", "ban", dave, "leave", "5.4.1"},
		{"6", "invite", "knock", dave, "leave", "4.4.1"}, {"7", "invite", "knock", dave, "leave", ""},
		{"7", "invite", "join", carol, "leave", "4.4.5"}, {"8", "invite", "join", bob, "leave", ""},
		{"8", "invite", "ban", bob, "leave", "4.5.3"}, {"8", "invite", "ban", alice, "leave", ""},
		{"12", "invite", "", bob, "ban", "5.6.3"}, {"12", "invite", "", alice, "ban", ""}, {"5", "invite", "", carol, "ban", "5.5.3"},
		{"6", "knock", "", dave, "knock", "4.6"}, {"7", "knock", "", dave, "knock", ""}, {"7", "invite", "", dave, "knock", "4.6.1"},
		{"7", "knock", "", bob, "knock", "4.6.2"}, {"8", "knock", "ban", dave, "knock", "4.7.4"},
		{"8", "knock", "knock", dave, "knock", ""}, {"9", "knock_restricted", "", dave, "knock", "4.7.1"},
		{"10", "knock_restricted", "", dave, "knock", ""}, {"12", "public", "", dave, "elope", "5.8"},
		{"7", "public", "", dave, "elope", "4.7"},
	} {
		h, state := base(t, row.version, row.rule, object{"invite": 10, "kick": 40, "ban": 60})
		if row.before != "" {
			h.put(state, "$dave", dave, "m.room.member", dave, object{"membership": row.before})
		}
		e := h.add("$e", row.sender, "m.room.member", dave, object{"membership": row.membership}, nil, "$previous")
		wants(t, fmt.Sprintf("%+v", row), Authorize(row.version, e, state, h.get), row.want)
	}
	h, state := base(t, "12", "public", nil)
	h.get("$create").content()["additional_creators"] = []any{carol}
	for sender, rule := range map[string]string{alice: "5.6.3", bob: "5.6.3"} {
		e := h.add("$e", sender, "m.room.member", carol, object{"membership": "ban"}, nil, "$previous")
		wants(t, sender+" bans a creator", Authorize("12", e, state, h.get), rule)
	}
	e := h.add("$e", carol, "m.room.member", "-", object{"membership": "ban"}, nil)
	wants(t, "no state key", Authorize("12", e, state, h.get), "5.1")
	e = h.add("$e", carol, "m.room.member", carol, object{}, nil)
	wants(t, "no membership", Authorize("12", e, state, h.get), "5.1")
}

func TestThirdPartyInvite(t *testing.T) {
	t.Parallel()
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	key := base64.RawURLEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	for _, row := range []struct {
		what string
		keys object
		edit func(h *history, state State, e object)
		rule string
	}{
		{"public_key", object{"public_key": key}, nil, ""},
		{"public_keys", object{"public_keys": []object{{"public_key": "AAAA"}, {"public_key": key}}}, nil, ""},
		{"no key", object{"public_key": "AAAA"}, nil, "5.3.1.8"},
		{"banned", nil, func(h *history, state State, _ object) {
			h.put(state, "$dave", alice, "m.room.member", dave, object{"membership": "ban"})
		}, "5.3.1.1"},
		{"not an object", nil, func(_ *history, _ State, e object) { e["third_party_invite"] = "x" }, "5.3.1.2"},
		{"no token", nil, func(_ *history, _ State, e object) {
			delete(e["third_party_invite"].(object)["signed"].(object), "token")
		}, "5.3.1.3"},
		{"other mxid", nil, func(_ *history, _ State, e object) {
			e["third_party_invite"].(object)["signed"].(object)["mxid"] = carol
		}, "5.3.1.4"},
		{"other token", nil, func(_ *history, _ State, e object) {
			e["third_party_invite"].(object)["signed"].(object)["token"] = "other"
		}, "5.3.1.5"},
		{"other sender", nil, func(h *history, _ State, _ object) { h.get("$third").JSON["sender"] = carol }, "5.3.1.6"},
		{"changed", object{"public_key": key}, func(_ *history, _ State, e object) {
			e["third_party_invite"].(object)["signed"].(object)["more"] = "x"
		}, "5.3.1.8"},
	} {
		h, state := base(t, "5", "invite", nil)
		h.put(state, "$third", bob, "m.room.third_party_invite", "token", row.keys)
		signed := object{"mxid": dave, "token": "token"}
		signature := base64.RawStdEncoding.EncodeToString(ed25519.Sign(private, canonical(signed)))
		signed["signatures"] = object{"id.example": object{"x:0": "", "ed25519:0": signature}}
		e := h.add("$e", bob, "m.room.member", dave, object{"membership": "invite",
			"third_party_invite": object{"signed": signed}}, nil, "$previous")
		if row.edit != nil {
			row.edit(h, state, e.content())
		}
		wants(t, row.what, Authorize("5", e, state, h.get), row.rule)
		if row.rule == "" && !slices.Contains(AuthSelection("5", e), Key{"m.room.third_party_invite", "token"}) {
			t.Error("the third-party invite is not selected")
		}
	}
}

func TestLevelsGovern(t *testing.T) {
	t.Parallel()
	levels := object{"events": object{"x": 60, "y": 50, "z": -1}, "events_default": 10, "state_default": 40, "invite": 20}
	for _, row := range []struct{ version, sender, typ, stateKey, rule string }{
		{"3", bob, "x", "", "8"}, {"6", bob, "y", "", ""}, {"6", carol, "z", "-", ""}, {"6", carol, "other", "-", "7"},
		{"6", bob, "other", "", ""}, {"12", carol, "other", "", "8"}, {"12", alice, "x", "", ""}, {"12", dave, "z", "-", "6"},
		{"11", bob, "y", "@else:b", "8"}, {"11", bob, "y", bob, ""}, {"5", carol, "m.room.third_party_invite", "t", "7.1"},
		{"5", bob, "m.room.third_party_invite", "t", ""}, {"12", carol, "m.room.third_party_invite", "t", "7.1"},
	} {
		h, state := base(t, row.version, "public", levels)
		e := h.add("$e", row.sender, row.typ, row.stateKey, object{}, nil, "$previous")
		wants(t, fmt.Sprintf("%+v", row), Authorize(row.version, e, state, h.get), row.rule)
	}
	// Without a power levels event.
	for version, rules := range map[string][3]string{"3": {"", "8", ""}, "11": {"", "7", ""}, "12": {"", "8", ""}} {
		h, state := base(t, version, "public", nil)
		delete(state, Key{"m.room.power_levels", ""})
		for i, e := range []*Event{
			h.add("$1", alice, "x", "", object{}, nil),
			h.add("$2", bob, "x", "", object{}, nil),
			h.add("$3", bob, "x", "-", object{}, nil),
		} {
			wants(t, fmt.Sprintf("%s, no levels, %d", version, i), Authorize(version, e, state, h.get), rules[i])
		}
	}
}

func TestPowerLevels(t *testing.T) {
	t.Parallel()
	before := object{"users": object{alice: 100, bob: 50, carol: 50, dave: 10}, "events": object{"x": 60, "y": 50},
		"notifications": object{"room": 60}, "kick": 60, "state_default": 40}
	with := func(name string, value any) object {
		after := maps.Clone(before)
		if after[name] = value; value == nil {
			delete(after, name)
		}
		return after
	}
	for _, row := range []struct {
		what        string
		after       object
		v5, v9, v11 string
	}{
		{"same", before, "", "", ""},
		{"no users", object{"events": before["events"], "kick": 60, "notifications": before["notifications"]}, "10.6.1", "9.6.1", "9.8.1"},
		{"users array", with("users", []any{}), "10.1", "9.1", "9.3"},
		{"users null", with("users", json.RawMessage("null")), "10.1", "9.1", "9.3"},
		{"user level null", with("users", object{dave: nil}), "10.1", "9.1", "9.3"},
		{"user level bool", with("users", object{dave: true}), "10.1", "9.1", "9.3"},
		{"no user ID", with("users", object{"dave": 1}), "10.1", "9.1", "9.3"},
		{"string", with("ban", "7"), "", "", "9.1"},
		{"same as a string", with("kick", " +060"), "", "", "9.1"},
		{"malformed ban", with("ban", "x"), "10.1", "9.1", "9.1"},
		{"null ban", with("ban", json.RawMessage("null")), "", "", "9.1"},
		{"null kick is removal", with("kick", json.RawMessage("null")), "10.3.1", "9.3.1", "9.1"},
		{"malformed events", with("events", object{"x": "x"}), "10.1", "9.1", "9.2"},
		{"events is no object", with("events", 1), "10.1", "9.1", "9.2"},
		{"events null", with("events", json.RawMessage("null")), "10.1", "9.1", "9.2"},
		{"event level null", with("events", object{"x": 60, "y": nil}), "", "", "9.2"},
		{"malformed notifications", with("notifications", object{"room": "x"}), "", "9.1", "9.2"},
		{"kick removed", with("kick", nil), "10.3.1", "9.3.1", "9.5.1"},
		{"kick lowered", with("kick", 10), "10.3.1", "9.3.1", "9.5.1"},
		{"ban added", with("ban", 51), "10.3.2", "9.3.2", "9.5.2"},
		{"ban added, within", with("ban", 50), "", "", ""},
		{"event removed", with("events", object{"y": 50}), "10.4.1", "9.4.1", "9.6.1"},
		{"event raised", with("events", object{"x": 60, "y": 51}), "10.5.1", "9.5.1", "9.7.1"},
		{"event lowered", with("events", object{"x": 60, "y": 0}), "", "", ""},
		{"notification changed", with("notifications", object{"room": 1}), "", "9.4.1", "9.6.1"},
		{"notification added", with("notifications", object{"room": 60, "z": 51}), "", "9.5.1", "9.7.1"},
		{"equal user changed", with("users", object{alice: 100, bob: 50, carol: 10, dave: 10}), "10.6.1", "9.6.1", "9.8.1"},
		{"lower user removed", with("users", object{alice: 100, bob: 50, carol: 50}), "", "", ""},
		{"lower user raised", with("users", object{alice: 100, bob: 50, carol: 50, dave: 51}), "10.7.1", "9.7.1", "9.9.1"},
		{"self lowered", with("users", object{alice: 100, bob: 0, carol: 50, dave: 10}), "", "", ""},
		{"self raised", with("users", object{alice: 100, bob: 51, carol: 50, dave: 10}), "10.7.1", "9.7.1", "9.9.1"},
	} {
		for version, rule := range map[string]string{"5": row.v5, "9": row.v9, "11": row.v11} {
			h, state := base(t, version, "public", before)
			e := h.add("$e", bob, "m.room.power_levels", "", row.after, nil, "$previous")
			wants(t, version+" "+row.what, Authorize(version, e, state, h.get), rule)
		}
	}
	// Version 12: creators are above every level, and in no users.
	h, state := base(t, "12", "public", object{"users": object{bob: 100}})
	h.get("$create").content()["additional_creators"] = []any{carol}
	for what, row := range map[string]struct {
		sender string
		users  object
		rule   string
	}{
		"creator lowers":    {carol, object{bob: 0, dave: 1 << 52}, ""},
		"holds the sender":  {bob, object{bob: 100, alice: 100}, "10.4"},
		"holds an addition": {alice, object{carol: 1}, "10.4"},
		"equal lowers":      {bob, object{bob: 101}, "10.10.1"},
	} {
		e := h.add("$e", row.sender, "m.room.power_levels", "", object{"users": row.users}, nil, "$previous")
		wants(t, what, Authorize("12", e, state, h.get), row.rule)
	}
}

func TestAuthSelection(t *testing.T) {
	t.Parallel()
	h := newHistory(t, "9", nil)
	create, levels, rules := Key{"m.room.create", ""}, Key{"m.room.power_levels", ""}, Key{"m.room.join_rules", ""}
	member := func(user string) Key { return Key{"m.room.member", user} }
	for _, row := range []struct {
		version string
		e       *Event
		want    []Key
	}{
		{"9", h.get("$create"), nil},
		{"9", h.add("$1", bob, "m.room.message", "-", object{}, nil), []Key{create, levels, member(bob)}},
		{"12", h.add("$2", bob, "m.room.message", "-", object{}, nil), []Key{levels, member(bob)}},
		{"9", h.add("$3", bob, "m.room.member", carol, object{"membership": "ban"}, nil), []Key{create, levels, member(bob), member(carol)}},
		{"9", h.add("$4", bob, "m.room.member", bob, object{"membership": "join"}, nil), []Key{create, levels, member(bob), rules}},
		{"12", h.add("$5", bob, "m.room.member", carol, object{"membership": "invite", "join_authorised_via_users_server": dave}, nil),
			[]Key{levels, member(bob), member(carol), rules}},
		{"8", h.add("$6", bob, "m.room.member", bob, object{"membership": "join", "join_authorised_via_users_server": dave}, nil),
			[]Key{create, levels, member(bob), rules, member(dave)}},
		{"7", h.add("$7", bob, "m.room.member", bob, object{"membership": "join", "join_authorised_via_users_server": dave}, nil),
			[]Key{create, levels, member(bob), rules}},
	} {
		if got := AuthSelection(row.version, row.e); !slices.Equal(got, row.want) {
			t.Errorf("%s in version %s: %v, want %v", row.e.ID, row.version, got, row.want)
		}
	}
}
