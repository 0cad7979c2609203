package rooms

import "github.com/plexus-p2p/plexus/eventgraph"

// climb is one walk from an event to those that rest on it, in search of one that inTimeline. It remembers what it finds.
type climb struct {
	run           *run
	throughClaims bool               // also through events that are not rooted
	on            eventgraph.EventID // the one found; if not throughClaims it may be one that is known to lie below it
	edges         int
	seen          map[eventgraph.EventID]*step
}

// step is what a climb has found at one event, and above it.
type step struct {
	id     eventgraph.EventID
	rooted bool
	higher bool // what rests on it is still to be looked at
	tied   bool // it is known to be: no climb through claims takes that back
	open   bool // it, or one above it, was not looked through, as it is not rooted
	cost   int  // how many are to be looked at to find the same again
}

// climbed looks for an event that inTimeline among the descendants; "" if there is none.
func (run *run) climbed(id eventgraph.EventID, throughClaims bool) (eventgraph.EventID, error) {
	c := &climb{run: run, throughClaims: throughClaims, seen: map[eventgraph.EventID]*step{}}
	from := &step{id: id, rooted: true, higher: true}
	c.seen[id] = from
	_, err := c.above(from, 0)
	return c.on, err
}

// above looks at what rests on an event: how far above it the one that inTimeline is, negative if there is none. depth is its own.
func (c *climb) above(at *step, depth int) (distance int, err error) {
	at.higher = false
	var children []*step
	err = c.run.children(at.id, func(child eventgraph.EventID) (bool, error) {
		c.edges++
		found, again := c.seen[child]
		is := false
		if !again {
			found = &step{id: child}
			c.seen[child] = found
			if is, err = c.look(found); err != nil {
				return false, err
			}
		}
		if is {
			distance = 1
		}
		children = append(children, found)
		return !is && c.edges < maxBehind, nil
	})
	if err != nil {
		return -1, err
	}
	for i := 0; i < len(children) && distance == 0; i++ {
		if child := children[i]; child.higher && c.edges < maxBehind {
			further, err := c.above(child, depth+1)
			if err != nil {
				return -1, err
			}
			if further >= 0 {
				distance = further + 1
			}
		}
	}
	if distance > 0 {
		c.is(at, depth, distance)
		return distance, nil
	}
	for _, child := range children {
		at.open = at.open || child.open
		at.cost += child.cost
	}
	if len(children) > 0 || depth > 0 { // else no more than is soon looked up again
		c.isNot(at, depth)
	}
	return -1, nil
}

// look at an event for the first time: is it in the timeline, or known to be below?
func (c *climb) look(at *step) (is bool, err error) {
	ties := &c.run.ties
	if on, known := ties.claims.get(at.id); known && c.throughClaims {
		c.on = eventgraph.EventID(on)
		return on != "", nil
	}
	found, known := ties.above.get(at.id)
	at.tied = known && found == tied
	if known && (found == untied || !c.throughClaims) {
		if at.open = found == onlyClaimed; at.tied {
			c.on = at.id
		}
		return at.tied, nil
	}
	s, err := c.run.stored(at.id)
	if err != nil || s.RoomID() != c.run.rm.id { // any room's event can name any parent
		return false, err
	}
	if at.rooted, err = c.run.rooted(s); err != nil {
		return false, err
	}
	at.cost = 1
	if !at.rooted && !c.throughClaims {
		at.open = true
		return false, nil
	}
	at.higher = true
	if inTimeline(s) {
		c.on = at.id
	}
	return c.on != "", nil
}

// is takes down that the timeline rests on an event, and how far above it that is.
func (c *climb) is(at *step, depth, distance int) {
	in := rest
	switch {
	case depth <= 1:
		in = asked
	case distance%markEvery == 0:
		in = marks
	}
	if c.throughClaims {
		c.run.ties.claims.put(at.id, claimTie(c.on), in)
	} else {
		c.run.ties.above.put(at.id, tied, in)
	}
}

// isNot takes down that the timeline does not rest on an event, as far as the climb went.
func (c *climb) isNot(at *step, depth int) {
	in := rest
	switch {
	case depth <= 1:
		in, at.cost = asked, 0
	case at.cost >= markEvery:
		in, at.cost = marks, 0
	}
	switch {
	case at.tied:
	case !at.rooted:
		c.run.ties.claims.put(at.id, "", in)
	case at.open:
		c.run.ties.above.put(at.id, onlyClaimed, in)
	default:
		c.run.ties.above.put(at.id, untied, in)
	}
}
