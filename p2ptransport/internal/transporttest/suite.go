// Package transporttest is the conformance suite of p2ptransport.Transport. It runs over every implementation.
package transporttest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// Make starts a node, with a new key and without MDNS if c says nothing else. Nodes from one Make can reach each other
// at their Addrs. The suite closes them.
type Make func(c p2ptransport.Config) (p2ptransport.Transport, error)

// Run runs the suite; setup begins a network for each test.
func Run(t *testing.T, setup func(t *testing.T) Make) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *network)
	}{
		{"Request", testRequest},
		{"LargeBodies", testLargeBodies},
		{"ExactPath", testExactPath},
		{"KeepAlive", testKeepAlive},
		{"StaleStream", testStaleStream},
		{"Concurrent", testConcurrent},
		{"BothWays", testBothWays},
		{"NotHere", testNotHere},
		{"Unreachable", testUnreachable},
		{"AddAddrs", testAddAddrs},
		{"AddPeer", testAddPeer},
		{"StaticPeers", testStaticPeers},
		{"Records", testRecords},
		{"Streams", testStreams},
		{"Watch", testWatch},
		{"Refuse", testRefuse},
		{"Contexts", testContexts},
		{"CutResponse", testCutResponse},
		{"CutRequest", testCutRequest},
		{"BodyLimit", testBodyLimit},
		{"HalfClose", testHalfClose},
		{"HalfBody", testHalfBody},
		{"Close", testClose},
		{"GossipBurst", testGossipBurst},
		{"GossipBounds", testGossipBounds},
		{"GossipStranger", testGossipStranger},
		{"GossipForward", testGossipForward},
		{"GossipOnce", testGossipOnce},
		{"GossipCancel", testGossipCancel},
		{"GossipAgain", testGossipAgain},
		{"GossipFlood", testGossipFlood},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, &network{t, setup(t)})
		})
	}
}

// patience is how long a test waits for what must come; nothing waits so long when all is well.
const patience = 20 * time.Second

type network struct {
	t    *testing.T
	make Make
}

// node starts a node that serves h.
func (n *network) node(h http.Handler) p2ptransport.Transport {
	return n.nodeWith(p2ptransport.Config{Handler: h})
}

func (n *network) nodeWith(c p2ptransport.Config) p2ptransport.Transport {
	n.t.Helper()
	if c.Key == nil {
		c.Key = Key(n.t)
	}
	node, err := n.make(c)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = node.Close() })
	return node
}

// pair is a node that serves h and one that is connected to it.
func (n *network) pair(h http.Handler) (server, client p2ptransport.Transport) {
	n.t.Helper()
	server, client = n.node(h), n.node(nil)
	n.connect(client, server)
	return server, client
}

func (n *network) connect(from, to p2ptransport.Transport) {
	n.t.Helper()
	if err := from.AddPeer(n.ctx(), to.Addrs()[0]); err != nil {
		n.t.Fatal(err)
	}
}

func (n *network) ctx() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	n.t.Cleanup(cancel)
	return ctx
}

// Key is a new device key.
func Key(t testing.TB) ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// do sends a request that must be answered, and reads the answer.
func (n *network) do(from, to p2ptransport.Transport, r *http.Request) (*http.Response, string) {
	n.t.Helper()
	resp, err := from.Do(n.ctx(), to.ID(), r)
	if err != nil {
		n.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatalf("%s %s: body: %v", r.Method, r.URL, err)
	}
	return resp, string(body)
}

// get is do of a simple request, for goroutines.
func get(ctx context.Context, from, to p2ptransport.Transport, path string) (string, error) {
	r, err := http.NewRequest(http.MethodGet, "http://ignored.invalid"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := from.Do(ctx, to.ID(), r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	peer, _ := p2ptransport.PeerFrom(r.Context())
	_, _ = io.WriteString(w, "hello "+string(peer))
})

func testRequest(t *testing.T, n *network) {
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := p2ptransport.PeerFrom(r.Context())
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", fmt.Sprint(ok, " ", r.Method, " ", r.Header.Get("Authorization"), " ", r.UserAgent(), " ", len(r.Header["X-Idempotency-Key"])))
		w.WriteHeader(http.StatusTeapot)
		_, _ = fmt.Fprintf(w, "%s %s", peer, body)
	}))
	r := request(t, http.MethodPut, "matrix://some.name/x", strings.NewReader("body"))
	r.Header.Set("Authorization", "X-Matrix y")
	resp, body := n.do(client, server, r)
	if resp.StatusCode != http.StatusTeapot {
		t.Errorf("status %d", resp.StatusCode)
	}
	if want := string(client.ID()) + " body"; body != want {
		t.Errorf("body %q, want %q", body, want)
	}
	if got, want := resp.Header.Get("X-Seen"), "true PUT X-Matrix y plexus 0"; got != want {
		t.Errorf("the server saw %q, want %q", got, want)
	}
}

func testLargeBodies(t *testing.T, n *network) {
	const size = 8 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data)
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		for part := range 3 {
			if part > 0 {
				_, _ = w.Write(body)
			}
		}
	}))
	_, body := n.do(client, server, request(t, http.MethodPost, "http://x/", bytes.NewReader(data)))
	if want := append(bytes.Clone(data), data...); sha256.Sum256([]byte(body)) != sha256.Sum256(want) {
		t.Errorf("%d bytes came back changed as %d", len(want), len(body))
	}
}

func testExactPath(t *testing.T, n *network) {
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.RequestURI)
	}))
	for _, path := range []string{
		"/_matrix/federation/v1/send/a",
		"/_matrix/federation/v1/event/%24a%2Fb%2fc",
		"/a//b/../c/./d/",
		"//double",
		"/a%20b+c?q=%2F&q=/&r=a+b%20c",
		"/empty?",
		"/!room:k51x/$event=@:;,~'()*",
		"/%E2%98%83",
	} {
		r := request(t, http.MethodGet, "http://x/", nil)
		r.URL.Opaque, r.URL.RawQuery, r.URL.ForceQuery = path, "", false
		if before, query, found := strings.Cut(path, "?"); found {
			r.URL.Opaque, r.URL.RawQuery, r.URL.ForceQuery = before, query, query == ""
		}
		if _, got := n.do(client, server, r); got != path {
			t.Errorf("Opaque %s arrived as %s", path, got)
		}
	}
	for _, path := range []string{"/a%2Fb%2fc", "//double/../x?y=%2f", "/plain"} {
		r := request(t, http.MethodGet, "http://x"+path, nil)
		if _, got := n.do(client, server, r); got != path {
			t.Errorf("path %s arrived as %s", path, got)
		}
	}
}

// traced counts the streams that requests open.
func traced(ctx context.Context, opened *atomic.Int32) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if !i.Reused {
			opened.Add(1)
		}
	}})
}

func testKeepAlive(t *testing.T, n *network) {
	server, client := n.pair(hello)
	var opened atomic.Int32
	for range 20 {
		body, err := get(traced(n.ctx(), &opened), client, server, "/")
		if err != nil || body != "hello "+string(client.ID()) {
			t.Fatalf("%q, %v", body, err)
		}
	}
	// An answer is complete a moment before its stream is idle again, so a second stream is possible.
	if got := opened.Load(); got > 2 {
		t.Errorf("20 requests in sequence opened %d streams", got)
	}
}

// testStaleStream: the server closes a kept-alive stream after each answer without having said so.
func testStaleStream(t *testing.T, n *network) {
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		_ = rw.Flush()
		_ = conn.Close()
	}))
	for i := range 20 {
		want := fmt.Sprint("body ", i)
		if _, got := n.do(client, server, request(t, http.MethodPut, "http://x/", strings.NewReader(want))); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func testConcurrent(t *testing.T, n *network) {
	const together = 16
	var inside sync.WaitGroup
	inside.Add(together)
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/together" {
			inside.Done()
			inside.Wait()
		}
		_, _ = io.WriteString(w, r.URL.Path)
	}))
	var wg sync.WaitGroup
	for i := range 100 {
		path := fmt.Sprint("/", i)
		if i < together {
			path = "/together"
		}
		wg.Go(func() {
			if body, err := get(n.ctx(), client, server, path); err != nil || body != path {
				t.Errorf("%s: %q, %v", path, body, err)
			}
		})
	}
	wg.Wait()
}

// testBothWays: who was dialled sends requests on the same connection, without an address.
func testBothWays(t *testing.T, n *network) {
	a, b := n.node(hello), n.node(hello)
	n.connect(a, b)
	if body, err := get(n.ctx(), b, a, "/"); err != nil || body != "hello "+string(b.ID()) {
		t.Errorf("%q, %v", body, err)
	}
}

func testNotHere(t *testing.T, n *network) {
	server, client := n.pair(nil)
	if _, err := get(n.ctx(), client, server, "/"); !errors.Is(err, p2ptransport.ErrNotHere) {
		t.Errorf("request to a node without a handler: %v", err)
	}
	s, err := client.OpenStream(n.ctx(), server.ID(), "/plexus/nothing/1")
	if err == nil { // libp2p may learn it only when the stream is used
		_, err = s.Read(make([]byte, 1))
		_ = s.Close()
	}
	if !errors.Is(err, p2ptransport.ErrNotHere) {
		t.Errorf("stream of an unknown protocol: %v", err)
	}
	if len(client.Peers()) != 1 {
		t.Error("asking for an unknown protocol cost the connection")
	}
}

func testStreams(t *testing.T, n *network) {
	const protocol = "/plexus/echo/1"
	server, client := n.pair(hello)
	server.Handle(protocol, func(ctx context.Context, peer p2ptransport.PeerID, s net.Conn) {
		defer s.Close()
		if _, err := io.WriteString(s, string(peer)+"\n"); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(s, s)
	})
	s, err := client.OpenStream(n.ctx(), server.ID(), protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := strings.Repeat("echo", 50_000)
	go func() {
		_, _ = io.WriteString(s, want)
		if c, ok := s.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		} else {
			t.Error("stream cannot close its half")
		}
	}()
	got, err := io.ReadAll(s)
	if err != nil || string(got) != string(client.ID())+"\n"+want {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	_ = s.SetReadDeadline(time.Now().Add(-time.Second))
	again, err := client.OpenStream(n.ctx(), server.ID(), protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := io.ReadFull(again, make([]byte, len(client.ID())+1)); err != nil {
		t.Fatal(err)
	}
	_ = again.SetReadDeadline(time.Now().Add(-time.Second))
	var timeout net.Error
	if _, err := again.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read after the deadline: %v", err)
	}
}

func testContexts(t *testing.T, n *network) {
	arrived := make(chan struct{}, 2)
	released := make(chan struct{}, 2)
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
		released <- struct{}{}
	}))
	ctx, cancel := context.WithCancel(n.ctx())
	go func() {
		<-arrived
		cancel()
	}()
	if _, err := get(ctx, client, server, "/"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(n.ctx(), 100*time.Millisecond)
	defer cancel()
	if _, err := get(ctx, client, server, "/"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("timed out: %v", err)
	}
	// The server learns that nobody waits.
	<-released
}

func testCutResponse(t *testing.T, n *network) {
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", "100")
		}
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	for _, path := range []string{"/length", "/chunked"} {
		if body, err := get(n.ctx(), client, server, path); err == nil {
			t.Errorf("%s: a response that was cut read as %q", path, body)
		}
	}
}

func testCutRequest(t *testing.T, n *network) {
	begun, read := make(chan struct{}, 1), make(chan error, 1)
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadFull(r.Body, make([]byte, 1))
		if err == nil {
			begun <- struct{}{}
			_, err = io.Copy(io.Discard, r.Body)
		}
		read <- err
	}))
	part := make([]byte, 32<<10)
	for _, length := range []int64{1 << 20, -1} {
		body, feed := io.Pipe()
		r := request(t, http.MethodPut, "http://x/", body)
		r.ContentLength = length
		ctx, cancel := context.WithCancel(n.ctx())
		go func() {
			_, _ = feed.Write(part) // beyond any buffer of net/http
			<-begun
			cancel()
			_ = feed.CloseWithError(context.Canceled) // Do waits for the body to be left alone
		}()
		if _, err := client.Do(ctx, server.ID(), r); !errors.Is(err, context.Canceled) {
			t.Errorf("length %d: %v", length, err)
		}
		select {
		case err := <-read:
			if err == nil {
				t.Errorf("length %d: the server read half of a request as the whole", length)
			}
		case <-time.After(patience):
			t.Fatal("the server did not notice")
		}
	}
}

func testBodyLimit(t *testing.T, n *network) {
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			return
		}
		var tooLarge *http.MaxBytesError
		if _, err := io.Copy(io.Discard, r.Body); !errors.As(err, &tooLarge) {
			t.Errorf("reading an endless body: %v", err)
		}
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	endless := request(t, http.MethodPost, "http://x/", zeros{})
	endless.ContentLength = -1
	resp, err := client.Do(n.ctx(), server.ID(), endless)
	if err == nil { // or the stream broke before the answer was read
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d", resp.StatusCode)
		}
	} else if !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Error(err)
	}
	if _, err := get(n.ctx(), client, server, "/"); err != nil {
		t.Errorf("next request: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// testHalfClose: a plain client that ends its half of the stream after the request gets its answer.
func testHalfClose(t *testing.T, n *network) {
	closed := make(chan struct{})
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/other" {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		<-closed
		if r.Context().Err() != nil {
			t.Error("the end of the request was taken for its loss")
		}
		hello(w, r)
	}))
	s, err := client.OpenStream(n.ctx(), server.ID(), p2ptransport.ProtocolFederation)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// A whole exchange after the end was sent: it has been read, or is about to be.
	if _, err := get(n.ctx(), client, server, "/other"); err != nil {
		t.Fatal(err)
	}
	close(closed)
	_ = s.SetReadDeadline(time.Now().Add(patience))
	answer, err := io.ReadAll(s)
	if err != nil || !strings.HasSuffix(string(answer), "hello "+string(client.ID())) {
		t.Errorf("%q, %v", answer, err)
	}
}

// testHalfBody: a client that ends its half of the stream in the middle of a body is seen to have done so at once.
func testHalfBody(t *testing.T, n *network) {
	read := make(chan error, 1)
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		read <- err
	}))
	s, err := client.OpenStream(n.ctx(), server.ID(), p2ptransport.ProtocolFederation)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nsome"); err != nil {
		t.Fatal(err)
	}
	if err := s.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("reading half a body: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the server still reads a body that has ended")
	}
}

func testClose(t *testing.T, n *network) {
	arrived := make(chan struct{}, 1)
	var ended atomic.Bool
	server, client := n.pair(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
		ended.Store(true)
	}))
	var streamEnded atomic.Bool
	server.Handle("/plexus/wait/1", func(ctx context.Context, _ p2ptransport.PeerID, s net.Conn) {
		defer s.Close()
		_, _ = s.Write([]byte("x"))
		_, _ = s.Read(make([]byte, 1))
		<-ctx.Done()
		streamEnded.Store(true)
	})
	s, err := client.OpenStream(n.ctx(), server.ID(), "/plexus/wait/1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := get(n.ctx(), client, server, "/")
		failed <- err
	}()
	<-arrived
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if !ended.Load() || !streamEnded.Load() {
		t.Error("Close did not wait for the handlers")
	}
	if err := <-failed; !errors.Is(err, p2ptransport.ErrUnreachable) {
		t.Errorf("request to a node that closed: %v", err)
	}
	if err := server.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}

	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if _, err := get(n.ctx(), client, server, "/"); !errors.Is(err, p2ptransport.ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
	if _, err := client.OpenStream(n.ctx(), server.ID(), "/plexus/wait/1"); !errors.Is(err, p2ptransport.ErrClosed) {
		t.Errorf("OpenStream after Close: %v", err)
	}
	if err := client.AddPeer(n.ctx(), "/ip4/127.0.0.1/tcp/1/p2p/"+string(server.ID())); !errors.Is(err, p2ptransport.ErrClosed) {
		t.Errorf("AddPeer after Close: %v", err)
	}
	client.Watch(n.ctx(), func(e p2ptransport.PeerEvent) { t.Errorf("event after Close: %+v", e) }) // returns
}
