package auth

import (
	"math"
	"reflect"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A float beyond a double is no level (version 3, power levels as floats). It is no vector: many JSON readers refuse the number.
func TestFloatBeyondDouble(t *testing.T) {
	t.Parallel()
	for _, v := range []eventgraph.RoomVersion{"3", "4", "5"} {
		r := newRoom(t, v, "").with(t, base...)
		expect(t, Check(r.event(t, `m.room.power_levels '' @admin {"users":{"@mod":1e400}}`, nil), r.state), "10.1")
		expect(t, Check(r.event(t, `m.room.power_levels '' @admin {"users":{"@mod":1e1}}`, nil), r.state), "ok")
	}
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
