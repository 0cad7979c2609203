package eventgraph_test

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// BenchmarkLinear: whatever fills an event, eight times the bytes take about eight times as long to parse and check: the metric
// "times". A quadratic way takes 64 times as long.
func BenchmarkLinear(b *testing.B) {
	const small, large = 7 << 10, 56 << 10
	r := newBenchRoom(b, 5)
	event := func(content, unsigned string) []byte {
		d := r.draft
		d.Content = json.RawMessage(`{}`)
		e, err := eventgraph.Build("12", d, r.key)
		if err != nil {
			b.Fatal(err)
		}
		raw := strings.Replace(string(e.Raw()), `"content":{}`, `"content":`+content, 1)
		return []byte(raw[:len(raw)-1] + unsigned + "}")
	}
	// list has as many parts as go into size bytes.
	list := func(size int, part func(i int) string) string {
		var parts []string
		for i := 0; size > 0; i++ {
			p := part(i)
			parts, size = append(parts, p), size-len(p)-1
		}
		return strings.Join(parts, ",")
	}
	falling := func(size int) string {
		parts := strings.Split(list(size, func(i int) string { return fmt.Sprintf(`"%05d":0`, i) }), ",")
		slices.Reverse(parts)
		return strings.Join(parts, ",")
	}
	refused := []string{"prev_events", "repeated members"}
	for name, of := range map[string]func(size int) []byte{
		"members": func(size int) []byte {
			return event("{"+list(size, func(i int) string { return fmt.Sprintf(`"%05d":0`, i) })+"}", "")
		},
		"members in falling order": func(size int) []byte { return event("{"+falling(size)+"}", "") },
		"members with escapes, in falling order": func(size int) []byte {
			return event("{"+strings.ReplaceAll(falling(size), `"0`, `"\u0030`)+"}", "")
		},
		"top-level members": func(size int) []byte {
			return event("{}", ","+list(size, func(i int) string { return fmt.Sprintf(`"z%05d":0`, i) }))
		},
		"top-level members in falling order": func(size int) []byte { return event("{}", ","+falling(size)) },
		"unsorted objects, one in another": func(size int) []byte {
			depth := min(900, size/13)
			inner := `"` + strings.Repeat("x", size-13*depth) + `"`
			return event(strings.Repeat(`{"b":1,"a":`, depth)+inner+strings.Repeat("}", depth), "")
		},
		"arrays, 900 deep": func(size int) []byte {
			return event(`{"a":[`+list(size, func(int) string { return strings.Repeat("[", 900) + strings.Repeat("]", 900) })+`]}`, "")
		},
		"escapes that go":        func(size int) []byte { return event(`{"a":"`+strings.Repeat(`\/`, size/2)+`"}`, "") },
		"escapes that stay":      func(size int) []byte { return event(`{"a":"`+strings.Repeat(`\n`, size/2)+`"}`, "") },
		"backslashes and quotes": func(size int) []byte { return event(`{"a":"`+strings.Repeat(`\\\"`, size/4)+`"}`, "") },
		"backslashes":            func(size int) []byte { return event(`{"a":"`+strings.Repeat(`\\`, size/2)+`"}`, "") },
		"spaces":                 func(size int) []byte { return event(strings.Repeat(" ", 8*size)+`{}`, "") },
		"spaces and elements": func(size int) []byte {
			return event(`{"a":[`+list(8*size, func(int) string { return "                0" })+`]}`, "")
		},
		"unsigned": func(size int) []byte {
			return event("{}", `,"unsigned":{`+falling(8*size)+`}`)
		},
		"unsigned, many times": func(size int) []byte {
			return event("{}", ","+list(size, func(int) string { return `"unsigned":{"b":0,"a":0}` }))
		},
		"signatures": func(size int) []byte {
			return []byte(strings.Replace(string(event("{}", "")), `"signatures":{`,
				`"signatures":{`+list(size, func(i int) string { return fmt.Sprintf(`"%05d":{"ed25519:1":""}`, i) })+",", 1))
		},
		"keys of one server": func(size int) []byte {
			return []byte(strings.Replace(string(event("{}", "")), `"ed25519:`,
				list(size, func(i int) string { return fmt.Sprintf(`"ed25519:%05d":""`, i) })+`,"ed25519:`, 1))
		},
		"prev_events": func(size int) []byte {
			return []byte(strings.Replace(string(event("{}", "")), `"prev_events":[`,
				`"prev_events":[`+list(size, func(i int) string { return `"$` + strings.Repeat("A", 43) + `"` })+",", 1))
		},
		"a hash": func(size int) []byte {
			return []byte(strings.Replace(string(event("{}", "")), `"sha256":"`, `"sha256":"`+strings.Repeat("A", size/4*4), 1))
		},
		"repeated members": func(size int) []byte {
			return event("{"+list(size-20, func(i int) string { return fmt.Sprintf(`"%05d":0`, i) })+`,"00000":0}`, "")
		},
	} {
		b.Run(name, func(b *testing.B) {
			parse := func(raw []byte) func() {
				return func() {
					e, err := eventgraph.ParseEvent("12", raw)
					if (err != nil) != slices.Contains(refused, name) {
						b.Fatalf("%d bytes: %v", len(raw), err)
					}
					if err == nil {
						e.VerifySignatures(noKeys{})
					}
				}
			}
			reportTimes(b, parse(of(small)), parse(of(large)))
		})
	}
}

// noKeys knows none.
type noKeys struct{}

func (noKeys) Key(eventgraph.ServerName, eventgraph.KeyID, int64, bool) (ed25519.PublicKey, error) {
	return nil, eventgraph.ErrKeyUnknown
}

// reportTimes reports how many times as long large takes as small.
func reportTimes(b *testing.B, small, large func()) {
	times := 0.0
	for b.Loop() {
		times = float64(fastest(large)) / float64(fastest(small))
	}
	b.ReportMetric(times, "times")
	b.ReportMetric(0, "ns/op")
}

// fastest of some runs is what the work itself takes; whatever else the machine does makes a run slower.
func fastest(work func()) time.Duration {
	best := time.Hour
	for range 8 {
		best = min(best, took(work, 1))
	}
	return best
}

// TestPowerLevelsAreReadOnce: to judge a message by power levels that have judged one before reads nothing of them anew, so it
// makes no garbage, whether they name few users or as many as fit.
func TestPowerLevelsAreReadOnce(t *testing.T) {
	for _, users := range []int{5, 750} {
		r := newBenchRoom(t, users)
		allocs := testing.AllocsPerRun(100, func() {
			if err := auth.Check(r.message, r); err != nil {
				t.Fatal(err)
			}
		})
		if allocs > 0 {
			t.Errorf("%v allocations by the levels of %d users", allocs, users)
		}
	}
}

// BenchmarkCreators: power levels that name as many users as fit are compared with as many creators; eight times as many of both
// take about eight times as long: the metric "times".
func BenchmarkCreators(b *testing.B) {
	check := func(n int) func() {
		r := newBenchRoom(b, 5)
		creators, levels := []string{}, map[string]int{}
		for i := range n {
			creators = append(creators, fmt.Sprintf("@c%05d:x", i))
			levels[fmt.Sprintf("@u%05d:x", i)] = 0
		}
		list, _ := json.Marshal(creators)
		r.create = nil
		r.create = r.build(b, "m.room.create", "", r.alice, `{"room_version":"12","additional_creators":`+string(list)+`}`)
		member := r.build(b, "m.room.member", string(r.alice), r.alice, `{"membership":"join"}`)
		users, _ := json.Marshal(levels)
		d := eventgraph.Draft{RoomID: r.create.RoomID(), Type: "m.room.power_levels", StateKey: new(string), Sender: r.alice, Content: []byte(`{"users":` + string(users) + `}`),
			PrevEvents: []eventgraph.EventID{member.ID()}, AuthEvents: []eventgraph.EventID{member.ID()}}
		return func() {
			// Built anew, so that nothing of it is known.
			e, err := eventgraph.Build("12", d, r.key)
			if err != nil {
				b.Fatal(err)
			}
			delete(r.state, eventgraph.StateTuple{Type: "m.room.power_levels"})
			if err := auth.Check(e, r); err != nil {
				b.Fatal(err)
			}
		}
	}
	reportTimes(b, check(450), check(3600))
}

// TestWhatIsDroppedIsNotKept: an event that came with all the bytes that are let in beside it holds only its own.
func TestWhatIsDroppedIsNotKept(t *testing.T) {
	r := newBenchRoom(t, 5)
	raw := string(r.message.Raw())
	for name, raw := range map[string]string{
		"unsigned": raw[:len(raw)-1] + `,"unsigned":{"a":"` + strings.Repeat("x", 400_000) + `"}}`,
		"spaces":   "{" + strings.Repeat(" ", 400_000) + raw[1:],
	} {
		e, err := eventgraph.ParseEvent("12", []byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		if held := cap(e.Raw()); held > 2*len(e.Raw()) {
			t.Errorf("%s: %d bytes held for %d", name, held, len(e.Raw()))
		}
	}
}
