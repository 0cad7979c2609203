package p2ptransport

import (
	"errors"
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// MaxRecord bounds a signed peer record in bytes: maxAddrs addresses and a signature.
	MaxRecord = 4 << 10
	// maxRecords are held; as many as peers are known.
	maxRecords = maxKnown
)

var (
	// ErrRecord: not a peer record that the peer itself has signed.
	ErrRecord = errors.New("not a signed record of that peer")
	// ErrOldRecord: a record with the same or a higher seq is held.
	ErrOldRecord = errors.New("a record as new is held")
)

// Records holds the newest signed record of each peer: the addresses that the peer itself says it has, under a signature of
// its key, so that anybody may hand it on (libp2p, RFC 0002 and 0003). Implementations of Transport keep one. The zero value is
// ready.
type Records struct {
	mu      sync.Mutex
	held    map[PeerID]*heldRecord
	count   uint64 // of records taken in so far
	changed chan struct{}
}

type heldRecord struct {
	raw   []byte
	seq   uint64
	count uint64
}

// Add takes in a record, a marshalled libp2p envelope, and returns the addresses in it. A record that is no newer than the one held is
// refused. Errors: ErrRecord, ErrOldRecord.
func (r *Records) Add(p PeerID, raw []byte) ([]ma.Multiaddr, error) {
	rec, err := readRecord(p, raw)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.held[p]
	if old != nil && old.seq >= rec.Seq {
		return nil, ErrOldRecord
	}
	if r.held == nil {
		r.held = make(map[PeerID]*heldRecord)
	}
	if old == nil && len(r.held) >= maxRecords {
		r.makeRoom()
	}
	r.count++
	r.held[p] = &heldRecord{raw: raw, seq: rec.Seq, count: r.count}
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	return rec.Addrs[:min(len(rec.Addrs), maxAddrs)], nil
}

// makeRoom forgets the record that came in first; it needs mu.
func (r *Records) makeRoom() {
	var first PeerID
	for p, h := range r.held {
		if first == "" || h.count < r.held[first].count {
			first = p
		}
	}
	delete(r.held, first)
}

// Get is the newest record of a peer and its seq; nil and 0 if none is held.
func (r *Records) Get(p PeerID) (raw []byte, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.held[p]; h != nil {
		return h.raw, h.seq
	}
	return nil, 0
}

// Changed is closed when a record is taken in after the call.
func (r *Records) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

// readRecord checks that the peer has signed the record and speaks in it of itself.
func readRecord(p PeerID, raw []byte) (*peer.PeerRecord, error) {
	if len(raw) > MaxRecord {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrRecord, len(raw))
	}
	var rec peer.PeerRecord
	envelope, err := record.ConsumeTypedEnvelope(raw, &rec)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrRecord, err)
	}
	signer, err := peer.IDFromPublicKey(envelope.PublicKey)
	if err != nil || signer != rec.PeerID || PeerID(signer.String()) != p {
		return nil, fmt.Errorf("%w: it is signed by %s and speaks of %s", ErrRecord, signer, rec.PeerID)
	}
	return &rec, nil
}

// followRecords takes in what identify brings, at each connection and when a peer's addresses have changed.
func (h *Host) followRecords() {
	sub, err := h.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted), eventbus.BufSize(64), eventbus.Name("peer records"))
	if err != nil {
		h.log.Error("no peer records are kept", "error", err)
		return
	}
	defer sub.Close()
	for {
		select {
		case <-h.ctx.Done():
			return
		case e, ok := <-sub.Out():
			if !ok {
				return
			}
			identified, ok := e.(event.EvtPeerIdentificationCompleted)
			if !ok {
				continue
			}
			h.answered(identified.Conn, identified.Conn.Stat().Opened)
			if identified.SignedPeerRecord == nil {
				continue
			}
			raw, err := identified.SignedPeerRecord.Marshal()
			if err == nil {
				_, err = h.records.Add(PeerID(identified.Peer.String()), raw)
			}
			if err != nil && !errors.Is(err, ErrOldRecord) {
				h.log.Debug("peer record of identify", "peer", identified.Peer, "error", err)
			}
		}
	}
}

// Record is the newest signed record of a peer; see Transport.
func (h *Host) Record(p PeerID) ([]byte, uint64) { return h.records.Get(p) }

// RecordsChanged is closed when a new record has come; see Transport.
func (h *Host) RecordsChanged() <-chan struct{} { return h.records.Changed() }

// AddRecord takes in a record that somebody else handed on, and dials the peer there unless it is connected; see Transport.
func (h *Host) AddRecord(p PeerID, raw []byte) error {
	id, err := peer.Decode(string(p))
	if err != nil || p == h.id {
		return fmt.Errorf("%w: it is of %q", ErrRecord, p)
	}
	addrs, err := h.records.Add(p, raw)
	if err != nil {
		return err
	}
	loopback := h.onLoopbackOnly()
	var dial []ma.Multiaddr
	for _, a := range addrs {
		// A link-local address means nothing without its link, and one of loopback is the peer's own, not ours.
		if reachable(a) && (loopback || !manet.IsIPLoopback(a)) {
			dial = append(dial, a)
		}
	}
	if len(dial) > 0 {
		h.keeper.heard(id, dial)
	}
	return nil
}

// reachable says whether an address from a record can be one to dial.
func reachable(a ma.Multiaddr) bool {
	if manet.IsIP6LinkLocal(a) {
		return false
	}
	ip, err := manet.ToIP(a)
	return err != nil || !ip.IsUnspecified() && !ip.IsMulticast()
}

// onLoopbackOnly says whether this host can be reached on this machine alone, as in a laboratory: then others' loopback
// addresses are ours.
func (h *Host) onLoopbackOnly() bool {
	for _, a := range h.swarm.ListenAddresses() {
		if _, err := manet.ToIP(a); err == nil && !manet.IsIPLoopback(a) {
			return false
		}
	}
	return true
}
