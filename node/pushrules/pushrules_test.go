package pushrules

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	me    = "@me:here"
	other = "@other:there"
	room  = "!room:here"
)

func message(content string) *Event {
	return &Event{ID: "$e", Type: "m.room.message", Sender: other, RoomID: room, Content: json.RawMessage(content)}
}

func in(members int) Context {
	return Context{User: me, DisplayName: "Me Myself", Members: members, Permission: func(string) bool { return false }}
}

func TestDefaultRules(t *testing.T) {
	t.Parallel()
	state := func(e *Event, eventType, key string) *Event { e.Type, e.StateKey = eventType, &key; return e }
	typed := func(e *Event, eventType string) *Event { e.Type = eventType; return e }
	mayNotify := in(3)
	mayNotify.Permission = func(key string) bool { return key == "room" }
	own := message(`{"body":"hello"}`)
	own.Sender = me

	for _, test := range []struct {
		name      string
		event     *Event
		context   Context
		rule      string
		notify    bool
		highlight bool
	}{
		{"message in a group", message(`{"body":"hello"}`), in(3), ".m.rule.message", true, false},
		{"message to one", message(`{"body":"hello"}`), in(2), ".m.rule.room_one_to_one", true, false},
		{"own message", own, in(2), "", false, false},
		{"encrypted in a group", typed(message(`{}`), "m.room.encrypted"), in(3), ".m.rule.encrypted", true, false},
		{"encrypted to one", typed(message(`{}`), "m.room.encrypted"), in(2), ".m.rule.encrypted_room_one_to_one", true, false},
		{"notice", message(`{"msgtype":"m.notice","body":"x"}`), in(2), ".m.rule.suppress_notices", false, false},
		{"invite of me", state(message(`{"membership":"invite"}`), "m.room.member", me), in(2), ".m.rule.invite_for_me", true, false},
		{"invite of another", state(message(`{"membership":"invite"}`), "m.room.member", other), in(2), ".m.rule.member_event", false, false},
		{"mention", message(`{"body":"x","m.mentions":{"user_ids":["@a:b","@me:here"]}}`), in(3), ".m.rule.is_user_mention", true, true},
		{"mention of another", message(`{"body":"x","m.mentions":{"user_ids":["@a:b"]}}`), in(3), ".m.rule.message", true, false},
		{"mention of no list", message(`{"body":"x","m.mentions":{"user_ids":"@me:here"}}`), in(3), ".m.rule.message", true, false},
		{"room mention", message(`{"body":"x","m.mentions":{"room":true}}`), mayNotify, ".m.rule.is_room_mention", true, true},
		{"room mention without power", message(`{"body":"x","m.mentions":{"room":true}}`), in(3), ".m.rule.message", true, false},
		{"room mention as a string", message(`{"body":"x","m.mentions":{"room":"true"}}`), mayNotify, ".m.rule.message", true, false},
		{"tombstone", state(message(`{}`), "m.room.tombstone", ""), in(3), ".m.rule.tombstone", true, true},
		{"tombstone that is no state", typed(message(`{}`), "m.room.tombstone"), in(3), "", false, false},
		{"reaction", typed(message(`{}`), "m.reaction"), in(2), ".m.rule.reaction", false, false},
		{"server ACL", state(message(`{}`), "m.room.server_acl", ""), in(3), ".m.rule.room.server_acl", false, false},
		{"edit", message(`{"body":"x","m.relates_to":{"rel_type":"m.replace"}}`), in(2), ".m.rule.suppress_edits", false, false},
		{"call", typed(message(`{}`), "m.call.invite"), in(2), ".m.rule.call", true, false},
		{"topic", state(message(`{}`), "m.room.topic", ""), in(2), "", false, false},
		{"content that is no JSON", message(`{`), in(3), ".m.rule.message", true, false},
	} {
		got := Default(me).Evaluate(test.event, test.context)
		if got.Rule != test.rule || got.Notify != test.notify || got.Highlight != test.highlight {
			t.Errorf("%s: %+v, want %q, notify %v, highlight %v", test.name, got, test.rule, test.notify, test.highlight)
		}
	}
}

func TestKindsAreCheckedInOrder(t *testing.T) {
	t.Parallel()
	rules := Default(me)
	event := message(`{"body":"let us have some cake","n":3}`)
	want := ".m.rule.room_one_to_one"
	check := func() {
		t.Helper()
		if got := rules.Evaluate(event, in(2)).Rule; got != want {
			t.Fatalf("rule %q, want %q", got, want)
		}
	}
	check()
	for _, step := range []struct {
		kind Kind
		rule string
	}{
		{Underride, `{"conditions":[],"actions":[]}`},
		{Sender, `{"actions":[]}`},
		{Room, `{"actions":[]}`},
		{Content, `{"pattern":"cake","actions":[]}`},
		{Override, `{"conditions":[{"kind":"event_property_is","key":"content.n","value":3}],"actions":["notify"]}`},
	} {
		r := parse(t, step.rule)
		r.ID = map[Kind]string{Sender: other, Room: room}[step.kind]
		if r.ID == "" {
			r.ID = "mine"
		}
		if err := rules.Put(step.kind, r, "", ""); err != nil {
			t.Fatal(err)
		}
		want = r.ID
		check()
	}
	r, err := rules.Find(Override, master)
	if err != nil {
		t.Fatal(err)
	}
	r.Enabled, want = true, master
	check()
}

func TestConditions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		condition, content string
		want               bool
	}{
		// CS API, Conditions: the examples.
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, `{"topic":"Lunch plans"}`, true},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, `{"topic":"LUNCH"}`, true},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, `{"topic":" lunch"}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, `{"topic":"lunc"}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`, `{"topic":null}`, false},
		{`{"kind":"event_match","key":"content.topic","pattern":"*"}`, `{}`, false},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, `{"body":"An example event."}`, true},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, `{"body":"exple"}`, true},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, `{"body":"An exciting triple-whammy"}`, true},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`, `{"body":"An annexed triples"}`, false},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, `{"m.federate":true}`, true},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, `{"m.federate":"true"}`, false},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`, `{"m.federate":1}`, false},
		{`{"kind":"event_property_contains","key":"content.a","value":"#myroom:x"}`, `{"a":["#other:x","#myroom:x"]}`, true},
		{`{"kind":"event_property_contains","key":"content.a","value":":x"}`, `{"a":["#other:x","#myroom:x"]}`, false},

		{`{"kind":"event_property_is","key":"content.n","value":null}`, `{"n":null}`, true},
		{`{"kind":"event_property_is","key":"content.n","value":null}`, `{}`, false},
		{`{"kind":"event_property_is","key":"content.n","value":9007199254740991}`, `{"n":9007199254740991}`, true},
		{`{"kind":"event_property_is","key":"content.n","value":9007199254740991}`, `{"n":9007199254740990}`, false},
		{`{"kind":"event_property_is","key":"content.n","value":9007199254740993}`, `{"n":9007199254740993}`, false},
		{`{"kind":"event_property_is","key":"content.n","value":1.5}`, `{"n":1.5}`, false},
		{`{"kind":"event_property_is","key":"content.n","value":{}}`, `{"n":{}}`, false},
		{`{"kind":"event_property_is","key":"content.n"}`, `{"n":[]}`, false},
		{`{"kind":"event_property_contains","key":"content.a","value":7}`, `{"a":[{},7]}`, true},
		{`{"kind":"event_property_contains","key":"content.a","value":7}`, `{"a":{"7":7}}`, false},
		{`{"kind":"event_property_is","key":"content.a\\\\b.c","value":1}`, `{"a\\b":{"c":1}}`, true},
		{`{"kind":"event_property_is","key":"content.a\\b","value":1}`, `{"a\\b":1}`, true},
		{`{"kind":"contains_display_name"}`, `{"body":"hello ME MYSELF!"}`, true},
		{`{"kind":"contains_display_name"}`, `{"body":"hello me myselfish"}`, false},
		{`{"kind":"room_member_count","is":"3"}`, `{}`, true},
		{`{"kind":"room_member_count","is":"==3"}`, `{}`, true},
		{`{"kind":"room_member_count","is":"<3"}`, `{}`, false},
		{`{"kind":"room_member_count","is":"<=3"}`, `{}`, true},
		{`{"kind":"room_member_count","is":">2"}`, `{}`, true},
		{`{"kind":"room_member_count","is":">=4"}`, `{}`, false},
		{`{"kind":"room_member_count","is":"=>3"}`, `{}`, false},
		{`{"kind":"room_member_count","is":"many"}`, `{}`, false},
		{`{"kind":"sender_notification_permission","key":"room"}`, `{}`, false},
		{`{"kind":"org.example.unknown"}`, `{}`, false},
		{`{"kind":7}`, `{}`, false},
	} {
		var c Condition
		if err := json.Unmarshal([]byte(test.condition), &c); err != nil {
			t.Fatal(err)
		}
		if got := c.holds(message(test.content), in(3), &work{left: maxWork}); got != test.want {
			t.Errorf("%s of %s: %v", test.condition, test.content, got)
		}
	}
}

func matchWords(pattern, s string) bool { return (&work{left: maxWork}).words(pattern, newText(s)) }

func matchGlob(pattern, s string) bool { return (&work{left: maxWork}).glob(pattern, newText(s)) }

func TestMatchWords(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		pattern, text string
		want          bool
	}{
		{"cake", "the CAKE is", true},
		{"cake", "cakes", false},
		{"cake", "pancake", false},
		{"cake", "pancake cake", true},
		{"cake", "cake_", false},
		{"cake", "«cake»", true},
		{"Äpfel", "zwei äpfel", true},
		{"@room", "hi@room now", true},
		{"c?ke", "a c-ke", true},
		{"c?ke", "a cake", true},
		{"c?ke", "a ckke2", false},
		{"cake*", "cakewalk today", true},
		{"*", "", true},
		{"a*b*c", "xaybc abxbxc", true},
		{"a*b*c", "xa yb zcd", false},
		{"?", "", false},
	} {
		if got := matchWords(test.pattern, test.text); got != test.want {
			t.Errorf("matchWords(%q, %q) = %v", test.pattern, test.text, got)
		}
	}
}

func TestPutPositions(t *testing.T) {
	t.Parallel()
	rules := Default(me)
	put := func(id, before, after string) error {
		return rules.Put(Override, Rule{ID: id, Actions: []Action{}}, before, after)
	}
	own := func() string {
		var ids []string
		for _, r := range rules.Override {
			if !r.Default {
				ids = append(ids, r.ID)
			}
		}
		return strings.Join(ids, " ")
	}
	for _, step := range []struct {
		id, before, after string
		err               error
		want              string
	}{
		{"a", "", "", nil, "a"},
		{"b", "", "", nil, "b a"},
		{"c", "a", "", nil, "b c a"},
		{"d", "", "b", nil, "b d c a"},
		{"e", "b", "a", nil, "e b d c a"},
		{"a", "", "", nil, "e b d c a"},
		{"a", "e", "", nil, "a e b d c"},
		{"f", "nobody", "", ErrPosition, "a e b d c"},
		{"f", "", ".m.rule.tombstone", ErrPosition, "a e b d c"},
		{"a", "a", "", ErrPosition, "a e b d c"},
		{".f", "", "", ErrInvalid, "a e b d c"},
		{"f/g", "", "", ErrInvalid, "a e b d c"},
		{"", "", "", ErrInvalid, "a e b d c"},
	} {
		if err := put(step.id, step.before, step.after); !errors.Is(err, step.err) {
			t.Errorf("put %q: %v, want %v", step.id, err, step.err)
		}
		if own() != step.want {
			t.Fatalf("after putting %q: %s, want %s", step.id, own(), step.want)
		}
	}
	if rules.Override[0].ID != master || !rules.Override[len(rules.Override)-1].Default {
		t.Error("the user's own rules must stand between the master rule and the other predefined ones")
	}
	if err := rules.Delete(Override, "e"); err != nil || own() != "a b d c" {
		t.Errorf("delete: %v, %s", err, own())
	}
	if err := rules.Delete(Override, master); !errors.Is(err, ErrNotFound) {
		t.Errorf("delete of a predefined rule: %v", err)
	}
}

func TestChangesOfRules(t *testing.T) {
	t.Parallel()
	rules := Default(me)
	for _, invalid := range []string{
		`{"actions":[7]}`, `{"actions":[{"sound":"x"}]}`, `{}`, `{"pattern":"","actions":[]}`,
		`{"pattern":"` + strings.Repeat("x", maxPattern+1) + `","actions":[]}`,
	} {
		r := parse(t, invalid)
		r.ID = "x"
		if err := rules.Put(Content, r, "", ""); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.60s: %v", invalid, err)
		}
	}
	actions := []Action{Action(`"dont_notify"`), Action(`"notify"`), Action(`{"set_tweak":"highlight","value":false}`)}
	if err := rules.SetActions(Underride, ".m.rule.message", actions); err != nil {
		t.Fatal(err)
	}
	if got := rules.Evaluate(message(`{}`), in(3)); !got.Notify || got.Highlight || len(got.Actions) != 2 {
		t.Errorf("after SetActions: %+v", got)
	}
	if err := rules.SetActions("underfoot", "x", actions); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown kind: %v", err)
	}
}

func TestJSONRoundTrip(t *testing.T) {
	t.Parallel()
	rules := Default(me)
	custom := parse(t, `{"conditions":[{"kind":"x","z":{"a":1}}],"actions":["notify",{"set_tweak":"x","value":[1]}]}`)
	custom.ID = "custom"
	if err := rules.Put(Underride, custom, "", ""); err != nil {
		t.Fatal(err)
	}
	first, err := json.Marshal(rules)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"content":[]`, `{"kind":"x","z":{"a":1}}`, `{"set_tweak":"x","value":[1]}`,
		`{"rule_id":".m.rule.master","default":true,"enabled":false,"conditions":[],"actions":[]}`,
	} {
		if !strings.Contains(string(first), want) {
			t.Errorf("%s is missing in %s", want, first)
		}
	}
	var again Ruleset
	if err := json.Unmarshal(first, &again); err != nil {
		t.Fatal(err)
	}
	again.Complete(me)
	second, err := json.Marshal(&again)
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(second) {
		t.Errorf("read and written again:\n%s\n%s", first, second)
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	rules := Default(me)
	rules.Override = slices.DeleteFunc(rules.Override, func(r Rule) bool { return r.ID == ".m.rule.reaction" })
	rules.Override = append(rules.Override, predefined(".m.rule.roomnotif", []Action{notify}))
	if r, err := rules.Find(Override, ".m.rule.tombstone"); err != nil {
		t.Fatal(err)
	} else {
		r.Enabled = false
	}
	if err := rules.Put(Override, Rule{ID: "own", Actions: []Action{}}, "", ""); err != nil {
		t.Fatal(err)
	}
	rules.Complete(me)
	var ids []string
	for _, r := range rules.Override {
		ids = append(ids, r.ID)
	}
	want := []string{master, "own"}
	for _, r := range Default(me).Override[1:] {
		want = append(want, r.ID)
	}
	if !slices.Equal(ids, want) {
		t.Errorf("override rules %v, want %v", ids, want)
	}
	if r, err := rules.Find(Override, ".m.rule.tombstone"); err != nil || r.Enabled {
		t.Errorf("what the user had disabled: %+v, %v", r, err)
	}
}

func FuzzMatchWords(f *testing.F) {
	f.Add("ex*ple", "An exciting triple-whammy")
	f.Add("c?ke", "a cake")
	f.Add("a*b*c", "xaybc")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern) > 12 || len(text) > 24 {
			return
		}
		if got, want := matchWords(pattern, text), slowMatchWords(pattern, text); got != want {
			t.Errorf("matchWords(%q, %q) = %v, want %v", pattern, text, got, want)
		}
	})
}

// slowMatchWords tries every part of the text.
func slowMatchWords(pattern, text string) bool {
	runes := []rune(strings.ToLower(text))
	at := func(i int) rune {
		if i < 0 || i >= len(runes) {
			return ' '
		}
		return runes[i]
	}
	for i := 0; i <= len(runes); i++ {
		for j := i; j <= len(runes); j++ {
			if boundary(at(i-1), at(i)) && boundary(at(j-1), at(j)) && matchGlob(pattern, string(runes[i:j])) {
				return true
			}
		}
	}
	return false
}

func parse(t *testing.T, rule string) Rule {
	t.Helper()
	var r Rule
	if err := json.Unmarshal([]byte(rule), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Conditions look at what stands beside the content, too.
func TestTopLevelProperties(t *testing.T) {
	t.Parallel()
	key := ""
	e := &Event{ID: "$e", Type: "m.room.topic", Sender: "@a:s", RoomID: "!r", StateKey: &key, Redacts: "$r", OriginTS: 17, Content: json.RawMessage(`{}`)}
	bare := &Event{Content: json.RawMessage(`{}`)}
	for _, test := range []struct {
		condition string
		want      bool
	}{
		{`{"kind":"event_property_is","key":"event_id","value":"$e"}`, true},
		{`{"kind":"event_property_is","key":"type","value":"m.room.topic"}`, true},
		{`{"kind":"event_property_is","key":"sender","value":"@a:s"}`, true},
		{`{"kind":"event_property_is","key":"room_id","value":"!r"}`, true},
		{`{"kind":"event_property_is","key":"state_key","value":""}`, true},
		{`{"kind":"event_property_is","key":"redacts","value":"$r"}`, true},
		{`{"kind":"event_match","key":"redacts","pattern":"$?"}`, true},
		{`{"kind":"event_property_is","key":"origin_server_ts","value":17}`, true},
		{`{"kind":"event_property_is","key":"origin_server_ts","value":"17"}`, false},
		{`{"kind":"event_match","key":"origin_server_ts","pattern":"*"}`, false},
		{`{"kind":"event_property_is","key":"hashes","value":null}`, false},
	} {
		var c Condition
		if err := json.Unmarshal([]byte(test.condition), &c); err != nil {
			t.Fatal(err)
		}
		if got := c.holds(e, Context{}, &work{left: maxWork}); got != test.want {
			t.Errorf("%s: %v", test.condition, got)
		}
		if c.holds(bare, Context{}, &work{left: maxWork}) {
			t.Errorf("%s holds of an event without it", test.condition)
		}
	}
}

func TestTweaks(t *testing.T) {
	t.Parallel()
	o := Outcome{Actions: []Action{
		Action(`"notify"`), Action(`{"set_tweak":"highlight"}`), Action(`{"set_tweak":"sound","value":"bing"}`), Action(`{"set_tweak":"light"}`),
		Action(`{"set_tweak":"own","value":{"a":[1]}}`), Action(`"coalesce"`),
	}}
	got, err := json.Marshal(o.Tweaks())
	if want := `{"highlight":true,"light":null,"own":{"a":[1]},"sound":"bing"}`; err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	o.Actions = []Action{Action(`{"set_tweak":"highlight","value":false}`)}
	if got, _ := json.Marshal(o.Tweaks()); string(got) != `{"highlight":false}` {
		t.Errorf("a highlight that is none: %s", got)
	}
}

// hostileRules are as many of the user's own as there may be, of a kind and condition that costs as much as it can.
func hostileRules(t testing.TB, name string) *Ruleset {
	t.Helper()
	rules := Default(me)
	pattern := "*" + strings.Repeat("a", 240) + "b"
	condition, kind := "", Override
	var own []Rule
	switch name {
	case "glob":
		condition = `{"kind":"event_match","key":"content.x","pattern":"` + pattern + `"}`
	case "words":
		condition = `{"kind":"event_match","key":"content.body","pattern":"` + pattern + `"}`
	case "plain words":
		condition = `{"kind":"event_match","key":"content.body","pattern":"` + strings.Repeat("a", 250) + `"}`
	case "list":
		condition = `{"kind":"event_property_contains","key":"content.list","value":"no"}`
	case "deep":
		condition = `{"kind":"event_match","key":"content` + strings.Repeat(".d", 400) + `","pattern":"?"}`
	case "not there":
		condition = `{"kind":"event_match","key":"content.none","pattern":"?"}`
	case "name":
		condition = `{"kind":"contains_display_name"}`
	case "content":
		kind = Content
	}
	for i := range maxRules - 30 {
		r := Rule{ID: fmt.Sprint("r", i), Actions: []Action{Action(`"notify"`)}}
		if kind == Content {
			r.Pattern = &pattern
		} else {
			var c Condition
			if err := json.Unmarshal([]byte(condition), &c); err != nil {
				t.Fatal(err)
			}
			r.Conditions = []Condition{c}
			if name == "not there" { // false ones end a rule, so these alone are looked at
				r.Conditions = slices.Repeat(r.Conditions, maxConditions)
			}
		}
		if err := r.check(kind); err != nil {
			t.Fatal(err)
		}
		r.Enabled = true
		own = append(own, r) // Put would copy all others each time
	}
	*rules.of(kind) = append(own, *rules.of(kind)...)
	return rules
}

func hostileEvent() *Event {
	long := strings.Repeat("a", 60_000)
	list := strings.Repeat(`"",`, 20_000)
	deep := strings.Repeat(`{"d":`, 400) + `"` + long + `"` + strings.Repeat("}", 400)
	return message(`{"body":"` + long + `","x":"` + long + `","list":[` + list + `""],"d":` + deep[len(`{"d":`):len(deep)-1] + `}`)
}

// Whatever a user's rules and an event are, an evaluation takes no more than maxWork steps, and what the specification's rules say of the event
// still holds.
func TestRulesAreBounded(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"glob", "words", "plain words", "list", "deep", "not there", "name", "content"} {
		rules, event := hostileRules(t, name), hostileEvent()
		context := in(3)
		context.DisplayName = strings.Repeat("a", 250)
		w := &work{left: maxWork}
		if o := rules.evaluate(event, context, w); o.Rule != ".m.rule.message" || !o.Notify {
			t.Errorf("%s: the rule is %q", name, o.Rule)
		}
		if w.left < 0 {
			t.Errorf("%s: %d steps", name, maxWork-w.left)
		}
		if len(event.texts) > maxTexts {
			t.Errorf("%s: %d texts are kept", name, len(event.texts))
		}
		for path, text := range event.texts {
			if len(text.lower) > maxText {
				t.Errorf("%s: %d bytes of %s are looked at", name, len(text.lower), path)
			}
		}
	}
}

// Many evaluations share a budget; where it is spent, rules as people have them are still evaluated.
func TestRulesShareABudget(t *testing.T) {
	t.Parallel()
	budget := Budget{spent: maxExtra - maxWork}
	context := in(3)
	context.Budget = &budget
	rules := hostileRules(t, "glob")
	for range 4 {
		rules.Evaluate(hostileEvent(), context)
	}
	if budget.spent > maxExtra+maxWork {
		t.Errorf("%d steps were taken from a budget of %d", budget.spent, maxExtra)
	}
	word := "c*ke"
	usual := Default(me)
	if err := usual.Put(Content, Rule{ID: "cake", Pattern: &word, Actions: []Action{Action(`"notify"`)}}, "", ""); err != nil {
		t.Fatal(err)
	}
	if o := usual.Evaluate(message(`{"body":"the cake is here, and here is some more to read"}`), context); o.Rule != "cake" {
		t.Errorf("with nothing left the rule is %q", o.Rule)
	}
}

func BenchmarkHostileRules(b *testing.B) {
	for _, name := range []string{"glob", "words", "content"} {
		rules := hostileRules(b, name)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				rules.Evaluate(hostileEvent(), in(3))
			}
		})
	}
}

func BenchmarkUsualRules(b *testing.B) {
	rules := Default(me)
	for i := range 20 {
		word := fmt.Sprint("keyword", i, "*")
		if err := rules.Put(Content, Rule{ID: word, Pattern: &word, Actions: []Action{Action(`"notify"`)}}, "", ""); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		rules.Evaluate(message(`{"msgtype":"m.text","body":"`+strings.Repeat("A message as people write them. ", 4)+`"}`), in(3))
	}
}
