package clientapi

import (
	"context"
	"encoding/json"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// slidingRound answers a call of sliding sync. Like /sync it looks at one snapshot after another until there is something to tell, and with the
// same means: what changed since pos is syncRound's to find.
type slidingRound struct {
	*syncRound // of the newest snapshot
	req        *slidingRequest
	had        extensionSet // at pos
	conn       *slidingConn
	view       *slidingView
	found      map[eventgraph.RoomID]*matched
	looked     bool // found is of an earlier snapshot of this call

	delta map[eventgraph.RoomID]sentRoom // by which the answer changes conn
	shown map[eventgraph.RoomID]*roomTimeline
	out   *slidingAnswer
	told  bool
}

// slidingSync is POST /unstable/org.matrix.simplified_msc3575/sync.
func (a *API) slidingSync(q *request) (any, error) {
	req, timeout, err := a.parseSliding(q)
	if err != nil {
		return nil, err
	}
	s := &syncRequest{user: q.user, device: q.device, ended: q.Context().Err, conn: "c" + req.ConnID, filter: &syncFilter{}, timeout: timeout}
	var pos slidingToken
	if param := q.URL.Query().Get("pos"); param != "" {
		if pos, err = a.parsePos(s, req, param); err != nil {
			return nil, err
		}
	}
	if err := a.syncPresence(q, timeout); err != nil {
		return nil, err
	}
	delivered, err := a.deliveredToDevice(s, req)
	if err != nil {
		return nil, err
	}
	if err := a.acknowledge(q.Context(), s.user, s.device, delivered); err != nil {
		return nil, err
	}
	if s.since == nil {
		a.sent.forget(s.deviceKey())
	}

	under, cancel := context.WithCancel(q.Context())
	defer cancel()
	call := &slidingCall{cancel}
	s.ended = under.Err
	round := &slidingRound{req: req, had: pos.had}
	round.view = a.sliding.begin(s.deviceKey(), call, pos.pos)
	defer func() { a.sliding.end(s.deviceKey(), call, round.view) }()
	if round.view != nil && round.view.conn.generation == pos.generation {
		round.conn = round.view.conn
	} else if round.conn, err = a.slidingConn(s, req.ConnID, pos.generation); err != nil {
		return nil, err
	}
	answer, err := a.slidingRounds(under, q, s, round, delivered)
	if err == nil {
		return answer, nil
	}
	round.view = nil
	if under.Err() != nil && q.Context().Err() == nil {
		return nil, errUnknownPos() // another call has come on this connection
	}
	return nil, err
}

// parsePos takes a pos into the request; M_UNKNOWN_POS.
func (a *API) parsePos(s *syncRequest, req *slidingRequest, param string) (slidingToken, error) {
	t, err := parseSlidingToken(param)
	if err != nil || t.incarnation != a.Store.Incarnation() || t.pos > a.Store.Position() || t.device != connTag(s.user, s.device, req.ConnID) {
		return slidingToken{}, errUnknownPos()
	}
	if t.boot != a.boot {
		t.ephemeral, s.restarted = 0, true
	}
	s.since = &t.syncToken
	return t, nil
}

// slidingRounds answers once there is something to tell, or the time is over.
func (a *API) slidingRounds(under context.Context, q *request, s *syncRequest, round *slidingRound, delivered store.Position) (*slidingAnswer, error) {
	ctx, cancel := context.WithTimeout(under, s.timeout)
	defer cancel()
	gathered := newChanges(s.user, s.device)
	if s.since != nil {
		gathered.upTo = s.since.pos
	}
	for {
		round.syncRound = &syncRound{syncRequest: s, a: a, changes: gathered, counter: a.Ephemeral.Counter()}
		err := a.Store.View(func(r *store.Reader) error { return round.read(r, delivered) })
		if err != nil {
			return nil, err
		}
		if s.since == nil || round.told || s.timeout == 0 {
			break
		}
		if err := a.waitForChange(ctx, gathered.upTo, round.counter); err != nil {
			if under.Err() != nil || ctx.Err() == nil {
				return nil, err
			}
			break // nothing happened in time
		}
		if err := a.admitAgain(q); err != nil {
			return nil, err
		}
	}
	round.awaitAnswers(under)
	return round.finish(under)
}

// read builds the answer from a snapshot.
func (s *slidingRound) read(r *store.Reader, delivered store.Position) error {
	if _, err := s.begin(r); err != nil {
		return err
	}
	var lists map[string]slidingCount
	if s.out != nil {
		lists = s.out.Lists
	}
	s.out = &slidingAnswer{Lists: lists, Rooms: map[eventgraph.RoomID]*slidingRoom{}}
	s.delta, s.shown, s.told = map[eventgraph.RoomID]sentRoom{}, map[eventgraph.RoomID]*roomTimeline{}, false
	changed, err := s.look()
	if err != nil {
		return err
	}
	if changed || !s.looked {
		s.out.Lists = map[string]slidingCount{}
		if s.found, err = s.match(); err != nil {
			return err
		}
		s.looked = true
	}
	if err := s.rooms(); err != nil {
		return err
	}
	return s.extensions(delivered)
}

// finish is called when the answer goes out. What the client is about to have is durable before it has it.
func (s *slidingRound) finish(ctx context.Context) (*slidingAnswer, error) {
	conn, err := s.a.putSlidingConn(ctx, s.syncRequest, s.req.ConnID, s.conn, s.delta)
	if err != nil {
		return nil, err
	}
	s.view.conn = conn
	if len(s.members) > 0 {
		s.a.sent.add(s.deviceKey(), s.changes.upTo, s.members)
	}
	next := slidingToken{generation: conn.generation, syncToken: syncToken{
		incarnation: s.a.Store.Incarnation(), pos: s.changes.upTo, boot: s.a.boot, ephemeral: s.counter,
		device: connTag(s.user, s.device, s.req.ConnID),
	}}
	for which, enabled := range map[extensionSet]bool{
		accountDataExtension: s.req.Extensions.AccountData.Enabled,
		receiptsExtension:    s.req.Extensions.Receipts.Enabled,
		typingExtension:      s.req.Extensions.Typing.Enabled,
	} {
		if enabled {
			next.had |= which
		}
	}
	s.out.Pos = next.String()
	return s.out, nil
}

// slidingAnswer is the body of the answer. The txn_id of a request is not repeated: to clients that would mean that what they asked for once need
// not be asked for again, which is so in MSC3575 only.
type slidingAnswer struct {
	Pos        string                             `json:"pos"`
	Lists      map[string]slidingCount            `json:"lists"`
	Rooms      map[eventgraph.RoomID]*slidingRoom `json:"rooms"`
	Extensions slidingExtensions                  `json:"extensions"`
}

// slidingCount is SyncListResult: how many rooms pass the list's filters.
type slidingCount struct {
	Count int `json:"count"`
}

// slidingRoom is RoomResult. What is left out is as it was or, if Initial, is not.
type slidingRoom struct {
	Initial       bool              `json:"initial,omitempty"`
	Membership    string            `json:"membership,omitempty"`
	Name          *string           `json:"name,omitempty"` // "" if it has been removed
	Avatar        json.RawMessage   `json:"avatar,omitempty"`
	Heroes        []slidingHero     `json:"heroes,omitempty"`
	IsDM          *bool             `json:"is_dm,omitempty"`
	BumpStamp     store.Position    `json:"bump_stamp,omitempty"`
	RequiredState []json.RawMessage `json:"required_state,omitempty"`
	Timeline      []json.RawMessage `json:"timeline,omitempty"`
	Expanded      bool              `json:"unstable_expanded_timeline,omitempty"`
	Limited       bool              `json:"limited,omitempty"`
	PrevBatch     string            `json:"prev_batch,omitempty"`
	NumLive       *int              `json:"num_live,omitempty"`
	Joined        *int              `json:"joined_count,omitempty"`
	Invited       *int              `json:"invited_count,omitempty"`
	Stripped      []json.RawMessage `json:"invite_state,omitempty"`
	*unreadCounts
}

type slidingHero struct {
	User   eventgraph.UserID `json:"user_id"`
	Name   json.RawMessage   `json:"displayname,omitempty"`
	Avatar json.RawMessage   `json:"avatar_url,omitempty"`
}
