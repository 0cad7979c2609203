package federation

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxKeyDocument bounds a key document read from a peer: a certificate of a few hundred devices.
	maxKeyDocument = 128 << 10
	// maxDocuments bounds the documents kept in memory: strangers' identities are free. Those of servers that we
	// share rooms with are in the store, and are read again when needed.
	maxDocuments = 2048
	// identifyAtOnce is how many newly connected peers are asked who they are at one time.
	identifyAtOnce = 8
	// identifyTimeout is how long a peer may take to show its key document.
	identifyTimeout = 10 * time.Second
	// seekTimeout is how long a request may wait for the answers of peers being asked who they are.
	seekTimeout = 3 * time.Second
	// identifyEvery is how often connected peers are looked over: who is not known yet, or whose document will soon end, is asked again.
	identifyEvery = 15 * time.Second
	// identifyBackoff is the longest time between two questions to a peer that does not say who it is.
	identifyBackoff = 10 * time.Minute
	// renewBefore is how long before the end of its validity a connected peer's document is fetched anew; they are renewed daily
	// and valid for up to 7 days.
	renewBefore = 24 * time.Hour
)

// contact is a connected peer that speaks for a server by the document that we hold. Since is the turn at which this became so.
type contact struct {
	Server eventgraph.ServerName
	Peer   eventgraph.PeerID
	Since  uint64
}

// link is a connection to a peer.
type link struct {
	server   eventgraph.ServerName   // for which it speaks; "" if not known
	document *eventgraph.KeyDocument // by which it does
	since    uint64                  // the turn at which it was connected or its server became known
	pending  bool                    // to be asked, or being asked, who it is
	asked    int                     // questions without an answer
	next     time.Time               // when to ask again
	pace     *pace                   // what the link carries
}

// peers knows who speaks for whom and who is connected. Its turn grows with each news.
type peers struct {
	now func() time.Time

	mu        sync.Mutex
	documents *lru.Cache[eventgraph.ServerName, *eventgraph.KeyDocument]
	links     map[eventgraph.PeerID]*link // one for each connection: bounded by the transport
	turn      uint64
	changed   chan struct{} // closed and replaced at each turn

	blocked map[eventgraph.ServerName]bool              // servers that are not met: see block.go
	refused map[eventgraph.PeerID]eventgraph.ServerName // their devices, as far as known
}

func newPeers(now func() time.Time) *peers {
	documents, err := lru.New[eventgraph.ServerName, *eventgraph.KeyDocument](maxDocuments)
	if err != nil {
		panic("federation: document cache: " + err.Error()) // only for a size below 1
	}
	return &peers{
		now:       now,
		documents: documents,
		links:     map[eventgraph.PeerID]*link{},
		changed:   make(chan struct{}),
		blocked:   map[eventgraph.ServerName]bool{},
		refused:   map[eventgraph.PeerID]eventgraph.ServerName{},
	}
}

// advance begins a new turn; mu is held.
func (p *peers) advance() uint64 {
	p.turn++
	close(p.changed)
	p.changed = make(chan struct{})
	return p.turn
}

// connected notes a new connection and says whether its peer should be asked who it is. One that was connected is reached otherwise: it is met
// anew, and what is known of the link's speed is of another.
func (p *peers) connected(peer eventgraph.PeerID) (ask bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l, ok := p.links[peer]; ok {
		l.pace, l.since = newPace(), p.advance()
		return false
	}
	l := &link{pace: newPace()}
	p.links[peer] = l
	for _, server := range p.documents.Keys() {
		d, _ := p.documents.Peek(server)
		if speaksNow(d, peer, p.now()) && consents(d, peer) {
			l.server, l.document = server, d
		}
	}
	l.since = p.advance()
	l.pending = l.server == ""
	return l.pending
}

func (p *peers) disconnected(peer eventgraph.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, peer)
	p.advance()
}

// learn takes a server's newest document: connected peers that it names speak for the server from now on, others no longer.
// from is the peer that showed it as its own, "" if somebody else did. It returns the document that counts, which is the one held
// before if that is newer.
func (p *peers) learn(d *eventgraph.KeyDocument, from eventgraph.PeerID) *eventgraph.KeyDocument {
	p.mu.Lock()
	defer p.mu.Unlock()
	if held, ok := p.documents.Peek(d.ServerName); ok && newer(held, d) {
		d = held
	}
	p.put(d, from)
	return d
}

// adopt is learn for a document as the store says that it counts: two certificates that contradict each other leave less than either
// of them, so it gives way to a newer certificate only.
func (p *peers) adopt(d *eventgraph.KeyDocument, from eventgraph.PeerID) *eventgraph.KeyDocument {
	p.mu.Lock()
	defer p.mu.Unlock()
	if held, ok := p.documents.Peek(d.ServerName); ok && seq(held) > seq(d) {
		d = held
	}
	p.put(d, from)
	return d
}

// seq is the certificate's sequence number; 0 without one.
func seq(d *eventgraph.KeyDocument) int64 {
	if d.Certificate == nil {
		return 0
	}
	return d.Certificate.Seq
}

// put makes d the server's document; mu is held.
func (p *peers) put(d *eventgraph.KeyDocument, from eventgraph.PeerID) {
	p.documents.Add(d.ServerName, d)
	if p.blocked[d.ServerName] {
		p.refuseDevices(d)
	}
	news := false
	for peer, l := range p.links {
		speaks := speaksNow(d, peer, p.now())
		switch {
		case l.server == d.ServerName && !speaks:
			l.server, l.document, news = "", nil, true
		case l.server == d.ServerName:
			l.document = d
		case l.server == "" && speaks && (peer == from || consents(d, peer)):
			l.server, l.document, l.asked, news = d.ServerName, d, 0, true
			l.since = p.turn + 1
		}
	}
	if news {
		p.advance()
	}
}

// newer says whether the document a is to be preferred to b, another of the same server: by its certificate's sequence
// number, then by its validity.
func newer(a, b *eventgraph.KeyDocument) bool {
	if seq(a) != seq(b) {
		return seq(a) > seq(b)
	}
	return a.ValidUntilTS > b.ValidUntilTS
}

// speaksNow says whether the peer may speak for the document's server now, by a document that is valid now.
func speaksNow(d *eventgraph.KeyDocument, peer eventgraph.PeerID, now time.Time) bool {
	return d.ValidUntilTS > now.UnixMilli() && d.Speaks(peer, now.UnixMilli())
}

// consents says whether the peer itself has signed the document, or is the identity. Without it a certificate could name other people's devices.
func consents(d *eventgraph.KeyDocument, peer eventgraph.PeerID) bool {
	key := peer.PublicKey()
	if key == nil {
		return false
	}
	if key.Equal(d.ServerName.PublicKey()) {
		return true
	}
	for _, k := range d.VerifyKeys {
		if key.Equal(k) {
			return true
		}
	}
	return false
}

// met waits for news and returns the contacts, but for those of blocked servers, that are so since a turn after the one given, with the turn to
// ask for next. Nothing is lost between two calls: who went and came again is there with the later turn.
func (p *peers) met(ctx context.Context, after uint64) ([]contact, uint64, error) {
	for {
		p.mu.Lock()
		turn, changed := p.turn, p.changed
		var found []contact
		for peer, l := range p.links {
			if l.server != "" && l.since > after && !p.blocked[l.server] {
				found = append(found, contact{l.server, peer, l.since})
			}
		}
		p.mu.Unlock()
		if len(found) > 0 {
			return found, turn, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, turn, ctx.Err()
		}
	}
}

// latest is the turn after which met waits for what has not happened yet.
func (p *peers) latest() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turn
}

// since is the turn at which the peer was met; false if it is not connected or not known to speak for anybody.
func (p *peers) since(peer eventgraph.PeerID) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.links[peer]
	if l == nil || l.server == "" || p.blocked[l.server] {
		return 0, false
	}
	return l.since, true
}

// pause waits for the time given, or until there is a token in early, or until the peer has gone or was met anew after the turn; false if ctx
// has ended.
func (p *peers) pause(ctx context.Context, peer eventgraph.PeerID, after uint64, wait time.Duration, early <-chan struct{}) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if now, ok := p.since(peer); !ok || now != after {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-early:
			return true
		case <-changed:
		}
	}
}

// contacts lists who is connected now.
func (p *peers) contacts() []contact {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []contact
	for peer, l := range p.links {
		if l.server != "" && !p.blocked[l.server] {
			all = append(all, contact{l.server, peer, l.since})
		}
	}
	return all
}

// of lists the connected peers of a server, in the order in which they were met.
func (p *peers) of(server eventgraph.ServerName) []eventgraph.PeerID {
	var found []contact
	p.mu.Lock()
	if !p.blocked[server] {
		for peer, l := range p.links {
			if l.server == server {
				found = append(found, contact{l.server, peer, l.since})
			}
		}
	}
	p.mu.Unlock()
	slices.SortFunc(found, func(a, b contact) int { return int(a.Since) - int(b.Since) })
	all := make([]eventgraph.PeerID, len(found))
	for i, c := range found {
		all[i] = c.Peer
	}
	return all
}

// isConnected says whether some peer of the server is connected.
func (p *peers) isConnected(server eventgraph.ServerName) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blocked[server] {
		return false
	}
	for _, l := range p.links {
		if l.server == server {
			return true
		}
	}
	return false
}

// watch is isConnected, and what is closed with the next news.
func (p *peers) watch(server eventgraph.ServerName) (changed <-chan struct{}, connected bool) {
	p.mu.Lock()
	changed = p.changed
	p.mu.Unlock()
	return changed, p.isConnected(server)
}

// servers are those of which some peer is connected.
func (p *peers) servers() map[eventgraph.ServerName]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[eventgraph.ServerName]bool, len(p.links))
	for _, l := range p.links {
		if l.server != "" && !p.blocked[l.server] {
			all[l.server] = true
		}
	}
	return all
}

// paceOf is that of the link to a peer; of one that is not connected it is kept nowhere.
func (p *peers) paceOf(peer eventgraph.PeerID) *pace {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.links[peer]; l != nil {
		return l.pace
	}
	return newPace()
}

// due lists connected peers that should be asked who they are: those not known, and those whose document ends soon.
func (p *peers) due() []eventgraph.PeerID {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	var due []eventgraph.PeerID
	for peer, l := range p.links {
		if now.Before(l.next) {
			continue
		}
		if l.server != "" && l.document.ValidUntilTS > now.Add(renewBefore).UnixMilli() {
			continue
		}
		due = append(due, peer)
	}
	return due
}

// asking says whether a connected peer is being asked who it is, or soon will be, and what is closed with the next news.
func (p *peers) asking() (changed <-chan struct{}, asking bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		if l.server == "" && l.pending {
			return p.changed, true
		}
	}
	return p.changed, false
}

// answered notes that a question has ended, with whatever answer.
func (p *peers) answered(peer eventgraph.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.links[peer]; l != nil && l.pending {
		l.pending = false
		p.advance()
	}
}

// asked notes that the peer was asked, and when it may be asked again.
func (p *peers) asked(peer eventgraph.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.links[peer]; l != nil {
		wait := min(identifyEvery<<min(l.asked, 10), identifyBackoff)
		l.asked++
		l.next = p.now().Add(wait)
	}
}

// lapse takes the server from peers that may no longer speak for it because its document has ended.
func (p *peers) lapse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, news := p.now(), false
	for peer, l := range p.links {
		if l.server != "" && !speaksNow(l.document, peer, now) {
			l.server, l.document, news = "", nil, true
		}
	}
	if news {
		p.advance()
	}
}

// ServerOf names the server that a connected peer speaks for, if known; for status and peers.
func (f *Federation) ServerOf(peer eventgraph.PeerID) (eventgraph.ServerName, bool) {
	f.peers.mu.Lock()
	defer f.peers.mu.Unlock()
	l := f.peers.links[peer]
	if l == nil || l.server == "" {
		return "", false
	}
	return l.server, true
}

// Friend says whether a peer has presented an invite token of ours, or is connected and speaks for a server that shares a room with us
// (design.md §7) by whose ACL it is not denied. Peers of blocked servers are strangers.
func (f *Federation) Friend(peer eventgraph.PeerID) bool {
	if f.peers.refuses(peer) {
		return false
	}
	if f.invitees.holds(peer, f.Now()) {
		return true
	}
	server, known := f.ServerOf(peer)
	return known && f.sharesRoom(server)
}

// loadPeers rebuilds who speaks for whom from the store.
func (f *Federation) loadPeers() error {
	return f.Store.View(func(r *store.Reader) error {
		return r.KeyDocuments(func(d *eventgraph.KeyDocument) (bool, error) {
			f.peers.adopt(d, "")
			return true, nil
		})
	})
}

// runPeers follows connects and disconnects and asks newcomers who they are.
func (f *Federation) runPeers(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	ask := newQueue()
	group.Go(func() error {
		f.Transport.Watch(ctx, func(peer eventgraph.PeerID, connected bool) {
			if !connected {
				f.peers.disconnected(peer)
			} else if f.peers.connected(peer) {
				ask.add(peer)
			}
			if connected {
				f.dropRefused()
			}
		})
		return nil
	})
	group.Go(func() error {
		tick := time.NewTicker(identifyEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				f.peers.lapse()
				for _, peer := range f.peers.due() {
					ask.add(peer)
				}
			}
		}
	})
	for range identifyAtOnce {
		group.Go(func() error {
			for {
				peer, ok := ask.take(ctx)
				if !ok {
					return nil
				}
				f.ask(ctx, peer)
				f.dropRefused()
			}
		})
	}
	return group.Wait()
}

// ask asks a connected peer who it is; the answer is in peers.
func (f *Federation) ask(ctx context.Context, peer eventgraph.PeerID) {
	defer f.peers.answered(peer)
	f.peers.asked(peer)
	if d, err := f.identify(ctx, peer); err != nil {
		f.Log.Debug("peer does not say who it is", "peer", peer, "err", err)
	} else {
		f.Log.Debug("peer speaks for server", "peer", peer, "server", d.ServerName)
	}
}

// seek waits a little for the server to be found among peers that are just being asked who they are.
func (f *Federation) seek(ctx context.Context, server eventgraph.ServerName) {
	ctx, cancel := context.WithTimeout(ctx, seekTimeout)
	defer cancel()
	for !f.peers.isConnected(server) {
		changed, asking := f.peers.asking()
		if !asking {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// identify asks the peer for its own key document (SS API, Publishing Keys).
func (f *Federation) identify(ctx context.Context, peer eventgraph.PeerID) (*eventgraph.KeyDocument, error) {
	ctx, cancel := context.WithTimeout(ctx, identifyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(peer)+"/_matrix/key/v2/server", nil)
	if err != nil {
		return nil, err
	}
	res, err := f.Transport.Do(ctx, peer, req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("key document: status %d", res.StatusCode)
	}
	raw, err := readBounded(res.Body, maxKeyDocument)
	if err != nil {
		return nil, fmt.Errorf("key document: %w", err)
	}
	d, err := eventgraph.ParseKeyDocument(raw)
	if err != nil {
		return nil, fmt.Errorf("key document: %w", err)
	}
	if d.Speaks(peer, d.ValidUntilTS-1) {
		f.hearClock(d.ServerName, res) // also where by our clock the document has ended long ago: then ours may be the wrong one
	}
	if !speaksNow(d, peer, f.Now()) {
		return nil, errors.New("key document does not let the peer speak for the server that it names")
	}
	return f.learn(ctx, d, peer)
}

// hearClock notes what a server's clock showed when it answered (RFC 9110, section 6.6.1, Date).
func (f *Federation) hearClock(server eventgraph.ServerName, res *http.Response) {
	if t, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		f.Rooms.PeerClock(server, t)
	}
}

// learn takes in a document: into the store if the server matters there (it has one already, or shares a room with us), into
// memory in any case. It returns the document that now counts.
func (f *Federation) learn(ctx context.Context, d *eventgraph.KeyDocument, from eventgraph.PeerID) (*eventgraph.KeyDocument, error) {
	if f.kept(d.ServerName) {
		return f.keep(ctx, d, from)
	}
	return f.peers.learn(d, from), nil
}

// kept says whether the server's documents belong in the store. A stranger's do not: anybody can make any number.
func (f *Federation) kept(server eventgraph.ServerName) bool {
	if server == f.server {
		return true // who shows one has our identity key: see compromise.go
	}
	held, err := f.storedDocument(server)
	return err == nil && held != nil || f.inSomeRoom(server)
}

// inSomeRoom says whether a user of the server is joined to a room that is held here, whatever the room's ACL says: its events come by others, and its
// users' devices are written to.
func (f *Federation) inSomeRoom(server eventgraph.ServerName) bool {
	joined, err := f.meetings.sharing.joined(server)
	if err != nil {
		f.Log.Error("cannot tell who shares a room", "err", err)
	}
	return joined
}

// sharesRoom says whether a user of the server is joined to a room that is held here and whose ACL does not deny the server.
func (f *Federation) sharesRoom(server eventgraph.ServerName) bool {
	shares, err := f.meetings.sharing.shares(server)
	if err != nil {
		f.Log.Error("cannot tell who shares a room", "err", err)
	}
	return shares
}

// keep stores a document, which may be older than the one held: old signatures are judged by it. It returns the one that now counts.
func (f *Federation) keep(ctx context.Context, d *eventgraph.KeyDocument, from eventgraph.PeerID) (*eventgraph.KeyDocument, error) {
	held, err := f.storedDocument(d.ServerName)
	if err != nil {
		return nil, err
	}
	if held == nil || !bytes.Equal(held.Raw, d.Raw) {
		if err := f.putDocument(ctx, d); err != nil {
			f.Log.Warn("key document refused", "server", d.ServerName, "err", err)
			return nil, fmt.Errorf("key document of %s: %w", d.ServerName, err)
		}
		if held, err = f.storedDocument(d.ServerName); err != nil {
			return nil, err
		}
	}
	return f.peers.adopt(held, from), nil
}

// storedDocument reads a server's document from the store; nil if there is none.
func (f *Federation) storedDocument(server eventgraph.ServerName) (d *eventgraph.KeyDocument, err error) {
	err = f.Store.View(func(r *store.Reader) (err error) {
		d, err = r.KeyDocument(server)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	return d, err
}

// document is the server's newest document held, in memory or in the store; nil if none.
func (f *Federation) document(server eventgraph.ServerName) *eventgraph.KeyDocument {
	if server == f.server {
		return f.KeyDocument()
	}
	f.peers.mu.Lock()
	d, ok := f.peers.documents.Get(server)
	f.peers.mu.Unlock()
	if ok {
		return d
	}
	d, err := f.storedDocument(server)
	if err != nil {
		f.Log.Error("key document not readable", "server", server, "err", err)
	}
	if d == nil {
		return nil
	}
	return f.peers.adopt(d, "")
}

// candidates lists the peers to try for a server: those connected, then those that its document names, then the peer whose key is
// the name itself (design.md §1: such a server needs no certificate).
func (f *Federation) candidates(server eventgraph.ServerName) []eventgraph.PeerID {
	all := f.peers.of(server)
	add := func(p eventgraph.PeerID) {
		if p != f.self() && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	for _, p := range f.certified(server) {
		add(p)
	}
	if key := server.PublicKey(); key != nil {
		add(eventgraph.NewPeerID(key))
	}
	return all
}

// certified lists the devices that a server's certificate names, as far as it is known and they count now.
func (f *Federation) certified(server eventgraph.ServerName) (all []eventgraph.PeerID) {
	d := f.document(server)
	if d == nil || d.Certificate == nil {
		return nil
	}
	now := f.Now().UnixMilli()
	for _, device := range d.Certificate.Devices {
		if _, ok := d.Certificate.Device(device.PeerID, now); ok {
			all = append(all, device.PeerID)
		}
	}
	return all
}

// devices is certified, and of a server without a certificate the peer whose key is its name.
func (f *Federation) devices(server eventgraph.ServerName) []eventgraph.PeerID {
	if all := f.certified(server); len(all) > 0 {
		return all
	}
	if key := server.PublicKey(); key != nil {
		return []eventgraph.PeerID{eventgraph.NewPeerID(key)}
	}
	return nil
}

// self is our own peer ID.
func (f *Federation) self() eventgraph.PeerID {
	return eventgraph.NewPeerID(f.Key.Private.Public().(ed25519.PublicKey))
}

// readBounded reads all of r, or fails if there is more than limit.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, errTooLong
	}
	return b, nil
}

var errTooLong = errors.New("longer than allowed")

// queue holds peers that wait to be asked, each once.
type queue struct {
	mu      sync.Mutex
	waiting []eventgraph.PeerID
	more    chan struct{} // holds one token while waiting is not empty
}

func newQueue() *queue { return &queue{more: make(chan struct{}, 1)} }

func (q *queue) add(peer eventgraph.PeerID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !slices.Contains(q.waiting, peer) {
		q.waiting = append(q.waiting, peer)
	}
	q.signal()
}

// take waits for the next peer; false when ctx has ended.
func (q *queue) take(ctx context.Context) (eventgraph.PeerID, bool) {
	for {
		select {
		case <-ctx.Done():
			return "", false
		case <-q.more:
		}
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.mu.Unlock()
			continue
		}
		peer := q.waiting[0]
		q.waiting = q.waiting[1:]
		if len(q.waiting) > 0 {
			q.signal()
		}
		q.mu.Unlock()
		return peer, true
	}
}

func (q *queue) signal() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}
