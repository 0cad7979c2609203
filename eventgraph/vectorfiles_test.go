package eventgraph

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// vector is one of testdata/vectors; README.md there says what the files hold.
type vector struct {
	Name     string
	Rule     string
	Versions []RoomVersion
	Input    json.RawMessage
	Expect   string
	Reason   string
	Spec     string
	Result   json.RawMessage
}

func readVectors(t *testing.T, name string) []vector {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Vectors []vector }
	if err := json.Unmarshal(raw, &file); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if len(file.Vectors) == 0 {
		t.Fatalf("%s has no vectors", name)
	}
	return file.Vectors
}

// eachVector runs f for each vector of a file, once for each of its versions.
func eachVector[Input, Result any](t *testing.T, name string, f func(t *testing.T, v RoomVersion, c vector, in Input, want Result)) {
	t.Helper()
	for _, c := range readVectors(t, name) {
		var in Input
		var want Result
		if err := json.Unmarshal(c.Input, &in); err != nil {
			t.Fatalf("%s: %s: %v", name, c.Name, err)
		}
		if len(c.Result) > 0 {
			if err := json.Unmarshal(c.Result, &want); err != nil {
				t.Fatalf("%s: %s: %v", name, c.Name, err)
			}
		}
		versions := c.Versions
		if len(versions) == 0 {
			versions = []RoomVersion{""}
		}
		for _, v := range versions {
			t.Run(c.Rule+"/"+c.Name+"/"+string(v), func(t *testing.T) { f(t, v, c, in, want) })
		}
	}
}

// filled puts as many x as a vector says where its text has {fill}.
func filled(text string, n int) []byte {
	return []byte(strings.Replace(text, "{fill}", strings.Repeat("x", n), 1))
}

// TestVectorCoverage: each vector is whole, and each rule accepts something and refuses something.
func TestVectorCoverage(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("testdata", "vectors", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, path := range files {
		name := filepath.Base(path)
		names = append(names, name)
		type side struct{ accepts, refuses int }
		rules := map[string]*side{}
		seen := map[string]bool{}
		for _, c := range readVectors(t, name) {
			if c.Name == "" || c.Rule == "" || c.Reason == "" || c.Spec == "" || len(c.Input) == 0 {
				t.Errorf("%s: %s: %s lacks a member", name, c.Rule, c.Name)
			}
			for _, v := range c.Versions {
				key := c.Rule + "/" + c.Name + "/" + string(v)
				if _, ok := v.Traits(); !ok || seen[key] {
					t.Errorf("%s: %s: version unknown, or twice", name, key)
				}
				seen[key] = true
			}
			if rules[c.Rule] == nil {
				rules[c.Rule] = &side{}
			}
			switch c.Expect {
			case "accept":
				rules[c.Rule].accepts++
			case "refuse", "redact", "wait":
				rules[c.Rule].refuses++
			default:
				t.Errorf("%s: %s expects %q", name, c.Name, c.Expect)
			}
		}
		for _, rule := range slices.Sorted(maps.Keys(rules)) {
			if s := rules[rule]; s.accepts == 0 || s.refuses == 0 {
				t.Errorf("%s: rule %s accepts %d times and refuses %d times", name, rule, s.accepts, s.refuses)
			}
		}
	}
	if want := []string{"auth_selection.json", "canonicaljson.json", "events.json", "identifiers.json", "keys.json", "redaction.json", "signatures.json"}; !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
}

func TestVectorIdentifiers(t *testing.T) {
	t.Parallel()
	type input struct{ Kind, Text, Hex string }
	parse := map[string]func(string) (string, error){
		"user_id":     func(s string) (string, error) { u, err := ParseUserID(s); return string(u), err },
		"room_id":     func(s string) (string, error) { r, err := ParseRoomID(s); return string(r), err },
		"room_alias":  func(s string) (string, error) { a, err := ParseRoomAlias(s); return string(a), err },
		"event_id":    func(s string) (string, error) { e, err := ParseEventID(s); return string(e), err },
		"key_id":      func(s string) (string, error) { k, err := ParseKeyID(s); return string(k), err },
		"server_name": func(s string) (string, error) { n, err := ParseServerName(s); return string(n), err },
		"peer_id":     func(s string) (string, error) { p, err := ParsePeerID(s); return string(p), err },
		"matrix_server_name": func(s string) (string, error) {
			if !isMatrixServerName(s) {
				return "", errors.New("no server name")
			}
			return s, nil
		},
	}
	eachVector(t, "identifiers.json", func(t *testing.T, _ RoomVersion, c vector, in input, _ struct{}) {
		text := in.Text
		if in.Hex != "" {
			text = string(must(hex.DecodeString(in.Hex)))
		}
		got, err := parse[in.Kind](text)
		if (err == nil) != (c.Expect == "accept") {
			t.Errorf("%q: %v, want %s: %s", text, err, c.Expect, c.Reason)
		} else if err == nil && got != text {
			t.Errorf("%q became %q", text, got)
		}
	})
}

// eventFacts are what follows from an event that is accepted.
type eventFacts struct {
	EventID       EventID `json:"event_id"`
	ReferenceHash string  `json:"reference_hash"`
	ContentHash   string  `json:"content_hash"`
	Canonical     string
	CanonicalSize int `json:"canonical_size"`
	Redacted      string
}

func TestVectorEvents(t *testing.T) {
	t.Parallel()
	type input struct {
		PDU  string
		Fill int
	}
	eachVector(t, "events.json", func(t *testing.T, v RoomVersion, c vector, in input, want eventFacts) {
		raw := filled(in.PDU, in.Fill)
		e, err := ParseEvent(v, raw)
		if c.Expect == "refuse" {
			if kind := map[bool]error{true: ErrTooLarge, false: ErrFormat}[strings.HasSuffix(c.Rule, "-size")]; !errors.Is(err, kind) {
				t.Errorf("%v, want %v: %s", err, kind, c.Reason)
			}
			return
		}
		if err != nil {
			t.Fatalf("%v, but %s", err, c.Reason)
		}
		if e.HashMismatch() != (c.Expect == "redact") || e.Redact().HashMismatch() != e.HashMismatch() {
			t.Errorf("hash mismatch %v, want %s", e.HashMismatch(), c.Expect)
		}
		if want.Canonical == "" {
			want.Canonical = in.PDU
		}
		switch {
		case want.CanonicalSize > 0 && len(e.Raw()) != want.CanonicalSize:
			t.Errorf("%d bytes, want %d", len(e.Raw()), want.CanonicalSize)
		case want.CanonicalSize == 0 && string(e.Raw()) != want.Canonical:
			t.Errorf("kept as\n%s\nwant\n%s", e.Raw(), want.Canonical)
		}
		if got := string(e.Redact().Raw()); got != want.Redacted {
			t.Errorf("redacted\n%s\nwant\n%s", got, want.Redacted)
		}
		if e.ID() != want.EventID || e.Redact().ID() != want.EventID {
			t.Errorf("ID %s and redacted %s, want %s", e.ID(), e.Redact().ID(), want.EventID)
		}
		traits, _ := v.Traits()
		if h := must(traits.idEncoding().DecodeString(string(e.ID()[1:]))); encodeBase64(h) != want.ReferenceHash {
			t.Errorf("reference hash %s, want %s", encodeBase64(h), want.ReferenceHash)
		}
		hashes, _ := canonicaljson.Get(e.Raw(), "hashes")
		claimed, _ := canonicaljson.GetString(hashes, "sha256")
		if (strings.TrimRight(claimed, "=") == want.ContentHash) == e.HashMismatch() {
			t.Errorf("claimed hash %s, want %s unless it does not fit", claimed, want.ContentHash)
		}
		if id, err := ReferenceID(v, raw); err != nil || id != want.EventID {
			t.Errorf("ReferenceID %s, %v", id, err)
		}
		if _, hasRoom := canonicaljson.Get(e.Raw(), "room_id"); !hasRoom && e.RoomID() != RoomID("!"+e.ID()[1:]) {
			t.Errorf("room %s of the create event %s", e.RoomID(), e.ID())
		}
		loaded, err := LoadEvent(v, e.ID(), e.Raw())
		if err != nil {
			t.Fatalf("its own bytes do not load: %v", err)
		}
		same(t, e, loaded)
	})
}

func TestVectorRedaction(t *testing.T) {
	t.Parallel()
	type input struct{ PDU, Key string }
	type result struct {
		Redacted string
		EventID  EventID `json:"event_id"`
		Redacts  EventID
	}
	eachVector(t, "redaction.json", func(t *testing.T, v RoomVersion, c vector, in input, want result) {
		e, err := ParseEvent(v, []byte(in.PDU))
		if err != nil || e.HashMismatch() {
			t.Fatalf("%v, hash mismatch %v", err, e.HashMismatch())
		}
		r := e.Redact()
		if string(r.Raw()) != want.Redacted || string(r.Redact().Raw()) != want.Redacted {
			t.Errorf("redacted\n%s\nwant\n%s", r.Raw(), want.Redacted)
		}
		if e.ID() != want.EventID || r.ID() != want.EventID || r.RoomID() != e.RoomID() {
			t.Errorf("ID %s, redacted %s, want %s", e.ID(), r.ID(), want.EventID)
		}
		if in.Key == "" {
			if e.Redacts() != want.Redacts || (e.Redacts() != "") != (c.Expect == "accept") {
				t.Errorf("redacts %q, want %q: %s", e.Redacts(), want.Redacts, c.Reason)
			}
			return
		}
		value, ok := r.Raw(), true
		path := strings.Split(in.Key, ".")
		if strings.HasPrefix(in.Key, "org.") {
			path = []string{in.Key}
		} else if len(path) > 2 && path[1] == "org" {
			path = []string{path[0], strings.Join(path[1:], ".")}
		} else if strings.HasPrefix(in.Key, "content.m.") {
			path = []string{"content", strings.TrimPrefix(in.Key, "content.")}
		}
		for _, key := range path {
			if value, ok = canonicaljson.Get(value, key); !ok {
				break
			}
		}
		if ok != (c.Expect == "accept") {
			t.Errorf("%s in %s: %v, want %s: %s", in.Key, r.Raw(), ok, c.Expect, c.Reason)
		}
	})
}

// documentRing answers from key documents, as a node does.
type documentRing map[ServerName]*KeyDocument

func (r documentRing) Key(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	d := r[server]
	if d == nil {
		return nil, ErrKeyUnknown
	}
	return d.KeyFor(id, ts, strict)
}

// outcome of what is accepted, refused for good, or to be asked again when a newer key document is there.
func outcome(err error) string {
	switch {
	case err == nil:
		return "accept"
	case errors.Is(err, ErrKeyUnknown), errors.Is(err, ErrKeyNotValid):
		return "wait"
	case errors.Is(err, ErrSignature):
		return "refuse"
	}
	return err.Error()
}

func TestVectorSignatures(t *testing.T) {
	t.Parallel()
	type input struct {
		PDU       string
		Documents []string

		Object    string
		Server    ServerName
		KeyID     KeyID  `json:"key_id"`
		PublicKey string `json:"public_key"`
	}
	type result struct{ Signers []ServerName }
	eachVector(t, "signatures.json", func(t *testing.T, v RoomVersion, c vector, in input, want result) {
		if v == "" {
			if err := VerifyJSON([]byte(in.Object), in.Server, in.KeyID, must(decodeBase64(in.PublicKey))); outcome(err) != c.Expect {
				t.Errorf("%v, want %s: %s", err, c.Expect, c.Reason)
			}
			return
		}
		e, err := ParseEvent(v, []byte(in.PDU))
		if err != nil {
			t.Fatal(err)
		}
		ring := documentRing{}
		for _, raw := range in.Documents {
			d := must(ParseKeyDocument([]byte(raw)))
			ring[d.ServerName] = d
		}
		if err := e.VerifySignatures(ring); outcome(err) != c.Expect {
			t.Errorf("%v, want %s: %s", err, c.Expect, c.Reason)
		}
		if want.Signers != nil && !slices.Equal(e.RequiredSigners(), want.Signers) && len(e.RequiredSigners())+len(want.Signers) > 0 {
			t.Errorf("signers %v, want %v", e.RequiredSigners(), want.Signers)
		}
	})
}

func TestVectorKeys(t *testing.T) {
	t.Parallel()
	type input struct {
		Certificate string
		Other       string `json:"other_certificate"`
		Document    string
		Fill        int
		KeyID       KeyID  `json:"key_id"`
		PeerID      PeerID `json:"peer_id"`
		TS          int64
		Strict      bool
	}
	type result struct{ Key string }
	eachVector(t, "keys.json", func(t *testing.T, _ RoomVersion, c vector, in input, want result) {
		expect := func(ok bool, why any) {
			t.Helper()
			if ok != (c.Expect == "accept") {
				t.Errorf("%v, want %s: %s", why, c.Expect, c.Reason)
			}
		}
		var given map[string]any
		if err := json.Unmarshal(c.Input, &given); err != nil {
			t.Fatal(err)
		}
		if _, ok := given["certificate"]; ok {
			cert, err := ParseCertificate(filled(in.Certificate, in.Fill))
			if in.PeerID == "" {
				expect(err == nil, err)
				if err == nil {
					if again, err := ParseCertificate(cert.Raw); err != nil || !slices.Equal(again.Devices, cert.Devices) {
						t.Errorf("its own bytes parse otherwise: %v", err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if in.Other != "" {
				cert = cert.Common(must(ParseCertificate([]byte(in.Other))))
			}
			_, ok := cert.Device(in.PeerID, in.TS)
			expect(ok, ok)
			return
		}
		d, err := ParseKeyDocument(filled(in.Document, in.Fill))
		switch {
		case in.KeyID != "":
			key, keyErr := must(d, err).KeyFor(in.KeyID, in.TS, in.Strict)
			if outcome(keyErr) != c.Expect || keyErr == nil && encodeBase64(key) != want.Key {
				t.Errorf("%v, want %s: %s", keyErr, c.Expect, c.Reason)
			}
		case in.PeerID != "":
			ok := must(d, err).Speaks(in.PeerID, in.TS)
			expect(ok, ok)
		default:
			expect(err == nil, err)
			if err == nil {
				if again, err := ParseKeyDocument(d.Raw); err != nil || string(again.Raw) != string(d.Raw) {
					t.Errorf("its own bytes parse otherwise: %v", err)
				}
			}
		}
	})
}
