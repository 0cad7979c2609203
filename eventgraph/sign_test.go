package eventgraph

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

func TestRequiredSigners(t *testing.T) {
	t.Parallel()
	a, b := testKey(1), testKey(2)
	onBoth := fmt.Sprintf(`{"membership":"join","join_authorised_via_users_server":%q}`, user("bob", b))
	onSelf := fmt.Sprintf(`{"membership":"join","join_authorised_via_users_server":%q}`, user("carol", a))
	for _, c := range []struct {
		name, versions, typ, content string
		want                         []ServerName
	}{
		{"message", "3 12", "m.room.message", onBoth, []ServerName{a.Server}},
		{"join", "3 12", "m.room.member", `{"membership":"join"}`, []ServerName{a.Server}},
		{"restricted join", "8 9 12", "m.room.member", onBoth, []ServerName{a.Server, b.Server}},
		{"before restricted joins", "3 7", "m.room.member", onBoth, []ServerName{a.Server}},
		{"restricted join by its own server", "8 12", "m.room.member", onSelf, []ServerName{a.Server}},
		{"third-party invite", "3 12", "m.room.member", `{"membership":"invite","third_party_invite":{"signed":{}}}`, nil},
		{"join with a third-party invite", "3 12", "m.room.member", `{"membership":"join","third_party_invite":{"signed":{}}}`, []ServerName{a.Server}},
		{"message with a third-party invite", "3 12", "m.room.message", `{"membership":"invite","third_party_invite":{}}`, []ServerName{a.Server}},
	} {
		for _, v := range strings.Fields(c.versions) {
			d := draft(RoomVersion(v), c.typ, c.content, a)
			d.StateKey = pointer(string(d.Sender))
			if got := mustBuild(t, RoomVersion(v), d, a).RequiredSigners(); !slices.Equal(got, c.want) {
				t.Errorf("%s, version %s: %v, want %v", c.name, v, got, c.want)
			}
		}
	}
}

// ringFunc answers for one key ID after another.
type ringFunc func(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error)

func (f ringFunc) Key(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	return f(server, id, ts, strict)
}

func TestVerifySignatures(t *testing.T) {
	t.Parallel()
	a, b := testKey(1), testKey(2)
	a2, other := testKey(3), testKey(4)
	a2.Server = a.Server // another device of a
	d := draft("12", "m.room.member", fmt.Sprintf(`{"membership":"join","join_authorised_via_users_server":%q}`, user("bob", b)), a)
	d.StateKey = pointer(string(d.Sender))
	byA := mustBuild(t, "12", d, a)
	byBoth, err := byA.WithSignature(b)
	if err != nil {
		t.Fatal(err)
	}
	if byBoth.ID() != byA.ID() || byBoth.HashMismatch() || !slices.Equal(byBoth.SignedBy(b.Server), []KeyID{b.ID}) || len(byA.SignedBy(b.Server)) != 0 {
		t.Error("WithSignature changes more, or less, than the signatures")
	}
	if parsed, err := ParseEvent("12", byBoth.Raw()); err != nil {
		t.Error(err)
	} else {
		same(t, byBoth, parsed)
	}
	byThree, err := byBoth.WithSignature(a2)
	if err != nil {
		t.Fatal(err)
	}
	wrongSecond := tamper(t, byThree, a.Server, a2.ID)
	badUser := draft("12", "m.room.member", `{"membership":"join","join_authorised_via_users_server":"bob"}`, a)
	broken := errors.New("disk on fire")

	unknown := func(known ...SigningKey) KeyRing { return testRing(known) }
	answer := func(id KeyID, err error, known ...SigningKey) KeyRing {
		return ringFunc(func(s ServerName, i KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
			if i == id {
				return nil, err
			}
			return testRing(known).Key(s, i, ts, strict)
		})
	}
	for _, c := range []struct {
		name string
		e    *Event
		ring KeyRing
		want error
	}{
		{"both", byBoth, unknown(a, b), nil},
		{"both, redacted", byBoth.Redact(), unknown(a, b), nil},
		{"the second missing", byA, unknown(a, b), ErrSignature},
		{"the second's key unknown", byBoth, unknown(a), ErrKeyUnknown},
		{"the second's document too old", byBoth, answer(b.ID, ErrKeyNotValid, a), ErrKeyNotValid},
		{"the second's key expired", byBoth, answer(b.ID, fmt.Errorf("expired: %w", ErrSignature), a), ErrSignature},
		{"a reader's error", byBoth, answer(b.ID, broken, a), broken},
		{"another key under that ID", byBoth, ringFunc(func(ServerName, KeyID, int64, bool) (ed25519.PublicKey, error) {
			return other.Private.Public().(ed25519.PublicKey), nil
		}), ErrSignature},
		{"two of one server", byThree, unknown(a, a2, b), nil},
		{"two of one server, one unknown", byThree, unknown(a2, b), nil},
		{"two of one server, one expired", byThree, answer(a.ID, ErrSignature, a2, b), nil},
		{"two of one server, one wrong", wrongSecond, unknown(a, a2, b), ErrSignature},
		{"two of one server, one wrong and unknown", wrongSecond, unknown(a, b), nil},
		{"the wrong signature", tamper(t, byBoth, a.Server, a.ID), unknown(a, b), ErrSignature},
		{"authorised by nobody", mustBuild(t, "12", badUser, a), unknown(a, b), ErrSignature},
		{"authorised by nobody, before restricted joins", mustBuild(t, "7", draft("7", "m.room.member", `{"join_authorised_via_users_server":"bob"}`, a), a), unknown(a), nil},
	} {
		if err := c.e.VerifySignatures(c.ring); (c.want == nil) != (err == nil) || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}

	// The ring is asked with the event's time, strictly from version 5 on, and never for other algorithms.
	for _, v := range SupportedVersions() {
		e := mustBuild(t, v, draft(v, "m.room.message", `{}`, a), a)
		var asked []string
		ring := ringFunc(func(s ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
			asked = append(asked, fmt.Sprint(s, id, ts, strict))
			return testRing{a}.Key(s, id, ts, strict)
		})
		if err := e.VerifySignatures(ring); err != nil {
			t.Error(err)
		}
		if want := fmt.Sprint(a.Server, a.ID, e.OriginServerTS(), len(v) > 1 || v >= "5"); len(asked) != 1 || asked[0] != want {
			t.Errorf("version %s asked %v, want %s", v, asked, want)
		}
	}
}

// tamper exchanges a signature for that of another key.
func tamper(t *testing.T, e *Event, server ServerName, id KeyID) *Event {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(e.Raw(), &members); err != nil {
		t.Fatal(err)
	}
	wrong := encodeBase64(ed25519.Sign(testKey(99).Private, []byte("x")))
	members["signatures"].(map[string]any)[string(server)].(map[string]any)[string(id)] = wrong
	members["signatures"].(map[string]any)[string(server)].(map[string]any)["other:1"] = "x"
	changed, err := ParseEvent(e.Version(), must(canonicaljson.Marshal(members)))
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestSignatureBounds(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	e := mustBuild(t, "12", draft("12", "m.room.message", `{}`, k), k)
	for i := range maxSignaturesPerServer {
		if err := e.VerifySignatures(testRing{k}); err != nil {
			t.Fatalf("%d signatures: %v", i+1, err)
		}
		more := testKey(byte(10 + i))
		more.Server = k.Server
		e = must(e.WithSignature(more))
	}
	if err := e.VerifySignatures(testRing{k}); !errors.Is(err, ErrSignature) {
		t.Errorf("%d signatures: %v", maxSignaturesPerServer+1, err)
	}
}

func TestVerifyJSON(t *testing.T) {
	t.Parallel()
	a, b := testKey(1), testKey(2)
	public := a.Private.Public().(ed25519.PublicKey)
	signed := must(SignJSON([]byte(`{"x":1,"unsigned":{"y":2},"signatures":{"old":{"ed25519:1":"x"}}}`), a))
	signed = must(SignJSON(signed, b))
	if !strings.Contains(string(signed), `"old":{"ed25519:1":"x"}`) || !strings.Contains(string(signed), `"unsigned":{"y":2}`) {
		t.Errorf("signing lost members: %s", signed)
	}
	replace := func(old, new string) []byte { return []byte(strings.Replace(string(signed), old, new, 1)) }
	for _, c := range []struct {
		name   string
		object []byte
		server ServerName
		id     KeyID
		key    ed25519.PublicKey
		ok     bool
	}{
		{"as signed", signed, a.Server, a.ID, public, true},
		{"unsigned changed", replace(`"y":2`, `"y":3`), a.Server, a.ID, public, true},
		{"a member changed", replace(`"x":1`, `"x":2`), a.Server, a.ID, public, false},
		{"a member more", replace(`"x":1`, `"w":2,"x":1`), a.Server, a.ID, public, false},
		{"of another server", signed, "old", a.ID, public, false},
		{"under another key ID", signed, a.Server, b.ID, public, false},
		{"by another key", signed, a.Server, a.ID, b.Private.Public().(ed25519.PublicKey), false},
		{"with a key of wrong length", signed, a.Server, a.ID, public[:31], false},
		{"not JSON", []byte("{"), a.Server, a.ID, public, false},
		{"no object", []byte("[]"), a.Server, a.ID, public, false},
		{"repeated members", replace(`"x":1`, `"x":1,"x":1`), a.Server, a.ID, public, false},
	} {
		err := VerifyJSON(c.object, c.server, c.id, c.key)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, bad := range []string{"", "[]", `{"signatures":1}`, `{"signatures":{` + `"` + string(a.Server) + `":1}}`, `{"x":0.5}`} {
		if _, err := SignJSON([]byte(bad), a); err == nil {
			t.Errorf("signed %s", bad)
		}
	}
	if _, err := SignJSON([]byte("{}"), SigningKey{Server: a.Server, ID: a.ID}); err == nil {
		t.Error("signed without a key")
	}
}
