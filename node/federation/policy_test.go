package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// What a policy server does with what it is asked.
const (
	signs int32 = iota
	refuses
	isBusy   // 429
	isNone   // does not know the endpoint
	isBroken // 502
	signsWrongly
	isSlow   // never answers
	isChoosy // refuses what is to be bought
)

// policed is a room of alice on a; p is its policy server, and u, which does nothing by itself, has not heard of that.
type policed struct {
	n       *memnet.Network
	a, u, p *memHost
	room    eventgraph.RoomID
	by      eventgraph.PolicyServer
	mode    atomic.Int32
	asked   atomic.Int32
	waiting chan struct{} // gets a token for each question to a slow one
	free    chan struct{} // closed: the slow one answers after all, that it is broken
}

func newPoliced(t *testing.T, version eventgraph.RoomVersion) *policed {
	t.Helper()
	n := memnet.New()
	r := &policed{n: n, u: newMemHost(t, n, "unaware"), waiting: make(chan struct{}, 16), free: make(chan struct{})}
	both := newMemHosts(t, n, "a", "policy")
	r.a, r.p = both[0], both[1]
	r.u.run(r.u.runPeers)
	r.u.meet(r.a.host)
	r.room = r.a.create(version, "public", "shared")
	r.p.join(r.room, r.p.user("police"), r.a.host)
	r.u.join(r.room, r.u.user("ursula"), r.a.host)
	r.u.on(func(w http.ResponseWriter, q *http.Request, _ []byte) bool {
		deaf := strings.Contains(q.URL.Path, "/send/")
		if deaf {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return deaf
	})
	key := testKey("policy key")
	r.by = eventgraph.PolicyServer{Name: r.p.server, Key: public(key)}
	r.p.on(func(w http.ResponseWriter, q *http.Request, body []byte) bool {
		if q.URL.Path != policySign {
			return false
		}
		r.asked.Add(1)
		fail := func(status int, body string) {
			w.WriteHeader(status)
			w.Write([]byte(body))
		}
		if q.Method != http.MethodPost || !strings.HasPrefix(q.Header.Get("Authorization"), "X-Matrix ") {
			fail(401, `{}`)
			return true
		}
		switch r.mode.Load() {
		case refuses:
			fail(400, `{"errcode":"M_FORBIDDEN","error":"this looks like spam"}`)
			return true
		case isBusy:
			fail(429, `{"errcode":"M_LIMIT_EXCEEDED","error":"later","retry_after_ms":90000}`)
			return true
		case isNone:
			return false
		case isBroken:
			fail(502, `gateway`)
			return true
		case isSlow:
			r.waiting <- struct{}{}
			select {
			case <-q.Context().Done():
			case <-r.free:
			}
			return true
		}
		e, err := eventgraph.ParseEvent(version, body)
		if err != nil {
			fail(400, `{"errcode":"M_BAD_JSON","error":"no event"}`)
			return true
		}
		if r.mode.Load() == isChoosy && strings.Contains(string(body), "buy") {
			fail(400, `{"errcode":"M_FORBIDDEN","error":"this looks like spam"}`)
			return true
		}
		private := key
		if r.mode.Load() == signsWrongly {
			private = testKey("another key")
		}
		if e, err = e.WithSignature(eventgraph.SigningKey{Server: r.p.server, ID: eventgraph.PolicyKeyID, Private: private}); err != nil {
			fail(500, err.Error())
			return true
		}
		var all map[eventgraph.ServerName]map[eventgraph.KeyID]string
		json.Unmarshal(e.Signatures(), &all)
		answer, _ := json.Marshal(map[eventgraph.ServerName]map[eventgraph.KeyID]string{r.p.server: {eventgraph.PolicyKeyID: all[r.p.server][eventgraph.PolicyKeyID]}})
		w.Write(answer)
		return true
	})
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, r.p.server, unpadded(r.by.Key)))
	return r
}

func (r *policed) send(ctx context.Context, text string) (eventgraph.EventID, error) {
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": text})
	return r.a.Send(ctx, rooms.Draft{Room: r.room, Sender: r.a.user("alice"), Type: "m.room.message", Content: content})
}

// unsigned is an event that u makes and a gets.
func (r *policed) unsigned(text string) eventgraph.EventID {
	r.a.t.Helper()
	id := r.u.say(r.room, r.u.user("ursula"), text)
	if err := r.u.put(r.a, id); err != nil {
		r.a.t.Fatal(err)
	}
	return id
}

func (r *policed) signed(h *memHost, id eventgraph.EventID) bool {
	return h.event(id).VerifyPolicySignature(r.by) == nil
}

func TestPolicyServer(t *testing.T) {
	t.Parallel()
	for _, version := range eventgraph.SupportedVersions() {
		t.Run(string(version), func(t *testing.T) {
			t.Parallel()
			r := newPoliced(t, version)
			if r.asked.Load() != 0 {
				t.Errorf("asked %d times about what needs no signature", r.asked.Load())
			}
			id, err := r.send(t.Context(), "hello")
			if err != nil || !r.signed(r.a, id) || r.asked.Load() != 1 {
				t.Fatalf("%s, %v; asked %d times", id, err, r.asked.Load())
			}
			r.p.waitFor("the signed event", id)

			r.mode.Store(refuses)
			was := r.a.Store.Position()
			_, err = r.send(t.Context(), "buy this")
			var declined *PolicyError
			if !errors.As(err, &declined) || declined.Status != 400 || declined.Refusal != (rooms.Refusal{Code: "M_FORBIDDEN", Reason: "this looks like spam"}) {
				t.Errorf("declined: %v", err)
			}
			if changed := r.a.Store.Position() != was; changed {
				t.Error("what was declined has left something")
			}

			// Of others: refused, then signed, the second on the first.
			refused := r.unsigned("and buy that")
			r.a.waitFor("the refused event", refused)
			if e := r.a.event(refused); e.Verdict != store.SoftFailed {
				t.Errorf("refused, and has verdict %d", e.Verdict)
			}
			r.mode.Store(signs)
			wanted := r.unsigned("never mind")
			r.a.waitFor("the wanted event", wanted)
			if e := r.a.event(wanted); e.Verdict != store.Accepted || !r.signed(r.a, wanted) {
				t.Errorf("signed, and has verdict %d, signed %v", e.Verdict, r.signed(r.a, wanted))
			}

			// A room can be rid of it without asking it, and sends freely then.
			asked := r.asked.Load()
			r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", `{}`)
			if id, err := r.send(t.Context(), "free"); err != nil || r.signed(r.a, id) || r.asked.Load() != asked {
				t.Errorf("without a policy server: %v, asked %d times", err, r.asked.Load()-asked)
			}
		})
	}
}

// What the sender is told, and what becomes of an event that comes, by what the policy server does.
func TestPolicyServerDoesNotSign(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	for _, c := range []struct {
		mode     int32
		status   int
		code     string
		says     string
		reached  bool
		softFail bool // at once
	}{
		{refuses, 400, "M_FORBIDDEN", "this looks like spam", true, true},
		{isNone, 0, "M_FORBIDDEN", "m.room.policy with empty content", true, false},       // it may be about to become one
		{signsWrongly, 0, "M_FORBIDDEN", "m.room.policy with empty content", true, false}, // by a newer key, perhaps
		{isBusy, 429, "M_LIMIT_EXCEEDED", "later", true, false},
		{isBroken, 0, "M_UNKNOWN", "m.room.policy with empty content", false, false},
	} {
		r.mode.Store(c.mode)
		_, err := r.send(t.Context(), "hello")
		var p *PolicyError
		if !errors.As(err, &p) || p.Status != c.status || p.Refusal.Code != c.code || !strings.Contains(p.Refusal.Reason, c.says) || errors.Is(err, ErrUnreachable) == c.reached {
			t.Errorf("mode %d: %v", c.mode, err)
		}
		id := r.unsigned(fmt.Sprint("in mode ", c.mode))
		if !c.softFail {
			r.a.waitUntil("it to be asked about", func() bool { return r.a.policies.rests(r.p.server, time.Now()) })
			if r.a.holds(id) {
				t.Errorf("mode %d: held", c.mode)
			}
			// It has waited for long: the verdict is made without.
			need := &rooms.PolicyNeeded{Event: r.u.event(id).Event, By: r.by}
			basis := rooms.Basis{Kind: rooms.Parents, Origin: r.u.server}
			if err := r.a.takeUnsigned(t.Context(), need, basis, policyPatience-time.Minute); err == nil {
				t.Errorf("mode %d: taken in before its time", c.mode)
			}
			if err := r.a.takeUnsigned(t.Context(), need, basis, policyPatience); err != nil {
				t.Errorf("mode %d: %v", c.mode, err)
			}
			r.a.policies.met(r.p.server)
		}
		r.a.waitFor("the event", id)
		if e := r.a.event(id); e.Verdict != store.SoftFailed {
			t.Errorf("mode %d: verdict %d", c.mode, e.Verdict)
		}
	}
}

// While the policy server is away what others sent waits, and is asked about when it is met; it is not asked again and again.
func TestPolicyServerAway(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	cut(r.n, r.a, r.p)
	r.a.gone(r.p)
	_, err := r.send(t.Context(), "nobody hears this")
	var p *PolicyError
	if !errors.As(err, &p) || !errors.Is(err, ErrUnreachable) || p.Status != 0 {
		t.Errorf("sent while it is away: %v", err)
	}
	first := r.unsigned("first")
	second := r.unsigned("second")
	r.a.waitUntil("both to wait", func() bool { return r.a.waits(r.room) == 2 && r.a.policies.rests(r.p.server, time.Now()) })
	// The room can be changed meanwhile.
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q},"more":1}`, r.p.server, unpadded(r.by.Key)))
	mend(r.n, r.a, r.p)
	r.a.waitFor("the events", first, second)
	for _, id := range []eventgraph.EventID{first, second} {
		if e := r.a.event(id); e.Verdict != store.Accepted || !r.signed(r.a, id) {
			t.Errorf("verdict %d", e.Verdict)
		}
	}
	r.a.waitUntil("the inbox to empty", func() bool { return r.a.waits(r.room) == 0 })
	if n := r.asked.Load(); n != 2 {
		t.Errorf("asked %d times about two events", n)
	}
}

// A policy server that does not answer holds up who sends, no longer than they want to wait, and nobody else.
func TestPolicyServerSlow(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	r.mode.Store(isSlow)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		_, err := r.send(ctx, "slow")
		sent <- err
	}()
	<-r.waiting
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q},"more":1}`, r.p.server, unpadded(r.by.Key)))
	cancel()
	if err := <-sent; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	short := overdue{t.Context(), make(chan struct{})}
	go func() {
		_, err := r.send(short, "in a hurry")
		sent <- err
	}()
	<-r.waiting
	close(short.done)
	if err := <-sent; !errors.Is(err, ErrUnreachable) {
		t.Errorf("not in time: %v", err)
	}
}

// overdue is a context whose time is up when done is closed.
type overdue struct {
	context.Context
	done chan struct{}
}

func (o overdue) Done() <-chan struct{} { return o.done }

func (o overdue) Err() error {
	select {
	case <-o.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// Nobody is held in a room: whatever its policy server does with their leave, they are out here, and invites can be declined. Others that ask it too,
// and are refused, soft-fail the leave.
func TestPolicyServerHoldsNobody(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	other := newMemHosts(t, r.n, "other")[0]
	other.meet(r.a.host)
	other.meet(r.p.host)
	other.join(r.room, other.user("oscar"), r.a.host)
	member := func(user eventgraph.UserID, membership string) (eventgraph.EventID, error) {
		key := string(user)
		content := fmt.Sprintf(`{"membership":%q,"reason":"so"}`, membership)
		return r.a.Send(t.Context(), rooms.Draft{Room: r.room, Sender: user, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(content)})
	}
	invited := r.a.user("ivy")
	key := string(invited)
	invite := rooms.Draft{Room: r.room, Sender: r.a.user("alice"), Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)}
	if _, err := r.a.Send(t.Context(), invite); err != nil {
		t.Fatal(err)
	}
	r.mode.Store(refuses)
	if _, err := member(invited, "leave"); err != nil || r.a.membership(r.room, invited) != "leave" {
		t.Errorf("an invite declined: %v; %s is %q", err, invited, r.a.membership(r.room, invited))
	}
	for _, mode := range []int32{refuses, isNone, isBusy, isBroken, signsWrongly, isSlow} {
		user := r.a.user(fmt.Sprint("carol", mode))
		r.mode.Store(signs)
		r.a.policies.met(r.p.server)
		if _, err := member(user, "join"); err != nil {
			t.Fatal(err)
		}
		r.mode.Store(mode)
		id, err := member(user, "leave")
		if err != nil || r.a.membership(r.room, user) != "leave" || r.signed(r.a, id) {
			t.Fatalf("mode %d: %v; %s is %q", mode, err, user, r.a.membership(r.room, user))
		}
		if content := string(r.a.event(id).Content()); content != `{"membership":"leave"}` {
			t.Errorf("left with %s", content)
		}
		if mode == refuses {
			other.waitFor("the leave", id)
			if e := other.event(id); e.Verdict != store.SoftFailed {
				t.Errorf("on another server the leave has verdict %d", e.Verdict)
			}
		}
	}
	// What it does not sign it hinders in all other things.
	r.mode.Store(refuses)
	if _, err := member(r.a.user("alice"), "join"); !errors.As(err, new(*PolicyError)) {
		t.Errorf("another membership: %v", err)
	}
	if _, err := r.a.Rooms.LeaveUnsigned(t.Context(), rooms.Draft{Room: r.room, Sender: r.a.user("alice"), Type: "m.room.message", Content: json.RawMessage(`{}`)}); err == nil {
		t.Error("a message goes out as a leave")
	}
	// It rests by now, and is not asked again.
	asked := r.asked.Load()
	if _, err := member(r.a.user("alice"), "leave"); err != nil || r.a.membership(r.room, r.a.user("alice")) != "leave" || r.asked.Load() != asked {
		t.Errorf("while the policy server rests: %v; asked %d times", err, r.asked.Load()-asked)
	}
}

// A policy server that does not answer keeps one worker of the inbox, in however many rooms events wait for it: what comes in other rooms goes on.
func TestPolicyServerSlowHoldsUpNoOtherRooms(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	ursula := r.u.user("ursula")
	policy := fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, r.p.server, unpadded(r.by.Key))
	policed := []eventgraph.RoomID{r.room}
	for range inboxWorkers {
		room := r.a.create("12", "public", "shared")
		r.p.join(room, r.p.user("police"), r.a.host)
		r.u.join(room, ursula, r.a.host)
		r.a.setState(room, r.a.user("alice"), eventgraph.PolicyType, "", policy)
		policed = append(policed, room)
	}
	free := r.a.create("12", "public", "shared")
	r.u.join(free, ursula, r.a.host)
	put := func(id eventgraph.EventID) {
		t.Helper()
		if err := r.u.put(r.a, id); err != nil {
			t.Fatal(err)
		}
	}
	r.mode.Store(isSlow)
	var unsigned []eventgraph.EventID
	for _, room := range policed {
		id := r.u.say(room, ursula, "unsigned")
		put(id)
		unsigned = append(unsigned, id)
	}
	<-r.waiting
	first := r.u.say(free, ursula, "lost on the way")
	second := r.u.say(free, ursula, "it must be asked for")
	put(second)
	r.a.waitFor("events of another room", first, second)
	if n := r.asked.Load(); n != 1 {
		t.Errorf("the policy server is asked %d questions at once", n)
	}
	// When it answers again all get their turn.
	r.mode.Store(signs)
	r.asked.Store(0)
	close(r.free)
	r.a.waitUntil("it to be found slow", func() bool { return r.a.policies.rests(r.p.server, time.Now()) })
	r.a.policies.met(r.p.server)
	for _, room := range policed {
		r.a.inbox.met(r.p.server, func(id eventgraph.RoomID) bool { return id == room })
	}
	r.a.waitFor("the events that waited", unsigned...)
}

// Questions to one policy server are put one after the other, those to several leave workers for other things; who must wait is told.
func TestPolicyQuestions(t *testing.T) {
	t.Parallel()
	var p policies
	if !p.begin("a", "!1") || p.begin("a", "!2") || !p.full("a", "!3") || p.full("b", "!4") || !p.begin("b", "!4") {
		t.Error("a question to each of two policy servers")
	}
	if slowQuestions != 2 || !p.full("c", "!5") || p.begin("c", "!5") {
		t.Error("a third policy server is asked")
	}
	waiting := p.end("a")
	slices.Sort(waiting)
	if want := []eventgraph.RoomID{"!2", "!3", "!5"}; !slices.Equal(waiting, want) || len(p.end("b")) != 0 || p.full("a", "!1") {
		t.Errorf("%v waited, want %v", waiting, want)
	}
}

// History that is fetched is measured by the policy server of now, too, though it be older; it does not wait for one that is away.
func TestPolicyServerAndHistory(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	policy := fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, r.p.server, unpadded(r.by.Key))
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", `{}`)
	spam, err := r.send(t.Context(), "buy this")
	if err != nil {
		t.Fatal(err)
	}
	fine, err := r.send(t.Context(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", policy)
	r.mode.Store(isChoosy)
	hosts := []*memHost{newMemHost(t, r.n, "joiner"), newMemHost(t, r.n, "later")}
	cut(r.n, hosts[0], hosts[1]) // who has the signatures of the first
	for i, h := range hosts {
		h.start()
		h.meet(r.a.host)
		h.meet(r.p.host)
		h.join(r.room, h.user("jane"), r.a.host)
		spamVerdict := store.SoftFailed
		if i == 1 {
			r.mode.Store(isBroken)
			spamVerdict = store.Accepted
		}
		was := h.Store.Position()
		if n, err := h.Backfill(t.Context(), r.room, 100); n == 0 || err != nil {
			t.Fatalf("backfill: %d, %v", n, err)
		}
		if e := h.event(spam); e.Verdict != spamVerdict || e.Order >= 0 {
			t.Errorf("what the policy server declines has verdict %d, order %d", e.Verdict, e.Order)
		}
		if e := h.event(fine); e.Verdict != store.Accepted || r.signed(h, fine) != (i == 0) {
			t.Errorf("what it does not mind has verdict %d, signed %v", e.Verdict, r.signed(h, fine))
		}
		if err := h.Store.View(func(read *store.Reader) error {
			return read.Changes(was, h.Store.Position(), func(_ store.Position, c store.Change) (bool, error) {
				if c.Event == spam {
					t.Errorf("history is news: %+v", c)
				}
				return true, nil
			})
		}); err != nil {
			t.Error(err)
		}
	}
}

// Events sent at the same time are signed one after the other, so that each rests on the one before.
func TestPolicyServerOneAtATime(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			if _, err := r.send(t.Context(), fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	var held *store.Room
	if err := r.a.Store.View(func(read *store.Reader) (err error) {
		held, err = read.Room(r.room)
		return err
	}); err != nil || len(held.Forward) != 1 {
		t.Errorf("forward extremities %v, %v", held.Forward, err)
	}
	if n := r.asked.Load(); n != 8 {
		t.Errorf("asked %d times about eight events", n)
	}
}

// Joins and invites: the resident asks before it takes in a join, and the inviter before it invites.
func TestPolicyServerAndMemberships(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	j := newMemHost(t, r.n, "joiner")
	j.start()
	j.meet(r.a.host)
	jane := j.user("jane")
	r.mode.Store(refuses)
	err := j.Join(t.Context(), r.room, jane, names([]*host{r.a.host}), nil)
	wantCode(t, err, "M_FORBIDDEN")
	if !strings.Contains(err.Error(), "this looks like spam") || r.a.membership(r.room, jane) != "" {
		t.Errorf("a join that the policy server declines: %v; jane is %q", err, r.a.membership(r.room, jane))
	}
	key := string(jane)
	invite := rooms.Draft{Room: r.room, Sender: r.a.user("alice"), Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)}
	if _, err := r.a.Invite(t.Context(), invite); !errors.As(err, new(*PolicyError)) || j.membership(r.room, jane) != "" {
		t.Errorf("an invite that the policy server declines: %v; jane is %q", err, j.membership(r.room, jane))
	}
	r.mode.Store(signs)
	id, err := r.a.Invite(t.Context(), invite)
	if err != nil || !r.signed(r.a, id) || j.membership(r.room, jane) != "invite" {
		t.Errorf("invite: %v; jane is %q", err, j.membership(r.room, jane))
	}
	j.join(r.room, jane, r.a.host)
	for _, h := range []*memHost{r.a, j} {
		state, err := h.Rooms.CurrentState(r.room)
		if err != nil {
			t.Fatal(err)
		}
		join, _, err := state.EventID(eventgraph.StateTuple{Type: "m.room.member", Key: key})
		if err != nil || !r.signed(h, join) {
			t.Errorf("the join on %s is signed: %v, %v", h.server.Tail(), r.signed(h, join), err)
		}
	}
	// Who joins asks for what they send, too.
	if _, err := j.Send(t.Context(), rooms.Draft{Room: r.room, Sender: jane, Type: "m.room.message", Content: json.RawMessage(`{"body":"hi"}`)}); err != nil {
		t.Error(err)
	}
}

// A handshake's event may rest on one that is held and has its place only now: the policy server is asked about that first, and the event
// of the handshake is the one that is taken in, and announced.
func TestPolicyServerAndWhatAHandshakeRestsOn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		rests   int
		mode    int32 // of the first question
		verdict store.Verdict
	}{
		{"one", 1, signs, store.Accepted},
		{"two", 2, signs, store.Accepted},
		{"one that is declined", 1, refuses, store.SoftFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newPoliced(t, "12")
			j := newMemHost(t, r.n, "joiner")
			j.start()
			j.meet(r.a.host)
			jane := j.user("jane")
			var base eventgraph.EventID
			for range c.rests {
				base = r.u.say(r.room, r.u.user("ursula"), "hello")
				if err := r.a.acceptOutliers(t.Context(), r.u.server, r.u.event(base).Event); err != nil {
					t.Fatal(err)
				}
			}
			r.a.on(r.joinsRestOn(base))
			r.mode.Store(c.mode)
			r.p.on(r.afterwards(signs))
			j.join(r.room, jane, r.a.host)
			state, err := r.a.Rooms.CurrentState(r.room)
			if err != nil {
				t.Fatal(err)
			}
			join, found, err := state.EventID(eventgraph.StateTuple{Type: "m.room.member", Key: string(jane)})
			if err != nil || !found {
				t.Fatalf("the join is not in the room's state: %v", err)
			}
			if e := r.a.event(base); e.Verdict != c.verdict || r.signed(r.a, base) != (c.verdict == store.Accepted) {
				t.Errorf("what it rests on has verdict %d, signed %v", e.Verdict, r.signed(r.a, base))
			}
			if e := r.a.event(join); e.Verdict != store.Accepted || !r.signed(r.a, join) || r.asked.Load() != int32(c.rests)+1 {
				t.Errorf("the join has verdict %d, signed %v; asked %d times", e.Verdict, r.signed(r.a, join), r.asked.Load())
			}
			if announced := r.announced(); len(announced) != 1 || announced[0] != join {
				t.Errorf("announced %v, not the join %s", announced, join)
			}
		})
	}
}

// afterwards lets the policy server go on with another mode once it was asked.
func (r *policed) afterwards(mode int32) func(w http.ResponseWriter, q *http.Request, body []byte) bool {
	answer := *r.p.intercept.Load()
	return func(w http.ResponseWriter, q *http.Request, body []byte) bool {
		answered := answer(w, q, body)
		if answered {
			r.mode.Store(mode)
		}
		return answered
	}
}

// announced lists what a has taken in by handshakes since the room uses the policy server: newPoliced makes two before.
func (r *policed) announced() (ids []eventgraph.EventID) {
	r.a.t.Helper()
	if err := r.a.Store.View(func(read *store.Reader) error {
		return read.Changes(0, r.a.Store.Position(), func(_ store.Position, c store.Change) (bool, error) {
			if c.Kind == store.ChangeEvent && c.Key == store.KeyHandshake {
				ids = append(ids, c.Event)
			}
			return true, nil
		})
	}); err != nil {
		r.a.t.Fatal(err)
	}
	return ids[2:]
}

// A room that names us as its policy server, which we are not, says so; and nobody is served as one.
func TestNoPolicyServer(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	r.a.setState(r.room, r.a.user("alice"), eventgraph.PolicyType, "", fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, r.a.server, unpadded(r.by.Key)))
	_, err := r.send(t.Context(), "hello")
	wantCode(t, err, "M_FORBIDDEN")
	if !strings.Contains(err.Error(), "names this server") {
		t.Errorf("it is not said what is wrong: %v", err)
	}
	err = r.p.do(t.Context(), r.a.server, http.MethodPost, policySign, struct{}{}, nil)
	wantCode(t, err, "M_UNRECOGNIZED")
	var remote *remoteError
	if !errors.As(err, &remote) || remote.Status != http.StatusNotFound {
		t.Errorf("asked to sign: %v", err)
	}
}

// The giver of unsigned events pays for the questions about them, and what is remembered of policy servers is bounded.
func TestPolicyBounds(t *testing.T) {
	t.Parallel()
	r := newPoliced(t, "12")
	id := r.u.say(r.room, r.u.user("ursula"), "hello")
	need := &rooms.PolicyNeeded{Event: r.u.event(id).Event, By: r.by}
	for l := r.a.budgets.friend(r.u.server); l.AllowN(time.Now(), costPolicy); {
	}
	err := r.a.takeUnsigned(t.Context(), need, rooms.Basis{Kind: rooms.Parents, Origin: r.u.server}, 0)
	if !errors.Is(err, errAskedEnough) || r.asked.Load() != 0 {
		t.Errorf("%v; asked %d times", err, r.asked.Load())
	}
	var p policies
	now := time.Now()
	for i := range 2 * maxResting {
		p.rest(eventgraph.ServerName(fmt.Sprint(i)), now.Add(time.Minute), now)
	}
	if len(p.until) > maxResting || !p.rests(eventgraph.ServerName(fmt.Sprint(2*maxResting-1)), now) {
		t.Errorf("%d policy servers are remembered", len(p.until))
	}
}
