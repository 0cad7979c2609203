package federation

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.Cleanup(exit)) }

// wire connects federations: each request passes through its bytes, as over a stream.
type wire struct {
	mu       sync.Mutex
	ends     map[eventgraph.PeerID]*end
	watchers []*watcher
}

type watcher struct {
	of      eventgraph.PeerID
	changed chan struct{}
	events  []watched
}

type watched struct {
	peer      eventgraph.PeerID
	connected bool
}

// end is a peer's place on the wire; a Transport.
type end struct {
	wire    *wire
	id      eventgraph.PeerID
	away    bool
	handler http.Handler
	streams map[string]func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser)
	asked   []string      // method and target of each request that came
	news    chan struct{} // closed and replaced with each of them
	open    sync.WaitGroup
}

type peerKey struct{}

func peerOf(ctx context.Context) (eventgraph.PeerID, bool) {
	p, ok := ctx.Value(peerKey{}).(eventgraph.PeerID)
	return p, ok
}

func newWire() *wire { return &wire{ends: map[eventgraph.PeerID]*end{}} }

func (w *wire) attach(id eventgraph.PeerID) *end {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &end{wire: w, id: id, news: make(chan struct{}), streams: map[string]func(context.Context, eventgraph.PeerID, io.ReadWriteCloser){}}
	w.ends[id] = e
	return e
}

// setAway cuts the peer from all others, or brings it back.
func (w *wire) setAway(id eventgraph.PeerID, away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ends[id].away == away {
		return
	}
	w.ends[id].away = away
	for _, watcher := range w.watchers {
		if watcher.of == id {
			for other, e := range w.ends {
				if other != id && !e.away {
					watcher.add(other, !away)
				}
			}
		} else if !w.ends[watcher.of].away {
			watcher.add(id, !away)
		}
	}
}

func (w *watcher) add(peer eventgraph.PeerID, connected bool) {
	w.events = append(w.events, watched{peer, connected})
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *wire) reach(from *end, to eventgraph.PeerID) (*end, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.ends[to]
	if e == nil || e.away || from.away {
		return nil, errors.New("peer cannot be reached")
	}
	return e, nil
}

func (e *end) Do(ctx context.Context, peer eventgraph.PeerID, req *http.Request) (*http.Response, error) {
	to, err := e.wire.reach(e, peer)
	if err != nil {
		return nil, err
	}
	var bytesOut bytes.Buffer
	if err := req.Write(&bytesOut); err != nil {
		return nil, err
	}
	in, err := http.ReadRequest(bufio.NewReader(&bytesOut))
	if err != nil {
		return nil, err
	}
	e.wire.mu.Lock()
	to.asked = append(to.asked, in.Method+" "+in.RequestURI)
	close(to.news)
	to.news = make(chan struct{})
	handler := to.handler
	e.wire.mu.Unlock()
	if handler == nil {
		return nil, errors.New("nobody answers")
	}
	w := httptest.NewRecorder()
	if !serveWhole(handler, w, in.WithContext(context.WithValue(ctx, peerKey{}, e.id))) {
		return nil, io.ErrUnexpectedEOF
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return w.Result(), nil
}

// serveWhole says whether the handler has not broken off.
func serveWhole(handler http.Handler, w http.ResponseWriter, req *http.Request) (whole bool) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			panic(p)
		}
	}()
	handler.ServeHTTP(w, req)
	return true
}

func (e *end) OpenStream(ctx context.Context, peer eventgraph.PeerID, protocol string) (io.ReadWriteCloser, error) {
	to, err := e.wire.reach(e, peer)
	if err != nil {
		return nil, err
	}
	e.wire.mu.Lock()
	serve := to.streams[protocol]
	e.wire.mu.Unlock()
	if serve == nil {
		return nil, errors.New("peer does not speak that protocol")
	}
	ours, theirs := net.Pipe()
	to.open.Go(func() { serve(context.WithoutCancel(ctx), e.id, theirs) })
	return ours, nil
}

func (e *end) Handle(protocol string, h func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser)) {
	e.wire.mu.Lock()
	defer e.wire.mu.Unlock()
	e.streams[protocol] = h
}

func (e *end) Watch(ctx context.Context, f func(peer eventgraph.PeerID, connected bool)) {
	w := &watcher{of: e.id, changed: make(chan struct{}, 1)}
	e.wire.mu.Lock()
	for id, other := range e.wire.ends {
		if id != e.id && !other.away && !e.away && other.handler != nil { // not before it answers
			w.add(id, true)
		}
	}
	e.wire.watchers = append(e.wire.watchers, w)
	e.wire.mu.Unlock()
	for {
		e.wire.mu.Lock()
		events := w.events
		w.events = nil
		e.wire.mu.Unlock()
		for _, ev := range events {
			f(ev.peer, ev.connected)
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			return
		}
	}
}

// people is a Local: the users of one server.
type people struct {
	server eventgraph.ServerName

	mu      sync.Mutex
	edus    []string // type and content of each that came
	bundles map[eventgraph.UserID]string
}

// KeyBundle of the users is made up; one is right if its "of" is the user.
func (p *people) KeyBundle(user eventgraph.UserID) (json.RawMessage, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.bundles[user] {
	case "":
		return nil, nil
	case "cannot be read":
		return nil, errors.New("cannot be read")
	case "deep":
		return json.RawMessage(nested(canonicaljson.MaxDepth)), nil
	}
	return canonicaljson.Marshal(map[string]any{"of": user, "text": p.bundles[user]})
}

func (p *people) CheckKeyBundle(user eventgraph.UserID, bundle json.RawMessage) error {
	var b struct{ Of eventgraph.UserID }
	if json.Unmarshal(bundle, &b) != nil || b.Of != user {
		return errors.New("of somebody else")
	}
	return nil
}

func (p *people) Profile(_ context.Context, user eventgraph.UserID, field string) (json.RawMessage, error) {
	if strings.HasPrefix(user.Localpart(), "nobody") {
		return nil, store.ErrNotFound
	}
	return json.Marshal(map[string]string{"displayname": strings.ToUpper(user.Localpart())})
}

func (p *people) FindAlias(context.Context, eventgraph.RoomAlias) (eventgraph.RoomID, error) {
	return "", store.ErrNotFound
}

func (p *people) Devices(_ context.Context, user eventgraph.UserID) (json.RawMessage, error) {
	return json.Marshal(map[string]any{"user_id": user, "stream_id": 1, "devices": []string{}})
}

func (p *people) OpenIDUser(token string) (eventgraph.UserID, error) {
	if token != "of alice" {
		return "", store.ErrNotFound
	}
	return eventgraph.UserID("@alice:" + string(p.server)), nil
}

func (p *people) QueryKeys(_ context.Context, from eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	return json.Marshal(map[string]any{"device_keys": map[string]any{}, "from": from, "asked": body})
}

func (p *people) ClaimKeys(_ context.Context, from eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	return json.Marshal(map[string]any{"one_time_keys": map[string]any{}, "from": from, "asked": body})
}

func (p *people) ReceiveEDU(_ context.Context, origin eventgraph.ServerName, eduType string, content json.RawMessage) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.edus = append(p.edus, eduType+" "+string(content))
	return nil
}

// host is one server on the wire.
type host struct {
	*Federation
	t     *testing.T
	end   *end
	local *people
	stop  func()
}

// testKey makes the same key for the same name in each run.
func testKey(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func newKeys(name string) (server eventgraph.ServerName, peer eventgraph.PeerID, identity, device eventgraph.SigningKey) {
	identityKey, deviceKey := testKey(name+" identity"), testKey(name+" device")
	server = eventgraph.NewServerName(identityKey.Public().(ed25519.PublicKey))
	peer = eventgraph.NewPeerID(deviceKey.Public().(ed25519.PublicKey))
	identity = eventgraph.SigningKey{Server: server, ID: eventgraph.NewPeerID(identityKey.Public().(ed25519.PublicKey)).KeyID(), Private: identityKey}
	device = eventgraph.SigningKey{Server: server, ID: peer.KeyID(), Private: deviceKey}
	return server, peer, identity, device
}

func newDocument(t *testing.T, server eventgraph.ServerName, peer eventgraph.PeerID, identity, device eventgraph.SigningKey, now time.Time) *eventgraph.KeyDocument {
	t.Helper()
	box := make([]byte, 32)
	box[0] = 9
	cert, err := eventgraph.SignCertificate(identity, 1, []eventgraph.CertifiedDevice{{
		PeerID: peer, KeyID: peer.KeyID(), Key: unpadded(device.Private.Public().(ed25519.PublicKey)), BoxKey: unpadded(box), FromTS: 1,
	}})
	if err != nil {
		t.Fatal(err)
	}
	retired := testKey(string(server) + " retired").Public().(ed25519.PublicKey)
	old := map[eventgraph.KeyID]eventgraph.OldVerifyKey{"ed25519:retired": {Key: retired, ExpiredTS: now.Add(-time.Hour).UnixMilli()}}
	d, err := eventgraph.SignKeyDocument(server, []eventgraph.SigningKey{device}, old, cert, now.Add(7*24*time.Hour).UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// newHost starts a whole server and stops it at the end of the test.
func newHost(t *testing.T, w *wire, name string) *host {
	t.Helper()
	h := idleHost(t, w, name)
	h.run(h.Federation.Run)
	return h
}

// idleHost is a server that answers, and asks when it is told to, but does nothing by itself.
func idleHost(t *testing.T, w *wire, name string) *host {
	t.Helper()
	server, peer, identity, device := newKeys(name)
	s, err := store.Open("", store.Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(testLog{t, name}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r := rooms.New(rooms.Config{Store: s, Key: device, Now: time.Now, Log: log})
	e := ephemeral.New(time.Now)
	document := newDocument(t, server, peer, identity, device, time.Now())
	local := &people{server: server}
	at := w.attach(peer)
	f := New(Config{
		Store: s, Rooms: r, Ephemeral: e, Media: media.New(media.Config{Store: s, Key: device, Limits: media.Limits{Upload: 1 << 20}, Now: time.Now}), Transport: at, Key: device, PeerOf: peerOf, Local: local, Now: time.Now, Log: log,
		KeyDocument: func() *eventgraph.KeyDocument { return document },
	})
	h := &host{Federation: f, t: t, end: at, local: local, stop: func() {}}
	w.mu.Lock()
	at.handler = bySpecification(t, f.Handler())
	for _, watcher := range w.watchers {
		watcher.add(peer, true)
	}
	w.mu.Unlock()
	t.Cleanup(func() {
		h.stop()
		w.mu.Lock()
		at.away = true
		w.mu.Unlock()
		at.open.Wait()
		r.Close()
		e.Close()
		s.Close()
	})
	return h
}

// run starts what runs in the host until the test ends.
func (h *host) run(what func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(h.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- what(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
}

// newHosts starts servers that all know each other, and do nothing else by themselves.
func newHosts(t *testing.T, w *wire, names ...string) []*host {
	t.Helper()
	var all []*host
	for _, name := range names {
		h := idleHost(t, w, name)
		h.run(h.runPeers)
		all = append(all, h)
	}
	for _, h := range all {
		for _, other := range all {
			if other != h {
				h.meet(other)
			}
		}
	}
	return all
}

// meet waits until h knows that the other is there.
func (h *host) meet(other *host) {
	h.t.Helper()
	for turn := uint64(0); !h.peers.isConnected(other.server); {
		var err error
		if _, turn, err = h.peers.met(h.t.Context(), turn); err != nil {
			h.t.Fatal(err)
		}
	}
}

type testLog struct {
	t    *testing.T
	name string
}

func (l testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Logf("%s: %s", l.name, bytes.TrimSpace(b))
	}
	return len(b), nil
}

func unpadded(b []byte) string {
	return base64.RawStdEncoding.EncodeToString(b)
}

func (h *host) user(localpart string) eventgraph.UserID {
	return eventgraph.UserID("@" + localpart + ":" + string(h.server))
}

// create makes a room of the version with the join rule and history visibility.
func (h *host) create(version eventgraph.RoomVersion, joinRule, visibility string) eventgraph.RoomID {
	h.t.Helper()
	empty := ""
	state := func(kind, content string) rooms.Draft {
		return rooms.Draft{Type: kind, StateKey: &empty, Content: json.RawMessage(content)}
	}
	powerful := `{"` + string(h.user("alice")) + `":100}`
	if traits, _ := version.Traits(); traits.PrivilegedCreators {
		powerful = "{}"
	}
	room, err := h.Rooms.Create(h.t.Context(), rooms.CreateRequest{
		Version: version, Creator: h.user("alice"),
		Then: []rooms.Draft{
			state("m.room.power_levels", `{"users":`+powerful+`,"users_default":0,"events_default":0,"state_default":50,"invite":0}`),
			state("m.room.join_rules", `{"join_rule":"`+joinRule+`"}`),
			state("m.room.history_visibility", `{"history_visibility":"`+visibility+`"}`),
			state("m.room.name", `{"name":"The room"}`),
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return room
}

func (h *host) say(room eventgraph.RoomID, user eventgraph.UserID, text string) eventgraph.EventID {
	h.t.Helper()
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": text})
	id, err := h.Rooms.Send(h.t.Context(), rooms.Draft{Room: room, Sender: user, Type: "m.room.message", Content: content})
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

func (h *host) setState(room eventgraph.RoomID, user eventgraph.UserID, kind, key, content string) eventgraph.EventID {
	h.t.Helper()
	id, err := h.Rooms.Send(h.t.Context(), rooms.Draft{Room: room, Sender: user, Type: kind, StateKey: &key, Content: json.RawMessage(content)})
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

// membership of a user in a room, as the store has it; "" if it has none.
func (h *host) membership(room eventgraph.RoomID, user eventgraph.UserID) string {
	h.t.Helper()
	var m *store.Member
	err := h.Store.View(func(r *store.Reader) (err error) {
		m, err = r.Member(room, user)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return ""
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return m.Membership
}

func (h *host) event(id eventgraph.EventID) *store.StoredEvent {
	h.t.Helper()
	e, err := h.held(id)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

// join joins a user of h over via.
func (h *host) join(room eventgraph.RoomID, user eventgraph.UserID, via ...*host) {
	h.t.Helper()
	if err := h.Join(h.t.Context(), room, user, names(via), nil); err != nil {
		h.t.Fatalf("join: %v", err)
	}
}

func names(hosts []*host) []eventgraph.ServerName {
	var all []eventgraph.ServerName
	for _, h := range hosts {
		all = append(all, h.server)
	}
	return all
}

// wait fails the test unless check becomes true; it looks at each durable change of h.
func (h *host) wait(what string, check func() bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	for after := h.Store.Position(); !check(); {
		now, err := h.Store.Wait(ctx, after)
		if err != nil && !check() {
			h.t.Fatalf("%s: not in time", what)
		}
		after = now
	}
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var refusal *rooms.Refusal
	if !errors.As(err, &refusal) || refusal.Code != code {
		t.Fatalf("got error %v, want %s", err, code)
	}
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

func newPeerID(key ed25519.PrivateKey) eventgraph.PeerID { return eventgraph.NewPeerID(public(key)) }
