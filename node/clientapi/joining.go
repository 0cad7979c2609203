package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// A room that the user was let into and whose state is still coming (store.Join) stands among the joined rooms of /sync with what tells
// which room it is. What is shown has been accepted by the same rules as all other events, and is of the state that will
// be the room's, so it is never to be taken back. Requests about its inside are answered with what has come or not at all: what has not come is
// unknown, not absent (insideCall).

// joinRetry and joinRetryMost are the bounds of when a client may repeat a request about a room whose state is still coming.
const (
	joinRetry     = 5 * time.Second
	joinRetryMost = 30 * time.Second
)

const (
	// comingPatience is how long a request waits for a room: less than the 30 s that matrix-rust-sdk gives its requests by default.
	comingPatience = 20 * time.Second
	// maxComingWaits is how many requests of a device do at a time. A browser has six connections to a server, and needs one for /sync.
	maxComingWaits = 3
)

// joiningType is the ephemeral event that says how far a join has come; its content is a joinProgress. It is plexus's own: clients that do not
// know it show the room all the same.
const joiningType = "plexus.joining"

type joinProgress struct {
	Arrived  int `json:"arrived"`            // events
	Expected int `json:"expected,omitempty"` // of so many, if that is known
}

// joining is the user's join of a room that is not here yet; nil if there is none.
func joining(r *store.Reader, room eventgraph.RoomID, user eventgraph.UserID) (*store.Join, error) {
	j, err := r.Join(room)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil || j.User != user || j.Phase == store.JoinSent {
		return nil, err
	}
	if m, err := memberOf(r, room, user); err != nil || isJoined(m) {
		return nil, err // all is here; only the record is not gone yet
	}
	return j, nil
}

// insideCall is what becomes of a request about the inside of a room that is still coming.
type insideCall uint8

const (
	// notInside is not about the inside. Joining, leaving and forgetting are not, nor what the user keeps about a room.
	notInside insideCall = iota
	// writesInside is refused at once with M_LIMIT_EXCEEDED: what it rests on is not here.
	writesInside
	// readsState is answered with what has come; readsStateEvent too, or refused if it has not come.
	readsState
	readsStateEvent
	// readsWhole waits for the room. A client asks for the members once and keeps the answer (matrix-js-sdk's Room.loadMembersIfNeeded), and takes
	// an empty page of history for the room's beginning (its scrollback): a part would be taken for the whole.
	readsWhole
)

// whileJoining says what becomes of a route's requests.
func whileJoining(method, path string) insideCall {
	_, inside, ok := strings.Cut(path, "/rooms/{roomId}/")
	switch {
	case !ok || strings.Contains(path, "/user/") || slices.Contains([]string{"join", "leave", "forget"}, inside):
		return notInside
	case method != http.MethodGet:
		return writesInside
	case inside == "state":
		return readsState
	case strings.HasPrefix(inside, "state/"):
		return readsStateEvent
	}
	return readsWhole
}

// awaitJoin answers for a room that is still coming: false if it is not, or has come meanwhile.
func (a *API) awaitJoin(q *request, kind insideCall) (answer any, answered bool, err error) {
	room, err := eventgraph.ParseRoomID(q.path("roomId"))
	if err != nil {
		return nil, false, nil // the handler says what is wrong
	}
	j, at, answer, err := a.comingAnswer(q, room, kind)
	if j == nil || answer != nil || err != nil {
		return answer, j != nil, err
	}
	device := deviceKey{user: q.user, device: q.device}
	if kind != readsWhole || !a.coming.begin(device) {
		return nil, true, a.errComing(j, kind)
	}
	defer a.coming.end(device)
	ctx, cancel := context.WithTimeout(q.Context(), comingPatience)
	defer cancel()
	for j != nil {
		if at, err = a.Store.Wait(ctx, at); err != nil {
			if ctx.Err() != nil && q.Context().Err() == nil {
				err = a.errComing(j, kind)
			}
			return nil, true, err
		}
		if err = a.admitAgain(q); err != nil {
			return nil, true, err
		}
		still, _, _, err := a.comingAnswer(q, room, kind)
		if err != nil {
			return nil, true, err
		}
		j = still
	}
	return nil, false, nil
}

// comingAnswer is the room's join, nil if the room is not coming, and what can be answered of it, nil if nothing can. What happens after the position may
// change it.
func (a *API) comingAnswer(q *request, room eventgraph.RoomID, kind insideCall) (j *store.Join, at store.Position, answer any, err error) {
	err = a.Store.View(func(r *store.Reader) (err error) {
		at = r.Position()
		if j, err = joining(r, room, q.user); j == nil || err != nil {
			return err
		}
		switch kind {
		case readsState:
			answer, err = a.joiningState(r, j, a.viewerOf(q))
		case readsStateEvent:
			answer, err = a.joiningStateEvent(r, j, q)
		}
		return err
	})
	return j, at, answer, err
}

// errComing refuses a request about a room that is still coming.
func (a *API) errComing(j *store.Join, kind insideCall) error {
	message := "The room is still being fetched" + progress(j) + "."
	if kind == writesInside {
		message += " Nothing can be sent there until all of it is."
	}
	return &matrixError{
		Status: http.StatusTooManyRequests, Code: "M_LIMIT_EXCEEDED", Message: message,
		Extra: map[string]any{"retry_after_ms": a.comesIn(j).Milliseconds()},
	}
}

// comesIn is in how long the rest comes if it does as fast as what has, within the bounds: matrix-js-sdk tries four times to send a message before it says
// that it failed.
func (a *API) comesIn(j *store.Join) time.Duration {
	if j.Arrived == 0 || j.Expected <= j.Arrived {
		return joinRetry
	}
	each := a.Now().Sub(time.UnixMilli(j.Since)) / time.Duration(j.Arrived)
	rest := min(each, joinRetryMost) * time.Duration(j.Expected-j.Arrived) // at most 100,000 times that
	return min(max(rest, joinRetry), joinRetryMost)
}

// comingWaits counts the requests that wait for a room to come. The zero value is ready, for concurrent use.
type comingWaits struct {
	mu sync.Mutex
	by map[deviceKey]int
}

// begin says whether the device may have one more waiting; then end must follow.
func (w *comingWaits) begin(device deviceKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[device] == maxComingWaits {
		return false
	}
	if w.by == nil {
		w.by = map[deviceKey]int{}
	}
	w.by[device]++
	return true
}

func (w *comingWaits) end(device deviceKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[device]--; w.by[device] == 0 {
		delete(w.by, device)
	}
}

// progress says in words how far a join has come.
func progress(j *store.Join) string {
	if j.Expected == 0 {
		return fmt.Sprintf(": %d events of its state are here", j.Arrived)
	}
	return fmt.Sprintf(": %d %% of its state is here", min(100, 100*j.Arrived/j.Expected))
}

// joiningState is what is known of the state of a room that is still coming, and the user's own membership.
func (a *API) joiningState(r *store.Reader, j *store.Join, v *viewer) ([]json.RawMessage, error) {
	events, err := joiningEvents(r, j)
	if err != nil {
		return nil, err
	}
	return a.clientEvents(r, events, v)
}

// joiningStateEvent answers GET /rooms/{roomId}/state/{eventType}/{stateKey} of a room that is still coming; nil if that event has not come.
func (a *API) joiningStateEvent(r *store.Reader, j *store.Join, q *request) (any, error) {
	events, err := joiningEvents(r, j)
	if err != nil {
		return nil, err
	}
	wanted := eventgraph.StateTuple{Type: q.path("eventType"), Key: stateKeyOf(q)}
	for _, e := range events {
		if t, ok := e.Tuple(); ok && t == wanted {
			return a.stateEventAnswer(r, e, q)
		}
	}
	return nil, nil
}

func joiningEvents(r *store.Reader, j *store.Join) (events []*store.StoredEvent, err error) {
	for _, id := range j.Show {
		e, err := r.Event(id)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	own, err := eventgraph.ParseEvent(j.Version, j.Event)
	if err != nil {
		return nil, fmt.Errorf("stored join of %s: %w", j.Room, err)
	}
	return append(events, &store.StoredEvent{Event: own, ReceivedTS: j.Since}), nil
}

// joinings fills in the rooms that are still coming: all, or those of which there is news. It returns them.
func (s *syncRound) joinings(out *syncRooms) (map[eventgraph.RoomID]bool, error) {
	coming := map[eventgraph.RoomID]bool{}
	return coming, s.r.Joins(func(known *store.Join) (bool, error) {
		j, err := joining(s.r, known.Room, s.user)
		if j == nil || err != nil {
			return err == nil, err
		}
		coming[j.Room] = true
		if s.since != nil && !s.fullState && !s.changes.membership[j.Room] || !s.filter.room(j.Room) {
			return true, nil
		}
		room := &joinedRoom{Timeline: timelineBatch{Events: []json.RawMessage{}}, Ephemeral: emptyList(), AccountData: emptyList()}
		room.Timeline.PrevBatch = s.a.roomToken(0) // some clients insist on one
		s.v.bare = true
		state, err := s.a.joiningState(s.r, j, s.v)
		s.v.bare = false
		if err != nil {
			return false, err
		}
		s.stateLists(&room.roomStateLists, state)
		content, err := json.Marshal(joinProgress{j.Arrived, j.Expected})
		room.Ephemeral.add(typeAndContent(joiningType, content))
		out.Join[j.Room] = room
		return true, err
	})
}
