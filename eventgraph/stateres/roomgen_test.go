package stateres

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// generator makes a chronicle: what honest and other servers may send in a room. It judges each event at once with a
// replay, for whoever sends one looks at the state before it.
type generator struct {
	rng    *rand.Rand
	c      *chronicle
	ref    *replay
	traits eventgraph.Traits
	rooms  [2]eventgraph.RoomID // the room, and another
	err    error                // the first of the replay

	state      eventgraph.Hash // before the event that is being made
	prev       []int
	makers     []int // how often an action is chosen
	thirdParty int   // tokens given out
}

const (
	alice eventgraph.UserID = "@alice:a.example" // makes the room
	bob   eventgraph.UserID = "@bob:a.example"
	carol eventgraph.UserID = "@carol:b.example"
	dave  eventgraph.UserID = "@dave:b.example"
	erin  eventgraph.UserID = "@erin:c.example" // her server lies more than others
	frank eventgraph.UserID = "@frank:c.example"
)

var users = []eventgraph.UserID{alice, bob, carol, dave, erin, frank}

// generate makes the history of that number. Same seed and number, same history, as long as generator and resolver stay the same.
func generate(seed, number uint64) (*generator, error) {
	rng := rand.New(rand.NewPCG(seed, number))
	// Every version comes up, the two with the newest rules more often: 12 is the only one with version 2.1 of state resolution.
	version := strconv.Itoa(3 + rng.IntN(10))
	if rng.IntN(8) == 0 {
		version = "12"
	}
	c := newChronicle(eventgraph.RoomVersion(version))
	c.seed, c.number = seed, number
	g := &generator{rng: rng, c: c, ref: newReplay(c)}
	g.ref.full, g.ref.rules = make(map[int][]eventgraph.EventID), make(map[int]string)
	g.traits, _ = c.version.Traits()
	for _, a := range actions {
		g.makers = append(g.makers, a.weight)
	}
	// Each history likes some things more than others.
	for range 3 {
		g.makers[rng.IntN(len(g.makers))] *= 4
	}

	g.begin()
	steps := 8 + rng.IntN(11)
	switch rng.IntN(20) {
	case 0:
		steps = 20 + rng.IntN(45)
	case 1, 2:
		steps = 2 + rng.IntN(6)
	}
	for tries := 0; len(g.c.events) < steps+8 && tries < 4*steps && g.err == nil; tries++ {
		g.step()
	}
	return g, g.err
}

func (g *generator) chance(percent int) bool { return g.rng.IntN(100) < percent }

func pick[T any](g *generator, list ...T) T { return list[g.rng.IntN(len(list))] }

// begin makes the first events of the room, and often those of another room, from which servers then borrow.
func (g *generator) begin() {
	if !g.traits.RoomIDFromCreate {
		g.rooms = [2]eventgraph.RoomID{"!room:a.example", "!other:a.example"}
	}
	g.create(0)
	g.send(g.join(alice, 0, g.last()))
	if g.chance(90) {
		g.prev = g.last()
		g.before()
		g.send(draft{typ: "m.room.power_levels", key: new(""), sender: alice, content: g.firstLevels(), prev: g.last()})
	}
	if g.chance(90) {
		rule := pick(g, "public", "public", "public", "invite", "knock", "restricted", "knock_restricted")
		g.send(draft{typ: "m.room.join_rules", key: new(""), sender: alice, content: joinRules(rule), prev: g.last()})
	}
	for range 1 + g.rng.IntN(3) {
		u := pick(g, users[1:]...)
		g.send(g.join(u, 0, g.last()))
	}
	if g.chance(35) {
		g.create(1)
		other := g.last()
		for _, u := range []eventgraph.UserID{alice, pick(g, users[1:]...)} {
			g.send(g.join(u, 1, other))
			if g.chance(50) {
				break
			}
		}
	}
}

// join is a plain join.
func (g *generator) join(u eventgraph.UserID, room int, prev []int) draft {
	d := member(u, u, "membership", `"join"`)
	d.room, d.prev = room, prev
	return d
}

// last is the youngest event, as parent of the next.
func (g *generator) last() []int { return []int{len(g.c.events) - 1} }

// create makes a room's first event; sometimes a room is not for other servers, and in version 12 it has more creators.
func (g *generator) create(room int) {
	content := []string{"room_version", `"` + string(g.c.version) + `"`}
	if !g.traits.NoCreatorField {
		content = append(content, "creator", `"`+string(pick(g, alice, alice, alice, alice, alice, bob))+`"`)
		if room == 0 {
			content[3] = `"` + string(alice) + `"`
		}
	}
	if g.chance(6) {
		content = append(content, "m.federate", "false")
	}
	if g.traits.PrivilegedCreators && g.chance(30) {
		content = append(content, "additional_creators", `["`+string(pick(g, bob, carol, erin))+`"]`)
	}
	g.send(draft{typ: "m.room.create", key: new(""), sender: alice, content: object(content...), room: room})
	if g.traits.RoomIDFromCreate {
		g.rooms[room] = g.c.events[len(g.c.events)-1].RoomID()
	}
}

// step makes one event: it chooses where it stands in the graph, looks at the state there, and acts.
func (g *generator) step() {
	g.chooseParents()
	g.before()
	if g.err != nil {
		return
	}
	total := 0
	for _, weight := range g.makers {
		total += weight
	}
	at := g.rng.IntN(total)
	for i, weight := range g.makers {
		if at -= weight; at < 0 {
			if d, ok := actions[i].make(g); ok {
				d.prev = g.prev
				g.send(d)
			}
			return
		}
	}
}

// chooseParents picks one to four events: the youngest, or others among the young, or those that nobody has built on, or
// one from long ago. Refused events are taken less often.
func (g *generator) chooseParents() {
	var usable []int
	for i, p := range g.c.events {
		if g.ref.placed[i].verdict != waits && p.RoomID() == g.rooms[0] {
			usable = append(usable, i)
		}
	}
	one := func(from []int) int {
		i := from[g.rng.IntN(len(from))]
		for range 3 {
			if g.ref.placed[i].verdict == accepted || g.chance(15) {
				break
			}
			i = from[g.rng.IntN(len(from))]
		}
		return i
	}
	recent := usable[max(0, len(usable)-7):]
	g.prev = g.prev[:0:0]
	add := func(i int) {
		if !slices.Contains(g.prev, i) {
			g.prev = append(g.prev, i)
		}
	}
	switch at := g.rng.IntN(100); {
	case at < 28:
		add(usable[len(usable)-1])
	case at < 58:
		add(one(recent))
	case at < 76:
		for range 2 + g.rng.IntN(3) {
			add(one(recent))
		}
	case at < 88:
		open := extremities(g.c, func(i int) bool { return g.ref.placed[i].verdict == accepted })
		for _, i := range open[max(0, len(open)-4):] {
			add(i)
		}
	case at < 99:
		add(one(usable))
		if g.chance(30) {
			add(one(recent))
		}
	}
}

// before sets state to that before an event with the parents chosen.
func (g *generator) before() {
	if g.err == nil {
		g.state, g.err = g.ref.before(len(g.c.events), g.prev)
	}
}

// at is the event of the state before; nil if there is none.
func (g *generator) at(typ, key string) *eventgraph.Event {
	if g.err != nil {
		return nil
	}
	e, err := g.ref.state(g.state).Event(eventgraph.StateTuple{Type: typ, Key: key})
	if err != nil {
		g.err = err
	}
	return e
}

func (g *generator) membership(u eventgraph.UserID) string {
	if e := g.at("m.room.member", string(u)); e != nil {
		return e.Membership()
	}
	return ""
}

// sender is most often a joined user with that power, else a joined one, else anyone.
func (g *generator) sender(power int64) eventgraph.UserID {
	if g.chance(5) {
		return pick(g, users...)
	}
	var joined, able []eventgraph.UserID
	for _, u := range users {
		if g.membership(u) != "join" {
			continue
		}
		joined = append(joined, u)
		if p, err := auth.UserPower(u, g.ref.state(g.state)); err == nil && p.AtLeast(power) {
			able = append(able, u)
		}
	}
	switch {
	case len(able) > 0 && !g.chance(8):
		return pick(g, able...)
	case len(joined) > 0:
		return pick(g, joined...)
	}
	return pick(g, users...)
}

// draft is an event to be. Zero values are filled in by send.
type draft struct {
	typ     string
	key     *string
	sender  eventgraph.UserID
	content []byte
	prev    []int
	room    int // of generator.rooms, or noRoom
	redacts eventgraph.EventID
	signers []eventgraph.ServerName // beside the sender's
}

// noRoom, as the room of a draft, makes an event without room_id.
const noRoom = -1

// send makes the event of a draft, with auth events as the state before says or as liars choose them, and judges it.
func (g *generator) send(d draft) {
	if g.err != nil {
		return
	}
	honest := len(g.c.events) < 5
	state, err := g.ref.before(len(g.c.events), d.prev)
	if err != nil {
		g.err = err
		return
	}
	var authEvents []eventgraph.EventID
	trie := eventgraph.OpenTrie(g.c, state)
	selected := auth.Selection(g.c.version, eventgraph.Draft{Type: d.typ, StateKey: d.key, Sender: d.sender, Content: d.content})
	for _, tuple := range selected {
		id, ok, err := trie.Get(tuple)
		if err != nil {
			g.err = err
			return
		}
		if ok {
			authEvents = append(authEvents, id)
		}
	}
	label := ""
	lies := 8
	if d.sender.Server() == erin.Server() {
		lies = 25
	}
	if !honest && g.chance(lies) {
		authEvents, label = g.lie(authEvents)
	}
	room := d.room
	if !honest && room == 0 && g.rooms[1] != "" && g.chance(2) {
		room, label = 1-room, label+" [says it is of another room]"
	}
	var roomID eventgraph.RoomID
	if room != noRoom {
		roomID = g.rooms[room]
	}
	if g.traits.RoomIDFromCreate && !honest && g.chance(1) && d.typ != "m.room.create" {
		p := g.c.events[g.rng.IntN(len(g.c.events))]
		if !p.lost {
			roomID, label = eventgraph.RoomID("!"+p.ID()[1:]), label+" [room ID of any event]"
		}
	}

	raw, wrong := g.compose(d, roomID, authEvents, !honest)
	e, err := eventgraph.ParseEvent(g.c.version, raw)
	if err != nil {
		g.err = fmt.Errorf("%w: %s", err, raw)
		return
	}
	if wrong {
		label += " [wrong content hash]"
	}
	if !g.c.add(e, raw, label) {
		return
	}
	g.ref.grow()
	g.err = g.ref.receive(len(g.c.events) - 1)
}

// compose writes the event in canonical JSON, with a content hash that is wrong once in a while.
func (g *generator) compose(d draft, room eventgraph.RoomID, authEvents []eventgraph.EventID, free bool) (raw []byte, wrong bool) {
	n := len(g.c.events)
	ts, depth := 1000+10*n, n+1
	switch {
	case free && (g.chance(20) || d.typ == "m.room.join_rules" && g.chance(20)):
		ts = 1000 + g.rng.IntN(10*n)
	case free && g.chance(8):
		ts = pick(g, 0, -5, 1000, 1, 9007199254740991)
	}
	if free && g.chance(5) {
		depth = pick(g, 0, 1, 9007199254740991)
	}
	var prev []eventgraph.EventID
	for _, i := range d.prev {
		prev = append(prev, g.c.events[i].ID())
	}
	if free && g.chance(1) && g.chance(20) {
		prev = append(prev, unknownID(g.c.version, n))
	}

	var b bytes.Buffer
	field := func(name, value string) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"` + name + `":` + value)
	}
	field("auth_events", idList(authEvents))
	field("content", string(d.content))
	field("depth", strconv.Itoa(depth))
	hashesAt := b.Len()
	field("origin_server_ts", strconv.Itoa(ts))
	field("prev_events", idList(prev))
	if d.redacts != "" {
		field("redacts", `"`+string(d.redacts)+`"`)
	}
	if room != "" {
		field("room_id", `"`+string(room)+`"`)
	}
	field("sender", `"`+string(d.sender)+`"`)
	signaturesAt := b.Len()
	if d.key != nil {
		field("state_key", strconv.Quote(*d.key))
	}
	field("type", `"`+d.typ+`"`)

	sum := sha256.Sum256([]byte("{" + b.String() + "}"))
	if wrong = free && g.chance(1); wrong {
		sum[0] ^= 1
	}
	signatures := make(map[string]bool)
	signatures[string(d.sender.Server())] = true
	for _, s := range d.signers {
		signatures[string(s)] = true
	}
	var signed []string
	for _, s := range slices.Sorted(maps.Keys(signatures)) {
		signed = append(signed, `"`+s+`":{"ed25519:1":"AA"}`)
	}
	all := b.Bytes()
	raw = slices.Concat([]byte("{"), all[:hashesAt], []byte(`,"hashes":{"sha256":"`+base64.RawStdEncoding.EncodeToString(sum[:])+`"}`),
		all[hashesAt:signaturesAt], []byte(`,"signatures":{`+strings.Join(signed, ",")+`}`), all[signaturesAt:], []byte("}"))
	return raw, wrong
}

func idList(ids []eventgraph.EventID) string {
	quoted := make([]string, len(ids))
	for i, id := range ids {
		quoted[i] = `"` + string(id) + `"`
	}
	return "[" + strings.Join(quoted, ",") + "]"
}

// unknownID is an ID of no event.
func unknownID(v eventgraph.RoomVersion, n int) eventgraph.EventID {
	sum := sha256.Sum256([]byte{byte(n)})
	if v == "3" {
		return eventgraph.EventID("$" + base64.RawStdEncoding.EncodeToString(sum[:]))
	}
	return eventgraph.EventID("$" + base64.RawURLEncoding.EncodeToString(sum[:]))
}

// lie spoils the auth events.
func (g *generator) lie(ids []eventgraph.EventID) ([]eventgraph.EventID, string) {
	ids = slices.Clone(ids)
	// find is an event, other than those cited, that has what is asked for.
	find := func(want func(i int, p *pdu) bool) eventgraph.EventID {
		var all []eventgraph.EventID
		for i, p := range g.c.events {
			if !p.lost && !slices.Contains(ids, p.ID()) && want(i, p) {
				all = append(all, p.ID())
			}
		}
		if len(all) == 0 {
			return ""
		}
		return pick(g, all...)
	}
	const most = 9
	if len(ids) == 0 || len(ids) >= most {
		return ids, ""
	}
	at := g.rng.IntN(len(ids))
	old := g.c.events[g.c.index[ids[at]]]
	tuple, _ := old.Tuple()
	alike := func(i int, p *pdu) bool {
		t, ok := p.Tuple()
		return ok && t == tuple && p.RoomID() == g.rooms[0]
	}
	kind := g.rng.IntN(100)
	switch {
	case kind < 18:
		return slices.Delete(ids, at, at+1), " [auth: one missing]"
	case kind < 58:
		if id := find(func(i int, p *pdu) bool { return alike(i, p) && g.ref.placed[i].verdict == accepted }); id != "" {
			ids[at] = id
			return ids, " [auth: stale]"
		}
	case kind < 70:
		if id := find(func(i int, p *pdu) bool { return alike(i, p) && g.ref.placed[i].verdict != accepted }); id != "" {
			ids[at] = id
			return ids, " [auth: refused]"
		}
	case kind < 78:
		if id := find(alike); id != "" {
			return append(ids, id), " [auth: two of one kind]"
		}
		return append(ids, ids[at]), " [auth: twice]"
	case kind < 86:
		if id := find(func(_ int, p *pdu) bool { return p.RoomID() == g.rooms[0] }); id != "" {
			return append(ids, id), " [auth: needless]"
		}
	case kind < 94:
		if id := find(func(_ int, p *pdu) bool {
			t, ok := p.Tuple()
			return ok && t == tuple && p.RoomID() != g.rooms[0]
		}); id != "" {
			ids[at] = id
			return ids, " [auth: of another room]"
		}
	case kind < 96:
		g.rng.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
		return ids, ""
	case kind < 97:
		return append(ids, unknownID(g.c.version, len(g.c.events))), " [auth: unknown]"
	default:
		return nil, " [auth: none]"
	}
	return ids, ""
}

// object writes a JSON object, its keys sorted, from keys and values in JSON.
func object(pairs ...string) []byte {
	m := make(map[string]string, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	var b bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Quote(key) + ":" + m[key])
	}
	return []byte("{" + b.String() + "}")
}

func joinRules(rule string) []byte {
	if strings.Contains(rule, "restricted") {
		return object("allow", "[]", "join_rule", `"`+rule+`"`)
	}
	return object("join_rule", `"`+rule+`"`)
}

// invitation is a third-party invite that is good for a user: the token's key signed for it.
type invitation struct {
	user  eventgraph.UserID
	token int
}

var invitations struct {
	sync.Mutex
	signed map[invitation]string
}

// thirdPartyKey is the key pair of a token.
func thirdPartyKey(token int) (public string, private ed25519.PrivateKey) {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = byte(token)
	private = ed25519.NewKeyFromSeed(seed)
	return base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)), private
}

// signedInvitation is third_party_invite.signed. It costs a signature the first time.
func signedInvitation(user eventgraph.UserID, token int) string {
	invitations.Lock()
	defer invitations.Unlock()
	if invitations.signed == nil {
		invitations.signed = make(map[invitation]string)
	}
	key := invitation{user, token}
	if s, ok := invitations.signed[key]; ok {
		return s
	}
	content := fmt.Sprintf(`"mxid":"%s"`, user)
	rest := fmt.Sprintf(`"token":"t%d"`, token)
	_, private := thirdPartyKey(token)
	signature := base64.RawStdEncoding.EncodeToString(ed25519.Sign(private, []byte("{"+content+","+rest+"}")))
	s := "{" + content + `,"signatures":{"id.example":{"ed25519:0":"` + signature + `"}},` + rest + "}"
	invitations.signed[key] = s
	return s
}
