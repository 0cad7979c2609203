package store

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// cacheable makes the record of an event as the store holds it, with that content. Events of different n differ.
func cacheable(t testing.TB, eventType string, content string, n int) (eventgraph.EventID, []byte) {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	public := private.Public().(ed25519.PublicKey)
	key := eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private}
	other := eventgraph.EventID("$" + strings.Repeat("A", 43))
	d := eventgraph.Draft{
		RoomID: "!" + eventgraph.RoomID(other[1:]), Type: eventType, Sender: eventgraph.UserID("@alice:" + string(key.Server)),
		Content: json.RawMessage(content), PrevEvents: []eventgraph.EventID{other}, AuthEvents: []eventgraph.EventID{other, other}, OriginServerTS: int64(n),
	}
	if eventType != "m.room.message" {
		d.StateKey = new(string)
	}
	if eventType == "m.room.create" {
		d.RoomID = ""
	}
	e, err := eventgraph.Build("12", d, key)
	if err != nil {
		t.Fatal(err)
	}
	s := StoredEvent{Event: e, Verdict: Accepted, StateBefore: eventgraph.Hash{1}, StateAfter: eventgraph.Hash{1}, RoomState: eventgraph.Hash{1}, Order: int64(n), Height: 3}
	return e.ID(), s.encode()
}

// cacheBytes tells what an event takes in the cache, and what it is counted as.
func cacheBytes(t testing.TB, events int, eventType, content string, touch func(*StoredEvent)) (held, counted int) {
	ids, records := make([]eventgraph.EventID, events), make([][]byte, events)
	for i := range records {
		ids[i], records[i] = cacheable(t, eventType, content, i)
	}
	c := newEventCache()
	before := heapBytes()
	for i := range records {
		// As read from disk: bytes of its own.
		e, err := decodeEvent(eventgraph.EventID(strings.Clone(string(ids[i]))), bytes.Clone(records[i]))
		if err != nil {
			t.Fatal(err)
		}
		touch(e)
		c.put(e, 0)
	}
	held = (heapBytes() - before) / events
	if c.events.Len() != events {
		t.Fatalf("%d of %d events are kept", c.events.Len(), events)
	}
	counted = c.size / events
	runtime.KeepAlive(records)
	runtime.KeepAlive(ids)
	return held, counted
}

func heapBytes() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// cacheContents are contents that make a message of 1 KiB, and power levels of 500 users.
func cacheContents() (message, levels string) {
	var users strings.Builder
	for i := range 500 {
		fmt.Fprintf(&users, `,"@member%d:k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8":50`, i)
	}
	return `{"body":"` + strings.Repeat("x", 390) + `","msgtype":"m.text"}`, `{"users":{` + users.String()[1:] + `}}`
}

func nothing(*StoredEvent) {}

// judged has the rules read the event, as for a message that they judge.
func judged(e *StoredEvent) { auth.UserPower("@member1:x", oneState{e.Event}) }

type oneState struct{ e *eventgraph.Event }

func (s oneState) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	if t.Type == s.e.Type() {
		return s.e, nil
	}
	return nil, nil
}

// TestEventCacheCountsEnough: what the cache holds is no more than what it counts, whatever was derived from an event.
func TestEventCacheCountsEnough(t *testing.T) {
	message, levels := cacheContents()
	var users, creators strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&users, `,"@%x:x":1`, i)
		fmt.Fprintf(&creators, `,"@%x:x"`, i)
	}
	for name, c := range map[string]struct {
		eventType, content string
		touch              func(*StoredEvent)
		events             int
	}{
		"message":             {"m.room.message", message, nothing, 1000},
		"empty message":       {"m.room.message", "{}", nothing, 1000},
		"power levels judged": {"m.room.power_levels", levels, judged, 10},
		"many users":          {"m.room.power_levels", `{"users":{` + users.String()[1:] + `}}`, judged, 10},
		"many creators":       {"m.room.create", `{"additional_creators":[` + creators.String()[1:] + `]}`, judged, 10},
	} {
		held, counted := cacheBytes(t, c.events, c.eventType, c.content, c.touch)
		t.Logf("%s: %d bytes held, %d counted", name, held, counted)
		if held > counted || held < counted/8 {
			t.Errorf("%s: %d bytes held, %d counted", name, held, counted)
		}
	}
}

// BenchmarkEventCache prints the bytes that an event takes in the cache.
func BenchmarkEventCache(b *testing.B) {
	message, levels := cacheContents()
	for _, c := range []struct {
		name, eventType, content string
		touch                    func(*StoredEvent)
		events                   int
	}{
		{"message", "m.room.message", message, nothing, 1000},
		{"powerLevels/500users", "m.room.power_levels", levels, nothing, 20},
		{"powerLevels/500users/judged", "m.room.power_levels", levels, judged, 20},
	} {
		b.Run(c.name, func(b *testing.B) {
			id, record := cacheable(b, c.eventType, c.content, 0)
			e, err := decodeEvent(id, record)
			if err != nil {
				b.Fatal(err)
			}
			var held, counted int
			for b.Loop() {
				held, counted = cacheBytes(b, c.events, c.eventType, c.content, c.touch)
			}
			b.ReportMetric(float64(len(e.Raw())), "JSON-B/event")
			b.ReportMetric(float64(held), "held-B/event")
			b.ReportMetric(float64(counted), "counted-B/event")
		})
	}
}
