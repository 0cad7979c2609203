package clientapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

// benchClient has rooms with some members and messages in each.
func benchClient(b *testing.B, rooms int) client {
	s := newTestServer(b, nil)
	alice := s.newClient("alice")
	for i := range rooms {
		room := alice.room()
		alice.state(room, "m.room.name", "", fmt.Sprintf(`{"name":"room %d"}`, i))
		for range 10 {
			alice.say(room, "a message of usual length, as people write them")
		}
	}
	return alice
}

func BenchmarkSyncNothingNew(b *testing.B) {
	alice := benchClient(b, 20)
	token := alice.sync(alice.sync("").NextBatch).NextBatch
	b.ResetTimer()
	for range b.N {
		alice.sync(token)
	}
}

func BenchmarkSyncOneMessage(b *testing.B) {
	alice := benchClient(b, 20)
	room := alice.room()
	token := alice.sync(alice.sync("").NextBatch).NextBatch
	alice.say(room, "new")
	b.ResetTimer()
	for range b.N {
		alice.sync(token)
	}
}

func BenchmarkSyncInitial200Rooms(b *testing.B) {
	alice := benchClient(b, 200)
	b.ResetTimer()
	for range b.N {
		alice.sync("")
	}
}

// BenchmarkFirstSync500 is a first sync of 500 rooms with 20 events each, as the handler answers it: "times-marshal" is how many times as long
// it takes as encoding/json takes to serialise what it answers, "times-remarshal" the same of the whole answer parsed into maps.
func BenchmarkFirstSync500(b *testing.B) {
	s := newTestAPI(b, nil)
	alice := s.newClient("alice")
	for i := range 500 {
		room := alice.room()
		alice.state(room, "m.room.name", "", fmt.Sprintf(`{"name":"room %d"}`, i))
		for range 20 {
			alice.say(room, "Shall we meet at the usual place after work, or is it too late for you today?")
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
	answer := first()
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
	var marshal, remarshal, took time.Duration
	for b.Loop() {
		began := time.Now()
		first()
		took += time.Since(began)
		b.StopTimer()
		for what, sum := range map[any]*time.Duration{&typed: &marshal, &parsed: &remarshal} {
			began = time.Now()
			if _, err := json.Marshal(what); err != nil {
				b.Fatal(err)
			}
			*sum += time.Since(began)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(took)/float64(marshal), "times-marshal")
	b.ReportMetric(float64(took)/float64(remarshal), "times-remarshal")
	b.ReportMetric(float64(len(answer)), "answer-bytes")
}
