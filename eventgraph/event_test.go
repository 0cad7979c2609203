package eventgraph

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// testKey is a signing key made of a number: of a server whose identity key and device key are one.
func testKey(n byte) SigningKey {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	public := private.Public().(ed25519.PublicKey)
	return SigningKey{NewServerName(public), NewPeerID(public).KeyID(), private}
}

func user(local string, k SigningKey) UserID {
	return UserID("@" + local + ":" + string(k.Server))
}

// testRing is a KeyRing of those keys, for any time.
type testRing []SigningKey

func (r testRing) Key(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	for _, k := range r {
		if k.Server == server && k.ID == id {
			return k.Private.Public().(ed25519.PublicKey), nil
		}
	}
	return nil, ErrKeyUnknown
}

func pointer(s string) *string { return &s }

func roomOf(v RoomVersion) RoomID {
	if t, _ := v.Traits(); t.RoomIDFromCreate {
		return RoomID("!" + numberedID(0)[1:])
	}
	return "!room:example.org"
}

// idIn returns an event ID in that version's alphabet.
func idIn(v RoomVersion, n int) EventID {
	t, _ := v.Traits()
	h := sha256.Sum256(fmt.Append(nil, n))
	return EventID("$" + t.idEncoding().EncodeToString(h[:]))
}

func draft(v RoomVersion, typ, content string, k SigningKey) Draft {
	return Draft{
		RoomID: roomOf(v), Type: typ, Sender: user("alice", k), Content: json.RawMessage(content),
		PrevEvents: []EventID{idIn(v, 1)}, AuthEvents: []EventID{idIn(v, 2), idIn(v, 3)}, Depth: 7, OriginServerTS: 1_700_000_000_000,
	}
}

func mustBuild(t testing.TB, v RoomVersion, d Draft, k SigningKey) *Event {
	t.Helper()
	e, err := Build(v, d, k)
	if err != nil {
		t.Fatalf("Build in version %s: %v", v, err)
	}
	return e
}

// same fails the test unless two events agree in all that can be asked of them.
func same(t *testing.T, a, b *Event) {
	t.Helper()
	show := func(e *Event) string {
		key, isState := e.StateKey()
		return fmt.Sprintf("%s %s %s %s %q %v %s %s %s %v %v %d %d %s %s", e.ID(), e.Version(), e.RoomID(), e.Type(), key, isState,
			e.Sender(), e.Content(), e.Membership(), e.PrevEvents(), e.AuthEvents(), e.Depth(), e.OriginServerTS(), e.Redacts(), e.Raw())
	}
	if show(a) != show(b) {
		t.Errorf("events differ:\n%s\n%s", show(a), show(b))
	}
}

// TestBuildParseLoad: what was built parses, loads and verifies as itself, in every version.
func TestBuildParseLoad(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	for _, v := range SupportedVersions() {
		d := draft(v, "m.room.member", `{"membership":"join","displayname":"Zoë \u0001 \"<&>\" \uD83D\uDE00"}`, k)
		d.StateKey = pointer(string(d.Sender))
		e := mustBuild(t, v, d, k)
		if e.Version() != v || e.RoomID() != d.RoomID || e.Type() != d.Type || e.Sender() != d.Sender || e.Depth() != d.Depth ||
			e.OriginServerTS() != d.OriginServerTS || !slices.Equal(e.PrevEvents(), d.PrevEvents) || !slices.Equal(e.AuthEvents(), d.AuthEvents) {
			t.Errorf("version %s: %s is not the draft", v, e.Raw())
		}
		if tuple, ok := e.Tuple(); !ok || tuple != (StateTuple{d.Type, *d.StateKey}) || e.Membership() != "join" {
			t.Errorf("version %s: tuple %v %v, membership %q", v, tuple, ok, e.Membership())
		}
		if want := `{"displayname":"Zoë \u0001 \"<&>\" 😀","membership":"join"}`; string(e.Content()) != want {
			t.Errorf("version %s: content %s, want %s", v, e.Content(), want)
		}
		traits, _ := v.Traits()
		if !isHashID(string(e.ID()), '$', traits.idEncoding()) {
			t.Errorf("version %s: event ID %s", v, e.ID())
		}
		// From a peer: spaces, "unsigned" with whatever numbers, and members in another order.
		var loose map[string]any
		dec := json.NewDecoder(bytes.NewReader(e.Raw()))
		dec.UseNumber()
		if err := dec.Decode(&loose); err != nil {
			t.Fatal(err)
		}
		loose["unsigned"] = map[string]any{"age": 1.5, "zz": json.Number("-0.0")}
		indented, err := json.MarshalIndent(loose, " ", "\t")
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParseEvent(v, indented)
		if err != nil {
			t.Fatalf("version %s: %v", v, err)
		}
		same(t, e, parsed)
		loaded, err := LoadEvent(v, e.ID(), e.Raw())
		if err != nil {
			t.Fatalf("version %s: %v", v, err)
		}
		same(t, e, loaded)
		for _, e := range []*Event{e, parsed, loaded, e.Redact()} {
			if err := e.VerifySignatures(testRing{k}); err != nil {
				t.Errorf("version %s: %v", v, err)
			}
			if e.HashMismatch() {
				t.Errorf("version %s: hash mismatch", v)
			}
		}
	}
}

// TestHashesByHand: content hash and ID as a second implementation over encoding/json computes them.
func TestHashesByHand(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	hash := func(members map[string]json.RawMessage, without ...string) [32]byte {
		rest := maps.Clone(members)
		for _, key := range without {
			delete(rest, key)
		}
		// The values are canonical already, and encoding/json sorts the names.
		return sha256.Sum256(must(json.Marshal(rest)))
	}
	for _, v := range SupportedVersions() {
		d := draft(v, "m.room.name", `{"name":"x"}`, k)
		d.StateKey = pointer("")
		e := mustBuild(t, v, d, k)
		var members map[string]json.RawMessage
		if err := json.Unmarshal(e.Raw(), &members); err != nil {
			t.Fatal(err)
		}
		content := hash(members, "hashes", "signatures")
		if want := fmt.Sprintf(`{"sha256":%q}`, base64.RawStdEncoding.EncodeToString(content[:])); string(members["hashes"]) != want {
			t.Errorf("version %s: hashes %s, want %s", v, members["hashes"], want)
		}
		members["content"] = json.RawMessage("{}")
		reference := hash(members, "signatures")
		enc := base64.RawURLEncoding
		if v == "3" {
			enc = base64.RawStdEncoding
		}
		if want := EventID("$" + enc.EncodeToString(reference[:])); e.ID() != want {
			t.Errorf("version %s: ID %s, want %s", v, e.ID(), want)
		}
	}
}

func TestCreateEventNamesItsRoom(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	d := Draft{Type: "m.room.create", StateKey: pointer(""), Sender: user("alice", k), Content: json.RawMessage(`{"room_version":"12"}`), Depth: 1}
	e := mustBuild(t, "12", d, k)
	if want := RoomID("!" + e.ID()[1:]); e.RoomID() != want || bytes.Contains(e.Raw(), []byte("room_id")) {
		t.Errorf("room %s, want %s, in %s", e.RoomID(), want, e.Raw())
	}
	loaded, err := LoadEvent("12", e.ID(), e.Raw())
	if err != nil {
		t.Fatal(err)
	}
	same(t, e, loaded)
	same(t, e, e.Redact())
	if _, err := Build("11", d, k); !errors.Is(err, ErrFormat) {
		t.Errorf("version 11 without room_id: %v", err)
	}
	// One that claims a room ID is well-formed, and its room is the one that it claims (v12, rule 1.2 rejects it).
	d.RoomID = roomOf("12")
	if e := mustBuild(t, "12", d, k); e.RoomID() != d.RoomID {
		t.Errorf("room %s, want %s", e.RoomID(), d.RoomID)
	}
	for _, d := range []Draft{{Type: "m.room.message", Sender: d.Sender}, {Type: "m.room.create", StateKey: pointer("x"), Sender: d.Sender}, {Type: "m.room.create", Sender: d.Sender}} {
		if _, err := Build("12", d, k); !errors.Is(err, ErrFormat) {
			t.Errorf("%s without room_id: %v", d.Type, err)
		}
	}
}

// edited returns a well-formed event of that version with members set (nil: removed), its hash made anew if asked.
func edited(t testing.TB, v RoomVersion, set map[string]any, rehash bool) []byte {
	t.Helper()
	k := testKey(1)
	e := mustBuild(t, v, draft(v, "m.room.message", `{"body":"x"}`, k), k)
	var members map[string]json.RawMessage
	if err := json.Unmarshal(e.Raw(), &members); err != nil {
		t.Fatal(err)
	}
	for key, val := range set {
		switch val := val.(type) {
		case nil:
			delete(members, key)
		case json.RawMessage:
			members[key] = val
		default:
			raw, err := json.Marshal(val)
			if err != nil {
				t.Fatal(err)
			}
			members[key] = raw
		}
	}
	raw, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	if !rehash {
		return raw
	}
	h := contentHash(fieldsOf(t, raw))
	members["hashes"] = json.RawMessage(`{"sha256":"` + encodeBase64(h[:]) + `"}`)
	if raw, err = json.Marshal(members); err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestUnsupportedVersions(t *testing.T) {
	t.Parallel()
	for _, v := range []RoomVersion{"", "1", "2", "13", "012", "+3", "org.example"} {
		if _, err := ParseEvent(v, edited(t, "10", nil, false)); !errors.Is(err, ErrFormat) {
			t.Errorf("version %q: %v", v, err)
		}
	}
}

// TestEventSize: what is built is bound as what is parsed, and so is what is parsed before its spaces are gone.
func TestEventSize(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	build := func(n int) (*Event, error) {
		return Build("12", draft("12", "m.room.message", `{"body":"`+strings.Repeat("x", n)+`"}`, k), k)
	}
	empty, err := build(0)
	if err != nil {
		t.Fatal(err)
	}
	largest, err := build(maxEvent - len(empty.Raw()))
	if err != nil || len(largest.Raw()) != maxEvent {
		t.Fatalf("largest: %v", err)
	}
	if _, err := build(maxEvent - len(empty.Raw()) + 1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
	if _, err := largest.WithSignature(testKey(2)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("another signature: %v", err)
	}
	withUnsigned := slices.Concat(largest.Raw()[:maxEvent-1], []byte(`,"unsigned":{"age":1}}`))
	if e, err := ParseEvent("12", withUnsigned); err != nil {
		t.Errorf("with unsigned: %v", err)
	} else {
		same(t, largest, e)
	}
	if _, err := ParseEvent("12", slices.Concat(bytes.Repeat([]byte(" "), maxRawEvent), largest.Raw())); !errors.Is(err, ErrTooLarge) {
		t.Errorf("spaces without end: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestLenientNumbers: versions 3 to 5 hash number literals as written; so does a copy that travelled on.
func TestLenientNumbers(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	content := `{"a":1.50,"b":-0,"c":1E+3,"d":123456789012345678901234567890}`
	for _, v := range []RoomVersion{"3", "4", "5"} {
		e := mustBuild(t, v, draft(v, "m.room.message", content, k), k)
		if string(e.Content()) != content {
			t.Errorf("version %s: %s", v, e.Content())
		}
		if got, err := ParseEvent(v, e.Raw()); err != nil || got.HashMismatch() {
			t.Errorf("version %s: %v", v, err)
		}
	}
	for _, n := range []string{"1.50", "-0", "1E+3", "9007199254740992", "-9007199254740992"} {
		if _, err := Build("6", draft("6", "m.room.message", `{"a":`+n+`}`, k), k); !errors.Is(err, ErrFormat) {
			t.Errorf("version 6: %s: %v", n, err)
		}
	}
}

func TestRedacts(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	for _, v := range SupportedVersions() {
		target := idIn(v, 9)
		d := draft(v, "m.room.redaction", `{"reason":"spam"}`, k)
		d.Redacts = target
		e := mustBuild(t, v, d, k)
		traits, _ := v.Traits()
		inContent := strings.Contains(string(e.Content()), "redacts")
		if e.Redacts() != target || inContent != traits.RedactsInContent || strings.Count(string(e.Raw()), "redacts") != 1 {
			t.Errorf("version %s: redacts %q in %s", v, e.Redacts(), e.Raw())
		}
	}
}

func TestProtoFinish(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	for _, v := range SupportedVersions() {
		d := draft(v, "m.room.member", `{"membership":"join"}`, k)
		d.StateKey = pointer(string(d.Sender))
		proto, err := Proto(v, d)
		if err != nil {
			t.Fatal(err)
		}
		var members map[string]any
		if err := json.Unmarshal(proto, &members); err != nil {
			t.Fatal(err)
		}
		members["hashes"], members["signatures"], members["event_id"], members["unsigned"] = "x", 1, 2, 0.5
		members["origin"] = "example.org"
		e, err := Finish(v, must(json.Marshal(members)), 42, k)
		if err != nil {
			t.Fatalf("version %s: %v", v, err)
		}
		if e.OriginServerTS() != 42 || e.Membership() != "join" || e.HashMismatch() || bytes.Contains(e.Raw(), []byte("event_id")) {
			t.Errorf("version %s: %s", v, e.Raw())
		}
		if err := e.VerifySignatures(testRing{k}); err != nil {
			t.Errorf("version %s: %v", v, err)
		}
		for _, bad := range []string{"", "[]", "{}", `{"type":"x"}`, `{"content":1,"type":"x"}`} {
			if _, err := Finish(v, json.RawMessage(bad), 42, k); !errors.Is(err, ErrFormat) {
				t.Errorf("version %s: template %q: %v", v, bad, err)
			}
		}
	}
	for _, d := range []Draft{{Content: json.RawMessage("[]")}, {Content: json.RawMessage("{")}, {Type: "\xff"}, {StateKey: pointer("\xff")}} {
		if _, err := Proto("12", d); !errors.Is(err, ErrFormat) {
			t.Errorf("%v: %v", d, err)
		}
	}
}

// TestSortTopologically: on random graphs in random order, parents come first, and the result is the same.
func TestSortTopologically(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		var events []*Event
		for i := range 40 {
			d := draft("12", "m.room.message", fmt.Sprintf(`{"body":"%d"}`, i), k)
			d.PrevEvents, d.AuthEvents = nil, nil
			// Depth and time are the sender's and say nothing.
			d.Depth, d.OriginServerTS = rng.Int64N(3), rng.Int64N(3)
			for range rng.IntN(4) {
				if i > 0 {
					d.PrevEvents = append(d.PrevEvents, events[rng.IntN(i)].ID())
				}
			}
			if i > 0 && rng.IntN(3) == 0 {
				d.AuthEvents = append(d.AuthEvents, events[rng.IntN(i)].ID(), idIn("12", i))
			}
			events = append(events, mustBuild(t, "12", d, k))
		}
		want := SortTopologically(events)
		position := map[EventID]int{}
		for i, e := range want {
			position[e.ID()] = i
			for _, p := range slices.Concat(e.PrevEvents(), e.AuthEvents()) {
				if at, ok := position[p]; !ok && slices.ContainsFunc(events, func(e *Event) bool { return e.ID() == p }) || at > i {
					t.Fatalf("%s comes before its parent %s", e.ID(), p)
				}
			}
		}
		if len(position) != len(events) {
			t.Fatalf("%d events of %d", len(position), len(events))
		}
		shuffled := slices.Concat(events, events[:5])
		rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if got := SortTopologically(shuffled); !slices.EqualFunc(got, want, func(a, b *Event) bool { return a.ID() == b.ID() }) {
			t.Fatal("the order depends on that of the input")
		}
	}
}

// TestSortCycle: IDs that are no hashes could make a cycle; nothing is lost, and it ends.
func TestSortCycle(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	load := func(n, parent int) *Event {
		d := draft("12", "m.room.message", `{}`, k)
		d.PrevEvents, d.Depth = []EventID{idIn("12", parent)}, int64(n)
		return must(LoadEvent("12", idIn("12", n), mustBuild(t, "12", d, k).Raw()))
	}
	a, b, c, self := load(11, 12), load(12, 11), load(13, 99), load(14, 14)
	if got := SortTopologically([]*Event{b, self, a, c}); !slices.Equal(got, []*Event{c, self, a, b}) {
		t.Errorf("sorted %v", got)
	}
}

// TestLoadDamaged: bytes that are not an event's are an error.
func TestLoadDamaged(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	e := mustBuild(t, "12", draft("12", "m.room.message", `{}`, k), k)
	for n := range len(e.Raw()) {
		if _, err := LoadEvent("12", e.ID(), e.Raw()[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := LoadEvent("99", e.ID(), e.Raw()); !errors.Is(err, ErrFormat) {
		t.Errorf("unknown version: %v", err)
	}
}

// TestReferenceID: an event that is refused has an ID all the same, unless it has no redacted form.
func TestReferenceID(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	for _, v := range SupportedVersions() {
		e := mustBuild(t, v, draft(v, "m.room.message", `{"body":"x"}`, k), k)
		for _, raw := range [][]byte{e.Raw(), e.Redact().Raw(), append([]byte(`{"unsigned":{},"large":"`+strings.Repeat("x", 1<<17)+`",`), e.Raw()[1:]...)} {
			if id, err := ReferenceID(v, raw); err != nil || id != e.ID() {
				t.Errorf("version %s: %s, %v, want %s", v, id, err, e.ID())
			}
		}
		for _, raw := range []string{"", "[]", "{", `{"type":"m.room.member","content":[]}`} {
			if id, err := ReferenceID(v, []byte(raw)); !errors.Is(err, ErrFormat) {
				t.Errorf("version %s: %s: %s, %v", v, raw, id, err)
			}
		}
	}
}

// TestSortTies: depth, then time, then ID.
func TestSortTies(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	var events []*Event
	for _, dt := range [][2]int64{{2, 1}, {1, 9}, {1, 3}, {1, 3}, {0, 50}} {
		d := draft("12", "m.room.message", fmt.Sprintf(`{"n":%d}`, len(events)), k)
		d.PrevEvents, d.AuthEvents, d.Depth, d.OriginServerTS = nil, nil, dt[0], dt[1]
		events = append(events, mustBuild(t, "12", d, k))
	}
	low, high := events[2], events[3]
	if low.ID() > high.ID() {
		low, high = high, low
	}
	want := []*Event{events[4], low, high, events[1], events[0]}
	if got := SortTopologically(events); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := SortTopologically(nil); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// FuzzParseEvent: whatever comes, in any version, is an event or an error of a known kind; an event's own bytes are the same event.
func FuzzParseEvent(f *testing.F) {
	k := testKey(1)
	versions := SupportedVersions()
	for n, v := range versions {
		f.Add(byte(n), edited(f, v, nil, false))
		f.Add(byte(n), edited(f, v, map[string]any{"type": "m.room.member", "content": json.RawMessage(`{"membership":"join","join_authorised_via_users_server":"@a:b"}`)}, true))
		f.Add(byte(n), edited(f, v, map[string]any{"type": "m.room.power_levels", "state_key": "", "content": json.RawMessage(`{"users":{"@a:b":50},"invite":1,"x":1}`), "unsigned": json.RawMessage(`{"age":15}`)}, true))
		f.Add(byte(n), edited(f, v, map[string]any{"type": "m.room.redaction", "redacts": idIn(v, 1), "content": json.RawMessage(`{"redacts":"$x"}`), "origin": "o"}, true))
	}
	f.Add(byte(9), mustBuild(f, "12", Draft{Type: "m.room.create", StateKey: pointer(""), Sender: user("a", k)}, k).Raw())
	f.Add(byte(2), []byte(`{"a":1.50,"\u0000":"\ud83d\ude00"}`))
	f.Fuzz(func(t *testing.T, version byte, raw []byte) {
		v := versions[int(version)%len(versions)]
		e, err := ParseEvent(v, raw)
		reference, refErr := ReferenceID(v, raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrTooLarge) || refErr != nil && !errors.Is(refErr, ErrFormat) {
				t.Fatalf("error of no kind: %v, %v", err, refErr)
			}
			return
		}
		if refErr != nil || reference != e.ID() {
			t.Fatalf("ID %s, by reference %s, %v", e.ID(), reference, refErr)
		}
		again, err := ParseEvent(v, e.Raw())
		if err != nil {
			t.Fatalf("its own bytes do not parse: %v", err)
		}
		same(t, e, again)
		loaded, err := LoadEvent(v, e.ID(), e.Raw())
		if err != nil {
			t.Fatalf("its own bytes do not load: %v", err)
		}
		same(t, e, loaded)
		once := e.Redact()
		same(t, once, once.Redact())
		redacted, err := ParseEvent(v, once.Raw())
		if err != nil {
			t.Fatalf("the redacted form does not parse: %v", err)
		}
		same(t, once, redacted)
		if err := e.VerifySignatures(testRing{k}); err != nil && !errors.Is(err, ErrSignature) && !errors.Is(err, ErrKeyUnknown) {
			t.Fatalf("error of no kind: %v", err)
		}
	})
}
