package auth

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// vectorDir holds the test vectors of the authorization rules; its README.md describes them.
const vectorDir = "../testdata/vectors/auth"

// A page is the list of rules of some room versions, as the specification numbers them.
type page struct {
	From, To int
	Spec     string
	Rules    []pageRule
}

type pageRule struct {
	Number, Rule, Kind, Text string
	When                     struct{ Type, Membership string } // of a heading: the events that it is about
}

type vectorFile struct {
	About   string
	Room    []vectorEvent
	Vectors []vector
}

type vector struct {
	Name     string
	Without  []vectorTuple
	State    []vectorEvent
	Others   []vectorEvent
	Rejected []string
	Event    vectorEvent
	Expect   []expectation
}

type vectorTuple struct {
	Type     string `json:"type"`
	StateKey string `json:"state_key"`
}

// A vectorEvent is an event with what README.md lets it omit.
type vectorEvent struct {
	ID         string            `json:"id"` // its name within the vector
	Type       string            `json:"type"`
	StateKey   *string           `json:"state_key"`
	Sender     eventgraph.UserID `json:"sender"`
	Content    json.RawMessage   `json:"content"`
	RoomID     eventgraph.RoomID `json:"room_id"`
	RoomIDOf   string            `json:"room_id_of"`
	PrevEvents []string          `json:"prev_events"`
	AuthEvents *[]string         `json:"auth_events"`
	SignedBy   []string          `json:"signed_by"`
	ForgedBy   []string          `json:"forged_by"`
}

type expectation struct {
	From, To              int
	Verdict, Rule, Reason string
	Escapes               []string
	Open                  string
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func readPages(t *testing.T) []page {
	t.Helper()
	var pages []page
	readJSON(t, filepath.Join(vectorDir, "rules.json"), &pages)
	return pages
}

// readVectors gives the files by name, without ".json".
func readVectors(t *testing.T) map[string]vectorFile {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(vectorDir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]vectorFile)
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		if name == "rules" {
			continue
		}
		var f vectorFile
		readJSON(t, path, &f)
		if len(f.Vectors) == 0 {
			t.Errorf("%s holds no vector", path)
		}
		files[name] = f
	}
	if len(files) == 0 {
		t.Fatal("there are no vectors")
	}
	return files
}

func pageOf(pages []page, v int) *page {
	for i := range pages {
		if pages[i].From <= v && v <= pages[i].To {
			return &pages[i]
		}
	}
	return nil
}

func (p *page) find(rule string) (index int, r *pageRule) {
	for i := range p.Rules {
		if p.Rules[i].Rule == rule {
			return i, &p.Rules[i]
		}
	}
	return -1, nil
}

// isUnder says whether the rule numbered n stands in the list below the one numbered heading, or is it.
func isUnder(n, heading string) bool { return n == heading || strings.HasPrefix(n, heading+".") }

// listOf is the number of the heading of the list that a rule stands in; "" is the page.
func listOf(n string) string {
	if i := strings.LastIndexByte(n, '.'); i >= 0 {
		return n[:i]
	}
	return ""
}

// TestVectors runs every vector in each of its room versions.
func TestVectors(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	for file, f := range readVectors(t) {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			built := make(builtEvents)
			for _, v := range f.Vectors {
				for _, want := range v.Expect {
					for n := want.From; n <= want.To; n++ {
						_, rule := pageOf(pages, n).find(want.Rule)
						if rule == nil {
							t.Fatalf("%s: the page of version %d has no rule %s", v.Name, n, want.Rule)
						}
						t.Run(v.Name+"/"+strconv.Itoa(n), func(t *testing.T) { runVector(t, newVectorRoom(t, n, &f, &v, built), &v, &want, pageOf(pages, n)) })
					}
				}
			}
		})
	}
}

func runVector(t *testing.T, w *vectorRoom, v *vector, want *expectation, p *page) {
	e, given := w.event(t, &v.Event)
	verdict := "ok"
	if want.Verdict == "refuse" {
		_, rule := p.find(want.Rule)
		verdict = rule.Number
	}
	err := CheckAuthEvents(e, given, w.isRejected)
	if v.Event.ForgedBy != nil {
		err = forged(e, err, p)
	}
	expect(t, err, verdict)
	if v.aboutAuthEvents() {
		return
	}
	err = Check(e, w.state)
	if v.Event.ForgedBy != nil {
		err = forged(e, err, p)
	}
	expect(t, err, verdict)
}

// aboutAuthEvents: the vector says what the auth events are, so there is no state before the event.
func (v *vector) aboutAuthEvents() bool { return v.Event.AuthEvents != nil || v.Rejected != nil }

// vectorRoom is the room of one vector in one version, its events completed.
type vectorRoom struct {
	version  eventgraph.RoomVersion
	traits   eventgraph.Traits
	id       eventgraph.RoomID
	state    given
	byName   map[string]*eventgraph.Event
	rejected []string
	built    builtEvents
}

// builtEvents keeps the events of the files' rooms, which are the same in most vectors, by where they are written.
type builtEvents map[builtKey]*eventgraph.Event

type builtKey struct {
	version eventgraph.RoomVersion
	room    eventgraph.RoomID
	written *vectorEvent
}

func newVectorRoom(t *testing.T, version int, f *vectorFile, v *vector, built builtEvents) *vectorRoom {
	t.Helper()
	w := &vectorRoom{
		version: eventgraph.RoomVersion(strconv.Itoa(version)), state: make(given), byName: make(map[string]*eventgraph.Event),
		rejected: v.Rejected, built: built,
	}
	w.traits, _ = w.version.Traits()
	if !w.traits.RoomIDFromCreate {
		w.id = "!room:a.example"
	}
	// The state of the file, without what the vector takes out or replaces, and then that of the vector.
	var state []*vectorEvent
	for i := range f.Room {
		e := &f.Room[i]
		gone := slices.ContainsFunc(v.Without, func(t vectorTuple) bool { return t.Type == e.Type && t.StateKey == *e.StateKey })
		gone = gone || slices.ContainsFunc(v.State, func(s vectorEvent) bool { return s.Type == e.Type && *s.StateKey == *e.StateKey })
		if !gone {
			state = append(state, e)
		}
	}
	for i := range v.State {
		state = append(state, &v.State[i])
	}
	// The create event comes first: from version 12 on it makes the room ID of the others, also where the vector takes it out.
	create := slices.IndexFunc(state, func(e *vectorEvent) bool { return e.Type == typeCreate })
	if create >= 0 {
		w.put(t, state[create])
	} else if i := slices.IndexFunc(f.Room, func(e vectorEvent) bool { return e.Type == typeCreate }); i >= 0 {
		w.id = w.build(t, &f.Room[i], nil).RoomID()
	}
	for i, e := range state {
		if i != create {
			w.put(t, e)
		}
	}
	for i := range v.Others {
		w.byName[v.Others[i].ID] = w.build(t, &v.Others[i], nil)
	}
	return w
}

func (w *vectorRoom) put(t *testing.T, ve *vectorEvent) {
	t.Helper()
	key := builtKey{w.version, w.id, ve}
	e := w.built[key]
	if e == nil {
		e = w.build(t, ve, nil)
		w.built[key] = e
	}
	tuple, isState := e.Tuple()
	if !isState || w.state[tuple] != nil {
		t.Fatalf("%v is no state, or is there twice", tuple)
	}
	if e.Type() == typeCreate {
		w.id = e.RoomID()
	}
	w.state[tuple] = e
	if ve.ID != "" {
		w.byName[ve.ID] = e
	}
}

// event completes the event of the vector, and gives what CheckAuthEvents wants for it.
func (w *vectorRoom) event(t *testing.T, ve *vectorEvent) (*eventgraph.Event, []*eventgraph.Event) {
	t.Helper()
	var auth, listed []*eventgraph.Event
	if ve.AuthEvents != nil {
		for _, name := range *ve.AuthEvents {
			auth = append(auth, w.named(t, name))
		}
	} else {
		draft := eventgraph.Draft{Type: ve.Type, StateKey: ve.StateKey, Sender: ve.Sender, Content: ve.Content}
		for _, tuple := range Selection(w.version, draft) {
			if e := w.state[tuple]; e != nil {
				auth = append(auth, e)
			}
		}
	}
	for _, e := range auth {
		if !slices.Contains(listed, e) {
			listed = append(listed, e)
		}
	}
	// In version 12 the room ID names the create event; whatever event has that ID is given.
	if create := w.state[tupleCreate]; create != nil && !slices.Contains(listed, create) {
		listed = append(listed, create)
	}
	if ve.RoomIDOf != "" {
		listed = append(listed, w.named(t, ve.RoomIDOf))
	}
	return w.build(t, ve, auth), listed
}

func (w *vectorRoom) named(t *testing.T, name string) *eventgraph.Event {
	t.Helper()
	e := w.byName[name]
	if e == nil {
		t.Fatalf("no event is called %s", name)
	}
	return e
}

// build completes an event as README.md says.
func (w *vectorRoom) build(t *testing.T, ve *vectorEvent, auth []*eventgraph.Event) *eventgraph.Event {
	t.Helper()
	d := eventgraph.Draft{
		RoomID: w.id, Type: ve.Type, StateKey: ve.StateKey, Sender: ve.Sender, Depth: 1, OriginServerTS: 1,
		Content: bytes.ReplaceAll(ve.Content, []byte("{version}"), []byte(w.version)),
	}
	switch {
	case ve.RoomID != "":
		d.RoomID = ve.RoomID
	case ve.RoomIDOf != "":
		d.RoomID = eventgraph.RoomID("!" + w.named(t, ve.RoomIDOf).ID()[1:])
	case ve.Type == typeCreate && w.traits.RoomIDFromCreate:
		d.RoomID = ""
	}
	if ve.PrevEvents == nil && ve.Type != typeCreate {
		d.PrevEvents = []eventgraph.EventID{"$" + eventgraph.EventID(strings.Repeat("A", 43))}
	}
	for _, p := range ve.PrevEvents {
		if strings.HasPrefix(p, "$") {
			d.PrevEvents = append(d.PrevEvents, eventgraph.EventID(p))
		} else {
			d.PrevEvents = append(d.PrevEvents, w.named(t, p).ID())
		}
	}
	for _, a := range auth {
		d.AuthEvents = append(d.AuthEvents, a.ID())
	}
	e, err := eventgraph.Build(w.version, d, keyOf(string(ve.Sender.Server())))
	if err != nil {
		t.Fatalf("building %s of %s: %v", ve.Type, ve.Sender, err)
	}
	for _, server := range ve.SignedBy {
		if e, err = e.WithSignature(keyOf(server)); err != nil {
			t.Fatal(err)
		}
	}
	for _, server := range ve.ForgedBy {
		forged := fmt.Sprintf(`"signatures":{%q:{"ed25519:1":%q},`, server, strings.Repeat("A", 86))
		if e, err = eventgraph.ParseEvent(w.version, bytes.Replace(e.Raw(), []byte(`"signatures":{`), []byte(forged), 1)); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func (w *vectorRoom) isRejected(id eventgraph.EventID) bool {
	return slices.ContainsFunc(w.rejected, func(name string) bool { return w.byName[name].ID() == id })
}

// forged is the verdict on an event with a forged signature that Check allowed: it asks that the signature of
// rule 5.2.1 is there, and leaves it to VerifySignatures whether it is valid.
func forged(e *eventgraph.Event, err error, p *page) error {
	_, rule := p.find("member.authorised.unsigned")
	if rule != nil && err == nil && errors.Is(e.VerifySignatures(nameKeys{}), eventgraph.ErrSignature) {
		return refuse(rule.Number, "a forged signature")
	}
	return err
}

// nameKeys is a ring of the keys of keyOf.
type nameKeys struct{}

func (nameKeys) Key(server eventgraph.ServerName, _ eventgraph.KeyID, _ int64, _ bool) (ed25519.PublicKey, error) {
	return keyOf(string(server)).Private.Public().(ed25519.PublicKey), nil
}

// TestRulePages: every supported version has a page, and a page every number once.
func TestRulePages(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	for _, version := range eventgraph.SupportedVersions() {
		n, _ := strconv.Atoi(string(version))
		p := pageOf(pages, n)
		if p == nil {
			t.Errorf("version %s has no page", version)
			continue
		}
		numbers, names := make(map[string]bool), make(map[string]bool)
		for _, r := range p.Rules {
			if numbers[r.Number] || names[r.Rule] {
				t.Errorf("version %s: %s or %s is there twice", version, r.Number, r.Rule)
			}
			numbers[r.Number], names[r.Rule] = true, true
			if list := listOf(r.Number); list != "" && !numbers[list] {
				t.Errorf("version %s: %s stands in no list", version, r.Number)
			}
			if !slices.Contains([]string{"heading", "reject", "allow", "either", "otherwise reject", "otherwise allow"}, r.Kind) {
				t.Errorf("version %s: %s is of unknown kind %q", version, r.Number, r.Kind)
			}
		}
	}
}

// TestVectorCoverage: every rule of every version has a vector that is refused and one that is allowed. What
// that means for each kind of rule is in README.md. A verdict that the page leaves open counts for none.
func TestVectorCoverage(t *testing.T) {
	t.Parallel()
	pages, files := readPages(t), readVectors(t)
	for _, version := range eventgraph.SupportedVersions() {
		n, _ := strconv.Atoi(string(version))
		p := pageOf(pages, n)
		allowed, refused := make(map[string]bool), make(map[string]bool)
		for file, f := range files {
			for _, v := range f.Vectors {
				for _, want := range v.Expect {
					if n < want.From || want.To < n {
						continue
					}
					checkExpectation(t, p, file+": "+v.Name, &v, &want)
					covered := allowed
					if want.Verdict == "refuse" {
						covered = refused
					}
					if want.Open != "" {
						continue
					}
					_, decisive := p.find(want.Rule)
					for _, r := range p.Rules {
						if isUnder(decisive.Number, r.Number) || slices.Contains(want.Escapes, r.Rule) {
							covered[r.Number] = true
						}
					}
				}
			}
		}
		for _, r := range p.Rules {
			if r.Kind != "heading" && !allowed[r.Number] {
				t.Errorf("version %s, rule %s (%s, %s) has no vector that is allowed: %s", version, r.Number, r.Rule, r.Kind, r.Text)
			}
			if r.Kind != "heading" && !refused[r.Number] {
				t.Errorf("version %s, rule %s (%s, %s) has no vector that is refused: %s", version, r.Number, r.Rule, r.Kind, r.Text)
			}
		}
	}
}

// checkExpectation: the verdict is one that its rule can give, and each rule that is said to be escaped is one that would
// have given the other verdict, was on the way, and is about such events.
func checkExpectation(t *testing.T, p *page, name string, v *vector, want *expectation) {
	t.Helper()
	if want.Reason == "" {
		t.Errorf("%s: no reason", name)
	}
	at, decisive := p.find(want.Rule)
	if decisive == nil || !gives(decisive.Kind, want.Verdict) {
		t.Fatalf("%s: rule %s does not %s in version %d", name, want.Rule, want.Verdict, p.From)
	}
	checkAbout(t, p, name, v, decisive)
	for _, escaped := range want.Escapes {
		i, r := p.find(escaped)
		other := map[string]string{"allow": "refuse", "refuse": "allow"}[want.Verdict]
		switch {
		case r == nil:
			t.Errorf("%s: version %d has no rule %s", name, p.From, escaped)
			continue
		case !gives(r.Kind, other):
			t.Errorf("%s: rule %s does not %s", name, escaped, other)
		case i >= at && !(strings.HasPrefix(r.Kind, "otherwise") && (listOf(r.Number) == "" || isUnder(decisive.Number, listOf(r.Number)))):
			t.Errorf("%s: rule %s is decided before %s is reached", name, want.Rule, escaped)
		}
		checkAbout(t, p, name, v, r)
	}
}

// gives says whether a rule of that kind can give the verdict.
func gives(kind, verdict string) bool {
	switch kind {
	case "either":
		return true
	case "allow", "otherwise allow":
		return verdict == "allow"
	case "reject", "otherwise reject":
		return verdict == "refuse"
	}
	return false
}

// checkAbout: the headings over the rule are about events such as the vector's.
func checkAbout(t *testing.T, p *page, name string, v *vector, rule *pageRule) {
	t.Helper()
	var content struct{ Membership any }
	if err := json.Unmarshal(v.Event.Content, &content); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, r := range p.Rules {
		if !isUnder(rule.Number, r.Number) {
			continue
		}
		if r.When.Type != "" && r.When.Type != v.Event.Type || r.When.Membership != "" && r.When.Membership != content.Membership {
			t.Errorf("%s: rule %s is not about such an event", name, rule.Rule)
		}
	}
}
