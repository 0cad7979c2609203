package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// A message begins with a marker, by which its copies are found in what goes over the wire.
const (
	markerHead   = "lab:"
	markerDigits = 7
	markerLen    = len(markerHead) + markerDigits + 1
	maxMessages  = 1_000_000 // of one scenario
)

func marker(number int) string { return fmt.Sprintf("%s%0*d:", markerHead, markerDigits, number) }

// findMarker returns the number of the first marker in b, and what follows it; -1 if there is none.
func findMarker(b []byte) (number int, rest []byte) {
	for {
		at := bytes.Index(b, []byte(markerHead))
		if at < 0 || len(b)-at < markerLen {
			return -1, nil
		}
		b = b[at+len(markerHead):]
		n, err := strconv.Atoi(string(b[:markerDigits]))
		if err == nil && b[markerDigits] == ':' {
			return n, b[markerDigits+1:]
		}
	}
}

// nodeSet is a set of nodes by index.
type nodeSet []uint64

func (s nodeSet) has(i int) bool { return s[i/64]>>(i%64)&1 == 1 }
func (s nodeSet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s nodeSet) meets(o nodeSet) bool {
	for i, w := range s {
		if w&o[i] != 0 {
			return true
		}
	}
	return false
}

// message is what is known of one that was sent.
type message struct {
	author    int
	sent      time.Time
	published bool // by gossip
	holders   nodeSet
	seen      nodeSet     // by whom a copy was sent, or who got one: for who reached whom
	inReach   []time.Time // since when each node, which does not hold it, is in contact with one that does; nil when all hold it
}

// meter notes who holds which message since when, and what was sent for it.
type meter struct {
	watchers sync.WaitGroup

	mu       sync.Mutex
	n        int
	index    map[p2ptransport.PeerID]int
	online   []bool
	group    []int
	contact  []nodeSet
	messages []*message
	begun    bool
	err      error
	cpu      time.Duration // of the process when the play began

	sinceSent  []time.Duration // of deliveries to others
	sinceReach []time.Duration
	missed     []time.Duration // contacts that ended without delivery
	bytes      map[string]int  // by purpose: endpoint or protocol
	by         []int           // bytes sent, by node
	packets    int             // that a real transport would have put the bytes in, roughly
	copies     int             // of messages, sent to others
	sealed     map[seal][]int  // by the end of a payload of gossip, the messages in it
	reached    [][]int         // [from][to]: the first copies
	changed    time.Time       // the network, last
	delivered  time.Time       // a message, last
}

func newMeter(n int) *meter {
	m := &meter{
		n: n, index: map[p2ptransport.PeerID]int{}, online: make([]bool, n), group: make([]int, n), contact: make([]nodeSet, n),
		bytes: map[string]int{}, by: make([]int, n), reached: make([][]int, n), sealed: map[seal][]int{},
	}
	for i := range n {
		m.online[i], m.reached[i] = true, make([]int, n)
	}
	m.setContacts()
	return m
}

// start begins to measure, or begins anew.
func (m *meter) start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.messages) > 0 {
		return errors.New("messages were sent already")
	}
	m.begun, m.cpu, m.changed = true, processCPU(), time.Now()
	clear(m.bytes)
	clear(m.by)
	m.packets = 0
	return nil
}

// watchAll notes what the nodes hold, until ctx ends; watchers waits for the end.
func (m *meter) watchAll(ctx context.Context, nodes []*member) {
	for _, n := range nodes {
		m.mu.Lock()
		m.index[n.peer] = n.index
		m.mu.Unlock()
		from := n.store.Position()
		m.watchers.Go(func() {
			if err := m.watch(ctx, n, from); ctx.Err() == nil {
				m.fail(fmt.Errorf("watch node %d: %w", n.index, err))
			}
		})
	}
}

// watch notes the messages that the node's client could see, until ctx ends or the store fails.
func (m *meter) watch(ctx context.Context, n *member, from store.Position) error {
	for {
		upTo, err := n.store.Wait(ctx, from)
		if err != nil {
			return err
		}
		var numbers []int
		err = n.store.View(func(r *store.Reader) error {
			return r.Changes(from, upTo, func(_ store.Position, c store.Change) (bool, error) {
				if c.Kind != store.ChangeEvent {
					return true, nil
				}
				number, err := messageOf(r, c.Event)
				if number >= 0 {
					numbers = append(numbers, number)
				}
				return true, err
			})
		})
		if err != nil {
			return err
		}
		for _, number := range numbers {
			m.holds(n.index, number)
		}
		from = upTo
	}
}

// messageOf is the number of a message of ours; -1 of any other event.
func messageOf(r *store.Reader, id eventgraph.EventID) (int, error) {
	e, err := r.Event(id)
	if err != nil || e.Type() != "m.room.message" {
		return -1, err
	}
	var content struct{ Body string }
	if err := json.Unmarshal(e.Content(), &content); err != nil {
		return -1, err
	}
	number, _ := findMarker([]byte(content.Body))
	return number, nil
}

// sends notes that a message is about to be sent.
func (m *meter) sends(author int) (number int, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.messages) == maxMessages {
		return 0, false
	}
	msg := &message{author: author, sent: time.Now(), holders: m.none(), seen: m.none(), inReach: make([]time.Time, m.n)}
	msg.seen.add(author)
	m.messages = append(m.messages, msg)
	return len(m.messages) - 1, true
}

func (m *meter) none() nodeSet { return make(nodeSet, (m.n+63)/64) }

// holds notes that a node holds a message.
func (m *meter) holds(node, number int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if number >= len(m.messages) || m.messages[number].holders.has(node) {
		return
	}
	msg, now := m.messages[number], time.Now()
	msg.holders.add(node)
	m.delivered = now
	if node != msg.author {
		m.sinceSent = append(m.sinceSent, now.Sub(msg.sent))
		since := now // from somebody who has gone, or got it, this very moment
		if msg.inReach[node].After(time.Time{}) {
			since = msg.inReach[node]
		}
		m.sinceReach = append(m.sinceReach, now.Sub(since))
	}
	if msg.held() == m.n {
		msg.inReach = nil
		return
	}
	for other := range m.n {
		if m.contact[node].has(other) && !msg.holders.has(other) && msg.inReach[other].IsZero() {
			msg.inReach[other] = now
		}
	}
}

func (msg *message) held() (n int) {
	for _, w := range msg.holders {
		n += bits.OnesCount64(w)
	}
	return n
}

func (m *meter) isOnline(i int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.online[i]
}

func (m *meter) setOnline(i int, online bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.online[i] = online
	m.setContacts()
}

func (m *meter) setGroups(group []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.group = group
	m.setContacts()
}

// setContacts works out who can reach whom, and who has come into the reach of which message, or out of it. It needs mu.
func (m *meter) setContacts() {
	now := time.Now()
	m.changed = now
	for i := range m.n {
		contact := m.none()
		for j := range m.n {
			if i != j && m.online[i] && m.online[j] && m.group[i] == m.group[j] {
				contact.add(j)
			}
		}
		before := m.contact[i]
		m.contact[i] = contact
		if before == nil || slices.Equal(before, contact) {
			continue
		}
		for _, msg := range m.messages {
			if msg.inReach == nil || msg.holders.has(i) {
				continue
			}
			switch meets := contact.meets(msg.holders); {
			case meets && msg.inReach[i].IsZero():
				msg.inReach[i] = now
			case !meets && !msg.inReach[i].IsZero():
				m.missed = append(m.missed, now.Sub(msg.inReach[i]))
				msg.inReach[i] = time.Time{}
			}
		}
	}
}

// observe is for memnet.Network.Observe.
func (m *meter) observe(from, to p2ptransport.PeerID, protocol string) (sent, got memnet.Observer) {
	purpose := strings.TrimPrefix(protocol, "/") // guarded by mu
	direction := func(from, to p2ptransport.PeerID, asks bool) memnet.Observer {
		var tail []byte // of what was sent before, in which a marker may have begun
		return func(b []byte, times int) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if !m.begun {
				return
			}
			if endpoint := endpointOf(b); asks && endpoint != "" {
				purpose = endpoint
			}
			sender, receiver := m.index[from], m.index[to]
			m.bytes[purpose] += len(b) * times
			m.by[sender] += len(b) * times
			m.packets += (len(b) + packetBytes - 1) / packetBytes * times
			tail = append(tail, b...)
			if protocol == p2ptransport.ProtocolGossip {
				for numbers, rest := m.findSealed(tail); rest != nil; numbers, rest = m.findSealed(rest) {
					for _, number := range numbers {
						m.copied(sender, receiver, number, times)
					}
					tail = rest
				}
				tail = append(tail[:0], tail[max(0, len(tail)-len(seal{})+1):]...)
				return
			}
			for number, rest := findMarker(tail); number >= 0; number, rest = findMarker(rest) {
				m.copied(sender, receiver, number, times)
				tail = rest
			}
			tail = append(tail[:0], tail[max(0, len(tail)-markerLen+1):]...)
		}
	}
	return direction(from, to, true), direction(to, from, false)
}

// seal is the end of a payload of gossip, where what authenticates it stands: by it the payload is found in what goes over the wire.
type seal [16]byte

// sealedSoon is how long after it was sent a message may be published.
const sealedSoon = time.Second

// publishes notes that a node publishes a payload. What is in it nobody sees: it is taken to be what the node has lately sent.
func (m *meter) publishes(node int, payload []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(payload) < len(seal{}) {
		return
	}
	now := time.Now()
	numbers := []int{}
	for i := len(m.messages) - 1; i >= 0 && now.Sub(m.messages[i].sent) < sealedSoon; i-- {
		if msg := m.messages[i]; msg.author == node && !msg.published {
			msg.published = true
			numbers = append(numbers, i)
		}
	}
	m.sealed[seal(payload[len(payload)-len(seal{}):])] = numbers
}

// findSealed returns the messages of the first payload of gossip that ends in b, and what follows it; nil if there is none. It needs mu.
func (m *meter) findSealed(b []byte) (numbers []int, rest []byte) {
	for i := len(seal{}); i <= len(b); i++ {
		if numbers, ok := m.sealed[seal(b[i-len(seal{}):i])]; ok {
			return numbers, b[i:]
		}
	}
	return nil, nil
}

// endpointOf is the endpoint of the request that begins with b, in short: "send", "event_auth"; "" if none does.
func endpointOf(b []byte) string {
	method, path, _ := bytes.Cut(b[:min(len(b), 100)], []byte(" /_matrix/"))
	if m := string(method); m != "GET" && m != "PUT" && m != "POST" {
		return ""
	}
	words := strings.FieldsFunc(string(path), func(r rune) bool { return r == '/' || r == '?' || r == ' ' })
	if len(words) < 3 {
		return ""
	}
	return words[0] + " " + words[2] // federation v1 send, key v2 server
}

// copied notes that a copy of a message was sent.
func (m *meter) copied(from, to, number, times int) {
	if number >= len(m.messages) {
		return
	}
	m.copies += times
	if msg := m.messages[number]; !msg.seen.has(to) {
		msg.seen.add(to)
		m.reached[from][to]++
	}
}

func (m *meter) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
	}
}

func (m *meter) failed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// tell says how far the play is.
func (m *meter) tell(w io.Writer, played time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fmt.Fprintf(w, "%v: %d messages, %d deliveries, %v of CPU time\n",
		played.Round(time.Second), len(m.messages), len(m.sinceSent), (processCPU() - m.cpu).Round(time.Second))
}
