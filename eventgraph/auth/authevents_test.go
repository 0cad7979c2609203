package auth

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestCheckAuthEvents(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			r := newRoom(t, v, "").with(t, base...)
			at := func(typ, key string) *eventgraph.Event { return r.state[eventgraph.StateTuple{Type: typ, Key: key}] }
			carol, topic := at(typeMember, "@carol:a.example"), r.event(t, `m.room.topic '' @admin {}`, nil)
			carol2 := r.event(t, `m.room.member @carol @carol {"membership":"join","displayname":"x"}`, nil)
			foreign := newRoom(t, v, `{"creator":"@alice","other":1}`)
			if !r.traits.RoomIDFromCreate {
				foreign.id = "!other:a.example"
			}
			carolElsewhere := foreign.event(t, `m.room.member @carol @carol {"membership":"join"}`, nil)
			message := r.event(t, `m.room.message - @carol {}`, nil)

			for _, row := range []struct {
				name     string
				list     []*eventgraph.Event // besides the create event
				rejected *eventgraph.Event
				want     string
			}{
				{"as selected", []*eventgraph.Event{at(typePower, ""), carol}, nil, allowed},
				{"in another order", []*eventgraph.Event{carol, at(typePower, "")}, nil, allowed},
				{"fewer than selected", []*eventgraph.Event{carol}, nil, allowed},
				{"without the sender's membership", []*eventgraph.Event{at(typePower, "")}, nil, notJoined},
				{"one twice", []*eventgraph.Event{carol, carol}, nil, "3:2.1 12:3.1"},
				{"two of one tuple", []*eventgraph.Event{carol, carol2}, nil, "3:2.1 12:3.1"},
				{"one not needed", []*eventgraph.Event{carol, topic}, nil, "3:2.2 12:3.2"},
				{"another member", []*eventgraph.Event{carol, at(typeMember, "@mod:a.example")}, nil, "3:2.2 12:3.2"},
				{"join rules for a message", []*eventgraph.Event{carol, at(typeJoinRules, "")}, nil, "3:2.2 12:3.2"},
				{"not a state event", []*eventgraph.Event{carol, message}, nil, "3:2.2 12:3.2"},
				{"a rejected one", []*eventgraph.Event{carol}, carol, "3:2.3 12:3.3"},
				{"another event rejected", []*eventgraph.Event{carol}, topic, allowed},
				{"the create event rejected", []*eventgraph.Event{carol}, r.create, "3:2.3 12:2"},
				{"one of another room", []*eventgraph.Event{carolElsewhere}, nil, "3:2.5 12:3.5"},
			} {
				listed := row.list
				if !r.traits.RoomIDFromCreate {
					listed = append([]*eventgraph.Event{r.create}, listed...)
				}
				e := r.event(t, `m.room.message - @carol {}`, func(d *eventgraph.Draft) {
					d.AuthEvents = ids(listed)
				})
				held := append([]*eventgraph.Event{r.create}, row.list...)
				rule, _ := wanted(t, row.want, v)
				rejected := func(id eventgraph.EventID) bool { return row.rejected != nil && id == row.rejected.ID() }
				t.Run(row.name, func(t *testing.T) {
					expect(t, CheckAuthEvents(e, held, rejected), rule)
					slices.Reverse(held)
					expect(t, CheckAuthEvents(e, held, rejected), rule)
				})
			}

			t.Run("create event listed or not", func(t *testing.T) {
				list := []*eventgraph.Event{r.create, carol}
				e := r.event(t, `m.room.message - @carol {}`, func(d *eventgraph.Draft) { d.AuthEvents = ids(list) })
				rule, _ := wanted(t, "3:ok 12:3.2", v)
				expect(t, CheckAuthEvents(e, list, nil), rule)

				e = r.event(t, `m.room.message - @carol {}`, func(d *eventgraph.Draft) { d.AuthEvents = ids(list[1:]) })
				rule, _ = wanted(t, "3:2.4 12:ok", v)
				expect(t, CheckAuthEvents(e, list, nil), rule)
				rule, _ = wanted(t, "3:2.4 12:2", v)
				expect(t, CheckAuthEvents(e, list[1:], nil), rule)
			})

			t.Run("an auth event not given", func(t *testing.T) {
				e := r.event(t, `m.room.message - @carol {}`, nil)
				err := CheckAuthEvents(e, []*eventgraph.Event{r.create, at(typePower, "")}, nil)
				var refused *Refused
				if err == nil || errors.As(err, &refused) {
					t.Errorf("%v, want an error that is no verdict", err)
				}
			})
		})
	}
}

func ids(events []*eventgraph.Event) []eventgraph.EventID {
	var ids []eventgraph.EventID
	for _, e := range events {
		ids = append(ids, e.ID())
	}
	return ids
}

func TestSelection(t *testing.T) {
	t.Parallel()
	const (
		create = typeCreate + "|"
		power  = typePower + "|"
		rules  = typeJoinRules + "|"
		carol  = typeMember + "|@carol:a.example"
		dave   = typeMember + "|@dave:a.example"
	)
	for _, row := range []struct {
		name, line string
		want       []string
		before8    []string // where it differs
	}{
		{"create", `m.room.create '' @carol {}`, nil, nil},
		{"message", `m.room.message - @carol {}`, []string{create, power, carol}, nil},
		{"message that looks like a join", `m.room.message - @carol {"membership":"join"}`, []string{create, power, carol}, nil},
		{"join", `m.room.member @carol @carol {"membership":"join"}`, []string{create, power, carol, rules}, nil},
		{"leave", `m.room.member @carol @carol {"membership":"leave"}`, []string{create, power, carol}, nil},
		{"kick", `m.room.member @dave @carol {"membership":"leave"}`, []string{create, power, carol, dave}, nil},
		{"ban", `m.room.member @dave @carol {"membership":"ban"}`, []string{create, power, carol, dave}, nil},
		{"invite", `m.room.member @dave @carol {"membership":"invite"}`, []string{create, power, carol, dave, rules}, nil},
		{"knock", `m.room.member @carol @carol {"membership":"knock"}`, []string{create, power, carol, rules}, nil},
		{"third-party invite", `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":{"token":"tok"}}}`,
			[]string{create, power, carol, dave, rules, typeThirdParty + "|tok"}, nil},
		{"third-party invite without token", `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":{}}}`,
			[]string{create, power, carol, dave, rules}, nil},
		{"third-party invite in a join", `m.room.member @carol @carol {"membership":"join","third_party_invite":{"signed":{"token":"tok"}}}`,
			[]string{create, power, carol, rules}, nil},
		{"restricted join", `m.room.member @carol @carol {"membership":"join","join_authorised_via_users_server":"@dave"}`,
			[]string{create, power, carol, rules, dave}, []string{create, power, carol, rules}},
		{"restricted join by oneself", `m.room.member @carol @carol {"membership":"join","join_authorised_via_users_server":"@carol"}`,
			[]string{create, power, carol, rules}, nil},
		{"authorised leave", `m.room.member @carol @carol {"membership":"leave","join_authorised_via_users_server":"@dave"}`,
			[]string{create, power, carol}, nil},
		{"member without state key", `m.room.member - @carol {"membership":"join"}`, []string{create, power, carol, rules}, nil},
		{"content that is not canonical", `m.room.member @carol @carol { "membership" : "join" , "a" : 1.5 }`, []string{create, power, carol, rules}, nil},
	} {
		for _, v := range eventgraph.SupportedVersions() {
			r := &room{version: v, id: "!room:a.example"}
			traits, _ := v.Traits()
			want := row.want
			if row.before8 != nil && !traits.Restricted {
				want = row.before8
			}
			if traits.RoomIDFromCreate && len(want) > 0 {
				want = want[1:]
			}
			var got []string
			for _, tuple := range Selection(v, r.draft(t, row.line)) {
				got = append(got, tuple.Type+"|"+tuple.Key)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("version %s, %s: %v, want %v", v, row.name, got, want)
			}
		}
	}
	if got := Selection("12", eventgraph.Draft{Type: typeMember, Sender: "@a:b", Content: json.RawMessage(`nonsense`)}); len(got) != 2 {
		t.Errorf("content that is no JSON: %v", got)
	}
}
