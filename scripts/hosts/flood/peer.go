package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multistream"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	federation = "/matrix/federation/1"
	meeting    = "/plexus/meet/1"
	inviting   = "/plexus/invite/1"
	records    = "/plexus/peers/1"
)

// identity is a server of one key, which is its device's too, so that it needs no certificate.
type identity struct {
	key    crypto.PrivKey
	server eventgraph.ServerName
	signs  eventgraph.SigningKey

	mu       sync.Mutex
	document []byte
}

func newIdentity() (*identity, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	key, err := crypto.UnmarshalEd25519PrivateKey(private)
	if err != nil {
		return nil, err
	}
	i := &identity{key: key, server: eventgraph.NewServerName(public)}
	i.signs = eventgraph.SigningKey{Server: i.server, ID: "ed25519:a1", Private: private}
	return i, nil
}

// doc is the key document, made when it is first asked for.
func (i *identity) doc() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.document == nil {
		d, err := eventgraph.SignKeyDocument(i.server, []eventgraph.SigningKey{i.signs}, nil, nil, time.Now().Add(24*time.Hour).UnixMilli())
		if err != nil {
			panic(err) // of our own making
		}
		i.document = d.Raw
	}
	return i.document
}

func (i *identity) userID(name string) eventgraph.UserID {
	return eventgraph.UserID("@" + name + ":" + string(i.server))
}

// quicSockets is shared by all identities, as one program would.
var quicSockets = sync.OnceValues(func() (*quicreuse.ConnManager, error) {
	return quicreuse.NewConnManager([32]byte{}, [32]byte{})
})

// dial connects as the identity: a bare connection, without libp2p's host and what that costs.
func (f *flood) dial(ctx context.Context, i *identity, overTCP bool) (transport.CapableConn, error) {
	if !overTCP {
		sockets, err := quicSockets()
		if err != nil {
			return nil, err
		}
		t, err := libp2pquic.NewTransport(i.key, sockets, nil, nil, &network.NullResourceManager{})
		if err != nil {
			return nil, err
		}
		return t.Dial(ctx, f.quic, f.peer)
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	secure, err := noise.New(noise.ID, i.key, muxers)
	if err != nil {
		return nil, err
	}
	up, err := upgrader.New([]sec.SecureTransport{secure}, muxers, nil, &network.NullResourceManager{}, nil)
	if err != nil {
		return nil, err
	}
	t, err := tcp.NewTCPTransport(up, &network.NullResourceManager{}, nil, tcp.DisableReuseport())
	if err != nil {
		return nil, err
	}
	return t.Dial(ctx, f.tcp, f.peer)
}

// session is a connection as some identity, which answers when it is asked who it is.
type session struct {
	*identity
	f     *flood
	conn  transport.CapableConn
	serve func(w http.ResponseWriter, r *http.Request) bool // nil, or false: not here

	mu   sync.Mutex
	http *stream // one that is not in use
}

// session connects as a new identity, or as i if it is not nil.
func (f *flood) session(ctx context.Context, i *identity, overTCP bool) (*session, error) {
	if i == nil {
		var err error
		if i, err = newIdentity(); err != nil {
			return nil, err
		}
	}
	c, err := f.dial(ctx, i, overTCP)
	if err != nil {
		return nil, err
	}
	s := &session{identity: i, f: f, conn: c}
	go s.accept() // ends with the connection
	return s, nil
}

func (s *session) close() { _ = s.conn.CloseWithError(0) }

// accept serves the streams that the other side opens.
func (s *session) accept() {
	mux := multistream.NewMultistreamMuxer[protocol.ID]()
	mux.AddHandler(federation, nil)
	for {
		st, err := s.conn.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			defer st.Close()
			_ = st.SetDeadline(time.Now().Add(time.Minute))
			if _, _, err := mux.Negotiate(st); err != nil {
				_ = st.Reset()
				return
			}
			r := bufio.NewReader(st)
			for {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				w := &answer{header: http.Header{}, status: http.StatusOK}
				switch {
				case req.URL.Path == "/_matrix/key/v2/server":
					_, _ = w.Write(s.doc())
				case s.serve != nil && s.serve(w, req):
				default:
					w.status = http.StatusNotFound
					_, _ = io.WriteString(w, `{"errcode":"M_UNRECOGNIZED","error":"not here"}`)
				}
				_, _ = io.Copy(io.Discard, req.Body)
				if _, err := fmt.Fprintf(st, "HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
					w.status, w.body.Len(), w.body.Bytes()); err != nil {
					return
				}
			}
		}()
	}
}

// answer collects one.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// stream is a stream of a protocol, whose negotiation goes out with the first bytes.
type stream struct {
	multistream.LazyConn
	raw network.MuxedStream
	r   *bufio.Reader
}

func (s *session) open(ctx context.Context, proto protocol.ID) (*stream, error) {
	raw, err := s.conn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(deadline)
	}
	lazy := multistream.NewMSSelect[protocol.ID](raw, proto)
	return &stream{LazyConn: lazy, raw: raw, r: bufio.NewReader(lazy)}, nil
}

func (st *stream) reset() { _ = st.raw.Reset() }

// call makes a request, signed as its identity's, and returns the status and the body.
func (s *session) call(ctx context.Context, method, target string, body any) (int, []byte, error) {
	var raw []byte
	switch b := body.(type) {
	case nil:
	case json.RawMessage:
		raw = b
	default:
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return 0, nil, err
		}
	}
	header, err := s.authorization(method, target, raw)
	if err != nil {
		return 0, nil, err
	}
	return s.exchange(ctx, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: plexus\r\nContent-Length: %d\r\nAuthorization: %s\r\n\r\n", method, target, len(raw), header), raw)
}

// exchange sends a request as it stands, on a stream that is kept.
func (s *session) exchange(ctx context.Context, head string, body []byte) (int, []byte, error) {
	s.mu.Lock()
	st := s.http
	s.http = nil
	s.mu.Unlock()
	if st == nil {
		var err error
		if st, err = s.open(ctx, federation); err != nil {
			return 0, nil, err
		}
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = st.raw.SetDeadline(deadline)
	}
	if _, err := st.Write(append([]byte(head), body...)); err != nil {
		st.reset()
		return 0, nil, err
	}
	resp, err := http.ReadResponse(st.r, nil)
	if err != nil {
		st.reset()
		return 0, nil, err
	}
	got, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	_ = resp.Body.Close()
	if err != nil || resp.Close {
		st.reset()
		return resp.StatusCode, got, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http == nil {
		s.http = st
	} else {
		st.reset()
	}
	s.f.count(fmt.Sprint(resp.StatusCode))
	return resp.StatusCode, got, nil
}

// authorization is the X-Matrix header (SS API, Request Authentication).
func (s *session) authorization(method, target string, body []byte) (string, error) {
	signed := map[string]any{"method": method, "uri": target, "origin": s.server, "destination": s.f.server}
	if len(body) > 0 {
		signed["content"] = json.RawMessage(body)
	}
	object, err := json.Marshal(signed)
	if err != nil {
		return "", err
	}
	if object, err = eventgraph.SignJSON(object, s.signs); err != nil {
		return "", err
	}
	var out struct {
		Signatures map[eventgraph.ServerName]map[eventgraph.KeyID]string
	}
	if err := json.Unmarshal(object, &out); err != nil {
		return "", err
	}
	return fmt.Sprintf(`X-Matrix origin="%s",destination="%s",key="%s",sig="%s"`, s.server, s.f.server, s.signs.ID, out.Signatures[s.server][s.signs.ID]), nil
}

// send sends a transaction.
func (s *session) send(ctx context.Context, pdus []json.RawMessage, edus []any) error {
	if pdus == nil {
		pdus = []json.RawMessage{}
	}
	body := map[string]any{"origin": s.server, "origin_server_ts": time.Now().UnixMilli(), "pdus": pdus}
	if len(edus) > 0 {
		body["edus"] = edus
	}
	status, raw, err := s.call(ctx, "PUT", fmt.Sprintf("/_matrix/federation/v1/send/t%d", s.f.next()), body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("send: %d %.200s", status, raw)
	}
	return err
}

func path(s string) string { return url.PathEscape(s) }

var errNoRoom = errors.New("this mode needs -room")

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// encodeID is an event ID of room version 4 and up, without its sigil.
func encodeID(hash []byte) string { return base64.RawURLEncoding.EncodeToString(hash) }
