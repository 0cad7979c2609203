package federation

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// compareSummaries searches, with the giver's answers through JSON, and returns what was found, in which turns and bytes.
func compareSummaries(t interface{ Fatal(...any) }, asker, giver *summary) (found []itemID, turns, bytes int) {
	q := newSearch(asker)
	for question := q.next(); question != nil; question = q.next() {
		asked, err := json.Marshal(question)
		if err != nil {
			t.Fatal(err)
		}
		var heard meetCompare
		if err := json.Unmarshal(asked, &heard); err != nil {
			t.Fatal(err)
		}
		said, err := json.Marshal(giver.answer(&heard))
		if err != nil {
			t.Fatal(err)
		}
		var answer meetCompared
		if err := json.Unmarshal(said, &answer); err != nil {
			t.Fatal(err)
		}
		if !q.take(&answer) {
			t.Fatal("an honest answer was not taken")
		}
		turns++
		bytes += len(asked) + len(said)
	}
	return q.found(), turns, bytes
}

func sharedRooms(n int, value func(i int) string) (all []*sharedRoom) {
	for i := range n {
		own := heldOf([]eventgraph.EventID{eventgraph.EventID(value(i))})
		all = append(all, &sharedRoom{id: eventgraph.RoomID(fmt.Sprintf("!room%d", i)), own: own, shown: own})
	}
	return all
}

// TestSummary: what is found is what differs, or is not shared by the other side, or is silent here and shared there; nothing else.
func TestSummary(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 3000).Draw(t, "rooms")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		few := 1 + rapid.IntRange(0, 300).Draw(t, "one of so many differs")
		secret := []byte{byte(n)}
		ours, theirs := sharedRooms(n, func(int) string { return "$same" }), sharedRooms(n, func(int) string { return "$same" })
		want := map[eventgraph.RoomID]bool{}
		var ourRooms, theirRooms []*sharedRoom
		for i := range n {
			a, b := true, true
			switch r.IntN(5 * few) {
			case 0:
				theirs[i].shown = heldOf([]eventgraph.EventID{"$other"})
				want[ours[i].id] = true
			case 1:
				b = false
				want[ours[i].id] = true
			case 2:
				a = false
			case 3:
				ours[i].silent = true
				want[ours[i].id] = true
			case 4:
				ours[i].silent, theirs[i].silent = true, true
			}
			if a {
				ourRooms = append(ourRooms, ours[i])
			}
			if b {
				theirRooms = append(theirRooms, theirs[i])
			}
		}
		own := newSummary(secret, ourRooms)
		found, turns, _ := compareSummaries(t, own, newSummary(secret, theirRooms))
		for _, id := range found {
			if room := own.rooms[id].id; !want[room] {
				t.Fatalf("%s was found, and is the same", room)
			}
		}
		if len(found) != min(len(want), maxDiffering) {
			t.Fatalf("%d found of %d in %d turns", len(found), len(want), turns)
		}
	})
}

// TestSummaryCosts: what is the same costs nothing, and one room that differs the prints on the way to it.
func TestSummaryCosts(t *testing.T) {
	t.Parallel()
	same := func(int) string { return "$same" }
	for _, row := range []struct {
		rooms, differ   int
		turns, bytesMax int
	}{
		{1000, 0, 1, 120},
		{20_000, 0, 1, 120},
		{1000, 1, 4, 2000},
		{1000, 10, 4, 14_000},
		{20_000, 1, 5, 3000},
		{1000, 1000, 6, 40_000},
	} {
		ours, theirs := sharedRooms(row.rooms, same), sharedRooms(row.rooms, func(i int) string {
			if i < row.differ {
				return "$other"
			}
			return "$same"
		})
		found, turns, bytes := compareSummaries(t, newSummary([]byte("s"), ours), newSummary([]byte("s"), theirs))
		t.Logf("%d rooms, %d differ: %d turns, %d bytes", row.rooms, row.differ, turns, bytes)
		if len(found) != row.differ || turns > row.turns || bytes > row.bytesMax {
			t.Errorf("%d rooms, %d differ: %d found in %d turns and %d bytes, want at most %d and %d",
				row.rooms, row.differ, len(found), turns, bytes, row.turns, row.bytesMax)
		}
	}
}

// TestSummaryNamesNothing: an item of one meeting is none of another, and says nothing of the room's ID.
func TestSummaryNamesNothing(t *testing.T) {
	t.Parallel()
	rooms := sharedRooms(50, func(int) string { return "$same" })
	one, other := newSummary(meetingSecret([]byte("a"), []byte("b")), rooms), newSummary(meetingSecret([]byte("a"), []byte("c")), rooms)
	for id := range one.rooms {
		if other.rooms[id] != nil {
			t.Errorf("item %x is at both meetings", id)
		}
	}
	for _, item := range one.items {
		if slices.ContainsFunc(other.items, func(o summaryItem) bool { return o.print == item.print }) {
			t.Errorf("print %x is at both meetings", item.print)
		}
	}
}

// TestHostileSummary: whatever a giver claims, the search ends, within our rooms; and what is no answer is not taken.
func TestHostileSummary(t *testing.T) {
	t.Parallel()
	own := newSummary([]byte("s"), sharedRooms(1000, func(int) string { return "$same" }))
	noise := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(noise.Uint32())
		}
		return b
	}
	for name, answer := range map[string]func(digits string) meetRange{
		"it differs everywhere, however deep": func(digits string) meetRange {
			if len(digits) < maxDigits {
				return meetRange{Split: random(rangeFan * itemSize)}
			}
			return meetRange{Items: random(2 * itemSize * leafItems)}
		},
		"random items": func(string) meetRange { return meetRange{Items: random(2 * itemSize * leafItems)} },
		"nothing":      func(string) meetRange { return meetRange{} },
	} {
		q := newSearch(own)
		turns, asked := 0, 0
		for question := q.next(); question != nil; question = q.next() {
			a := &meetCompared{}
			for _, digits := range question.Ranges {
				a.Ranges = append(a.Ranges, answer(digits))
			}
			if !q.take(a) {
				t.Fatalf("%s: not taken", name)
			}
			turns++
			asked += len(question.Ranges)
		}
		found := q.found()
		t.Logf("%s: %d turns, %d ranges, %d rooms", name, turns, asked, len(found))
		if turns > maxSummaryTurns || asked > (maxDigits+1)*len(own.rooms) || len(found) > len(own.rooms) {
			t.Errorf("%s: %d turns, %d ranges, %d rooms found", name, turns, asked, len(found))
		}
		for _, id := range found {
			if own.rooms[id] == nil {
				t.Fatalf("%s: a room was found that is none of ours", name)
			}
		}
	}
	// One range at a time.
	q := newSearch(own)
	turns := 0
	for question := q.next(); question != nil; question = q.next() {
		if turns++; !q.take(&meetCompared{Ranges: []meetRange{{Split: random(rangeFan * itemSize)}}}) {
			break
		}
	}
	if turns > maxSummaryTurns {
		t.Errorf("%d turns for answers of one range", turns)
	}
	for name, a := range map[string]*meetCompared{
		"none":             nil,
		"no range":         {},
		"too many":         {Ranges: make([]meetRange, 2)},
		"half a split":     {Ranges: []meetRange{{Split: make([]byte, itemSize)}}},
		"half an item":     {Ranges: []meetRange{{Items: make([]byte, itemSize)}}},
		"too many items":   {Ranges: []meetRange{{Items: make([]byte, 2*itemSize*(leafItems+1))}}},
		"all of them":      {Ranges: []meetRange{{Same: true, Items: make([]byte, 2*itemSize), Split: make([]byte, itemSize)}, {}}},
		"a split of items": {Ranges: []meetRange{{Items: make([]byte, 2*itemSize), Split: make([]byte, itemSize)}}},
	} {
		if q := newSearch(own); q.next() == nil || q.take(a) {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestRangesAreAnswered: a giver answers any question about ranges, within its bound.
func TestRangesAreAnswered(t *testing.T) {
	t.Parallel()
	s := newSummary([]byte("s"), sharedRooms(1000, func(int) string { return "$same" }))
	for _, ranges := range [][]string{{"g"}, {"", "", ""}, {"\xff"}, {strings.Repeat("0", 1000)}, slices.Repeat([]string{""}, maxRanges), {hex.EncodeToString(s.items[0].id[:])}} {
		a := s.answer(&meetCompare{Ranges: ranges})
		raw, err := json.Marshal(a)
		if err != nil || len(a.Ranges) == 0 || len(a.Ranges) > len(ranges) || len(raw) > 3*summaryBytes {
			t.Errorf("%.40q: %d ranges in %d bytes, %v", ranges, len(a.Ranges), len(raw), err)
		}
	}
}
