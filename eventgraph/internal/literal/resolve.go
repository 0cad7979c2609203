package literal

import (
	"maps"
	"slices"
	"sort"
)

// Resolve is the state resolution algorithm of the version: that of page 2 for versions 3 to 11, that of page 12 for 12.
// It returns the resolved state and the full conflicted set. Events that get does not know are no part of an auth chain.
func Resolve(version string, states []State, get Get) (resolved State, fullConflicted map[string]bool) {
	r := &resolution{version: version, v: number(version), get: get, chains: map[string]map[string]bool{}}
	unconflicted, conflicted := separate(states)

	// "The full conflicted set is the union of the conflicted state set, (version 12: the conflicted state subgraph,) and
	// the auth difference."
	fullConflicted = map[string]bool{}
	addAll(fullConflicted, conflicted)
	addAll(fullConflicted, r.authDifference(states))
	if r.v >= 12 {
		addAll(fullConflicted, r.conflictedSubgraph(conflicted))
	}

	// Step 1. "Select the set X of all power events that appear in the full conflicted set. For each such power event P,
	// enlarge X by adding the events in the auth chain of P which also belong to the full conflicted set. Sort X into a
	// list using the reverse topological power ordering."
	x := map[string]bool{}
	for id := range fullConflicted {
		if !powerEvent(get(id)) {
			continue
		}
		x[id] = true
		for ancestor := range r.authChain(id) {
			if fullConflicted[ancestor] {
				x[ancestor] = true
			}
		}
	}
	powerOrdered := r.reverseTopologicalPowerOrdering(x)

	// Step 2. "Apply the iterative auth checks algorithm, starting from the unconflicted state map (version 12: from an
	// empty state map), to the list of events from the previous step to get a partially resolved state."
	partial := State{}
	if r.v <= 11 {
		partial = maps.Clone(unconflicted)
	}
	partial = r.iterativeAuthChecks(partial, powerOrdered)

	// Step 3. "Take all remaining events that weren't picked in step 1 and order them by the mainline ordering based on the
	// power level in the partially resolved state obtained in step 2."
	remaining := map[string]bool{}
	for id := range fullConflicted {
		if !x[id] {
			remaining[id] = true
		}
	}
	mainlineOrdered := r.mainlineOrdering(partial[Key{"m.room.power_levels", ""}], remaining)

	// Step 4. "Apply the iterative auth checks algorithm on the partial resolved state and the list of events from the
	// previous step."
	resolved = r.iterativeAuthChecks(partial, mainlineOrdered)

	// Step 5. "Update the result by replacing any event with the event with the same key from the unconflicted state map,
	// if such an event exists, to get the final resolved state."
	for key, id := range unconflicted {
		resolved[key] = id
	}
	return resolved, fullConflicted
}

type resolution struct {
	version string
	v       int
	get     Get
	chains  map[string]map[string]bool // the auth chains found so far
}

// separate: "If a given key K is present in every S_i with the same value V in each state map, then the pair (K, V)
// belongs to the unconflicted state map. Otherwise, V belongs to the conflicted state set."
func separate(states []State) (unconflicted State, conflicted map[string]bool) {
	unconflicted, conflicted = State{}, map[string]bool{}
	for _, state := range states {
		for key, value := range state {
			same := true
			for _, other := range states {
				if v, ok := other[key]; !ok || v != value {
					same = false
				}
			}
			if same {
				unconflicted[key] = value
			} else {
				conflicted[value] = true
			}
		}
	}
	return unconflicted, conflicted
}

// authChain: "the set containing all of E's auth events, all of their auth events, and so on recursively". E is not in it.
func (r *resolution) authChain(id string) map[string]bool {
	if chain, ok := r.chains[id]; ok {
		return chain
	}
	chain := map[string]bool{}
	r.chains[id] = chain // before the recursion, which so ends even on a cycle
	if e := r.get(id); e != nil {
		for _, auth := range e.ids("auth_events") {
			if r.get(auth) != nil {
				chain[auth] = true
				addAll(chain, r.authChain(auth))
			}
		}
	}
	return chain
}

// authDifference: "If C_i is the full auth chain of S_i, then the auth difference is ∪ C_i − ∩ C_i"; the full auth chain is
// "the union of the auth chains for each event in S_i".
func (r *resolution) authDifference(states []State) map[string]bool {
	var full []map[string]bool
	union := map[string]bool{}
	for _, state := range states {
		chain := map[string]bool{}
		for _, id := range state {
			addAll(chain, r.authChain(id))
		}
		full = append(full, chain)
		addAll(union, chain)
	}
	difference := map[string]bool{}
	for id := range union {
		for _, chain := range full {
			if !chain[id] {
				difference[id] = true
			}
		}
	}
	return difference
}

// conflictedSubgraph: "Starting from an event in the conflicted state set and following auth_events edges may lead to
// another event in the conflicted state set. The union of all such paths between any pair of events in the conflicted
// state set (including endpoints) forms a subgraph of the original auth_event graph."
func (r *resolution) conflictedSubgraph(conflicted map[string]bool) map[string]bool {
	leads := func(id string) bool { // to an event of the conflicted state set
		for ancestor := range r.authChain(id) {
			if conflicted[ancestor] {
				return true
			}
		}
		return false
	}
	subgraph := map[string]bool{}
	for from := range conflicted {
		if !leads(from) {
			continue
		}
		subgraph[from] = true
		for on := range r.authChain(from) {
			if conflicted[on] || leads(on) {
				subgraph[on] = true
			}
		}
	}
	return subgraph
}

// powerEvent: "a state event with type m.room.power_levels or m.room.join_rules, or a state event with type m.room.member
// where the membership is leave or ban and the sender does not match the state_key".
func powerEvent(e *Event) bool {
	if e == nil {
		return false
	}
	stateKey, ok := e.stateKey()
	if !ok {
		return false
	}
	switch e.typ() {
	case "m.room.power_levels", "m.room.join_rules":
		return true
	case "m.room.member":
		return (e.membership() == "leave" || e.membership() == "ban") && e.sender() != stateKey
	}
	return false
}

// reverseTopologicalPowerOrdering: "The reverse topological power ordering can be found by sorting the events using Kahn's
// algorithm for topological sorting, and at each step selecting, among all the candidate vertices, the smallest vertex
// using the above comparison relation." "The DAG formed by auth events" is read as that of the room: an event comes after each of the
// set that is in its auth chain, also where the way leads through events that are not in the set. The page does not say so; with the
// links between events of the set alone the order may be another.
func (r *resolution) reverseTopologicalPowerOrdering(set map[string]bool) []string {
	powers := map[string]power{}
	for id := range set {
		powers[id] = r.senderPower(id)
	}
	less := func(x, y string) bool {
		// 1. "x's sender has greater power level than y's sender, when looking at their respective auth_events; or"
		if powers[y].less(powers[x]) || powers[x].less(powers[y]) {
			return powers[y].less(powers[x])
		}
		// 2. and 3. origin_server_ts, event_id
		return r.earlier(x, y)
	}
	waiting := map[string]bool{}
	addAll(waiting, set)
	var ordered []string
	for len(waiting) > 0 {
		smallest := ""
		for id := range waiting {
			if !r.citesOneOf(id, waiting) && (smallest == "" || less(id, smallest)) {
				smallest = id
			}
		}
		if smallest == "" {
			panic("literal: auth_events have a cycle")
		}
		ordered = append(ordered, smallest)
		delete(waiting, smallest)
	}
	return ordered
}

// citesOneOf tells whether an event has one of the set among its auth_events.
func (r *resolution) citesOneOf(id string, set map[string]bool) bool {
	if e := r.get(id); e != nil {
		return slices.ContainsFunc(e.ids("auth_events"), func(auth string) bool { return set[auth] })
	}
	return false
}

// earlier compares by origin_server_ts and then by event ID.
func (r *resolution) earlier(x, y string) bool {
	var tx, ty int64
	if e := r.get(x); e != nil {
		tx = e.timestamp()
	}
	if e := r.get(y); e != nil {
		ty = e.timestamp()
	}
	if tx != ty {
		return tx < ty
	}
	return x < y
}

// senderPower is the power level of an event's sender as its auth_events give it, rejected or not.
func (r *resolution) senderPower(id string) power {
	e := r.get(id)
	if e == nil {
		return power{}
	}
	auth := &room{r.v, State{}, r.get}
	for _, id := range e.ids("auth_events") {
		if event := r.get(id); event != nil {
			if key, ok := event.key(); ok {
				if _, ok := auth.state[key]; !ok {
					auth.state[key] = id
				}
			}
		}
	}
	auth.addCreate(e)
	return auth.powerOf(e.sender())
}

// powerLevelsOf is the m.room.power_levels event in the auth_events of an event, "" if there is none.
func (r *resolution) powerLevelsOf(id string) string {
	e := r.get(id)
	if e == nil {
		return ""
	}
	for _, auth := range e.ids("auth_events") {
		if event := r.get(auth); event != nil {
			if key, ok := event.key(); ok && key == (Key{"m.room.power_levels", ""}) {
				return auth
			}
		}
	}
	return ""
}

// mainlineOrdering orders a set by the mainline of the power levels event p, which is "" if there is none.
func (r *resolution) mainlineOrdering(p string, set map[string]bool) []string {
	// "Starting with i = 0, repeatedly fetch P_{i+1}, the m.room.power_levels event in the auth_events of P_i."
	index := map[string]int{}
	length := 0
	for id := p; id != ""; id = r.powerLevelsOf(id) {
		index[id] = length
		length++
	}
	// "Find the smallest index j ≥ 1 for which e_j belongs to the mainline of P. If such a j exists, then e_j = P_i for some
	// unique index i ≥ 0. Otherwise set i = ∞." Every i is less than length, which so can be ∞.
	position := map[string]int{}
	for id := range set {
		position[id] = length
		for j := r.powerLevelsOf(id); j != ""; j = r.powerLevelsOf(j) {
			if i, ok := index[j]; ok {
				position[id] = i
				break
			}
		}
	}
	ordered := make([]string, 0, len(set))
	for id := range set {
		ordered = append(ordered, id)
	}
	sort.Slice(ordered, func(i, j int) bool {
		x, y := ordered[i], ordered[j]
		// 1. "the mainline position of x is greater than the mainline position of y"
		if position[x] != position[y] {
			return position[x] > position[y]
		}
		// 2. and 3. origin_server_ts, event_id
		return r.earlier(x, y)
	})
	return ordered
}

// iterativeAuthChecks: "takes as input an initial room state and a sorted list of state events, and constructs a new room
// state by iterating through the event list and applying the state event to the room state if the state event is allowed
// by the authorisation rules. If the state event is not allowed by the authorisation rules, then the event is ignored."
func (r *resolution) iterativeAuthChecks(initial State, list []string) State {
	state := maps.Clone(initial)
	for _, id := range list {
		e := r.get(id)
		if e == nil {
			continue
		}
		key, ok := e.key()
		if !ok {
			continue
		}
		if Authorize(r.version, e, r.stateSeen(state, e), r.get) == nil {
			state[key] = id
		}
	}
	return state
}

// stateSeen: "If a (event_type, state_key) key that is required for checking the authorisation rules is not present in the
// state, then the appropriate state event from the event's auth_events is used if the auth event is not rejected."
func (r *resolution) stateSeen(state State, e *Event) State {
	seen := maps.Clone(state)
	for _, key := range AuthSelection(r.version, e) {
		if _, ok := seen[key]; ok {
			continue
		}
		for _, id := range e.ids("auth_events") {
			event := r.get(id)
			if event == nil {
				continue
			}
			if k, ok := event.key(); ok && k == key {
				if !event.Rejected {
					seen[key] = id
				}
				break
			}
		}
	}
	(&room{r.v, seen, r.get}).addCreate(e)
	return seen
}

func addAll(to, from map[string]bool) {
	for id := range from {
		to[id] = true
	}
}
