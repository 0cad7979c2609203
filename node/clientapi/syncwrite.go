package clientapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A first sync may be megabytes, nearly all of it events that are JSON already. encoding/json would read each byte of them again and gather the
// whole body in memory, so lists of events are written here, but for those of invites and knocks, the rest by it.

// syncChunk is how much of an answer is gathered before it is written: most answers are less.
const syncChunk = 32 << 10

// writeSync answers with an answer to GET /sync. What can fail in it is encoded before anything is written: then the error is the answer.
func (a *API) writeSync(w http.ResponseWriter, answer *syncAnswer) (any, error) {
	jsonHeader(w)
	out := &syncWriter{to: w}
	out.answer(answer)
	out.flush()
	if out.failed != nil && !out.begun {
		return nil, fmt.Errorf("a response could not be encoded: %w", out.failed)
	}
	if out.failed != nil {
		a.Log.Error("a response could not be encoded", "error", out.failed)
	}
	return written{}, nil
}

// syncWriter writes a syncAnswer as encoding/json does, but for HTML's escaping.
type syncWriter struct {
	to     io.Writer
	b      []byte
	begun  bool  // something has been written
	failed error // the first thing that could not be encoded: from then on nothing is written
}

// flush writes what has been gathered. An error of that is the client's: it has gone, and what follows goes nowhere.
func (w *syncWriter) flush() {
	if w.failed == nil {
		w.begun = true
		w.to.Write(w.b)
	}
	w.b = w.b[:0]
}

// value appends what encoding/json makes of v.
func (w *syncWriter) value(v any) {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil && w.failed == nil {
		w.failed = err
	}
	w.b = append(w.b, bytes.TrimSuffix(body.Bytes(), []byte("\n"))...)
}

// answer appends the answer: first what can fail, then the rooms that the user is joined to or has left, and the other lists.
func (w *syncWriter) answer(answer *syncAnswer) {
	rest := *answer
	rest.AccountData, rest.Presence, rest.ToDevice, rest.Rooms = nil, nil, nil, nil
	w.value(&rest)
	lists := []struct {
		name string
		list *eventList
	}{{"account_data", answer.AccountData}, {"presence", answer.Presence}, {"to_device", answer.ToDevice}}
	for _, l := range lists {
		w.check(l.list) // their content comes from clients and other servers
	}
	if answer.Rooms != nil {
		others := *answer.Rooms
		others.Join, others.Leave = nil, nil
		for _, room := range answer.Rooms.Leave {
			w.check(&room.AccountData)
		}
		w.member("rooms", func() {
			w.value(&others)
			if len(answer.Rooms.Join) > 0 {
				w.member("join", func() { eachRoom(w, answer.Rooms.Join, w.room) })
			}
			if len(answer.Rooms.Leave) > 0 {
				w.member("leave", func() { eachRoom(w, answer.Rooms.Leave, w.left) })
			}
		})
	}
	for _, l := range lists {
		if l.list != nil {
			w.member(l.name, func() { w.list(l.list) })
		}
	}
	w.b = append(w.b, '\n')
}

// check fails if an event of the list is no JSON.
func (w *syncWriter) check(list *eventList) {
	if list == nil {
		return
	}
	for _, e := range list.Events {
		if w.failed == nil && len(e) > 0 && !json.Valid(e) {
			w.failed = errNoJSON
		}
	}
}

var errNoJSON = errors.New("an event is not valid JSON")

// member adds a member to the object that has just been written.
func (w *syncWriter) member(name string, value func()) {
	w.b = bytes.TrimSuffix(w.b, []byte("}"))
	if !bytes.HasSuffix(w.b, []byte("{")) {
		w.b = append(w.b, ',')
	}
	w.b = append(appendString(w.b, name), ':')
	value()
	w.b = append(w.b, '}')
}

func eachRoom[T any](w *syncWriter, rooms map[eventgraph.RoomID]T, write func(T)) {
	before := byte('{')
	for _, id := range slices.Sorted(maps.Keys(rooms)) {
		w.b = append(appendString(append(w.b, before), string(id)), ':')
		write(rooms[id])
		before = ','
	}
	w.b = append(w.b, '}')
}

// states appends the members that hold state, each with a comma.
func (w *syncWriter) states(lists *roomStateLists) {
	for _, list := range []struct {
		name string
		list *eventList
	}{{"state", lists.State}, {"state_after", lists.StateAfter}, {"org.matrix.msc4222.state_after", lists.UnstableAfter}} {
		if list.list != nil {
			w.b = append(appendString(w.b, list.name), ':')
			w.list(list.list)
			w.b = append(w.b, ',')
		}
	}
}

func (w *syncWriter) timeline(batch *timelineBatch) {
	w.b = append(w.b, `"timeline":{"events":`...)
	w.events(batch.Events)
	w.b = strconv.AppendBool(append(w.b, `,"limited":`...), batch.Limited)
	if token := batch.PrevBatch; token != "" {
		w.b = appendString(append(w.b, `,"prev_batch":`...), token)
	}
	w.b = append(w.b, '}')
}

// left appends a leftRoom.
func (w *syncWriter) left(room *leftRoom) {
	w.b = append(w.b, '{')
	w.states(&room.roomStateLists)
	w.timeline(&room.Timeline)
	w.b = append(w.b, `,"account_data":`...)
	w.list(&room.AccountData)
	w.b = append(w.b, '}')
}

// room appends a joinedRoom.
func (w *syncWriter) room(room *joinedRoom) {
	w.b = append(w.b, '{')
	w.states(&room.roomStateLists)
	if room.Summary != nil {
		w.b = append(w.b, `"summary":`...)
		w.value(room.Summary)
		w.b = append(w.b, ',')
	}
	w.timeline(&room.Timeline)
	w.b = append(w.b, `,"ephemeral":`...)
	w.list(&room.Ephemeral)
	w.b = append(w.b, `,"account_data":`...)
	w.list(&room.AccountData)
	w.b = strconv.AppendInt(append(w.b, `,"unread_notifications":{"highlight_count":`...), int64(room.Unread.Highlights), 10)
	w.b = strconv.AppendInt(append(w.b, `,"notification_count":`...), int64(room.Unread.Notifications), 10)
	w.b = append(w.b, '}')
	if len(room.UnreadThread) > 0 {
		w.b = append(w.b, `,"unread_thread_notifications":`...)
		w.value(room.UnreadThread)
	}
	w.b = append(w.b, '}')
}

func (w *syncWriter) list(list *eventList) {
	w.b = append(w.b, `{"events":`...)
	w.events(list.Events)
	w.b = append(w.b, '}')
}

// events appends an array of events as they are.
func (w *syncWriter) events(events []json.RawMessage) {
	w.b = append(w.b, '[')
	for i, e := range events {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		if len(e) == 0 {
			e = json.RawMessage("null")
		}
		w.b = append(w.b, e...)
		if len(w.b) > syncChunk {
			w.flush()
		}
	}
	w.b = append(w.b, ']')
}
