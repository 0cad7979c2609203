package auth

import (
	"fmt"
	"math"
	"reflect"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestPowerLevelForm(t *testing.T) {
	t.Parallel()
	const (
		scalar = "3:10.1 6:9.1 12:10.1"
		maps   = "3:10.1 6:9.1 10:9.2 12:10.2"
		users  = "3:10.1 6:9.1 10:9.3 12:10.3"
		// Allowed before version 10 only.
		scalarFrom10 = "3:ok 10:9.1 12:10.1"
		mapsFrom10   = "3:ok 10:9.2 12:10.2"
		usersFrom10  = "3:ok 10:9.3 12:10.3"
	)
	send := func(content string) string { return `m.room.power_levels '' @admin ` + content }
	rows := []row{
		{"empty", nil, send(`{}`), allowed},
		{"complete", nil, send(`{"ban":1,"events":{"x":1},"events_default":1,"invite":1,"kick":1,"notifications":{"room":1},` +
			`"redact":1,"state_default":1,"users":{"@admin":100,"@mod":1},"users_default":1}`), allowed},
		{"negative", nil, send(`{"ban":-1,"users":{"@mod":-5}}`), allowed},
		{"other properties are free", nil, send(`{"x":"y","Ban":"y"}`), allowed},

		{"null", nil, send(`{"ban":null}`), scalarFrom10},
		{"boolean", nil, send(`{"ban":true}`), scalar},
		{"object", nil, send(`{"ban":{}}`), scalar},
		{"word", nil, send(`{"ban":"x"}`), scalar},
		{"empty string", nil, send(`{"ban":""}`), scalar},
		{"string", nil, send(`{"ban":"50"}`), scalarFrom10},
		{"string with sign, zeroes and space", nil, send(`{"ban":" +00050 "}`), scalarFrom10},
		{"string with two signs", nil, send(`{"ban":"+-50"}`), scalar},
		{"string of a sign", nil, send(`{"ban":"-"}`), scalar},
		{"string of a float", nil, send(`{"ban":"50.5"}`), scalar},
		{"string with underscore", nil, send(`{"ban":"5_0"}`), scalar},
		{"string in base 16", nil, send(`{"ban":"0x10"}`), scalar},
		{"string with a space inside", nil, send(`{"ban":"5 0"}`), scalar},
		{"float", nil, send(`{"ban":50.57}`), "3:ok 6:-"},
		{"exponent", nil, send(`{"ban":5.7e1}`), "3:ok 6:-"},
		{"float beyond a double", nil, send(`{"ban":1e400}`), "3:10.1 6:-"},

		{"events not an object", nil, send(`{"events":[]}`), maps},
		{"events null", nil, send(`{"events":null}`), maps},
		{"events with a string", nil, send(`{"events":{"x":"1"}}`), mapsFrom10},
		{"events with a word", nil, send(`{"events":{"x":"y"}}`), maps},
		{"notifications not an object", nil, send(`{"notifications":1}`), "3:ok 6:9.1 10:9.2 12:10.2"},
		{"notifications with a string", nil, send(`{"notifications":{"room":"1"}}`), mapsFrom10},
		{"notifications with a word", nil, send(`{"notifications":{"room":"y"}}`), "3:ok 6:9.1 10:9.2 12:10.2"},

		{"users not an object", nil, send(`{"users":[]}`), users},
		{"users null", nil, send(`{"users":null}`), users},
		{"users with a string", nil, send(`{"users":{"@admin":"100"}}`), usersFrom10},
		{"users with null", nil, send(`{"users":{"@mod":null}}`), users},
		{"users with no user ID", nil, send(`{"users":{"mod":1}}`), users},
		{"users with a room alias", nil, send(`{"users":{"#mod:a.example":1}}`), users},

		{"a malformed level comes before malformed users", nil, send(`{"users":[],"users_default":"x"}`), scalar},
	}
	for _, name := range scalarLevels {
		rows = append(rows, row{name + " malformed", nil, send(fmt.Sprintf(`{%q:[]}`, name)), scalar})
		rows = append(rows, row{name + " a string", nil, send(fmt.Sprintf(`{%q:"1"}`, name)), scalarFrom10})
	}
	run(t, rows)
}

func TestPowerLevelChange(t *testing.T) {
	t.Parallel()
	const (
		scalarNow  = "3:10.3.1 6:9.3.1 10:9.5.1 12:10.6.1"
		scalarNew  = "3:10.3.2 6:9.3.2 10:9.5.2 12:10.6.2"
		entriesNow = "3:10.4.1 6:9.4.1 10:9.6.1 12:10.7.1"
		entriesNew = "3:10.5.1 6:9.5.1 10:9.7.1 12:10.8.1"
		noticesNow = "3:ok 6:9.4.1 10:9.6.1 12:10.7.1"
		noticesNew = "3:ok 6:9.5.1 10:9.7.1 12:10.8.1"
		usersNow   = "3:10.6.1 6:9.6.1 10:9.8.1 12:10.9.1"
		usersNew   = "3:10.7.1 6:9.7.1 10:9.9.1 12:10.10.1"
	)
	// In each, @mod with 50 changes what old has into what event has.
	const who = `"users":{"@admin":100,"@mod":50,"@peer":50}`
	old := func(more string) []string { return []string{`m.room.power_levels '' @alice {` + who + more + `}`} }
	event := func(more string) string { return `m.room.power_levels '' @mod {` + who + more + `}` }
	users := func(list string) string { return `m.room.power_levels '' @mod {"users":{` + list + `}}` }
	rows := []row{
		{"no change", old(``), event(``), allowed},
		{"no change above the sender", old(`,"redact":90,"events":{"x":90},"notifications":{"room":90}`),
			event(`,"redact":90,"events":{"x":90},"notifications":{"room":90}`), allowed},
		{"below state_default", old(``), `m.room.power_levels '' @carol {` + who + `}`, required},
		{"the first power levels", []string{`without m.room.power_levels ''`, `m.room.create '' @alice {"creator":"@alice"}`},
			`m.room.power_levels '' @alice {"ban":900,"users":{"@mod":900},"events":{"x":900}}`, "3:ok 12:-"},

		{"entry added", old(``), event(`,"events":{"x":50}`), allowed},
		{"entry added above", old(``), event(`,"events":{"x":51}`), entriesNew},
		{"entry raised above", old(`,"events":{"x":50}`), event(`,"events":{"x":51}`), entriesNew},
		{"entry lowered from above", old(`,"events":{"x":51}`), event(`,"events":{"x":50}`), entriesNow},
		{"entry removed from above", old(`,"events":{"x":51}`), event(`,"events":{}`), entriesNow},
		{"entries removed from above", old(`,"events":{"x":51}`), event(``), entriesNow},
		{"entry removed", old(`,"events":{"x":50}`), event(``), allowed},

		{"notification added", old(``), event(`,"notifications":{"room":50}`), allowed},
		{"notification added above", old(``), event(`,"notifications":{"room":51}`), noticesNew},
		{"notification lowered from above", old(`,"notifications":{"room":51}`), event(`,"notifications":{"room":50}`), noticesNow},
		{"notification removed from above", old(`,"notifications":{"room":51}`), event(``), noticesNow},

		{"user added", old(``), users(`"@admin":100,"@mod":50,"@peer":50,"@carol":50`), allowed},
		{"user added above", old(``), users(`"@admin":100,"@mod":50,"@peer":50,"@carol":51`), usersNew},
		{"equal lowered", old(``), users(`"@admin":100,"@mod":50,"@peer":49`), usersNow},
		{"equal removed", old(``), users(`"@admin":100,"@mod":50`), usersNow},
		{"one above lowered", old(``), users(`"@admin":50,"@mod":50,"@peer":50`), usersNow},
		{"one above removed", old(``), users(`"@mod":50,"@peer":50`), usersNow},
		{"one above raised", old(``), users(`"@admin":101,"@mod":50,"@peer":50`), usersNow},
		{"oneself lowered", old(``), users(`"@admin":100,"@mod":10,"@peer":50`), allowed},
		{"oneself removed", old(``), users(`"@admin":100,"@peer":50`), allowed},
		{"oneself raised", old(``), users(`"@admin":100,"@mod":51,"@peer":50`), usersNew},
		{"one below removed", []string{`m.room.power_levels '' @alice {` + `"users":{"@mod":50,"@carol":49}}`}, users(`"@mod":50`), allowed},

		{"the same level as a string", old(`,"ban":60`), event(`,"ban":"60"`), "3:ok 10:9.1 12:10.1"},
		{"all levels gone by an admin", old(`,"ban":60,"events":{"x":60}`), `m.room.power_levels '' @admin {}`, allowed},
	}
	for _, name := range scalarLevels {
		// A state_default above the sender would refuse all of its power levels, users_default would raise the users.
		if name != "state_default" {
			rows = append(rows,
				row{name + " lowered from above", old(`,"` + name + `":51`), event(`,"` + name + `":50`), scalarNow},
				row{name + " removed from above", old(`,"` + name + `":51`), event(``), scalarNow})
		}
		rows = append(rows,
			row{name + " added", old(``), event(`,"` + name + `":50`), allowed},
			row{name + " added above", old(``), event(`,"` + name + `":51`), scalarNew},
			row{name + " raised above", old(`,"` + name + `":50`), event(`,"` + name + `":51`), scalarNew},
			row{name + " lowered", old(`,"` + name + `":50`), event(`,"` + name + `":0`), allowed},
			row{name + " removed", old(`,"` + name + `":50`), event(``), allowed})
	}
	run(t, rows)
}

func TestCreatorsInPowerLevels(t *testing.T) {
	t.Parallel()
	r := newRoom(t, "12", `{"additional_creators":["@bob","@erin:b"]}`).with(t, base...).with(t, `m.room.member @bob @bob {"membership":"join"}`)
	for _, row := range []struct{ line, want string }{
		{`m.room.power_levels '' @alice {"users":{"@alice":100}}`, "10.4"},
		{`m.room.power_levels '' @admin {"users":{"@bob":-1,"@admin":100,"@mod":50,"@peer":50}}`, "10.4"},
		{`m.room.power_levels '' @alice {"users":{"@erin:b":100}}`, "10.4"},
		{`m.room.power_levels '' @erin:b {"users":{"@carol":9007199254740991},"events":{"x":9007199254740991},"ban":9007199254740991}`, "ok"},
		{`m.room.power_levels '' @bob {}`, "ok"}, // may take power from whom it likes
		{`m.room.member @alice @bob {"membership":"ban"}`, "5.6.3"},
		{`m.room.member @bob @alice {"membership":"leave"}`, "5.5.5"},
		{`m.room.member @admin @bob {"membership":"ban"}`, "ok"},
	} {
		e := r.event(t, row.line, nil)
		err := Check(e, r.state)
		expect(t, err, row.want)
		if t.Failed() {
			t.Fatal(row.line)
		}
	}
	// The first power levels of a room, too, must not name creators (10.4 stands before 10.5).
	delete(r.state, tuplePower)
	expect(t, Check(r.event(t, `m.room.power_levels '' @alice {"users":{"@bob":1}}`, nil), r.state), "10.4")
	expect(t, Check(r.event(t, `m.room.power_levels '' @alice {"users":{"@carol":1}}`, nil), r.state), "ok")
}

func TestUserPower(t *testing.T) {
	t.Parallel()
	creatorPower := PowerLevel{Level: math.MaxInt64, IsCreator: true}
	for _, v := range eventgraph.SupportedVersions() {
		r := newRoom(t, v, `{"creator":"@alice","additional_creators":["@bob"]}`)
		check := func(user string, want, wantV12 PowerLevel) {
			t.Helper()
			if r.traits.PrivilegedCreators {
				want = wantV12
			}
			got, err := UserPower(eventgraph.UserID(expand(user)), r.state)
			if err != nil || got != want {
				t.Errorf("version %s, %s: %v, %v, want %v", v, user, got, err, want)
			}
		}
		check("@alice", PowerLevel{Level: 100}, creatorPower)
		check("@bob", PowerLevel{}, creatorPower)
		check("@carol", PowerLevel{}, PowerLevel{})

		r.with(t, `m.room.power_levels '' @alice {"users":{"@carol":7},"users_default":3}`)
		check("@alice", PowerLevel{Level: 3}, creatorPower)
		check("@bob", PowerLevel{Level: 3}, creatorPower)
		check("@carol", PowerLevel{Level: 7}, PowerLevel{Level: 7})
		check("@dave", PowerLevel{Level: 3}, PowerLevel{Level: 3})
	}
	if p, err := UserPower("@alice:a.example", given(nil)); err != nil || p != (PowerLevel{}) {
		t.Errorf("in an empty state: %v, %v", p, err)
	}
}

func TestPowerLevels(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		r := newRoom(t, v, "")
		want := &Levels{StateDefault: 50, Ban: 50, Kick: 50, Redact: 50}
		if !r.traits.PrivilegedCreators {
			want.Users = map[string]int64{"@alice:a.example": 100}
		}
		got, err := PowerLevels(r.state)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("version %s, without the event: %+v, %v, want %+v", v, got, err, want)
		}

		r.with(t, `m.room.power_levels '' @alice {"users":{"@mod":50},"users_default":1,"events":{"x":2},"events_default":3,"state_default":4,`+
			`"ban":5,"kick":6,"redact":7,"invite":8,"notifications":{"room":9}}`)
		want = &Levels{
			Users: map[string]int64{"@mod:a.example": 50}, Events: map[string]int64{"x": 2}, Notifications: map[string]int64{"room": 9},
			UsersDefault: 1, EventsDefault: 3, StateDefault: 4, Ban: 5, Kick: 6, Redact: 7, Invite: 8,
		}
		if got, err = PowerLevels(r.state); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("version %s: %+v, %v, want %+v", v, got, err, want)
		}

		// What cannot be read has its default.
		r.with(t, `m.room.power_levels '' @alice {"ban":"x","kick":[],"state_default":{},"users":{"@mod":true,"@peer":5},"events":7}`)
		if got, err = PowerLevels(r.state); err != nil || got.Ban != 50 || got.Kick != 50 || got.StateDefault != 50 ||
			got.User("@mod:a.example") != 0 || got.User("@peer:a.example") != 5 || got.Required("m.room.topic", true) != 50 {
			t.Errorf("version %s, malformed: %+v, %v", v, got, err)
		}
	}
}

func TestParseLevel(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		raw       string
		old, v10  int64
		okOld, ok bool
	}{
		{`50`, 50, 50, true, true},
		{`-7`, -7, -7, true, true},
		{`0`, 0, 0, true, true},
		{`"100"`, 100, 0, true, false},
		{`"000100"`, 100, 0, true, false},
		{`"+100"`, 100, 0, true, false},
		{`" -00100\t"`, -100, 0, true, false},
		{`"100000000000000000000"`, math.MaxInt64, 0, true, false},
		{`50.57`, 50, 0, true, false},
		{`-0.5`, 0, 0, true, false},
		{`5.114698E4`, 51146, 0, true, false}, // the spec's example
		{`1e300`, math.MaxInt64, 0, true, false},
		{`-1e300`, math.MinInt64, 0, true, false},
		{`1e400`, 0, 0, false, false},
		{`"Infinity"`, 0, 0, false, false},
		{`"NaN"`, 0, 0, false, false},
		{`true`, 0, 0, false, false},
		{`null`, 0, 0, false, false},
		{`"１"`, 0, 0, false, false}, // a digit, but not ASCII
	} {
		if got, ok := parseLevel([]byte(row.raw), eventgraph.Traits{}); got != row.old || ok != row.okOld {
			t.Errorf("%s: %d, %t", row.raw, got, ok)
		}
		if got, ok := parseLevel([]byte(row.raw), eventgraph.Traits{IntegerLevels: true}); got != row.v10 || ok != row.ok {
			t.Errorf("%s from version 10: %d, %t", row.raw, got, ok)
		}
	}
}
