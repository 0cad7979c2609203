package clientapi

import (
	"bytes"
	"encoding/json"
	"math/rand"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/quick"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Generate makes an event of what a string may hold that could trouble a writer of JSON.
func (rawEvent) Generate(random *rand.Rand, _ int) reflect.Value {
	if random.Intn(20) == 0 {
		return reflect.ValueOf(rawEvent{}) // null
	}
	body := []string{"", `"quoted"`, "<b>&", "ü\u2028", strings.Repeat("long ", 5000)}[random.Intn(5)]
	raw, _ := json.Marshal(map[string]any{"body": body, "n": random.Intn(100)})
	return reflect.ValueOf(rawEvent{raw})
}

type rawEvent struct{ json.RawMessage }

func rawEvents(from []rawEvent) []json.RawMessage {
	events := []json.RawMessage{}
	for _, e := range from {
		events = append(events, e.RawMessage)
	}
	return events
}

// What is written of an answer is what encoding/json makes of it.
func TestSyncWriter(t *testing.T) {
	t.Parallel()
	type room struct {
		ID                                                  string
		State, StateAfter, Timeline, Ephemeral, AccountData []rawEvent
		HasState, HasStateAfter, HasUnstable, Limited       bool
		PrevBatch                                           string
		Summary                                             *roomSummary
		Unread                                              unreadCounts
		Threads                                             map[string]unreadCounts
	}
	same := func(top syncAnswer, global []rawEvent, hasRooms bool, joined, left, invited []room) bool {
		top.AccountData, top.Presence, top.ToDevice, top.Rooms = &eventList{rawEvents(global)}, nil, nil, nil
		if hasRooms {
			top.Rooms = &syncRooms{Join: map[eventgraph.RoomID]*joinedRoom{}, Leave: map[eventgraph.RoomID]*leftRoom{}, Invite: map[eventgraph.RoomID]*invitedRoom{}}
			for _, r := range joined {
				j := &joinedRoom{
					Summary: r.Summary, Timeline: timelineBatch{rawEvents(r.Timeline), r.Limited, r.PrevBatch}, Ephemeral: eventList{rawEvents(r.Ephemeral)},
					AccountData: eventList{rawEvents(r.AccountData)}, Unread: r.Unread, UnreadThread: r.Threads,
				}
				if r.HasState {
					j.State = &eventList{rawEvents(r.State)}
				}
				if r.HasStateAfter {
					j.StateAfter = &eventList{rawEvents(r.StateAfter)}
				}
				if r.HasUnstable {
					j.UnstableAfter = &eventList{rawEvents(r.StateAfter)}
				}
				top.Rooms.Join[eventgraph.RoomID(r.ID)] = j
			}
			for _, r := range left {
				top.Rooms.Leave[eventgraph.RoomID(r.ID)] = &leftRoom{Timeline: timelineBatch{Events: rawEvents(r.Timeline)}, AccountData: emptyList()}
			}
			for _, r := range invited {
				top.Rooms.Invite[eventgraph.RoomID(r.ID)] = &invitedRoom{eventList{rawEvents(r.State)}}
			}
		}
		var written bytes.Buffer
		out := &syncWriter{to: &written}
		out.answer(&top)
		out.flush()
		encoded, err := json.Marshal(&top)
		if err != nil || out.failed != nil {
			t.Fatal(err, out.failed)
		}
		var got, want any
		if err := json.Unmarshal(written.Bytes(), &got); err != nil {
			t.Fatalf("%v: %s", err, written.Bytes())
		}
		if err := json.Unmarshal(encoded, &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("written %s\nwant %s", written.Bytes(), encoded)
		}
		return !t.Failed()
	}
	if err := quick.Check(same, &quick.Config{MaxCount: 60, Rand: rand.New(rand.NewSource(1))}); err != nil {
		t.Error(err)
	}
}

// An answer that cannot be encoded is an error, not half of it with status 200: what of it encoding/json writes comes first.
func TestSyncWriterFails(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	bad := eventList{[]json.RawMessage{json.RawMessage(`{"cut":`)}}
	join := map[eventgraph.RoomID]*joinedRoom{"!r": {Timeline: timelineBatch{Events: []json.RawMessage{json.RawMessage(`"` + strings.Repeat("x", 2*syncChunk) + `"`)}}}}
	for what, answer := range map[string]*syncAnswer{
		"account data":     {AccountData: &bad, Rooms: &syncRooms{Join: join}},
		"an invite":        {Rooms: &syncRooms{Join: join, Invite: map[eventgraph.RoomID]*invitedRoom{"!i": {bad}}}},
		"nothing but that": {ToDevice: &bad},
	} {
		to := httptest.NewRecorder()
		if _, err := s.writeSync(to, answer); err == nil || to.Body.Len() > 0 {
			t.Errorf("%s: error %v with status %d and %d bytes written", what, err, to.Code, to.Body.Len())
		}
	}
	to := httptest.NewRecorder()
	if _, err := s.writeSync(to, &syncAnswer{Rooms: &syncRooms{Join: join}}); err != nil || to.Code != 200 || !json.Valid(to.Body.Bytes()) {
		t.Errorf("one that can be encoded: %v, status %d, %d bytes", err, to.Code, to.Body.Len())
	}
}
