package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// mesh is the nodes of a scenario while it is played. All but watchers and couriers of messages is one goroutine's: play's.
type mesh struct {
	ctx      context.Context
	scenario *Scenario
	net      *memnet.Network
	nodes    []*member
	rooms    []eventgraph.RoomID
	meter    *meter
	progress io.Writer
	begun    time.Time // of the play, after the setup
	hour     time.Time // when to tell next how far it is

	random   *rand.Rand   // of messages
	presence []*rand.Rand // one for each node, so that sessions do not depend on messages
	length   time.Duration
	part     float64     // online
	turns    []time.Time // when each node comes or goes next; zero: not by itself
	every    float64     // messages a second; 0: none
	size     int
	next     time.Time // message
}

// member is a node with its one user.
type member struct {
	*node.Node
	index  int
	peer   p2ptransport.PeerID
	store  *store.Store
	user   eventgraph.UserID
	token  string
	client http.Client
	stop   func() error
	sent   int
}

// clientHost is the client API's address on each node; it leads to the node's own listener.
const clientHost = "127.0.0.1:8008"

// start opens and runs a node with its store in memory.
func (m *mesh) start(dir string, index int, log *slog.Logger) (*member, error) {
	s, err := store.Open("", store.Options{InMemory: true, Log: log})
	if err != nil {
		return nil, err
	}
	listener := newPipeListener()
	opened, err := node.Open(m.ctx, node.Config{
		Dir: filepath.Join(dir, strconv.Itoa(index)), ClientAddrs: []string{clientHost}, NoRateLimits: true, Log: log, Store: s,
		NoGossip: m.scenario.Plain,
		Transport: func(c p2ptransport.Config) (p2ptransport.Transport, error) {
			t, err := m.net.Node(c)
			if err != nil {
				return nil, err
			}
			return publisher{t, func(payload []byte) { m.meter.publishes(index, payload) }}, nil
		},
		Listen: func(context.Context, string, string) (net.Listener, error) { return listener, nil },
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(m.ctx)
	ended := make(chan error, 1)
	go func() { ended <- opened.Run(ctx) }()
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return listener.dial(ctx) },
		DisableKeepAlives: true, // an idle connection would outlive its node
	}
	n := &member{
		Node: opened, index: index, store: s, peer: p2ptransport.PeerID(opened.PeerID()), client: http.Client{Transport: transport},
		stop: func() error {
			cancel()
			return errors.Join(<-ended, opened.Close())
		},
	}
	return n, n.makeUser(ctx)
}

// publisher is a transport whose publishing is watched.
type publisher struct {
	p2ptransport.Transport
	publishes func(payload []byte)
}

func (p publisher) Publish(ctx context.Context, topic string, payload []byte) error {
	p.publishes(payload)
	return p.Transport.Publish(ctx, topic, payload)
}

// makeUser makes the node's user without a password: hashing one takes longer than a hundred messages.
func (n *member) makeUser(ctx context.Context) error {
	n.user = eventgraph.UserID("@u:" + string(n.ServerName()))
	n.token = "token of node " + strconv.Itoa(n.index)
	now := time.Now().UnixMilli()
	_, err := n.store.Update(ctx, func(tx *store.Tx) error {
		if err := tx.PutAccount(&store.Account{User: n.user, CreatedTS: now}); err != nil {
			return err
		}
		return tx.PutDevice(&store.Device{
			User: n.user, ID: "LAB", CreatedTS: now, LastSeenTS: now, Token: sha256.Sum256([]byte(n.token)), Origin: n.PeerID(),
		})
	})
	return err
}

// call asks the node as its user's client does.
func (n *member) call(ctx context.Context, method, path string, body, out any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+clientHost+"/_matrix/client/v3"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+n.token)
	res, err := n.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, answer)
	}
	return json.Unmarshal(answer, out)
}

// say sends a message.
func (n *member) say(ctx context.Context, room eventgraph.RoomID, text string) error {
	n.sent++
	path := fmt.Sprintf("/rooms/%s/send/m.room.message/%d", url.PathEscape(string(room)), n.sent)
	var answer struct{}
	return n.call(ctx, "PUT", path, map[string]string{"msgtype": "m.text", "body": text}, &answer)
}

// setup starts the nodes and brings all of them into all rooms, before any line is slow or anybody away.
func (m *mesh) setup(dir string, log *slog.Logger) error {
	for i := range m.scenario.Nodes {
		n, err := m.start(dir, i, log.With("node", i))
		if n != nil {
			m.nodes = append(m.nodes, n)
		}
		if err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
	}
	if err := m.until("all know each other", m.connected); err != nil {
		return err
	}
	fmt.Fprintf(m.progress, "%d nodes know each other, %v of CPU time\n", len(m.nodes), processCPU().Round(time.Second))
	first := m.nodes[0]
	for range m.scenario.Rooms {
		var made struct {
			Room eventgraph.RoomID `json:"room_id"`
		}
		if err := first.call(m.ctx, "POST", "/createRoom", map[string]any{"preset": "public_chat"}, &made); err != nil {
			return err
		}
		m.rooms = append(m.rooms, made.Room)
		for _, n := range m.nodes[1:] {
			path := "/join/" + url.PathEscape(string(made.Room)) + "?via=" + url.QueryEscape(string(first.ServerName()))
			if err := n.call(m.ctx, "POST", path, struct{}{}, &made); err != nil {
				return fmt.Errorf("node %d: %w", n.index, err)
			}
		}
	}
	fmt.Fprintf(m.progress, "all have joined, %v of CPU time\n", processCPU().Round(time.Second))
	return m.until("all have the same state of every room", func() (bool, error) { different, err := m.sameState(); return different == nil, err })
}

// setupPatience is how long the setup may take, in the nodes' time.
const setupPatience = time.Hour

// until looks every second until check is true.
func (m *mesh) until(what string, check func() (bool, error)) error {
	for limit := time.Now().Add(setupPatience); time.Now().Before(limit); time.Sleep(time.Second) {
		if ok, err := check(); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("not after %v: %s", setupPatience, what)
}

// connected says whether each node knows for whom every other speaks.
func (m *mesh) connected() (bool, error) {
	for _, n := range m.nodes {
		status, err := n.Status()
		if err != nil {
			return false, err
		}
		known := 0
		for _, p := range status.Peers {
			if p.ServerName != "" {
				known++
			}
		}
		if known < len(m.nodes)-1 {
			return false, nil
		}
	}
	return true, nil
}

// sameState compares the state hashes of all nodes; different says where they are not the same.
func (m *mesh) sameState() (different, err error) {
	want, err := m.nodes[0].Status()
	if err != nil {
		return nil, err
	}
	for _, n := range m.nodes[1:] {
		got, err := n.Status()
		if err != nil {
			return nil, err
		}
		for _, room := range m.rooms {
			if got.Rooms[room] == nil || want.Rooms[room] == nil || got.Rooms[room].StateHash != want.Rooms[room].StateHash {
				return fmt.Errorf("nodes 0 and %d have different states of %s", n.index, room), nil
			}
		}
	}
	return nil, nil
}

// expectEqual compares state and messages of all nodes.
func (m *mesh) expectEqual() error {
	different, err := m.sameState()
	return errors.Join(err, different, m.meter.expectDelivered(1))
}

// close ends all nodes.
func (m *mesh) close() error {
	var wg sync.WaitGroup
	errs := make([]error, len(m.nodes))
	for i, n := range m.nodes {
		wg.Go(func() {
			if err := n.stop(); err != nil {
				errs[i] = fmt.Errorf("node %d: %w", i, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// pipeListener accepts what dial makes, in memory.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8008} }
