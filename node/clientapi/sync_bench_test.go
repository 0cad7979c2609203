package clientapi

import (
	"fmt"
	"testing"
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
