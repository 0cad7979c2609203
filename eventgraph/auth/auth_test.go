package auth

import (
	"errors"
	"fmt"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// row is one event against base, changed by state.
type row struct {
	name  string
	state []string
	event string
	want  string // see wanted
}

func run(t *testing.T, rows []row) {
	t.Helper()
	for _, v := range eventgraph.SupportedVersions() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			origin := newRoom(t, v, "").with(t, base...)
			ran := 0
			for _, row := range rows {
				rule, ok := wanted(t, row.want, v)
				if !ok {
					continue
				}
				ran++
				t.Run(row.name, func(t *testing.T) {
					r := origin.clone().with(t, row.state...)
					e := r.event(t, row.event, nil)
					expect(t, Check(e, r.state), rule)
					// The selected auth events say the same as the whole state.
					expect(t, CheckAuthEvents(e, r.authEvents(e), nil), rule)
				})
			}
			if ran == 0 {
				t.Error("no row for this version")
			}
		})
	}
}

const (
	allowed = "3:ok"
	// The rules after those on members: sender not joined, third-party invites, required level, state keys.
	notJoined  = "3:6 6:5 12:6"
	thirdParty = "3:7.1 6:6.1 12:7.1"
	required   = "3:8 6:7 12:8"
	ownKey     = "3:9 6:8 12:9"
)

func TestMessagesAndState(t *testing.T) {
	t.Parallel()
	run(t, []row{
		{"message of a member", nil, `m.room.message - @carol {"body":"hello"}`, allowed},
		{"message of a member elsewhere", nil, `m.room.message - @erin:b {"body":"hello"}`, allowed},
		{"message of nobody", nil, `m.room.message - @dave {}`, notJoined},
		{"message of an invited user", nil, `m.room.message - @invited {}`, notJoined},
		{"message of a banned user", nil, `m.room.message - @banned {}`, notJoined},
		{"message of a user who has left", nil, `m.room.message - @gone {}`, notJoined},
		{"message of a knocking user", nil, `m.room.message - @knocker {}`, notJoined},

		{"message below events_default", []string{`m.room.power_levels '' @alice {"events_default":1}`},
			`m.room.message - @carol {}`, required},
		{"message at events_default", []string{`m.room.power_levels '' @alice {"events_default":1,"users_default":1}`},
			`m.room.message - @carol {}`, allowed},
		{"message below its own level", []string{`m.room.power_levels '' @alice {"events":{"m.room.message":5}}`},
			`m.room.message - @carol {}`, required},
		{"message at its own level, events_default above", []string{`m.room.power_levels '' @alice {"events_default":9,"events":{"m.room.message":0}}`},
			`m.room.message - @carol {}`, allowed},
		{"a redaction needs the level of its type, not redact", []string{`m.room.power_levels '' @alice {"redact":50}`},
			`m.room.redaction - @carol {"redacts":"$x"}`, allowed},

		{"state at state_default of 50", nil, `m.room.topic '' @mod {"topic":"x"}`, allowed},
		{"state below state_default of 50", nil, `m.room.topic '' @carol {"topic":"x"}`, required},
		{"state below state_default without power levels", []string{`without m.room.power_levels ''`},
			`m.room.topic '' @carol {"topic":"x"}`, required},
		{"message without power levels", []string{`without m.room.power_levels ''`}, `m.room.message - @carol {}`, allowed},
		{"state at a lowered state_default", []string{`m.room.power_levels '' @alice {"state_default":0}`},
			`m.room.topic '' @carol {"topic":"x"}`, allowed},
		{"state below its own level", []string{`m.room.power_levels '' @alice {"state_default":0,"events":{"m.room.topic":1}}`},
			`m.room.topic '' @carol {"topic":"x"}`, required},
		{"the creator without power levels", []string{`without m.room.power_levels ''`}, `m.room.topic '' @alice {}`, allowed},
		{"the creator, not in the power levels", nil, `m.room.topic '' @alice {}`, "3:8 6:7 12:ok"},

		{"state key of another user", nil, `x.y @carol @admin {}`, ownKey},
		{"state key of the sender", nil, `x.y @admin @admin {}`, allowed},
		{"state key without @", nil, `x.y carol @admin {}`, allowed},

		{"third-party invite at the invite level", nil, `m.room.third_party_invite token @carol {}`, allowed},
		{"third-party invite below the invite level", []string{`m.room.power_levels '' @alice {"invite":1}`},
			`m.room.third_party_invite token @carol {}`, thirdParty},
		{"third-party invite needs no state_default", []string{`m.room.power_levels '' @alice {"state_default":90}`},
			`m.room.third_party_invite token @carol {}`, allowed},

		{"aliases of the sender's server", nil, `m.room.aliases a.example @dave {}`, "3:ok 6:5 12:6"},
		{"aliases of another server", nil, `m.room.aliases b.example @carol {}`, "3:4.2 6:7 12:8"},
		{"aliases without state key", nil, `m.room.aliases - @carol {}`, "3:4.1 6:ok"},
		{"aliases as any state", nil, `m.room.aliases b.example @admin {}`, "3:4.2 6:ok"},
	})
}

func TestCreate(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		version := fmt.Sprintf(`"room_version":%q`, v)
		for _, row := range []struct {
			name, content string
			change        func(*eventgraph.Draft)
			want          string
		}{
			{"plain", `{"creator":"@alice",` + version + `}`, nil, allowed},
			{"without room_version", `{"creator":"@alice"}`, nil, allowed},
			{"unknown room_version", `{"creator":"@alice","room_version":"x"}`, nil, "3:1.3"},
			{"room_version not a string", `{"creator":"@alice","room_version":12}`, nil, "3:1.3"},
			{"another room_version", `{"creator":"@alice","room_version":"2"}`, nil, "3:1.3"},
			{"without creator", `{` + version + `}`, nil, "3:1.4 11:ok"},
			{"name in other case", `{"Creator":"@alice",` + version + `}`, nil, "3:1.4 11:ok"},
			{"prev_events", `{"creator":"@alice"}`, func(d *eventgraph.Draft) {
				d.PrevEvents = []eventgraph.EventID{newRoom(t, v, "").create.ID()}
			}, "3:1.1"},
			{"room ID of another server", `{"creator":"@alice"}`, func(d *eventgraph.Draft) { d.RoomID = "!room:b.example" }, "3:1.2 12:-"},
			{"with a room ID", `{}`, func(d *eventgraph.Draft) { d.RoomID = newRoom(t, v, "").id }, "12:1.2"},
			{"additional creators", `{"additional_creators":["@bob","@erin:b"]}`, nil, "11:ok"},
			{"no additional creators", `{"additional_creators":[]}`, nil, "11:ok"},
			{"additional_creators not an array", `{"additional_creators":"@bob"}`, nil, "11:ok 12:1.4"},
			{"additional_creators null", `{"additional_creators":null}`, nil, "11:ok 12:1.4"},
			{"additional_creators not of strings", `{"additional_creators":["@bob",1]}`, nil, "11:ok 12:1.4"},
			{"additional_creators not of user IDs", `{"additional_creators":["bob"]}`, nil, "11:ok 12:1.4"},
		} {
			rule, ok := wanted(t, row.want, v)
			if !ok {
				continue
			}
			t.Run(string(v)+" "+row.name, func(t *testing.T) {
				r := newRoom(t, v, "")
				if r.traits.RoomIDFromCreate {
					r.id = ""
				}
				e := r.event(t, "m.room.create '' @alice "+row.content, row.change)
				expect(t, Check(e, given(nil)), rule)
				expect(t, CheckAuthEvents(e, nil, nil), rule)
			})
		}
	}
}

func TestFederate(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		for content, want := range map[string]string{
			`{"creator":"@alice","m.federate":false}`:   "3:3 12:4",
			`{"creator":"@alice","m.federate":true}`:    allowed,
			`{"creator":"@alice","m.federate":"false"}`: allowed,
			`{"creator":"@alice","M.FEDERATE":false}`:   allowed,
		} {
			rule, _ := wanted(t, want, v)
			r := newRoom(t, v, content).with(t, base...)
			expect(t, Check(r.event(t, `m.room.message - @erin:b {}`, nil), r.state), rule)
			expect(t, Check(r.event(t, `m.room.message - @carol {}`, nil), r.state), "ok")
		}
	}
}

func TestNoCreateEvent(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		rule, _ := wanted(t, "3:2.4 12:2", v)
		r := newRoom(t, v, "").with(t, base...)
		e := r.event(t, `m.room.message - @carol {}`, nil)
		delete(r.state, tupleCreate)
		expect(t, Check(e, r.state), rule)
	}
}

func TestCreateEventOfAnotherRoom(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		rule, _ := wanted(t, "3:2.5 12:2", v)
		r, other := newRoom(t, v, "").with(t, base...), newRoom(t, v, `{"creator":"@alice","other":1}`)
		if !r.traits.RoomIDFromCreate {
			other.id = "!other:a.example"
			other.create = other.event(t, `m.room.create '' @alice {"creator":"@alice"}`, nil)
		}
		e := r.event(t, `m.room.message - @carol {}`, nil)
		r.state[tupleCreate] = other.create
		expect(t, Check(e, r.state), rule)
	}
}

// failing is a state that cannot be read at one tuple.
type failing struct {
	given
	at  eventgraph.StateTuple
	err error
}

func (f failing) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	if t == f.at {
		return nil, f.err
	}
	return f.given.Event(t)
}

// An error from the state is no verdict, whichever way it would have gone.
func TestUnreadableState(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	r := newRoom(t, "12", "").with(t, base...)
	for _, line := range []string{`m.room.message - @carol {}`, `m.room.topic '' @carol {}`, `m.room.member @carol @mod {"membership":"leave"}`} {
		e := r.event(t, line, nil)
		for _, tuple := range Selection("12", draftOf(e)) {
			if err := Check(e, failing{r.state, tuple, broken}); !errors.Is(err, broken) {
				t.Errorf("%s, unreadable %s: %v", line, tuple, err)
			}
		}
	}
	for _, tuple := range []eventgraph.StateTuple{tupleCreate, tuplePower} {
		if _, err := UserPower("@carol:a.example", failing{r.state, tuple, broken}); !errors.Is(err, broken) {
			t.Errorf("UserPower, unreadable %s: %v", tuple, err)
		}
		if _, err := PowerLevels(failing{r.state, tuple, broken}); !errors.Is(err, broken) {
			t.Errorf("PowerLevels, unreadable %s: %v", tuple, err)
		}
	}
}
