package stateres

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/eventgraph/internal/literal"
)

// fuzzEvents bounds a history made of bytes, so that an execution stays short.
const fuzzEvents = 60

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

// fabricate is send without hash and signature, which the resolution does not look at; and it cites more than it should if it is told to.
func (w *world) fabricate(s state, d eventgraph.Draft, more []eventgraph.EventID, rejected bool) {
	w.t.Helper()
	d.RoomID, d.Depth = w.room, 1
	for _, tuple := range auth.Selection(w.version, d) {
		if id := s[tuple]; id != "" {
			d.AuthEvents = append(d.AuthEvents, id)
		}
	}
	// Not two of one tuple: such an event is refused by its auth events alone, and is in no state.
	cited := make(map[eventgraph.StateTuple]bool)
	for _, id := range d.AuthEvents {
		tuple, _ := w.events[id].Tuple()
		cited[tuple] = true
	}
	for _, id := range more {
		if tuple, _ := w.events[id].Tuple(); !cited[tuple] {
			cited[tuple] = true
			d.AuthEvents = append(d.AuthEvents, id)
		}
	}
	proto, err := eventgraph.Proto(w.version, d)
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	members, err := canonicaljson.Split(proto)
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	for _, key := range []string{"hashes", "signatures"} {
		members = append(members, canonicaljson.Member{Key: key, Value: []byte("{}")})
	}
	// Many events have one time, and their IDs decide: these do not come in the order in which the events were made.
	n := len(w.events)
	h := sha256.Sum256([]byte{byte(n)})
	enc := base64.RawURLEncoding
	if w.version == "3" {
		enc = base64.RawStdEncoding
	}
	id := eventgraph.EventID("$" + enc.EncodeToString(h[:]))
	e, err := eventgraph.LoadEvent(w.version, id, canonicaljson.Join(members))
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	w.events[id], w.names[id], w.rejected[id] = e, fmt.Sprint("e", n), rejected
	w.place(e)
	if d.Type == "m.room.create" {
		w.room = e.RoomID()
		w.named["create"] = e
	}
	if tuple, ok := e.Tuple(); ok {
		s[tuple] = id
	}
}

// fuzzHistory makes a room of bytes: each event a change on one of up to four forks, with or without the right to it.
func fuzzHistory(w *world, s *script) []state {
	users := []eventgraph.UserID{"@alice:a.example", "@bob:a.example", "@carol:a.example", "@dave:a.example"}
	make := func(st state, typ, key string, sender eventgraph.UserID, ts int, content string, more []eventgraph.EventID, rejected bool) {
		w.fabricate(st, eventgraph.Draft{Type: typ, StateKey: &key, Sender: sender, Content: json.RawMessage(content), OriginServerTS: int64(ts)}, more, rejected)
	}
	if traits, _ := w.version.Traits(); !traits.RoomIDFromCreate {
		w.room = "!room:a.example"
	}
	first := state{}
	make(first, "m.room.create", "", users[0], 0, fmt.Sprintf(`{"creator":%q}`, users[0]), nil, false)
	make(first, "m.room.member", string(users[0]), users[0], 0, `{"membership":"join"}`, nil, false)
	states := []state{first}
	for len(w.events) < fuzzEvents && len(s.rest) > 0 {
		kind, sender, ts := s.next(12), users[s.next(len(users))], s.next(8)
		st := states[s.next(len(states))]
		known := slices.Sorted(maps.Keys(w.events))
		var more []eventgraph.EventID
		rejected := false
		if lie := s.next(16); lie < 3 {
			for range lie {
				more = append(more, known[s.next(len(known))])
			}
		} else if lie == 3 {
			rejected = true
		}
		switch kind {
		case 0, 1:
			if len(states) < 4 {
				states = append(states, maps.Clone(st))
			} else { // a claimed state: one entry is another's
				if tuple, ok := w.events[known[s.next(len(known))]].Tuple(); ok {
					st[tuple] = known[s.next(len(known))]
					if other, ok := w.events[st[tuple]].Tuple(); !ok || other != tuple {
						delete(st, tuple)
					}
				}
			}
		case 2, 3, 4:
			level := func() int { return []int{0, 50, 100, 49}[s.next(4)] }
			make(st, "m.room.power_levels", "", sender, ts, fmt.Sprintf(`{"users":{%q:%d,%q:%d,%q:%d},"ban":%d}`, users[1], level(), users[2], level(), users[3], level(), level()), more, rejected)
		case 5:
			make(st, "m.room.join_rules", "", sender, ts, fmt.Sprintf(`{"join_rule":%q}`, []string{"public", "invite", "knock"}[s.next(3)]), more, rejected)
		case 6, 7, 8:
			target := users[s.next(len(users))]
			make(st, "m.room.member", string(target), sender, ts, fmt.Sprintf(`{"membership":%q}`, []string{"join", "leave", "ban", "invite"}[s.next(4)]), more, rejected)
		case 9:
			make(st, "m.room.member", string(sender), sender, ts, `{"membership":"join"}`, more, rejected)
		default:
			make(st, []string{"m.room.topic", "m.room.name"}[kind-10], "", sender, ts, fmt.Sprintf(`{"n":%d}`, len(w.events)), more, rejected)
		}
	}
	return states
}

// FuzzResolve: no history makes the resolution panic or fail; it is the same in every order of the states, is the one that package
// literal finds, and reads an event at most twice, so at most twice as many as there are.
func FuzzResolve(f *testing.F) {
	for n := range uint64(40) {
		rng := rand.New(rand.NewPCG(n, 1))
		seed := make([]byte, 40+rng.IntN(300))
		for i := range seed {
			seed[i] = byte(rng.Uint32())
		}
		f.Add(byte(n), seed)
	}
	f.Fuzz(func(t *testing.T, version byte, choices []byte) {
		versions := eventgraph.SupportedVersions()
		w := newWorld(t, versions[int(version)%len(versions)])
		states := fuzzHistory(w, &script{choices})
		roots := make([]eventgraph.Hash, len(states))
		for i, s := range states {
			roots[i] = w.root(s)
		}
		root, made, err := Resolve(w.version, roots, w, w)
		if err != nil {
			t.Fatal(err)
		}
		all := 0
		for id, n := range w.reads {
			if all += n; n > 2 {
				t.Fatalf("%s is read %d times", w.names[id], n)
			}
		}
		if all > 2*len(w.events) {
			t.Fatalf("%d reads of %d events", all, len(w.events))
		}
		slices.Reverse(roots)
		if again, _, err := Resolve(w.version, append(roots, roots[0]), w, w); err != nil || again != root {
			t.Fatalf("in another order %x, %v, not %x", again, err, root)
		}

		slices.SortFunc(roots, func(a, b eventgraph.Hash) int { return slices.Compare(a[:], b[:]) })
		roots = slices.Compact(roots)
		for _, citers := range citersTried {
			if len(roots) == 1 {
				break
			}
			r := newResolver(w.version, roots, w, w)
			r.citers = citers
			if err := r.resolve(); err != nil {
				t.Fatal(err)
			}
			if again, _, err := r.result(); err != nil || again != root {
				t.Fatalf("with %d events that cite looked at %x, %v, not %x", citers, again, err, root)
			}
		}

		maps.Copy(w.nodes, made)
		got := w.read(root)
		if want := w.literally(states); !maps.Equal(got, want) {
			for tuple, id := range want {
				if got[tuple] == "" {
					t.Errorf("%v is nothing, literally %q", tuple, w.names[id])
				}
			}
			for tuple, id := range got {
				if want[tuple] != id {
					t.Errorf("%v is %q, literally %q", tuple, w.names[id], w.names[want[tuple]])
				}
			}
			t.Fatalf("version %s\n%s", w.version, w.show(states))
		}
	})
}

// literally is the resolution of package literal.
func (w *world) literally(states []state) state {
	w.t.Helper()
	events := map[string]*literal.Event{}
	for id, e := range w.events {
		l, err := literal.Parse(string(id), e.Raw())
		if err != nil {
			w.t.Fatalf("%v", err)
		}
		l.Rejected = w.rejected[id]
		events[l.ID] = l
	}
	var forks []literal.State
	for _, s := range states {
		fork := literal.State{}
		for tuple, id := range s {
			fork[literal.Key{Type: tuple.Type, StateKey: tuple.Key}] = string(id)
		}
		forks = append(forks, fork)
	}
	resolved, _ := literal.Resolve(string(w.version), forks, func(id string) *literal.Event { return events[id] })
	s := state{}
	for key, id := range resolved {
		s[eventgraph.StateTuple{Type: key.Type, Key: key.StateKey}] = eventgraph.EventID(id)
	}
	return s
}

// show lists the events of a history, and the states.
func (w *world) show(states []state) string {
	var b strings.Builder
	for n := range len(w.events) {
		name := fmt.Sprint("e", n)
		for id, e := range w.events {
			if w.names[id] != name {
				continue
			}
			tuple, _ := e.Tuple()
			fmt.Fprintf(&b, "  %s@%d %s %q %s %s rejected %v, cites", name, e.OriginServerTS(), tuple.Type, tuple.Key, e.Sender(), e.Content(), w.rejected[id])
			for _, a := range e.AuthEvents() {
				fmt.Fprint(&b, " ", w.names[a])
			}
			fmt.Fprintln(&b)
		}
	}
	for i, s := range states {
		fmt.Fprint(&b, "  state ", i)
		for _, tuple := range slices.SortedFunc(maps.Keys(s), func(a, b eventgraph.StateTuple) int { return strings.Compare(a.Type+a.Key, b.Type+b.Key) }) {
			fmt.Fprint(&b, " ", w.names[s[tuple]])
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}
