package clientapi

import "testing"

// A window over all rooms, of a client that has them all.
func BenchmarkSlidingNothingNew(b *testing.B) {
	alice := benchClient(b, 200)
	list := window(0, 499, 1, `["m.room.name",""],["m.room.member","$LAZY"],["m.room.member","$ME"]`, "")
	pos := alice.slide("", list).Pos
	pos = alice.slide(pos, list).Pos
	b.ResetTimer()
	for range b.N {
		pos = alice.slide(pos, list).Pos
	}
}

func BenchmarkSlidingOneMessage(b *testing.B) {
	alice := benchClient(b, 200)
	room := alice.room()
	list := window(0, 499, 1, `["m.room.name",""],["m.room.member","$LAZY"],["m.room.member","$ME"]`, "")
	pos := alice.slide("", list).Pos
	b.ResetTimer()
	for range b.N {
		alice.say(room, "new")
		pos = alice.slide(pos, list).Pos
	}
}

// The first 20 rooms of 200, as Element X begins.
func BenchmarkSlidingFirstWindow(b *testing.B) {
	alice := benchClient(b, 200)
	list := window(0, 19, 1, `["m.room.name",""],["m.room.encryption",""],["m.room.create",""],["m.space.child","*"],["m.room.member","$LAZY"],["m.room.member","$ME"]`, "")
	b.ResetTimer()
	for range b.N {
		alice.slide("", list)
	}
}
