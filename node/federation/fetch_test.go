package federation

import (
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	type ids = []eventgraph.EventID
	missing := func(event, origin string, prev, lacks ids) want {
		return want{event: eventgraph.EventID(event), prev: prev, origin: eventgraph.ServerName(origin), MissingError: rooms.MissingError{Events: lacks}}
	}
	keys := missing("$e", "b", ids{"$p"}, nil)
	keys.Keys = []rooms.KeyNeeded{{Server: "x", ID: "ed25519:x"}}
	keysAndParent := missing("$e", "b", ids{"$p"}, ids{"$p"})
	keysAndParent.Keys = keys.Keys
	before := missing("$e", "b", ids{"$p"}, nil)
	before.StateBefore = true
	servers := []eventgraph.ServerName{"a", "b", "c"}
	for _, c := range []struct {
		name    string
		wants   []want
		holders []eventgraph.ServerName // "z" is outside
		next    []ask                   // all questions in the order in which they are put
	}{
		{"nothing waits", nil, servers, nil},
		{"one from outside: its giver is asked for events, never for the state", []want{missing("$e", "z", ids{"$p"}, ids{"$auth", "$p"})}, servers[:1], []ask{
			{askMissing, "z", "$e", ""}, {askMissing, "a", "$e", ""}, {askAuth, "z", "$e", ""}, {askAuth, "a", "$e", ""},
			{askEvent, "z", "$e", "$p"}, {askEvent, "a", "$e", "$p"}, {askState, "a", "$e", ""},
		}},
		{"nobody is there", []want{missing("$e", "b", ids{"$p"}, ids{"$p"})}, nil, nil},
		{"a parent: between, itself, then the state; the giver first", []want{missing("$e", "b", ids{"$p"}, ids{"$p"})}, servers, []ask{
			{askMissing, "b", "$e", ""}, {askMissing, "a", "$e", ""}, {askMissing, "c", "$e", ""},
			{askEvent, "b", "$e", "$p"}, {askEvent, "a", "$e", "$p"}, {askEvent, "c", "$e", "$p"},
			{askState, "b", "$e", ""}, {askState, "a", "$e", ""}, {askState, "c", "$e", ""},
		}},
		{"the giver is away", []want{missing("$e", "y", ids{"$p"}, ids{"$p"})}, servers[:1], []ask{
			{askMissing, "a", "$e", ""}, {askEvent, "a", "$e", "$p"}, {askState, "a", "$e", ""},
		}},
		{"two parents, one of them held", []want{missing("$e", "a", ids{"$p", "$q"}, ids{"$q"})}, servers[:1], []ask{
			{askMissing, "a", "$e", ""}, {askEvent, "a", "$e", "$q"}, {askState, "a", "$e", ""},
		}},
		{"an auth event: never on claimed state", []want{missing("$e", "a", ids{"$p"}, ids{"$auth"})}, servers[:1], []ask{{askAuth, "a", "$e", ""}}},
		{"a parent and an auth event", []want{missing("$e", "a", ids{"$p"}, ids{"$auth", "$p"})}, servers[:1], []ask{
			{askMissing, "a", "$e", ""}, {askAuth, "a", "$e", ""}, {askEvent, "a", "$e", "$p"}, {askState, "a", "$e", ""},
		}},
		{"a key: asked once, of whomever", []want{keys}, servers, []ask{{askKeys, "", "$e", ""}}},
		{"a key without anybody there: its owner may be dialled", []want{keys}, nil, []ask{{askKeys, "", "$e", ""}}},
		{"a key before a parent", []want{keysAndParent}, servers[:1], []ask{
			{askKeys, "", "$e", ""}, {askMissing, "a", "$e", ""}, {askEvent, "a", "$e", "$p"}, {askState, "a", "$e", ""},
		}},
		{"the state before is all that helps", []want{before}, servers[1:2], []ask{{askState, "b", "$e", ""}}},
		{"the first event first", []want{missing("$d", "a", ids{"$o"}, ids{"$o"}), missing("$e", "a", nil, ids{"$auth"})}, servers[:1], []ask{
			{askMissing, "a", "$d", ""}, {askEvent, "a", "$d", "$o"}, {askState, "a", "$d", ""}, {askAuth, "a", "$e", ""},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			put := map[ask]bool{}
			from := holders{c.holders, map[eventgraph.ServerName]bool{"z": true}}
			for i, want := range c.next {
				got, ok := decide(c.wants, from, func(a ask) bool { return put[a] })
				if !ok || got != want {
					t.Fatalf("question %d is %+v, %v; want %+v", i, got, ok, want)
				}
				put[got] = true
			}
			if got, ok := decide(c.wants, from, func(a ask) bool { return put[a] }); ok {
				t.Errorf("after all it asks %+v", got)
			}
		})
	}
}

// TestBehind: what rests on an event that waits, and is stuck there, is asked for by the state before it; not as long as anybody may help.
func TestBehind(t *testing.T) {
	t.Parallel()
	servers := []eventgraph.ServerName{"a", "b"}
	needs := []rooms.KeyNeeded{{Server: "x", ID: "ed25519:x"}}
	type event struct {
		id    eventgraph.EventID
		lacks []eventgraph.EventID
		keys  []rooms.KeyNeeded
	}
	chain := []event{{"$1", []eventgraph.EventID{"$0"}, nil}, {"$2", []eventgraph.EventID{"$1"}, nil}, {"$3", []eventgraph.EventID{"$2"}, nil}}
	fork := []event{chain[0], {"$1b", []eventgraph.EventID{"$0b"}, nil}, {"$2", []eventgraph.EventID{"$1", "$1b"}, nil}}
	for _, c := range []struct {
		name    string
		events  []event
		refused string // by a; with a star: by b too
		holders []eventgraph.ServerName
		behind  string
	}{
		{"nothing is refused yet", chain, "", servers, ""},
		{"one holder has not refused", chain, "$1", servers, ""},
		{"all have", chain, "$1*", servers, "$2"},
		{"and that after it too", chain, "$1* $2*", servers, "$2 $3"},
		{"nobody is there", chain, "$1*", nil, ""},
		{"one of two that it rests on", fork, "$1* $1b", servers, ""},
		{"both", fork, "$1b* $1*", servers, "$2"},
		{"what is itself lacking does not wait", []event{chain[0], {"$2", []eventgraph.EventID{"$1", "$0"}, nil}}, "$1*", servers, ""},
		{"its keys come first", []event{chain[0], {"$2", []eventgraph.EventID{"$1"}, needs}}, "$1*", servers, ""},
		{"keys may still come for what it rests on", []event{{"$1", []eventgraph.EventID{"$0"}, needs}, chain[1]}, "$1*", servers, ""},
	} {
		now := time.Unix(1_000_000, 0)
		i := newInbox(func() time.Time { return now })
		i.wake("!r")
		f := &Federation{inbox: i, Config: Config{Rooms: &rooms.Rooms{}}}
		w := f.newWaiting("!r", "12")
		w.isIn, w.holders = func(eventgraph.ServerName) bool { return true }, holders{room: c.holders}
		for _, e := range c.events {
			w.put(&waitingEvent{id: e.id, origin: "b", prev: e.lacks, keys: e.keys}, e.lacks)
		}
		for _, word := range strings.Fields(c.refused) {
			id, both := strings.CutSuffix(word, "*")
			for _, server := range servers {
				a := ask{kind: askState, server: server, event: eventgraph.EventID(id)}
				if i.ask("!r", a); both || server == "a" {
					i.refuse("!r", a)
				}
			}
		}
		w.lineUp()
		for _, e := range c.events {
			x, _ := w.want(e.id)
			i.rest("!r", e.id, w.needs(x), false)
			w.getStuck(e.id)
		}
		var behind []string
		for _, e := range c.events {
			if !w.events[e.id].isBehind() {
				continue
			}
			behind = append(behind, string(e.id))
			next, _ := w.want(e.id)
			if a, ok := decide([]want{next}, holders{room: c.holders}, func(ask) bool { return false }); !ok || a != (ask{askState, "b", e.id, ""}) {
				t.Errorf("%s: it asks %+v, %v", c.name, a, ok)
			}
		}
		if got := strings.Join(behind, " "); got != c.behind {
			t.Errorf("%s: %q, want %q", c.name, got, c.behind)
		}
	}
}
