package node_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// federationProtocol is what a plain peer has to know of plexus beside the Matrix specification.
const federationProtocol = "/matrix/federation/1"

// plainPeer is a Matrix server that is nothing of plexus: HTTP/1.1 by the server-server API over one libp2p host, whose key is
// its server name's, so that it needs no certificate (design.md §6: a plain peer is a good peer).
type plainPeer struct {
	t     *testing.T
	host  host.Host
	key   eventgraph.SigningKey
	other eventgraph.ServerName // the plexus node
	http  *http.Client
	docs  []byte // own key document

	mu     sync.Mutex
	got    []json.RawMessage // PDUs, in the order received
	edus   []json.RawMessage
	invite json.RawMessage // body of the last PUT /invite
	news   chan struct{}   // holds a token after each
	// answer is what else it answers, nil for what it does not know.
	answer func(path string, query url.Values) any
}

func newPlainPeer(t *testing.T, other eventgraph.ServerName, addrs []string) *plainPeer {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	hostKey, err := crypto.UnmarshalEd25519PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(hostKey), libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	p := &plainPeer{t: t, host: h, other: other, news: make(chan struct{}, 1)}
	p.key = eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: "ed25519:a1", Private: private}
	doc, err := eventgraph.SignKeyDocument(p.key.Server, []eventgraph.SigningKey{p.key}, nil, nil, time.Now().Add(24*time.Hour).UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	p.docs = doc.Raw
	info, err := peer.AddrInfoFromString(addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Connect(t.Context(), *info); err != nil {
		t.Fatal(err)
	}
	p.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return gostream.Dial(ctx, h, info.ID, federationProtocol)
	}}}
	listener, err := gostream.Listen(h, federationProtocol, gostream.IgnoreEOF())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(p.serve)}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		p.http.CloseIdleConnections()
		h.Close()
	})
	return p
}

// serve is the plain peer's side of the server-server API, as much as a small server needs.
func (p *plainPeer) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 16<<20))
	path := r.URL.EscapedPath()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() {
		select {
		case p.news <- struct{}{}:
		default:
		}
	}()
	switch {
	case path == "/_matrix/key/v2/server":
		w.Write(p.docs)
	case r.Method == http.MethodPut && bytes.HasPrefix([]byte(path), []byte("/_matrix/federation/v1/send/")):
		var t struct{ PDUs, EDUs []json.RawMessage }
		json.Unmarshal(body, &t)
		p.got, p.edus = append(p.got, t.PDUs...), append(p.edus, t.EDUs...)
		io.WriteString(w, `{"pdus":{}}`)
	case r.Method == http.MethodPut && bytes.HasPrefix([]byte(path), []byte("/_matrix/federation/v2/invite/")):
		p.invite = body
		var i struct {
			Version eventgraph.RoomVersion `json:"room_version"`
			Event   json.RawMessage
		}
		json.Unmarshal(body, &i)
		e, err := eventgraph.ParseEvent(i.Version, i.Event)
		if err == nil {
			e, err = e.WithSignature(p.key)
		}
		if err != nil {
			http.Error(w, `{"errcode":"M_BAD_JSON"}`, http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, `{"event":%s}`, e.Raw())
	default:
		if p.answer != nil {
			if answer := p.answer(path, r.URL.Query()); answer != nil {
				json.NewEncoder(w).Encode(answer)
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"errcode":"M_UNRECOGNIZED","error":"not here"}`)
	}
}

// until waits for check, asked again after each request served.
func (p *plainPeer) until(what string, check func() bool) {
	p.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		p.mu.Lock()
		ok := check()
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-p.news:
		case <-limit:
			p.t.Fatalf("the plain peer waited in vain for %s", what)
		}
	}
}

// as is who a request claims to be; the zero value is the truth.
type as struct {
	origin, destination eventgraph.ServerName
	key                 ed25519.PrivateKey
}

// call makes a signed request and returns status and body.
func (p *plainPeer) call(who as, method, target string, body any) (int, []byte) {
	p.t.Helper()
	if who.origin == "" {
		who.origin = p.key.Server
	}
	if who.destination == "" {
		who.destination = p.other
	}
	if who.key == nil {
		who.key = p.key.Private
	}
	signed := map[string]any{"method": method, "uri": target, "origin": who.origin, "destination": who.destination}
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			p.t.Fatal(err)
		}
		signed["content"] = json.RawMessage(raw)
	}
	object, err := json.Marshal(signed)
	if err != nil {
		p.t.Fatal(err)
	}
	object, err = eventgraph.SignJSON(object, eventgraph.SigningKey{Server: who.origin, ID: p.key.ID, Private: who.key})
	if err != nil {
		p.t.Fatal(err)
	}
	var s struct {
		Signatures map[eventgraph.ServerName]map[eventgraph.KeyID]string
	}
	if err := json.Unmarshal(object, &s); err != nil {
		p.t.Fatal(err)
	}
	u := &url.URL{Scheme: "http", Host: "plexus", Opaque: target}
	req := (&http.Request{Method: method, URL: u, Host: "plexus", Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(raw)), ContentLength: int64(len(raw))}).WithContext(p.t.Context())
	if body == nil {
		req.Body = nil
	}
	req.Header.Set("Authorization", fmt.Sprintf(`X-Matrix origin="%s",destination="%s",key="%s",sig="%s"`, who.origin, who.destination, p.key.ID, s.Signatures[who.origin][p.key.ID]))
	answer, err := p.http.Do(req)
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer answer.Body.Close()
	if raw, err = io.ReadAll(answer.Body); err != nil {
		p.t.Fatal(err)
	}
	return answer.StatusCode, raw
}

// get is a call that must succeed.
func (p *plainPeer) get(method, target string, body, out any) {
	p.t.Helper()
	status, raw := p.call(as{}, method, target, body)
	if status != http.StatusOK {
		p.t.Fatalf("%s %s: %d %s", method, target, status, raw)
	}
	if out != nil {
		if err := json.Unmarshal(raw, out); err != nil {
			p.t.Fatalf("%s %s: %v in %s", method, target, err, raw)
		}
	}
}

func (p *plainPeer) user(name string) eventgraph.UserID {
	return eventgraph.UserID("@" + name + ":" + string(p.key.Server))
}

// plainRoom is a room as the plain peer knows it after joining.
type plainRoom struct {
	id      eventgraph.RoomID
	version eventgraph.RoomVersion
	state   map[eventgraph.StateTuple]*eventgraph.Event
	join    *eventgraph.Event
	last    *eventgraph.Event // the newest that it knows
}

// join joins a user over make_join and send_join.
func (p *plainPeer) join(room eventgraph.RoomID, user eventgraph.UserID) *plainRoom {
	p.t.Helper()
	var made struct {
		Version eventgraph.RoomVersion `json:"room_version"`
		Event   json.RawMessage
	}
	query := ""
	for _, v := range eventgraph.SupportedVersions() {
		query += "&ver=" + string(v)
	}
	p.get("GET", "/_matrix/federation/v1/make_join/"+url.PathEscape(string(room))+"/"+url.PathEscape(string(user))+"?"+query[1:], nil, &made)
	e, err := eventgraph.Finish(made.Version, made.Event, time.Now().UnixMilli(), p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	var answer struct {
		State     []json.RawMessage
		AuthChain []json.RawMessage `json:"auth_chain"`
	}
	p.get("PUT", "/_matrix/federation/v2/send_join/"+url.PathEscape(string(room))+"/"+url.PathEscape(string(e.ID())), json.RawMessage(e.Raw()), &answer)
	r := &plainRoom{id: room, version: made.Version, state: map[eventgraph.StateTuple]*eventgraph.Event{}, join: e, last: e}
	for _, raw := range answer.State {
		s, err := eventgraph.ParseEvent(made.Version, raw)
		if err != nil {
			p.t.Fatal(err)
		}
		if t, ok := s.Tuple(); ok {
			r.state[t] = s
		}
	}
	t, _ := e.Tuple()
	r.state[t] = e
	return r
}

// draft is a message of the user on top of what the plain peer knows, for tests to spoil.
func (p *plainPeer) draft(r *plainRoom, user eventgraph.UserID, body string) eventgraph.Draft {
	content, _ := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	d := eventgraph.Draft{
		RoomID: r.id, Type: "m.room.message", Sender: user, Content: content, PrevEvents: []eventgraph.EventID{r.last.ID()},
		Depth: r.last.Depth() + 1, OriginServerTS: time.Now().UnixMilli(),
	}
	for _, t := range []eventgraph.StateTuple{{Type: "m.room.create"}, {Type: "m.room.power_levels"}, {Type: "m.room.member", Key: string(user)}} {
		if s := r.state[t]; s != nil && !(t.Type == "m.room.create" && r.version == "12") {
			d.AuthEvents = append(d.AuthEvents, s.ID())
		}
	}
	return d
}

func (p *plainPeer) build(v eventgraph.RoomVersion, d eventgraph.Draft) *eventgraph.Event {
	p.t.Helper()
	e, err := eventgraph.Build(v, d, p.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return e
}

// send sends PDUs and EDUs in a transaction and returns status and answer.
func (p *plainPeer) send(who as, txn string, pdus []json.RawMessage, edus []any) (int, map[eventgraph.EventID]struct{ Error string }) {
	p.t.Helper()
	if pdus == nil {
		pdus = []json.RawMessage{}
	}
	status, raw := p.call(who, "PUT", "/_matrix/federation/v1/send/"+txn, map[string]any{
		"origin": p.key.Server, "origin_server_ts": time.Now().UnixMilli(), "pdus": pdus, "edus": edus,
	})
	var answer struct {
		PDUs map[eventgraph.EventID]struct{ Error string }
	}
	json.Unmarshal(raw, &answer)
	return status, answer.PDUs
}
