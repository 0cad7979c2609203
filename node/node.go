// Package node is a whole plexus homeserver: Open composes store, rooms, federation, client API and
// transport; Run serves until its context ends; Close releases everything in the right order. It can be
// embedded in a Go program: see examples/embed.
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/node/ephemeral"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/push"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/node/search"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/store"
)

// DefaultClientAddr is where Matrix clients connect unless Config says otherwise.
const DefaultClientAddr = "127.0.0.1:8008"

// Version is the program's version, shown by "plexus version", in node.json and to peers that ask.
const Version = "0.1.0"

// Config of a node. The zero value of optional fields is usable.
type Config struct {
	Dir               string                 // data directory, made if absent; required
	ClientAddrs       []string               // host:port of the client API; default DefaultClientAddr; port 0 picks one
	P2PAddrs          []string               // multiaddrs; default QUIC and TCP on all interfaces
	Peers             []string               // static peers, multiaddrs with /p2p/ID
	NoMDNS            bool                   // do not look for peers on the LAN
	Relay             bool                   // carry connections between nodes that share rooms with this one, and their invitees
	MeshKey           *p2ptransport.MeshKey  // private mesh: nodes with this key only; nil: open
	LANOnly           bool                   // never send a packet outside of private address ranges; not with URLPreviews
	Registration      clientapi.Registration // default clientapi.RegistrationToken
	RegistrationToken string                 // "": made at first start and kept in Dir
	Terms             clientapi.Policies     // what people who register with a client have to accept; none: nothing
	RoomVersion       eventgraph.RoomVersion // of rooms that clients make without naming one; "": eventgraph.DefaultRoomVersion
	NoRateLimits      bool
	AppServices       []string         // files with registrations of application services
	Media             media.Limits     // in bytes; 0: the defaults of package media
	URLPreviews       bool             // previews of links in messages: their servers learn that somebody here reads them
	PrivateGateways   bool             // users may have push gateways in private networks and on this machine, over HTTP too
	TURN              *clientapi.TURN  // relays for calls, which clients are told of; nil: none
	NoGossip          bool             // send each event of a large room to each of its servers
	Log               *slog.Logger     // nil: none
	Now               func() time.Time // nil: time.Now

	// Transport replaces libp2p, for tests and laboratories; nil: p2ptransport.New.
	Transport func(p2ptransport.Config) (p2ptransport.Transport, error)
	// Store replaces the one in Dir, for laboratories; Close closes it. Keys and small files stay in Dir.
	Store *store.Store
	// Listen replaces the operating system's sockets for clients, for laboratories in virtual time, where a goroutine that waits for the
	// operating system would stop the clock. There is no admin socket then; nil: TCP.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
}

// Node is an open homeserver. Open starts nothing but the transport's and the store's own goroutines; Run starts
// the rest and waits for them.
type Node struct {
	config    Config
	log       *slog.Logger
	keys      *deviceKeys
	document  ownDocument
	store     *store.Store
	ephemeral *ephemeral.State
	media     *media.Repository
	rooms     *rooms.Rooms
	services  *appservice.Services
	sender    *appservice.Sender
	api       *clientapi.API
	push      *push.Sender
	fed       *federation.Federation
	transport p2ptransport.Transport
	listeners []net.Listener
	admin     net.Listener
	token     string
	firstRun  bool
}

// Open opens the data directory and composes the node. On error nothing stays open.
func Open(ctx context.Context, c Config) (_ *Node, err error) {
	if c, err = c.withDefaults(); err != nil {
		return nil, err
	}
	n := &Node{config: c, log: c.Log}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()

	// The store's lock on the directory comes first: only one process may make keys in it.
	if err := n.openStore(ctx); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(c.Dir, certificateFile)); errors.Is(err, fs.ErrNotExist) && n.hasUsers() {
		return nil, fmt.Errorf("%s is missing from %s, though the store there has users: put it back, or with a new one nobody would know this server again", certificateFile, c.Dir)
	}
	if n.keys, n.firstRun, err = loadKeys(c.Dir, c.Now().UnixMilli()); err != nil {
		return nil, err
	}
	if n.token, err = registrationToken(c.Dir, c.RegistrationToken); err != nil {
		return nil, err
	}
	if n.document.current, err = n.signDocument(); err != nil {
		return nil, err
	}
	n.ephemeral = ephemeral.New(c.Now)
	n.rooms = rooms.New(rooms.Config{Store: n.store, Key: n.keys.signing(), Now: c.Now, Log: c.Log})
	if n.services, err = appservice.Load(c.AppServices, n.keys.server, c.LANOnly); err != nil {
		return nil, err
	}
	n.media = media.New(media.Config{Store: n.store, Key: n.keys.signing(), Limits: c.Media, Now: c.Now})
	gateways := push.Gateways{Private: c.PrivateGateways, LANOnly: c.LANOnly}
	n.api = clientapi.New(clientapi.Config{
		Store: n.store, Rooms: n.rooms, Ephemeral: n.ephemeral, Media: n.media, URLPreviews: c.URLPreviews,
		Server: n.keys.server, Peer: n.keys.peer, Registration: c.Registration, RegistrationToken: n.token, Terms: c.Terms, RoomVersion: c.RoomVersion,
		RateLimits: !c.NoRateLimits, Services: n.services, PushGateways: gateways, TURN: c.TURN, PeersConnected: func() int { return len(n.transport.Peers()) },
		Hosts: hostsOf(c.ClientAddrs), Now: c.Now, Log: c.Log,
	})
	n.push = push.New(push.Config{Store: n.store, Source: n.api, Gateways: gateways, Now: c.Now, Log: c.Log})
	if err := n.openServices(ctx); err != nil {
		return nil, err
	}
	if err := n.openFederation(); err != nil {
		return nil, err
	}

	listen, ownSockets := c.Listen, c.Listen == nil
	if ownSockets {
		listen = (&net.ListenConfig{}).Listen
	}
	for _, addr := range c.ClientAddrs {
		l, err := listen(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen for Matrix clients on %s: %w (choose another with --client-addr)", addr, err)
		}
		n.listeners = append(n.listeners, l)
	}
	if ownSockets {
		if err := n.listenAdmin(ctx); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// withDefaults fills in what was left open, and refuses what cannot work.
func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, errors.New("open node: no data directory given")
	}
	if path := filepath.Join(c.Dir, adminSocket); len(path) > maxSocketPath {
		return c, fmt.Errorf("data directory %s: the path %s is too long for a unix socket, by %d bytes: choose a shorter one with --data", c.Dir, path, len(path)-maxSocketPath)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if len(c.ClientAddrs) == 0 {
		c.ClientAddrs = []string{DefaultClientAddr}
	}
	if _, known := c.RoomVersion.Traits(); c.RoomVersion != "" && !known {
		return c, fmt.Errorf("open node: room version %q is not supported", c.RoomVersion)
	}
	if c.LANOnly && c.URLPreviews {
		return c, errors.New("open node: URLPreviews calls public addresses, and LANOnly calls none: choose one")
	}
	if err := c.Terms.Check(); err != nil {
		return c, fmt.Errorf("open node: %w", err)
	}
	if c.Registration == "" {
		c.Registration = clientapi.RegistrationToken
	}
	if c.Transport == nil {
		c.Transport = func(c p2ptransport.Config) (p2ptransport.Transport, error) {
			h, err := p2ptransport.New(c)
			if err != nil {
				return nil, err // and not a Transport that holds a nil Host, which Close would call
			}
			return h, nil
		}
	}
	return c, nil
}

// openStore locks and opens the data directory.
func (n *Node) openStore(ctx context.Context) (err error) {
	c := &n.config
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	if n.store = c.Store; n.store == nil {
		n.store, err = store.Open(filepath.Join(c.Dir, "store"), store.Options{Log: c.Log})
	}
	if err != nil {
		return fmt.Errorf("data directory %s: %w", c.Dir, err)
	}
	// A node.json that is here is a dead process's: scripts take it for the sign that this one serves.
	if err := os.Remove(filepath.Join(c.Dir, nodeFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old %s: %w", nodeFile, err)
	}
	if loss := n.store.Loss(); loss != "" {
		c.Log.Warn("the store has lost records; peers will be asked for them", "loss", loss)
	}
	if err := n.store.DropOneTimeKeys(ctx, c.Now()); errors.Is(err, store.ErrDiskFull) {
		c.Log.Warn("one-time keys of an older life of this data directory stay until there is room on the disk")
	} else if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	return nil
}

// openServices makes ready what application services need.
func (n *Node) openServices(ctx context.Context) (err error) {
	if err := n.api.EnsureServiceUsers(ctx); err != nil {
		return fmt.Errorf("make the users of application services: %w", err)
	}
	n.sender, err = appservice.NewSender(ctx, appservice.Config{
		Store: n.store, Ephemeral: n.ephemeral, Services: n.services, Local: n.api, Log: n.log,
	})
	return err
}

// openFederation composes transport and federation. The transport serves requests from its first moment; what it serves waits
// until the federation stands.
func (n *Node) openFederation() (err error) {
	c := &n.config
	ready := make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ready:
			n.fed.Handler().ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	})
	n.transport, err = c.Transport(p2ptransport.Config{
		Key: n.keys.device, Listen: c.P2PAddrs, StaticPeers: c.Peers, MDNS: !c.NoMDNS, Handler: handler, Log: c.Log,
		Relay: c.Relay, MeshKey: c.MeshKey, LANOnly: c.LANOnly, AddressBook: addressBook{n.store},
		Friend: whenReady(ready, func(p eventgraph.PeerID) bool { return n.fed.Friend(p) }),
		Gossip: whenReady(ready, func(p eventgraph.PeerID) bool { return n.fed.Gossips(p) }),
		Guest: func(from, to p2ptransport.PeerID) bool {
			return whenReady(ready, func(from eventgraph.PeerID) bool { return n.fed.Guest(from, eventgraph.PeerID(to)) })(from)
		},
		Refuse: whenReady(ready, func(p eventgraph.PeerID) bool { return n.fed.Refuses(p) }),
	})
	if err != nil {
		return fmt.Errorf("start transport: %w", err)
	}
	var gossip federation.Gossip
	if !c.NoGossip {
		gossip = network{n.transport}
	}
	n.fed = federation.New(federation.Config{
		Store: n.store, Rooms: n.rooms, Ephemeral: n.ephemeral, Media: n.media, Transport: network{n.transport}, Records: network{n.transport}, Gossip: gossip,
		Key: n.keys.signing(), KeyDocument: n.keyDocument, Local: n.api, Relay: c.Relay, Now: c.Now, Log: c.Log,
		RefusalChanged: func(p eventgraph.PeerID) { n.transport.RefusalChanged(p2ptransport.PeerID(p)) },
		PeerOf: func(ctx context.Context) (eventgraph.PeerID, bool) {
			p, ok := p2ptransport.PeerFrom(ctx)
			return eventgraph.PeerID(p), ok
		},
	})
	n.api.SetRemote(n.fed)
	close(ready)
	return nil
}

// whenReady lets the transport ask about a peer: until the federation stands, the answer is no.
func whenReady(ready <-chan struct{}, is func(eventgraph.PeerID) bool) func(p2ptransport.PeerID) bool {
	return func(p p2ptransport.PeerID) bool {
		select {
		case <-ready:
			return is(eventgraph.PeerID(p))
		default:
			return false
		}
	}
}

// hasUsers says whether somebody has made an account here: then the identity is one that others know.
func (n *Node) hasUsers() (has bool) {
	err := n.store.View(func(r *store.Reader) error {
		return r.Accounts(func(*store.Account) (bool, error) { has = true; return false, nil })
	})
	return has || err != nil
}

// ServerName is the node's server name.
func (n *Node) ServerName() eventgraph.ServerName { return n.keys.server }

// PeerID is the name of the node's device key.
func (n *Node) PeerID() eventgraph.PeerID { return n.keys.peer }

// ClientURL is the address to enter in a Matrix client: the first of the client API's addresses.
func (n *Node) ClientURL() string { return "http://" + n.listeners[0].Addr().String() }

// P2PAddrs are the multiaddrs, with /p2p/ID, under which others can reach the node.
func (n *Node) P2PAddrs() []string { return n.transport.Addrs() }

// RegistrationToken is asked for at registration when Config.Registration is token.
func (n *Node) RegistrationToken() string { return n.token }

// FirstRun says whether Open has made the node's keys.
func (n *Node) FirstRun() bool { return n.firstRun }

// Loss tells in words what a damaged store has lost; "" if nothing.
func (n *Node) Loss() string { return n.store.Loss() }

// AddPeer dials a multiaddr with /p2p/ID now and keeps it as a static peer while the node runs.
func (n *Node) AddPeer(ctx context.Context, multiaddr string) error {
	return n.transport.AddPeer(ctx, multiaddr)
}

// WatchPeers calls f for each peer that connects or goes, until ctx ends.
func (n *Node) WatchPeers(ctx context.Context, f func(p2ptransport.PeerEvent)) {
	n.transport.Watch(ctx, f)
}

// Bounds of the client API's HTTP server. A long poll may take minutes, so writing has no limit of its own.
const (
	clientHeaderTimeout = 10 * time.Second
	clientIdleTimeout   = 2 * time.Minute
	clientHeaderBytes   = 32 << 10
	// clientConns are open at one time on each listener; further ones are closed. A client has some ten, and each takes some 10 KiB.
	clientConns     = 4096
	shutdownTimeout = 3 * time.Second // exit within five seconds of a signal, the rest is for the store
)

// Run serves until ctx ends or something essential fails, and returns when all that it started has ended. It writes
// node.json when the node can serve and removes it at the end. Close must follow.
func (n *Node) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.fed.Run(ctx) })
	group.Go(func() error { return n.sender.Run(ctx) })
	for _, l := range n.listeners {
		n.serveHTTP(ctx, group, limited{l, make(chan struct{}, clientConns)}, n.api.Handler())
	}
	if n.admin != nil {
		n.serveHTTP(ctx, group, n.admin, n.adminHandler())
	}
	group.Go(func() error { return n.push.Run(ctx) })
	group.Go(func() error { return n.rooms.RunMerging(ctx) })
	group.Go(func() error { return n.api.RunDelayed(ctx) })
	group.Go(func() error { n.api.FinishDeactivations(ctx); return nil })
	group.Go(func() error { search.NewIndexer(n.store, n.log).Run(ctx); return nil })
	group.Go(func() error { collectTrieNodes(ctx, n.store, n.config.Now, n.log); return nil })
	group.Go(n.writeNodeFile) // all listeners are open
	defer os.Remove(filepath.Join(n.config.Dir, nodeFile))
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// serveHTTP serves h on l until ctx ends; long polls see ctx end with it.
func (n *Node) serveHTTP(ctx context.Context, group *errgroup.Group, l net.Listener, h http.Handler) {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: clientHeaderTimeout, IdleTimeout: clientIdleTimeout, MaxHeaderBytes: clientHeaderBytes,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
	group.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if server.Shutdown(stop) != nil {
			server.Close()
		}
		return ctx.Err()
	})
}

// Close releases what Open took: first what brings work in (listeners, transport), then what does it, the store last, so that
// nothing accepted is cut off from its commit.
func (n *Node) Close() error {
	var errs []error
	for _, l := range n.listeners {
		l.Close()
	}
	if n.admin != nil {
		n.admin.Close()
	}
	if n.transport != nil {
		errs = append(errs, n.transport.Close())
	}
	if n.rooms != nil {
		n.rooms.Close()
	}
	if n.ephemeral != nil {
		n.ephemeral.Close()
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// hostsOf strips the ports of the addresses: under these hosts clients may address us.
func hostsOf(addrs []string) []string {
	var hosts []string
	for _, addr := range addrs {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}
