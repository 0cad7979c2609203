package clientapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// A room that the user was let into and whose state is still coming (store.Join) stands among the joined rooms of /sync with what tells
// which room it is. Nothing can be written there yet, and of its history nothing is there to read: such requests are answered 429, upon which clients
// come again by themselves. What is shown has been accepted by the same rules as all other events, and is of the state that will
// be the room's, so it is never to be taken back.

// joinRetry is when a client may repeat a request about a room whose state is still coming.
const joinRetry = 5 * time.Second

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

// whileJoining says whether a route is about the inside of a room, so that it must wait until that is here. Joining, leaving and forgetting need
// not, nor what the user keeps about a room.
func whileJoining(path string) bool {
	_, inside, ok := strings.Cut(path, "/rooms/{roomId}/")
	return ok && !strings.Contains(path, "/user/") && !slices.Contains([]string{"join", "leave", "forget"}, inside)
}

// awaitJoin answers for a room that is still coming: false if it is not.
func (a *API) awaitJoin(q *request) (answer any, answered bool, err error) {
	room, err := eventgraph.ParseRoomID(q.path("roomId"))
	if err != nil {
		return nil, false, nil // the handler says what is wrong
	}
	var j *store.Join
	err = a.Store.View(func(r *store.Reader) error {
		if j, err = joining(r, room, q.user); j == nil || err != nil {
			return err
		}
		if q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, "/state") {
			answer, err = a.joiningState(r, j, a.viewerOf(q))
		}
		return err
	})
	if j == nil || answer != nil || err != nil {
		return answer, j != nil, err
	}
	return nil, true, &matrixError{
		Status: http.StatusTooManyRequests, Code: "M_LIMIT_EXCEEDED",
		Message: "The room is still being fetched" + progress(j) + ".",
		Extra:   map[string]any{"retry_after_ms": joinRetry.Milliseconds()},
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
	var events []*store.StoredEvent
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
	return a.clientEvents(r, append(events, &store.StoredEvent{Event: own, ReceivedTS: j.Since}), v)
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
