package p2ptransport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
)

const (
	// idlePerPeer streams are kept open to each peer between requests: one for transactions, one for questions.
	idlePerPeer = 2
	// idleTotal bounds the buffers that idle streams hold on a node with many peers.
	idleTotal = 128
	// streamsPerPeer bounds the requests under way to one peer; more wait. Below maxStreamsFrom, so that a plexus peer
	// refuses none.
	streamsPerPeer = 24
	// clientIdle is below serverIdle: the side that sends requests closes first, and no request meets a closing stream.
	clientIdle = 90 * time.Second
	// maxResponseHeader: federation answers carry a handful of headers.
	maxResponseHeader = 64 << 10
	// streamTimeout bounds dialling a peer and opening a stream together.
	streamTimeout = 10 * time.Second
	userAgent     = "plexus"
)

// Client sends HTTP requests to peers on kept-alive streams; implementations of Transport have one each. Close closes
// its streams, so that every request and every body still being read fails.
type Client struct {
	dial func(context.Context, PeerID) (net.Conn, error)
	// relayed says whether a peer is reached through relays only; nil: none ever is. What it says when a request begins keeps apart
	// the streams through relays from those on direct connections, so that an idle one of the former is not used again
	// once there is a direct connection; it ends after clientIdle, and then the relayed connection can be closed.
	relayed func(PeerID) bool
	rt      *http.Transport
	ctx     context.Context // ends with Close; of dials, which net/http keeps running beyond a request's own context
	cancel  context.CancelFunc
	dials   group

	mu    sync.Mutex
	conns map[*clientConn]struct{} // nil after Close
}

// NewClient returns a client over streams of ProtocolFederation that dial opens. dial's errors are those of
// Transport.Do.
func NewClient(ctx context.Context, dial func(context.Context, PeerID) (net.Conn, error)) *Client {
	c := &Client{dial: dial, conns: make(map[*clientConn]struct{})}
	c.ctx, c.cancel = context.WithCancel(ctx)
	c.rt = &http.Transport{
		DialContext:            c.open,
		DisableCompression:     true, // bodies pass as they are
		MaxIdleConns:           idleTotal,
		MaxIdleConnsPerHost:    idlePerPeer,
		MaxConnsPerHost:        streamsPerPeer,
		IdleConnTimeout:        clientIdle,
		MaxResponseHeaderBytes: maxResponseHeader,
		ExpectContinueTimeout:  time.Second,
	}
	return c
}

// Do is Transport.Do. A request that meets a stream which the peer has just closed is sent again on a new one, if it
// was not yet written or if its method is idempotent and its body can be read again (http.Request.GetBody).
func (c *Client) Do(ctx context.Context, peer PeerID, req *http.Request) (*http.Response, error) {
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	out := outgoing(ctx, peer, req)
	if c.relayed != nil && c.relayed(peer) {
		out.URL.Host += viaRelay
	}
	resp, err := c.rt.RoundTrip(out)
	if err == nil {
		return resp, nil
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case c.ctx.Err() != nil:
		return nil, ErrClosed
	}
	return nil, sentinel(err)
}

// viaRelay ends the host name that net/http knows a peer's relayed streams by.
const viaRelay = ".relay"

// outgoing is the request as net/http shall send it: the peer ID stands where it looks for a host to dial, and the
// path goes out as it was given.
func outgoing(ctx context.Context, peer PeerID, req *http.Request) *http.Request {
	out := req.WithContext(ctx)
	if out.Host == "" {
		out.Host = req.URL.Host
	}
	out.URL = &url.URL{
		Scheme: "http", Host: string(peer),
		Opaque: req.URL.Opaque, Path: req.URL.Path, RawPath: req.URL.RawPath,
		RawQuery: req.URL.RawQuery, ForceQuery: req.URL.ForceQuery,
	}
	if strings.HasPrefix(out.URL.Opaque, "//") { // url.URL would put the scheme before it
		if path, err := url.PathUnescape(out.URL.Opaque); err == nil {
			out.URL.Path, out.URL.RawPath, out.URL.Opaque = path, out.URL.Opaque, ""
		}
	}
	out.Header = maps.Clone(req.Header)
	if out.Header == nil {
		out.Header = make(http.Header)
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header.Set("User-Agent", userAgent)
	}
	if req.Method == http.MethodPut || req.Method == http.MethodDelete {
		// net/http's way to say that a request may be repeated; an empty value is not sent.
		out.Header["X-Idempotency-Key"] = []string{}
	}
	return out
}

// sentinel maps what a stream or net/http reports to the errors that Transport promises.
func sentinel(err error) error {
	err = asNotHere(err)
	if errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNotHere) || errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("%w: %v", ErrUnreachable, err)
}

// asNotHere turns a refusal by multistream, libp2p's negotiation of protocols, into ErrNotHere.
func asNotHere(err error) error {
	var unsupported multistream.ErrNotSupported[protocol.ID]
	if errors.As(err, &unsupported) {
		return fmt.Errorf("%w: %v", ErrNotHere, err)
	}
	return err
}

// open is the DialContext of net/http, which passes "peer:80".
func (c *Client) open(ctx context.Context, _, addr string) (net.Conn, error) {
	peer, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()

	if !c.dials.enter() {
		return nil, ErrClosed
	}
	defer c.dials.leave()
	conn, err := c.dial(ctx, PeerID(strings.TrimSuffix(peer, viaRelay)))
	if err != nil {
		return nil, err
	}
	cc := &clientConn{Conn: conn, owner: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		cc.abort()
		return nil, ErrClosed
	}
	c.conns[cc] = struct{}{}
	return cc, nil
}

// Close fails what is under way and waits for dials.
func (c *Client) Close() {
	c.cancel()
	c.mu.Lock()
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	for cc := range conns {
		cc.abort()
	}
	c.rt.CloseIdleConnections()
	c.dials.wait()
}

// clientConn resets its stream on Close. net/http closes a connection between requests, when both sides are done, or
// in the middle of one, and then the other side must see that it broke and not that it ended.
type clientConn struct {
	net.Conn
	owner *Client
}

func (cc *clientConn) Close() error {
	cc.owner.mu.Lock()
	delete(cc.owner.conns, cc)
	cc.owner.mu.Unlock()
	return cc.abort()
}

func (cc *clientConn) abort() error {
	if s, ok := cc.Conn.(interface{ Reset() error }); ok {
		return s.Reset()
	}
	return cc.Conn.Close()
}
