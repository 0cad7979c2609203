package rooms

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// ties remembers what walks through the graph have found, so that a stream of events beside the timeline costs no more than itself: each is looked
// at once, however many come after it. tied is never wrong, else an extremity would be lost; the others may be, as after maxBehind.
type ties struct {
	// What covered has found. Events that are not rooted are not in it: what ties them need not tie what they rest on.
	above memory[tie]

	// What claimCovers has found: that the timeline rests on an event, if only through such as are not rooted; and of those themselves, that it does not.
	claims memory[claimTie]

	// Where ancestors goes on behind an event that it looks through, as it always will.
	below memory[ends]
}

// maxTies is how many of them are remembered, and as many older ones; some 100 bytes each.
const maxTies = 2 * maxBehind

// maxAllTies is how many the idle rooms may have together, some 4 MB. Members make them grow in as many rooms as they like.
const maxAllTies = 20 * maxTies

// part is a part of a memory. Of what a long walk finds not all need be kept, and it does not push out what is needed most.
type part uint8

const (
	asked part = iota // of events that were asked about, and those next to them: more may come in the same place
	marks             // of others so many that a walk from any soon meets one (markEvery)
	rest
	parts
)

// partSizes are how much is in each part of a memory, and as much that is older. For the three memories together that is maxTies: below has no rest.
var partSizes = [parts]int{asked: maxTies / 10, marks: maxTies / 10, rest: maxTies / 5}

// markEvery is how many events a walk may have to look at behind each parent of one, until it meets what is marked. With 32 the marks are enough for
// six rows of maxBehind.
const markEvery = 32

// memory is what is known of events: what came in last, and what was asked for last. A weight is counted in things of some 100 bytes.
type memory[V interface{ weight() int }] struct {
	young, old               [parts]map[eventgraph.EventID]V
	youngWeights, oldWeights [parts]int
}

func (m *memory[V]) get(id eventgraph.EventID) (found V, known bool) {
	for p := range parts {
		if found, known = m.young[p][id]; known {
			return found, true
		}
		if found, known = m.old[p][id]; known {
			m.put(id, found, p) // it is in use
			return found, true
		}
	}
	return found, false
}

// put remembers in the part, or in the better one that the event is in.
func (m *memory[V]) put(id eventgraph.EventID, found V, in part) {
	in = min(in, m.forget(id))
	weight := found.weight()
	if m.youngWeights[in]+weight > partSizes[in] {
		m.old[in], m.oldWeights[in] = m.young[in], m.youngWeights[in]
		m.young[in], m.youngWeights[in] = nil, 0
	}
	if m.young[in] == nil {
		m.young[in] = map[eventgraph.EventID]V{}
	}
	m.young[in][id] = found
	m.youngWeights[in] += weight
}

// forget an event, and say in which part it was.
func (m *memory[V]) forget(id eventgraph.EventID) (was part) {
	was = parts
	for p := range parts {
		if found, known := m.young[p][id]; known {
			was = min(was, p)
			m.youngWeights[p] -= found.weight()
			delete(m.young[p], id)
		}
		if found, known := m.old[p][id]; known {
			was = min(was, p)
			m.oldWeights[p] -= found.weight()
			delete(m.old[p], id)
		}
	}
	return was
}

func (m *memory[V]) size() (sum int) {
	for p := range parts {
		sum += m.youngWeights[p] + m.oldWeights[p]
	}
	return sum
}

func (t *ties) size() int { return t.above.size() + t.claims.size() + t.below.size() }

func (t *ties) forget(id eventgraph.EventID) {
	t.above.forget(id)
	t.claims.forget(id)
	t.below.forget(id)
}

// doubt is for when an event has come through which a claim may reach what it did not: what is tied by no claim either is not known any more.
func (t *ties) doubt() {
	for p := range parts {
		for _, all := range []map[eventgraph.EventID]tie{t.above.young[p], t.above.old[p]} {
			for id, found := range all {
				if found == untied {
					all[id] = onlyClaimed
				}
			}
		}
	}
	t.claims.keep(func(past claimTie) bool { return past != "" })
}

// keep forgets all others.
func (m *memory[V]) keep(which func(V) bool) {
	for p := range parts {
		for _, all := range []map[eventgraph.EventID]V{m.young[p], m.old[p]} {
			for id, found := range all {
				if !which(found) {
					m.forget(id)
				}
			}
		}
	}
}

// tie is what is known of one event.
type tie uint8

const (
	untied      tie = iota
	onlyClaimed     // not tied; perhaps so through events that are not rooted
	tied
)

func (tie) weight() int { return 1 }

// claimTie is the event that inTimeline by which an event is the past, if only by a claim; "" if there is none.
type claimTie eventgraph.EventID

func (claimTie) weight() int { return 1 }

// ends are where the looking behind an event has ended and may have to go on. Never changed: those of many events in a row share them.
type ends struct {
	tips []eventgraph.EventID // of then
	open []eventgraph.EventID // not rooted, not held, or beyond maxBehind
}

// maxOpen bounds the others than extremities: each is looked at again whenever something comes. What is too much is not looked for any more, which is
// as harmless as maxBehind.
const maxOpen = 5

func (e ends) weight() int { return 1 + (len(e.tips)+len(e.open))/16 }

// and is both together.
func (e ends) and(other ends) ends {
	e.tips, e.open = union(e.tips, other.tips), union(e.open, other.open)
	e.open = e.open[:min(len(e.open), maxOpen)]
	return e
}

// union of two sorted sets; one of them itself, where it has the other in it.
func union(a, b []eventgraph.EventID) []eventgraph.EventID {
	switch {
	case len(b) == 0 || len(a) > 0 && len(a) == len(b) && &a[0] == &b[0]:
		return a
	case len(a) == 0:
		return b
	}
	all := slices.Concat(a, b)
	slices.Sort(all)
	switch all = slices.Compact(all); len(all) {
	case len(a):
		return a
	case len(b):
		return b
	}
	return all
}
