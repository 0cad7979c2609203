package clientapi

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/internal/specdata"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.Cleanup(exit)) }

const testToken = "let-me-in"

// testServer is the client API of one homeserver over a store in memory, behind HTTP.
type testServer struct {
	*API
	t      testing.TB
	url    string
	remote *unreachable
	log    *testLog
	key    eventgraph.SigningKey

	mu  sync.Mutex
	now time.Time
}

// newTestServer starts one; change may adapt its configuration.
func newTestServer(t testing.TB, change func(*Config)) *testServer {
	t.Helper()
	s := newTestAPI(t, change)
	httpServer := httptest.NewServer(s.Handler())
	s.url = httpServer.URL
	t.Cleanup(func() {
		httpServer.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return s
}

// noConnections is where a server answers that is called as a function.
const noConnections = "http://localhost"

// newTestAPI is newTestServer without connections: requests are calls of the handler.
func newTestAPI(t testing.TB, change func(*Config)) *testServer {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	public := private.Public().(ed25519.PublicKey)
	peer := eventgraph.NewPeerID(public)
	key := eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: peer.KeyID(), Private: private}

	s := &testServer{t: t, url: noConnections, key: key, remote: &unreachable{}, log: &testLog{}, now: time.UnixMilli(1_800_000_000_000)}
	db, err := store.Open("", store.Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	config := Config{
		Store: db, Server: key.Server, Peer: peer, Registration: RegistrationToken, RegistrationToken: testToken,
		Rooms:          rooms.New(rooms.Config{Store: db, Key: key, Now: s.time}),
		Ephemeral:      ephemeral.New(s.time),
		Media:          media.New(media.Config{Store: db, Key: key, Limits: media.Limits{Upload: 100 << 10, User: 150 << 10}, Now: s.time}),
		PeersConnected: func() int { return 0 },
		Now:            s.time,
		Log:            slog.New(slog.NewTextHandler(s.log, nil)),
	}
	if change != nil {
		change(&config)
	}
	s.API = New(config)
	s.hashing.memory, s.hashing.time = 8, 1 // the least that argon2 takes: hundreds of clients log in
	s.remote.rooms = s.Rooms
	s.API.SetRemote(s.remote)
	t.Cleanup(func() {
		config.Rooms.Close()
		config.Ephemeral.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *testServer) time() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *testServer) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// testLog keeps what is logged.
type testLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// answer is a response with its body decoded.
type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

func (a answer) code() string { code, _ := a.body["errcode"].(string); return code }

func (a answer) text(key string) string { text, _ := a.body[key].(string); return text }

// send sends a request as it stands; body may be nil, a string (sent as it is) or a value (sent as JSON).
func (s *testServer) send(method, path, token string, body any) answer {
	s.t.Helper()
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(body)
	default:
		data, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, s.url+path, reader)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return s.do(req)
}

func (s *testServer) do(req *http.Request) answer {
	s.t.Helper()
	var resp *http.Response
	if s.url == noConnections { // no server: in virtual time nothing waits for a connection
		recorder := httptest.NewRecorder()
		s.Handler().ServeHTTP(recorder, req)
		resp = recorder.Result()
	} else {
		var err error
		if resp, err = http.DefaultClient.Do(req); err != nil {
			s.t.Fatal(err)
		}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if e := specdata.Match(req.Method, req.URL.EscapedPath()); e != nil {
		seen.Add(e, resp.StatusCode, raw)
		if err := checkAnswer(e, req.URL.Query(), resp.StatusCode, raw); err != nil {
			s.t.Error(err)
		}
	}
	a := answer{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && !strings.HasPrefix(a.raw, "[") {
		if err := json.Unmarshal(raw, &a.body); err != nil {
			s.t.Fatalf("%s %s answered what is no JSON object: %s", req.Method, req.URL, raw)
		}
	}
	return a
}

// client is a logged-in device.
type client struct {
	s      *testServer
	user   eventgraph.UserID
	device store.DeviceID
	token  string
}

// call calls the client API with JSON, at a path below /_matrix/client, and demands a status.
func (c client) call(want int, method, path string, body any) answer {
	c.s.t.Helper()
	a := c.s.send(method, "/_matrix/client"+path, c.token, body)
	if a.status != want {
		c.s.t.Fatalf("%s %s: %d %s, want %d", method, path, a.status, a.raw, want)
	}
	return a
}

const testPassword = "correct horse"

// newClient makes an account and logs in.
func (s *testServer) newClient(localpart string) client {
	s.t.Helper()
	if _, err := s.CreateUser(context.Background(), localpart, testPassword); err != nil {
		s.t.Fatal(err)
	}
	return s.logIn(localpart, "")
}

// logIn logs in with the test password.
func (s *testServer) logIn(localpart, device string) client {
	s.t.Helper()
	a := s.send("POST", "/_matrix/client/v3/login", "", map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": localpart},
		"password": testPassword, "device_id": device,
	})
	if a.status != 200 {
		s.t.Fatalf("login: %d %s", a.status, a.raw)
	}
	return client{s, eventgraph.UserID(a.text("user_id")), store.DeviceID(a.text("device_id")), a.text("access_token")}
}

// room makes a public room through package rooms, with more drafts in it.
func (c client) room(then ...rooms.Draft) eventgraph.RoomID {
	c.s.t.Helper()
	empty := ""
	id, err := c.s.Rooms.Create(context.Background(), rooms.CreateRequest{
		Creator:     c.user,
		JoinContent: json.RawMessage(`{"membership":"join"}`),
		Then: append([]rooms.Draft{
			{Type: "m.room.power_levels", StateKey: &empty, Content: json.RawMessage(`{"users":{}}`)},
			{Type: "m.room.join_rules", StateKey: &empty, Content: json.RawMessage(`{"join_rule":"public"}`)},
		}, then...),
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	return id
}

func (c client) join(room eventgraph.RoomID) {
	c.s.t.Helper()
	key := string(c.user)
	c.event(rooms.Draft{Room: room, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"join"}`)})
}

func (c client) message(room eventgraph.RoomID, content string) eventgraph.EventID {
	c.s.t.Helper()
	return c.event(rooms.Draft{Room: room, Type: "m.room.message", Content: json.RawMessage(content)})
}

func (c client) event(d rooms.Draft) eventgraph.EventID {
	c.s.t.Helper()
	d.Sender = c.user
	id, err := c.s.Rooms.Send(context.Background(), d)
	if err != nil {
		c.s.t.Fatal(err)
	}
	return id
}

// unreachable is a Remote where nobody can be reached, unless a test gives it profiles.
type unreachable struct {
	rooms    *rooms.Rooms
	profiles map[eventgraph.UserID]string
}

func (u *unreachable) Join(context.Context, eventgraph.RoomID, eventgraph.UserID, []eventgraph.ServerName, json.RawMessage) error {
	return federation.ErrUnreachable
}

func (u *unreachable) Knock(context.Context, eventgraph.RoomID, eventgraph.UserID, []eventgraph.ServerName, json.RawMessage) error {
	return federation.ErrUnreachable
}

func (u *unreachable) Leave(context.Context, eventgraph.RoomID, eventgraph.UserID, string) error {
	return federation.ErrUnreachable
}

func (u *unreachable) Send(ctx context.Context, d rooms.Draft) (eventgraph.EventID, error) {
	return u.rooms.Send(ctx, d)
}

func (u *unreachable) Invite(context.Context, rooms.Draft) (eventgraph.EventID, error) {
	return "", federation.ErrUnreachable
}

func (u *unreachable) ResolveAlias(context.Context, eventgraph.RoomAlias) (eventgraph.RoomID, []eventgraph.ServerName, error) {
	return "", nil, federation.ErrUnreachable
}

func (u *unreachable) PublicRooms(context.Context, eventgraph.ServerName, rooms.PublicQuery) (*rooms.PublicPage, error) {
	return nil, federation.ErrUnreachable
}

func (u *unreachable) Hierarchy(context.Context, eventgraph.RoomID, []eventgraph.ServerName, bool) (*federation.Hierarchy, error) {
	return nil, federation.ErrUnreachable
}

func (u *unreachable) Profile(_ context.Context, user eventgraph.UserID, _ string) (json.RawMessage, error) {
	if profile, ok := u.profiles[user]; ok {
		return json.RawMessage(profile), nil
	}
	return nil, federation.ErrUnreachable
}

func (u *unreachable) QueryKeys(context.Context, eventgraph.ServerName, json.RawMessage) (json.RawMessage, error) {
	return nil, federation.ErrUnreachable
}

func (u *unreachable) ClaimKeys(context.Context, eventgraph.ServerName, json.RawMessage) (json.RawMessage, error) {
	return nil, federation.ErrUnreachable
}

func (u *unreachable) UserDevices(context.Context, eventgraph.UserID) (json.RawMessage, error) {
	return nil, federation.ErrUnreachable
}

func (u *unreachable) IsConnected(eventgraph.ServerName) bool { return false }

func (u *unreachable) AskKeyBundles(context.Context, []eventgraph.UserID) {}

func (u *unreachable) Backfill(context.Context, eventgraph.RoomID, int) (int, error) {
	return 0, federation.ErrUnreachable
}

func (u *unreachable) BackfillAbove(context.Context, eventgraph.RoomID, int64, int) (int, error) {
	return 0, federation.ErrUnreachable
}

func (u *unreachable) EventNear(context.Context, eventgraph.RoomID, int64, bool) (eventgraph.EventID, int64, error) {
	return "", 0, federation.ErrUnreachable
}
