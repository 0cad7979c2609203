package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/store"
)

// GET /sync (CS API, Syncing). One round reads one snapshot of the store: what lies between the position in the since
// token and the snapshot's is gathered from the log of changes, and written out for this client. Where that is nothing, the
// request waits for the store or the ephemeral state to move, and looks only at what is new.

// Bounds of a sync request.
const (
	maxSyncTimeout = 10 * time.Minute
	usualTimeline  = 10          // events per room, where the filter does not say
	mostTimeline   = 200         // events per room
	syncGrace      = time.Minute // a client that has not come again by then is offline
	maxToDevice    = 100         // messages in one answer (CS API, Send-to-Device messaging, Server behaviour)
)

// syncRequest is the query of one call.
type syncRequest struct {
	user          eventgraph.UserID
	device        store.DeviceID
	ended         func() error // an error once the client does not wait any more
	conn          string       // of sliding sync, as in deviceKey
	filter        *syncFilter
	since         *syncToken // nil: from the beginning
	restarted     bool       // since is of an earlier process: who typed then does no more
	timeout       time.Duration
	fullState     bool
	stateAfter    bool // use_state_after
	unstableAfter bool // the same under its unstable name: answered under its unstable name
}

func (s *syncRequest) deviceKey() deviceKey { return deviceKey{s.user, s.device, s.conn} }

func (a *API) parseSync(q *request) (*syncRequest, error) {
	query := q.URL.Query()
	s := &syncRequest{user: q.user, device: q.device, ended: q.Context().Err}
	var err error
	if s.filter, err = a.filterOf(q.user, query.Get("filter")); err != nil {
		return nil, err
	}
	if since := query.Get("since"); since != "" {
		t, err := parseSyncToken(since)
		if err != nil {
			return nil, invalidParam("The since token was not made by this server.")
		}
		// A token of an older life of the data directory, or from after what it holds, answers a full sync (design.md §1).
		if t.incarnation == a.Store.Incarnation() && t.pos <= a.Store.Position() {
			s.since = &t
			if t.device != deviceTag(q.user, q.device) {
				s.since.toDevice = 0
			}
			if t.boot != a.boot {
				s.since.ephemeral, s.restarted = 0, true
			}
		}
	}
	if s.timeout, err = parseTimeout(query.Get("timeout")); err != nil {
		return nil, err
	}
	s.fullState = query.Get("full_state") == "true"
	s.stateAfter = query.Get("use_state_after") == "true"
	s.unstableAfter = query.Get("org.matrix.msc4222.use_state_after") == "true"
	return s, nil
}

// parseTimeout reads how long, in milliseconds, a call may wait; "" is not at all.
func parseTimeout(ms string) (time.Duration, error) {
	if ms == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil {
		return 0, invalidParam("timeout must be a number of milliseconds.")
	}
	return time.Duration(min(max(n, 0), int64(maxSyncTimeout/time.Millisecond))) * time.Millisecond, nil
}

// sync answers GET /sync.
func (a *API) sync(q *request) (any, error) {
	s, err := a.parseSync(q)
	if err != nil {
		return nil, err
	}
	if err := a.syncPresence(q, s.timeout); err != nil {
		return nil, err
	}
	if s.since != nil {
		if err := a.acknowledge(q.Context(), s.user, s.device, s.since.toDevice); err != nil {
			return nil, err
		}
	}
	if s.since == nil {
		a.sent.forget(s.deviceKey())
	}

	ctx, cancel := context.WithTimeout(q.Context(), s.timeout)
	defer cancel()
	defer a.polls.begin(s.deviceKey(), cancel)()
	gathered := newChanges(s.user, s.device)
	if s.since != nil {
		gathered.upTo = s.since.pos
	}
	for {
		round := &syncRound{syncRequest: s, a: a, changes: gathered, counter: a.Ephemeral.Counter()}
		if err := a.Store.View(round.read); err != nil {
			return nil, err
		}
		if s.since == nil || s.fullState || !round.empty() || s.timeout == 0 {
			round.awaitAnswers(q.Context())
			return a.writeSync(q.w, round.finish())
		}
		if err := a.waitForChange(ctx, gathered.upTo, round.counter); err != nil {
			if q.Context().Err() != nil || ctx.Err() == nil {
				return nil, err
			}
			return a.writeSync(q.w, round.finish()) // nothing happened in time
		}
		if err := a.admitAgain(q); err != nil {
			return nil, err
		}
		round.settle()
	}
}

// acknowledge deletes the to-device messages that the client has said, by coming with the token that followed them, that it
// has got.
func (a *API) acknowledge(ctx context.Context, user eventgraph.UserID, device store.DeviceID, upTo store.Position) error {
	if upTo == 0 {
		return nil
	}
	var waiting bool
	err := a.Store.View(func(r *store.Reader) (err error) {
		waiting, err = r.HasToDevice(user, device, upTo)
		return err
	})
	if err != nil || !waiting {
		return err
	}
	_, err = a.Store.Update(ctx, func(tx *store.Tx) error {
		return tx.DeleteToDevice(user, device, upTo)
	})
	if errors.Is(err, store.ErrDiskFull) {
		return nil // they will be passed over below, and deleted another time
	}
	return err
}

// admitAgain refuses a call that has waited, if its device was logged out meanwhile, or the account locked. A token that ran out or was
// replaced meanwhile was good when the call came: the client may just have refreshed it.
func (a *API) admitAgain(q *request) error {
	if err := a.authenticate(q, q.token()); err != nil && !errors.Is(err, errSoftLogout) {
		return err
	}
	if q.locked {
		return errLocked
	}
	return nil
}

// waitForChange returns once the store or the ephemeral state has moved, or with an error.
func (a *API) waitForChange(ctx context.Context, pos store.Position, counter ephemeral.Counter) error {
	_, err := a.Store.WaitOr(ctx, pos, a.Ephemeral.Moved(counter))
	return err
}

// syncPresence marks the user as set_presence says: online unless told otherwise, until the next call is overdue.
func (a *API) syncPresence(q *request, timeout time.Duration) error {
	state := q.URL.Query().Get("set_presence")
	switch state {
	case "offline":
		return nil
	case "":
		state = "online"
	case "online", "unavailable":
	default:
		return fail(http.StatusBadRequest, "M_INVALID_PARAM", "set_presence must be online, unavailable or offline.")
	}
	p, _ := a.Ephemeral.Presence(q.user)
	p.State, p.CurrentlyActive = state, state == "online"
	p.For = timeout + syncGrace
	if state == "online" {
		p.LastActive = a.Now()
	}
	a.Ephemeral.SetPresence(q.user, p)
	return nil
}

// syncAnswer is the body of GET /sync. What is empty is left out.
type syncAnswer struct {
	NextBatch       string         `json:"next_batch"`
	AccountData     *eventList     `json:"account_data,omitempty"`
	Presence        *eventList     `json:"presence,omitempty"`
	ToDevice        *eventList     `json:"to_device,omitempty"`
	DeviceLists     *deviceLists   `json:"device_lists,omitempty"`
	OneTimeKeys     map[string]int `json:"device_one_time_keys_count"`
	UnusedFallback  []string       `json:"device_unused_fallback_key_types"`
	UnusedFallback0 []string       `json:"org.matrix.msc2732.device_unused_fallback_key_types"` // matrix-nio and old SDKs look here
	Rooms           *syncRooms     `json:"rooms,omitempty"`
}

type eventList struct {
	Events []json.RawMessage `json:"events"`
}

func (l *eventList) add(events ...json.RawMessage) { l.Events = append(l.Events, events...) }

func emptyList() eventList { return eventList{Events: []json.RawMessage{}} }

// some is l, or nil if it is empty.
func (l *eventList) some() *eventList {
	if len(l.Events) == 0 {
		return nil
	}
	return l
}

type syncRooms struct {
	Join   map[eventgraph.RoomID]*joinedRoom  `json:"join,omitempty"`
	Invite map[eventgraph.RoomID]*invitedRoom `json:"invite,omitempty"`
	Knock  map[eventgraph.RoomID]*knockedRoom `json:"knock,omitempty"`
	Leave  map[eventgraph.RoomID]*leftRoom    `json:"leave,omitempty"`
}

type roomStateLists struct {
	State         *eventList `json:"state,omitempty"`
	StateAfter    *eventList `json:"state_after,omitempty"`
	UnstableAfter *eventList `json:"org.matrix.msc4222.state_after,omitempty"`
}

type timelineBatch struct {
	Events    []json.RawMessage `json:"events"`
	Limited   bool              `json:"limited"`
	PrevBatch string            `json:"prev_batch,omitempty"`
}

type joinedRoom struct {
	roomStateLists
	Summary      *roomSummary            `json:"summary,omitempty"`
	Timeline     timelineBatch           `json:"timeline"`
	Ephemeral    eventList               `json:"ephemeral"`
	AccountData  eventList               `json:"account_data"`
	Unread       unreadCounts            `json:"unread_notifications"`
	UnreadThread map[string]unreadCounts `json:"unread_thread_notifications,omitempty"`
}

type leftRoom struct {
	roomStateLists
	Timeline    timelineBatch `json:"timeline"`
	AccountData eventList     `json:"account_data"`
}

type invitedRoom struct {
	State eventList `json:"invite_state"`
}

type knockedRoom struct {
	State eventList `json:"knock_state"`
}

type deviceLists struct {
	Changed []eventgraph.UserID `json:"changed"`
	Left    []eventgraph.UserID `json:"left"`
}
