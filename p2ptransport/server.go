package p2ptransport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// maxStreamsFrom one peer: a peer needs a few, and each costs a goroutine and two buffers.
	maxStreamsFrom = 32
	// maxStreams from all peers together, some 10 KiB each while idle.
	maxStreams = 512
	// maxServing requests at once; more wait, at most servingWait, and are then asked to come back.
	maxServing  = 128
	servingWait = 10 * time.Second
	// maxStrangerStreams and maxStrangersServing are the part of these that all strangers have together (Config.Friend): identities are
	// free, so per-peer bounds alone would let one machine take everything.
	maxStrangerStreams  = 128
	maxStrangersServing = 32
	// maxRequestHeader leaves room for a path with many event IDs.
	maxRequestHeader = 32 << 10
	// maxRequestBody is above the largest transaction: 50 PDUs of 64 KiB and 100 EDUs (spec, SS API, transactions).
	maxRequestBody = 16 << 20
	// headerTimeout, bodyTimeout: a peer on a slow link needs seconds, one that trickles bytes holds a stream no longer.
	headerTimeout = 10 * time.Second
	bodyTimeout   = 2 * time.Minute
	serverIdle    = 2 * time.Minute
	// writeStall is how long a peer may take to accept writeChunk bytes of a response.
	writeStall = 30 * time.Second
	writeChunk = 16 << 10
)

// Server serves ProtocolFederation on streams; implementations of Transport have one each.
type Server struct {
	http     http.Server
	log      *slog.Logger
	handler  http.Handler
	serving  chan struct{}
	strange  chan struct{} // the strangers among serving
	friend   func(PeerID) bool
	requests group // the handlers
	serves   group // net/http's goroutine for each stream
	cancel   context.CancelFunc

	mu        sync.Mutex
	streams   map[string]int // open streams by remote address, which is the peer ID
	total     int
	strangers int                   // of total
	served    map[net.Conn]struct{} // those counted in serves
}

// NewServer returns a server that hands requests to c.Handler with the peer in their context (PeerFrom). The remote address of
// each stream must be the peer's ID. Of ctx only the values count: Close ends the server. c.Log must be set.
func NewServer(ctx context.Context, c Config) *Server {
	log := c.Log
	s := &Server{log: log, handler: c.Handler, friend: c.Friend,
		serving: make(chan struct{}, maxServing), strange: make(chan struct{}, maxStrangersServing),
		streams: make(map[string]int), served: make(map[net.Conn]struct{})}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.http = http.Server{
		Handler:                      http.HandlerFunc(s.serve),
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext:                  withRemotePeer,
		ConnState:                    s.count,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  bodyTimeout,
		IdleTimeout:                  serverIdle,
		MaxHeaderBytes:               maxRequestHeader,
		DisableGeneralOptionsHandler: true,
		// What net/http has to say here is about single streams of single peers.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

func withRemotePeer(ctx context.Context, c net.Conn) context.Context {
	if sc, ok := c.(*serverConn); ok {
		ctx = context.WithValue(ctx, streamKey{}, sc)
	}
	return WithPeer(ctx, PeerID(c.RemoteAddr().String()))
}

// streamKey is under what a request's context has its stream.
type streamKey struct{}

// Serve accepts streams until the listener or the server is closed.
func (s *Server) Serve(l net.Listener) { _ = s.http.Serve(&boundedListener{l, s}) }

// Close breaks all streams, then ends the contexts of handlers, and waits for them. In this order a handler that is
// cut short answers nothing, where it might have answered too early and well.
func (s *Server) Close() {
	_ = s.http.Close()
	s.cancel()
	s.requests.wait()
	s.serves.wait()
}

// count follows net/http's goroutines, of which it says only by this hook when they begin and end.
func (s *Server) count(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch _, counted := s.served[c]; {
	case state == http.StateNew && s.serves.enter():
		s.served[c] = struct{}{}
	case counted && (state == http.StateClosed || state == http.StateHijacked):
		delete(s.served, c)
		s.serves.leave()
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if !s.requests.enter() {
		panic(http.ErrAbortHandler)
	}
	defer s.requests.leave()
	places := []chan struct{}{s.serving}
	if sc, ok := r.Context().Value(streamKey{}).(*serverConn); ok && s.isStranger(sc) {
		places = []chan struct{}{s.strange, s.serving}
	}
	turn := time.NewTimer(servingWait)
	defer turn.Stop()
	for _, place := range places {
		select {
		case place <- struct{}{}:
			defer func() { <-place }()
		case <-turn.C:
			w.Header().Set("Retry-After", "10")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		case <-r.Context().Done():
			return
		}
	}
	if r.ContentLength == 0 {
		// All is read. The deadline would otherwise end the context of a response that takes long.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxRequestBody)
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				s.log.Error("handler of a peer's request panicked", "method", r.Method, "panic", p, "stack", string(debug.Stack()))
			}
			panic(http.ErrAbortHandler)
		}
	}()
	s.handler.ServeHTTP(w, r)
}

// boundedListener accepts no more streams than the bounds allow; what is above is reset.
type boundedListener struct {
	net.Listener
	s *Server
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := c.RemoteAddr().String()
		stranger := l.s.friend != nil && !l.s.friend(PeerID(peer))
		if l.s.admit(peer, stranger) {
			sc := &serverConn{Conn: c, stranger: stranger}
			sc.left = sync.OnceFunc(func() { l.s.leave(sc) })
			return sc, nil
		}
		if r, ok := c.(interface{ Reset() error }); ok {
			_ = r.Reset()
		} else {
			_ = c.Close()
		}
	}
}

func (s *Server) admit(peer string, stranger bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= maxStreams || s.streams[peer] >= maxStreamsFrom || stranger && s.strangers >= maxStrangerStreams {
		return false
	}
	s.total++
	if stranger {
		s.strangers++
	}
	s.streams[peer]++
	return true
}

// isStranger says whether the stream is a stranger's still: who has become a friend meanwhile, as by the join that it asked for on this very
// stream, is one from its next request on.
func (s *Server) isStranger(c *serverConn) bool {
	s.mu.Lock()
	was := c.stranger
	s.mu.Unlock()
	if !was || !s.friend(PeerID(c.RemoteAddr().String())) {
		return was
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.stranger {
		c.stranger = false
		s.strangers--
	}
	return false
}

func (s *Server) leave(c *serverConn) {
	peer := c.RemoteAddr().String()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if c.stranger {
		c.stranger = false
		s.strangers--
	}
	if s.streams[peer]--; s.streams[peer] == 0 {
		delete(s.streams, peer)
	}
}

// serverConn gives each chunk of a response its own deadline: a large response may take long, a stalled one may not. And a client that
// has written its request may close its half of the stream and wait for the answer.
type serverConn struct {
	net.Conn
	stranger bool // guarded by Server.mu
	left     func()

	mu     sync.Mutex
	closed bool          // and so no deadline lies ahead
	passed chan struct{} // closed when the read deadline has passed; nil: made at need
	timer  *time.Timer   // closes passed
	late   bool          // passed was closed at once, for a deadline of the past
}

// Read is that of the stream, except for net/http's look-out for a client that goes away while its request is served: it reads
// a single byte, and takes the stream's end for the client's. Here the end says only that the client has no more to say; so it
// waits for the read deadline, by which net/http ends the look-out. Everywhere else the end is the end: a body
// that was cut off is an error at once.
func (c *serverConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	switch {
	case n > 0 && err == io.EOF:
		return n, nil // the end comes with the next Read: net/http takes it for the client's also beside the last bytes
	case err != io.EOF || len(b) != 1:
		return n, err
	}
	c.mu.Lock()
	passed := c.deadline()
	c.mu.Unlock()
	<-passed
	return 0, os.ErrDeadlineExceeded
}

// deadline is the channel of the current read deadline; mu is held.
func (c *serverConn) deadline() chan struct{} {
	if c.passed == nil {
		c.passed = make(chan struct{})
	}
	return c.passed
}

// SetReadDeadline moves the deadline of a Read that waits, too.
func (c *serverConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if c.late || c.timer != nil && !c.timer.Stop() {
		c.passed = nil // the old deadline has passed; who reads from now on has the new one
	}
	c.timer, c.late = nil, false
	passed := c.deadline()
	switch wait := time.Until(t); {
	case t.IsZero():
	case wait > 0:
		c.timer = time.AfterFunc(wait, func() { close(passed) })
	default: // no timer: in virtual time with the race detector the runtime does not survive one of the past
		c.late = true
		close(passed)
	}
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline is for both directions.
func (c *serverConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *serverConn) Write(b []byte) (n int, err error) {
	for first := true; first || n < len(b); first = false {
		_ = c.SetWriteDeadline(time.Now().Add(writeStall))
		m, err := c.Conn.Write(b[n:min(len(b), n+writeChunk)])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (c *serverConn) Close() error {
	c.left()
	err := c.Conn.Close()
	_ = c.SetReadDeadline(time.Unix(1, 0)) // wakes a Read that waits; the stream is closed, so it may fail
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return err
}
