package federation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Playing a script (history_test.go): one goroutine calls the steps, so the same script has the same trace.

// world is a history that is being played.
type world struct {
	script   *script
	ctx      context.Context
	clock    worldClock
	stations []*station
	room     eventgraph.RoomID
	cut      [][]bool
	faults   []fault // of the step under way
	log      *slog.Logger
	show     func(line string) // nil, or is told of each step
	trace    hash.Hash
	lines    []string // of the trace
	step     int
	past     []moment // after each step

	open     sync.WaitGroup // streams being served
	mu       sync.Mutex
	kept     []kept
	requests uint64
	served   map[string]int
	failed   *failure                     // the first
	tally    *tally                       // of a history without failure
	further  [8]eventgraph.EventID        // what each station sent at the end
	forced   map[eventgraph.EventID]uint8 // to whom fork steps sent their events, whatever their sender knew
	stalled  bool                         // it ended in a stalemate
	again    bool                         // one further event of each was not enough
	mute     uint8                        // the stations that others take for joined and that cannot speak: apart
	deserted bool                         // it passed though states differ, as nobody is left in the room: nobodyLeft
}

// failure is what a history must not show.
type failure struct {
	kind     string // the same for the same defect, more or less
	text     string
	unmerged bool // errUnmerged
}

func (f *failure) Error() string { return f.kind + ": " + f.text }

// alarm notes a failure.
func (w *world) alarm(kind, format string, args ...any) {
	if w.failed == nil {
		w.failed = &failure{kind: kind, text: fmt.Sprintf(format, args...)}
	}
}

// moment is what each station took for the joined servers after a step, as a mask, and where its store was.
type moment struct {
	joined   [8]uint8
	position [8]store.Position
}

// play plays a script and the end of it: the network heals, each joined server sends one further event. It returns the failure found.
func play(ctx context.Context, s *script, log *slog.Logger, show func(string)) (w *world, err error) {
	return playThen(ctx, s, log, show, func(*world) error { return nil })
}

// playThen is play, and looks at what the stations hold if no failure was found.
func playThen(ctx context.Context, s *script, log *slog.Logger, show func(string), look func(*world) error) (w *world, err error) {
	before := rand.Reader
	rand.Reader = mathrand.NewChaCha8(sha256.Sum256([]byte("history"))) // room IDs, nonces, incarnations
	defer func() { rand.Reader = before }()
	w = &world{script: s, ctx: ctx, log: log, show: show, trace: sha256.New(), served: map[string]int{}, forced: map[eventgraph.EventID]uint8{}}
	defer func() {
		for _, s := range w.stations {
			if !s.down {
				s.stop()
			}
			s.store.Close()
		}
		if p := recover(); p != nil {
			err = &failure{kind: "panic", text: fmt.Sprint(p)}
			panic(p)
		}
	}()
	for i := range s.nodes {
		w.cut = append(w.cut, make([]bool, s.nodes))
		at, err := w.newStation(i)
		if err != nil {
			return w, err
		}
		w.stations = append(w.stations, at)
	}
	w.relink(ctx)
	if err := w.create(); err != nil {
		return w, err
	}
	for _, step := range s.steps {
		w.perform(step)
	}
	w.finish()
	if w.failed != nil {
		return w, w.failed
	}
	w.tally = newTally()
	w.count(w.tally)
	return w, look(w)
}

// create makes the room.
func (w *world) create() error {
	s, creator, empty := w.stations[0], w.user("a0"), ""
	powers := map[string]int{}
	if traits, _ := w.script.version.Traits(); !traits.PrivilegedCreators {
		powers[string(creator)] = 100
	}
	for _, p := range strings.Fields(w.script.powers) {
		user, level, _ := strings.Cut(p, "=")
		n, err := strconv.Atoi(level)
		if err != nil {
			return err
		}
		powers[string(w.user(user))] = n
	}
	state := func(kind string, content any) rooms.Draft {
		raw, _ := json.Marshal(content)
		return rooms.Draft{Type: kind, StateKey: &empty, Content: raw}
	}
	var err error
	w.room, err = s.rooms.Create(w.ctx, rooms.CreateRequest{Version: w.script.version, Creator: creator, Then: []rooms.Draft{
		state("m.room.power_levels", map[string]any{"users": powers, "users_default": 0, "events_default": 0, "state_default": 50, "invite": 0}),
		state("m.room.join_rules", map[string]any{"join_rule": w.script.rule}),
		state("m.room.history_visibility", map[string]any{"history_visibility": w.script.visibility}),
	}})
	w.note("create", err)
	return err
}

func (w *world) user(name string) eventgraph.UserID {
	return eventgraph.UserID("@" + name[:1] + ":" + string(historyHosts()[home(name)].name))
}

// note ends a step: its line in the trace says how it went and what the stations hold now.
func (w *world) note(step string, err error) {
	result := "ok"
	var refusal *rooms.Refusal
	switch {
	case errors.As(err, &refusal):
		result = refusal.Code
	case err != nil:
		result = "failed"
	}
	var m moment
	line := fmt.Sprintf("%s: %s", step, result)
	for i, s := range w.stations {
		m.position[i] = s.store.Position()
		line += fmt.Sprintf(" [%d", m.position[i])
		if !s.down {
			m.joined[i] = w.mask(s)
			if room := s.record(); room != nil {
				line += fmt.Sprintf(" %08b %s %s", m.joined[i], hex.EncodeToString(room.State[:4]), brief(room.Forward))
			}
		} else if w.step > 0 {
			m.joined[i] = w.past[w.step-1].joined[i]
		}
		line += "]"
	}
	w.past = append(w.past, m)
	w.step++
	w.lines = append(w.lines, line)
	fmt.Fprintln(w.trace, line, w.requests)
	if w.show != nil {
		if err != nil {
			line += "   " + err.Error()
		}
		w.show(line)
	}
}

func brief(ids []eventgraph.EventID) string {
	var all []string
	for _, id := range ids {
		all = append(all, string(id[1:6]))
	}
	return strings.Join(all, ",")
}

// mask is the servers that a station takes for joined.
func (w *world) mask(s *station) (mask uint8) {
	servers, err := s.rooms.Servers(w.room)
	if err != nil {
		return 0 // not held
	}
	for i, other := range w.stations {
		if slices.Contains(servers, other.name) {
			mask |= 1 << i
		}
	}
	return mask
}

// record is the room as the station holds it; nil if it does not.
func (s *station) record() (room *store.Room) {
	s.store.View(func(r *store.Reader) (err error) {
		room, err = r.Room(s.w.room)
		return err
	})
	return room
}

// perform does one step; one that makes no sense now does nothing.
func (w *world) perform(step string) {
	w.clock.advance(time.Second)
	words, faults := faultsOf(strings.Fields(step))
	w.faults = faults
	err := w.do(words)
	w.faults = nil
	w.open.Wait()
	w.note(step, err)
}

var errUnknownStep = errors.New("unknown step")

func (w *world) do(words []string) error {
	if len(words) == 0 {
		return errUnknownStep
	}
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	at := func(i int) int { n, _ := strconv.Atoi(arg(i)); return n % len(w.stations) }
	switch words[0] {
	case "cut", "split", "heal", "restart", "down", "up", "wait", "free":
		return w.network(words)
	case "send":
		return w.stations[at(1)].send(w.ctx, w.stations[at(2)])
	case "meet":
		s := w.stations[at(1)]
		if s.down || at(1) == at(2) {
			return errLost
		}
		return s.meet(w.ctx, w.stations[at(2)])
	case "inbox":
		_, err := w.stations[at(1)].work(w.ctx)
		return err
	}
	if len(arg(1)) < 2 || home(arg(1)) >= len(w.stations) {
		return errUnknownStep
	}
	s := w.stations[home(arg(1))]
	if s.down {
		return errLost
	}
	return w.deed(s, words[0], w.user(arg(1)), words[2:])
}

// network does what the network, or a device, does.
func (w *world) network(words []string) error {
	number := func(i int) int {
		if i < len(words) {
			n, _ := strconv.Atoi(words[i])
			return n
		}
		return 0
	}
	defer w.relink(w.ctx)
	switch words[0] {
	case "cut":
		a, b := number(1)%len(w.stations), number(2)%len(w.stations)
		w.cut[a][b], w.cut[b][a] = true, true
	case "split":
		bar := slices.Index(words, "|")
		if bar < 0 {
			return errUnknownStep
		}
		for _, a := range words[1:bar] {
			for _, b := range words[bar+1:] {
				i, _ := strconv.Atoi(a)
				j, _ := strconv.Atoi(b)
				w.cut[i%len(w.stations)][j%len(w.stations)], w.cut[j%len(w.stations)][i%len(w.stations)] = true, true
			}
		}
	case "heal":
		for _, row := range w.cut {
			clear(row)
		}
	case "restart", "down":
		s := w.stations[number(1)%len(w.stations)]
		if s.down {
			return nil
		}
		s.drop()
		s.stop()
		if words[0] == "restart" {
			return s.start()
		}
	case "up":
		for _, s := range w.stations {
			if s.down {
				if err := s.start(); err != nil {
					return err
				}
			}
		}
	case "wait":
		w.clock.advance(time.Duration(number(1)) * time.Second)
	case "free":
		if len(w.kept) == 0 {
			return nil
		}
		return w.free(number(1) % len(w.kept))
	}
	return nil
}

// free lets a kept request arrive.
func (w *world) free(i int) error {
	k := w.kept[i]
	w.kept = slices.Delete(w.kept, i, i+1)
	_, err := w.serve(w.ctx, k)
	return err
}

// deed does what a user does at a client of theirs.
func (w *world) deed(s *station, what string, u eventgraph.UserID, args []string) error {
	args = append(args, "", "")
	whom := args[0]
	if what == "fork" {
		whom = args[len(args)-3]
	}
	var v eventgraph.UserID
	if len(whom) == 2 && whom[1] >= '0' && home(whom) < len(w.stations) {
		v = w.user(whom)
	}
	empty := ""
	send := func(kind string, key *string, content any) error {
		raw, err := json.Marshal(content)
		if err != nil {
			return err
		}
		_, err = s.rooms.Send(w.ctx, rooms.Draft{Room: w.room, Sender: u, Type: kind, StateKey: key, Content: raw})
		return err
	}
	member := func(membership string) error {
		if v == "" {
			return errUnknownStep
		}
		key := string(v)
		return send("m.room.member", &key, map[string]string{"membership": membership})
	}
	via := func(word string) []eventgraph.ServerName {
		i, _ := strconv.Atoi(word)
		return []eventgraph.ServerName{w.stations[i%len(w.stations)].name}
	}
	switch what {
	case "say":
		return send("m.room.message", nil, map[string]string{"msgtype": "m.text", "body": fmt.Sprint("step ", w.step)})
	case "topic":
		return send("m.room.topic", &empty, map[string]string{"topic": args[0]})
	case "name":
		return send("m.room.name", &empty, map[string]string{"name": args[0]})
	case "rule":
		return send("m.room.join_rules", &empty, map[string]string{"join_rule": args[0]})
	case "visibility":
		return send("m.room.history_visibility", &empty, map[string]string{"history_visibility": args[0]})
	case "kick", "unban":
		return member("leave")
	case "ban":
		return member("ban")
	case "invite":
		if v == "" || v.Server() == s.name {
			return member("invite")
		}
		key := string(v)
		_, err := s.fed.Invite(w.ctx, rooms.Draft{
			Room: w.room, Sender: u, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`),
		})
		return err
	case "join":
		return s.fed.Join(w.ctx, w.room, u, via(args[0]), nil)
	case "knock":
		return s.fed.Knock(w.ctx, w.room, u, via(args[0]), nil)
	case "leave":
		if s.rooms.InRoom(w.room, s.name) {
			key := string(u)
			return send("m.room.member", &key, map[string]string{"membership": "leave"})
		}
		return s.fed.Leave(w.ctx, w.room, u, "")
	case "power":
		return w.setPower(s, send, args[1], string(v))
	case "level":
		return w.setPower(s, send, args[1], args[0])
	case "redact":
		return w.redact(s, u, args[0])
	case "fork":
		return w.fork(s, u, v, args)
	}
	return errUnknownStep
}

// setPower changes a user's level, or one of the room's.
func (w *world) setPower(s *station, send func(string, *string, any) error, level, of string) error {
	n, err := strconv.Atoi(level)
	if err != nil || of == "" {
		return errUnknownStep
	}
	state, err := s.rooms.CurrentState(w.room)
	if err != nil {
		return err
	}
	content := map[string]any{}
	if e, err := state.Event(eventgraph.StateTuple{Type: "m.room.power_levels"}); err != nil {
		return err
	} else if e != nil {
		if err := json.Unmarshal(e.Content(), &content); err != nil {
			return err
		}
	}
	if strings.HasPrefix(of, "@") {
		users, _ := content["users"].(map[string]any)
		if users == nil {
			users = map[string]any{}
		}
		users[of] = n
		content["users"] = users
	} else {
		content[of] = n
	}
	empty := ""
	return send("m.room.power_levels", &empty, content)
}

// redact redacts one of the messages that the station shows.
func (w *world) redact(s *station, u eventgraph.UserID, which string) error {
	n, err := strconv.Atoi(which)
	if err != nil {
		return errUnknownStep
	}
	var said []eventgraph.EventID
	err = s.store.View(func(r *store.Reader) error {
		return r.Timeline(w.room, firstOrder, false, func(e *store.StoredEvent) (bool, error) {
			if key, isState := e.StateKey(); !isState || key == "" && e.Type() == "m.room.topic" {
				said = append(said, e.ID())
			}
			return true, nil
		})
	})
	if err != nil || len(said) == 0 {
		return err
	}
	_, err = s.rooms.Send(w.ctx, rooms.Draft{
		Room: w.room, Sender: u, Type: "m.room.redaction", Content: json.RawMessage(`{}`), Redacts: said[n%len(said)],
	})
	return err
}

// fork makes an event on one of the past, as a server does that does not heed what it knows, and sends it to all that it reaches.
func (w *world) fork(s *station, u, v eventgraph.UserID, args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return errUnknownStep
	}
	var past []*store.StoredEvent
	err = s.store.View(func(r *store.Reader) error {
		return r.Timeline(w.room, firstOrder, false, func(e *store.StoredEvent) (bool, error) {
			if e.StateAfter != (eventgraph.Hash{}) {
				past = append(past, e)
			}
			return true, nil
		})
	})
	if err != nil || len(past) == 0 {
		return err
	}
	on := past[n%len(past)]
	empty, victim, self := "", string(v), string(u)
	d := eventgraph.Draft{
		RoomID: w.room, Sender: u, Type: "m.room.message", Content: json.RawMessage(fmt.Sprintf(`{"body":"step %d","msgtype":"m.text"}`, w.step)),
		PrevEvents: []eventgraph.EventID{on.ID()}, Depth: on.Depth() + 1, OriginServerTS: on.OriginServerTS() + 1,
	}
	switch args[1] {
	case "topic":
		d.Type, d.StateKey, d.Content = "m.room.topic", &empty, json.RawMessage(fmt.Sprintf(`{"topic":"fork %d"}`, w.step))
	case "ban":
		d.Type, d.StateKey, d.Content = "m.room.member", &victim, json.RawMessage(`{"membership":"ban"}`)
	case "power":
		d.Type, d.StateKey, d.Content = "m.room.power_levels", &empty, json.RawMessage(`{"users":{"`+victim+`":50},"state_default":50}`)
	case "join":
		d.Type, d.StateKey, d.Content = "m.room.member", &self, json.RawMessage(`{"membership":"join"}`)
	}
	state := s.rooms.StateAt(w.room, on.StateAfter)
	for _, t := range auth.Selection(on.Version(), d) {
		id, ok, err := state.EventID(t)
		if err != nil {
			return err
		}
		if ok {
			d.AuthEvents = append(d.AuthEvents, id)
		}
	}
	e, err := eventgraph.Build(on.Version(), d, s.key)
	if err != nil {
		return err
	}
	result, err := s.rooms.Accept(w.ctx, e, rooms.Basis{})
	if err != nil || result.Verdict == store.Accepted {
		return err // and then the sender sends it
	}
	body, err := marshal(transaction{Origin: s.name, OriginServerTS: s.now().UnixMilli(), PDUs: []json.RawMessage{e.Raw()}})
	if err != nil {
		return err
	}
	for i, to := range w.stations {
		if s.linked(to) {
			w.forced[e.ID()] |= 1 << i
			err = errors.Join(err, s.fed.putTransaction(w.ctx, to.name, fmt.Sprint("fork ", w.step), body))
		}
	}
	return err
}

// firstOrder is before the order of all events, backfilled ones too.
const firstOrder = -1 << 62
