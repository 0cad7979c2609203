package stateres

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// A chronicle is a room history as it might lie on servers: each event after those that it rests on. Nothing in it says
// what to think of the events.
type chronicle struct {
	seed, number uint64
	version      eventgraph.RoomVersion
	events       []*pdu
	index        map[eventgraph.EventID]int
	nodes        map[eventgraph.Hash][]byte // of all replays: a node's content is in its hash
}

// pdu is an event of a chronicle. Others are given by their place in it.
type pdu struct {
	*eventgraph.Event
	raw        []byte // as sent, maybe with a wrong content hash
	label      string
	prev, auth []int
	create     int   // of the room by its ID (room version 12), else -1
	rests      []int // on these events, each once
	children   []int // those that rest on it
	lost       bool  // it rests on what nobody has
}

func newChronicle(v eventgraph.RoomVersion) *chronicle {
	return &chronicle{version: v, index: make(map[eventgraph.EventID]int), nodes: make(map[eventgraph.Hash][]byte)}
}

// add appends an event; false if the chronicle has it.
func (c *chronicle) add(e *eventgraph.Event, raw []byte, label string) bool {
	if _, ok := c.index[e.ID()]; ok {
		return false
	}
	p, at := &pdu{Event: e, raw: raw, label: label, create: -1}, len(c.events)
	find := func(id eventgraph.EventID) int {
		i, ok := c.index[id]
		switch {
		case !ok || c.events[i].lost:
			p.lost = true
		case !slices.Contains(p.rests, i):
			p.rests = append(p.rests, i)
			c.events[i].children = append(c.events[i].children, at)
		}
		if !ok {
			return -1
		}
		return i
	}
	for _, id := range e.PrevEvents() {
		p.prev = append(p.prev, find(id))
	}
	for _, id := range e.AuthEvents() {
		p.auth = append(p.auth, find(id))
	}
	if traits, _ := c.version.Traits(); traits.RoomIDFromCreate && e.Type() != "m.room.create" {
		p.create = find(auth.CreateOf(e.RoomID()))
	}
	c.index[e.ID()] = at
	c.events = append(c.events, p)
	return true
}

// without is the chronicle without an event and those that rest on it.
func (c *chronicle) without(drop int) *chronicle {
	gone := make([]bool, len(c.events))
	gone[drop] = true
	less := newChronicle(c.version)
	less.seed, less.number = c.seed, c.number
	for i, p := range c.events {
		if !gone[i] {
			less.add(p.Event, p.raw, p.label)
			continue
		}
		for _, child := range p.children {
			gone[child] = true
		}
	}
	return less
}

// misplaced says whether event i has no place in its room, whatever the rules say: it is a create event beside the first (before
// version 12 the rules let it be), or it has parents in another room. Whoever is in a room refuses both.
func (c *chronicle) misplaced(i int) bool {
	p := c.events[i]
	if i > 0 && p.Type() == "m.room.create" && p.RoomID() == c.events[0].RoomID() {
		return true
	}
	return len(c.parents(i)) < len(p.prev)
}

// parents are those of event i that are of its room: states come from no other.
func (c *chronicle) parents(i int) []int {
	room := c.events[i].RoomID()
	var own []int
	for _, on := range c.events[i].prev {
		if on < 0 || c.events[on].RoomID() == room {
			own = append(own, on)
		}
	}
	return own
}

func (c *chronicle) TrieNode(h eventgraph.Hash) ([]byte, error) {
	if n, ok := c.nodes[h]; ok {
		return n, nil
	}
	return nil, fmt.Errorf("no trie node %x", h)
}

// verdict on an event that was received.
type verdict byte

const (
	waits verdict = iota // for what it rests on
	accepted
	refusedByAuthEvents
	refusedByState
)

func (v verdict) String() string {
	return [...]string{"waits", "accepted", "refused by its auth events", "refused by the state before it"}[v]
}

// placement is what a receiver makes of an event.
type placement struct {
	verdict       verdict
	height        uint32
	before, after eventgraph.Hash
}

// replay is a receiver of a chronicle: the checks on receipt of a PDU (SS API), 4 and 5, and nothing else. It keeps no
// more of an event than its placement.
type replay struct {
	of      *chronicle
	placed  []placement
	arrived []bool
	missing []int // how many of those that the event rests on have no place yet

	// full and rules are set where the replay is to tell more: the full conflicted set where an event's parents were to be
	// resolved, and the rule that refused an event.
	full  map[int][]eventgraph.EventID
	rules map[int]string
	// doubted are events that count as rejected when states are resolved, whatever was said of them.
	doubted []bool
	// lastly is what was resolved last, by a replay that is to tell more: the generator asks several times.
	lastly struct {
		roots []eventgraph.Hash
		root  eventgraph.Hash
	}
}

func newReplay(c *chronicle) *replay {
	r := &replay{of: c}
	for range c.events {
		r.grow()
	}
	return r
}

// grow makes place for one more event of the chronicle.
func (r *replay) grow() {
	i := len(r.placed)
	missing := 0
	for _, on := range r.of.events[i].rests {
		if on >= i || r.placed[on].verdict == waits {
			missing++
		}
	}
	if r.of.events[i].lost {
		delete(r.full, i) // the generator looked
	}
	r.placed, r.arrived, r.missing = append(r.placed, placement{}), append(r.arrived, false), append(r.missing, missing)
}

// Event is that of EventReader.
func (r *replay) Event(id eventgraph.EventID) (Held, error) {
	i, ok := r.of.index[id]
	if !ok || r.placed[i].verdict == waits {
		return Held{}, fmt.Errorf("%w: %s", errNoEvent, id)
	}
	p := r.placed[i]
	rejected := p.verdict != accepted || r.doubted != nil && r.doubted[i]
	return Held{Event: r.of.events[i].Event, Rejected: rejected, Height: p.height}, nil
}

// CitedBy is that of EventReader.
func (r *replay) CitedBy(id eventgraph.EventID, f func(eventgraph.EventID) bool) error {
	i := r.of.index[id]
	for _, child := range r.of.events[i].children {
		by := r.of.events[child]
		if child < len(r.placed) && r.placed[child].verdict != waits && slices.Contains(by.auth, i) && !f(by.ID()) {
			break
		}
	}
	return nil
}

// rootState is a stored state as the auth rules want it.
type rootState struct {
	r    *replay
	trie *eventgraph.Trie
}

func (r *replay) state(root eventgraph.Hash) rootState {
	return rootState{r, eventgraph.OpenTrie(r.of, root)}
}

func (s rootState) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	id, ok, err := s.trie.Get(t)
	if !ok || err != nil {
		return nil, err
	}
	held, err := s.r.Event(id)
	return held.Event, err
}

// receive takes an event that arrives, again or for the first time, and places it and those that waited for it.
func (r *replay) receive(i int) error {
	if r.arrived[i] {
		return nil
	}
	r.arrived[i] = true
	for ready := []int{i}; len(ready) > 0; {
		i := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		if r.missing[i] > 0 || !r.arrived[i] || r.of.events[i].lost {
			continue
		}
		if err := r.place(i); err != nil {
			return err
		}
		for _, child := range r.of.events[i].children {
			if child < len(r.missing) {
				r.missing[child]--
				ready = append(ready, child)
			}
		}
	}
	return nil
}

// place judges an event whose prev_events and auth_events are placed.
func (r *replay) place(i int) error {
	p := r.of.events[i]
	var at placement
	authEvents := make([]*eventgraph.Event, 0, len(p.auth)+1)
	for _, a := range p.auth {
		authEvents = append(authEvents, r.of.events[a].Event)
		at.height = max(at.height, r.placed[a].height+1)
	}
	if p.create >= 0 {
		authEvents = append(authEvents, r.of.events[p.create].Event)
	}

	at.verdict = accepted
	refused := func(err error, v verdict) error {
		var no *auth.Refused
		if errors.As(err, &no) {
			at.verdict = v
			if r.rules != nil {
				r.rules[i] = no.Rule
			}
			return nil
		}
		return err
	}
	err := auth.CheckAuthEvents(p.Event, authEvents, func(id eventgraph.EventID) bool {
		return r.placed[r.of.index[id]].verdict != accepted
	})
	if err := refused(err, refusedByAuthEvents); err != nil {
		return err
	}
	if r.of.misplaced(i) {
		at.verdict = refusedByAuthEvents
	}
	if at.before, err = r.before(i, r.of.parents(i)); err != nil {
		return err
	}
	if at.verdict == accepted {
		if err := refused(auth.Check(p.Event, r.state(at.before)), refusedByState); err != nil {
			return err
		}
	}
	at.after = at.before
	if tuple, isState := p.Tuple(); isState && at.verdict == accepted {
		trie := eventgraph.OpenTrie(r.of, at.before)
		if err := trie.Set(tuple, p.ID(), at.height); err != nil {
			return err
		}
		var made map[eventgraph.Hash][]byte
		at.after, made = trie.Commit()
		maps.Copy(r.of.nodes, made)
	}
	r.placed[i] = at
	return nil
}

// before is the state before an event with these parents.
func (r *replay) before(i int, prev []int) (eventgraph.Hash, error) {
	var roots []eventgraph.Hash
	for _, on := range prev {
		roots = append(roots, r.placed[on].after)
	}
	return r.resolve(i, roots)
}

// finalEvent stands for the event that would come next, in replay.full.
const finalEvent = -1

// final is the state that the next event would have before it: that after the forward extremities, which are the accepted
// events that no accepted event has as parent.
func (r *replay) final() (eventgraph.Hash, error) {
	return r.before(finalEvent, extremities(r.of, func(i int) bool { return r.placed[i].verdict == accepted }))
}

// extremities of the room of the first event.
func extremities(c *chronicle, accepted func(i int) bool) []int {
	covered := make([]bool, len(c.events))
	for i, p := range c.events {
		if accepted(i) {
			for _, on := range p.prev {
				covered[on] = true
			}
		}
	}
	var open []int
	for i, p := range c.events {
		if accepted(i) && !covered[i] && p.RoomID() == c.events[0].RoomID() {
			open = append(open, i)
		}
	}
	return open
}

// resolve resolves states before event i. A replay that is to tell the full conflicted set goes the way of Resolve by itself.
func (r *replay) resolve(i int, roots []eventgraph.Hash) (eventgraph.Hash, error) {
	if len(roots) == 0 {
		delete(r.full, i)
		return eventgraph.Hash{}, nil
	}
	if r.full == nil {
		root, made, err := Resolve(r.of.version, roots, r.of, r)
		maps.Copy(r.of.nodes, made)
		return root, err
	}
	roots = slices.Clone(roots)
	slices.SortFunc(roots, func(a, b eventgraph.Hash) int { return bytes.Compare(a[:], b[:]) })
	if roots = slices.Compact(roots); len(roots) == 1 {
		delete(r.full, i) // the generator may have tried other parents
		return roots[0], nil
	}
	if i != claimed && slices.Equal(roots, r.lastly.roots) && r.full[i] != nil { // of claimed states, others may be doubted now
		return r.lastly.root, nil
	}
	res := newResolver(r.of.version, roots, r.of, r)
	// Histories are small: the usual bound on citing events would never be met.
	res.citers = citersTried[uint(i)%uint(len(citersTried))]
	if err := res.resolve(); err != nil {
		return eventgraph.Hash{}, err
	}
	ids := make([]eventgraph.EventID, len(res.full))
	for k, n := range res.full {
		ids[k] = n.ID()
	}
	r.full[i] = ids
	root, made, err := res.result()
	maps.Copy(r.of.nodes, made)
	r.lastly.roots, r.lastly.root = roots, root
	return root, err
}

// order is an order of arrival: everything at least once, and a fourth of it again. Some orders are wild, some are nearly
// that of the chronicle, some go backwards.
func (c *chronicle) order(rng *rand.Rand) []int {
	n := len(c.events)
	order := make([]int, 0, n+n/4)
	for i := range n {
		order = append(order, i)
	}
	for range n / 4 {
		order = append(order, rng.IntN(n))
	}
	switch rng.IntN(4) {
	case 0:
		slices.Sort(order)
		for i := range order { // neighbours change places
			j := min(len(order)-1, i+rng.IntN(4))
			order[i], order[j] = order[j], order[i]
		}
	case 1:
		slices.Sort(order)
		slices.Reverse(order)
		for range n / 4 {
			i, j := rng.IntN(len(order)), rng.IntN(len(order))
			order[i], order[j] = order[j], order[i]
		}
	default:
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	return order
}

// claimedStates are states such as another server may claim: of the states after two to four events, with entries put in
// from anywhere in the history, refused ones too, and with entries left out. What is in a state has a place in the replay,
// and rests on nothing of another room.
func (r *replay) claimedStates(rng *rand.Rand) ([]eventgraph.Hash, error) {
	var usable []int
	foreign := make([]bool, len(r.of.events))
	for i, p := range r.of.events {
		rests := slices.ContainsFunc(p.auth, func(a int) bool { return a >= 0 && foreign[a] })
		foreign[i] = rests || r.of.misplaced(i) || p.RoomID() != r.of.events[0].RoomID()
		if r.placed[i].verdict != waits && !foreign[i] {
			usable = append(usable, i)
		}
	}
	roots := make([]eventgraph.Hash, 0, 4)
	for range 2 + rng.IntN(3) {
		trie := eventgraph.OpenTrie(r.of, r.placed[usable[rng.IntN(len(usable))]].after)
		for range rng.IntN(5) {
			i := usable[rng.IntN(len(usable))]
			tuple, isState := r.of.events[i].Tuple()
			switch {
			case !isState:
			case rng.IntN(5) == 0 && tuple != tupleCreate:
				if err := trie.Delete(tuple); err != nil {
					return nil, err
				}
			default:
				if err := trie.Set(tuple, r.of.events[i].ID(), r.placed[i].height); err != nil {
					return nil, err
				}
			}
		}
		root, made := trie.Commit()
		maps.Copy(r.of.nodes, made)
		roots = append(roots, root)
	}
	return roots, nil
}
