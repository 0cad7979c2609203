package clientapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// BenchmarkFirstSync500 is a first sync of 500 rooms with 20 events each, as the handler answers it: "times-marshal" is how many times as long
// it takes as encoding/json takes to serialise what it answers, "times-remarshal" the same of the whole answer parsed into maps, in CPU time: other
// work on the machine does not count. "first-" is the same of the first of all, for which nothing was read or counted before.
func BenchmarkFirstSync500(b *testing.B) {
	b.Run("messages", func(b *testing.B) { benchFirstSync(b, 0, 0) })
	b.Run("reactions", func(b *testing.B) { benchFirstSync(b, 0, 5) })
	b.Run("people", func(b *testing.B) { benchFirstSync(b, 5, 0) })
	b.Run("people/reactions", func(b *testing.B) { benchFirstSync(b, 5, 5) })
}

// benchFirstSync: so many others speak in each room, and else the user; and of the 20 events of a room's timeline so many are reactions to another.
func benchFirstSync(b *testing.B, others, reactions int) {
	s := newTestAPI(b, nil)
	alice := s.newClient("alice")
	speak := []client{alice}
	if others > 0 {
		speak = nil
	}
	for i := range others {
		speak = append(speak, s.newClient(fmt.Sprint("other", i)))
	}
	for i := range 500 {
		room := alice.room()
		alice.state(room, "m.room.name", "", fmt.Sprintf(`{"name":"room %d"}`, i))
		for _, c := range speak {
			if c.user != alice.user {
				c.join(room)
			}
		}
		var said eventgraph.EventID
		for n := range 20 - reactions {
			said = speak[n%len(speak)].say(room, "Shall we meet at the usual place after work, or is it too late for you today?")
		}
		for n := range reactions {
			speak[n%len(speak)].event(rooms.Draft{Room: room, Type: "m.reaction", Content: json.RawMessage(fmt.Sprintf(
				`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"%d"}}`, said, n))})
		}
	}
	h := s.Handler()
	first := func() []byte {
		filter := url.QueryEscape(`{"room":{"timeline":{"limit":20}}}`)
		r := httptest.NewRequest("GET", noConnections+"/_matrix/client/v3/sync?filter="+filter, nil)
		r.Header.Set("Authorization", "Bearer "+alice.token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Code, w.Body)
		}
		return w.Body.Bytes()
	}
	cpu := func(sum *time.Duration, f func()) {
		began := cpuTime(b)
		f()
		*sum += cpuTime(b) - began
	}
	var answer []byte
	var cold time.Duration
	runtime.GC()
	cpu(&cold, func() { answer = first() })
	// The answer as the handler has it, its events written out already, and as anybody else would.
	var typed syncAnswer
	var parsed any
	for _, into := range []any{&typed, &parsed} {
		if err := json.Unmarshal(answer, into); err != nil {
			b.Fatal(err)
		}
	}
	if len(typed.Rooms.Join) != 500 {
		b.Fatal(len(typed.Rooms.Join))
	}
	marshalled := func(what any) func() {
		return func() {
			if _, err := json.Marshal(what); err != nil {
				b.Fatal(err)
			}
		}
	}
	var took, marshal, remarshal time.Duration
	for b.Loop() {
		runtime.GC() // each pays for its own garbage
		cpu(&took, func() { first() })
		b.StopTimer()
		runtime.GC()
		cpu(&marshal, marshalled(&typed))
		runtime.GC()
		cpu(&remarshal, marshalled(&parsed))
		b.StartTimer()
	}
	b.ReportMetric(float64(took)/float64(marshal), "times-marshal")
	b.ReportMetric(float64(took)/float64(remarshal), "times-remarshal")
	b.ReportMetric(float64(cold)*float64(b.N)/float64(marshal), "first-times-marshal")
	b.ReportMetric(float64(cold)*float64(b.N)/float64(remarshal), "first-times-remarshal")
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(len(answer)), "answer-bytes")
}

// cpuTime is what the process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
