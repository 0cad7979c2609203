package eventgraph

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// ringFunc answers for one key ID after another.
type ringFunc func(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error)

func (f ringFunc) Key(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	return f(server, id, ts, strict)
}

// TestVerifySignatures: what a KeyRing is asked, and what becomes of its answers. Vectors hold the rest.
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
		{"both, redacted", byBoth.Redact(), unknown(a, b), nil},
		{"the second's key unknown", byBoth, unknown(a), ErrKeyUnknown},
		{"the second's document too old", byBoth, answer(b.ID, ErrKeyNotValid, a), ErrKeyNotValid},
		{"the second's key expired", byBoth, answer(b.ID, fmt.Errorf("expired: %w", ErrSignature), a), ErrSignature},
		{"a reader's error", byBoth, answer(b.ID, broken, a), broken},
		{"another key under that ID", byBoth, ringFunc(func(ServerName, KeyID, int64, bool) (ed25519.PublicKey, error) {
			return other.Private.Public().(ed25519.PublicKey), nil
		}), ErrSignature},
		{"two of one server, one unknown", byThree, unknown(a2, b), nil},
		{"two of one server, one expired", byThree, answer(a.ID, ErrSignature, a2, b), nil},
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

// TestSignLenient: numbers without canonical form are signed as they are written; what has a canonical form is signed as by SignJSON.
func TestSignLenient(t *testing.T) {
	t.Parallel()
	a := testKey(1)
	plain := []byte(`{"x":1, "a":{"y":-2}}`)
	if lenient, strict := must(SignLenient(plain, a)), must(SignJSON(plain, a)); string(lenient) != string(strict) {
		t.Errorf("%s and %s", lenient, strict)
	}
	signed := must(SignLenient([]byte(`{"x":1.50,"n":12345678901234567890,"e":[1e3,-0]}`), a))
	if !strings.HasPrefix(string(signed), `{"e":[1e3,-0],"n":12345678901234567890,"signatures":`) || !strings.HasSuffix(string(signed), `,"x":1.50}`) {
		t.Errorf("not as it was written: %s", signed)
	}
	if err := VerifyLenient(signed, a.Server, a.ID, public(a)); err != nil {
		t.Error(err)
	}
	if err := VerifyJSON(signed, a.Server, a.ID, public(a)); !errors.Is(err, ErrSignature) {
		t.Errorf("by the strict rules: %v", err)
	}
	for _, other := range []string{"1.5", "15e-1", "1.51"} {
		changed := strings.Replace(string(signed), "1.50", other, 1)
		if err := VerifyLenient([]byte(changed), a.Server, a.ID, public(a)); !errors.Is(err, ErrSignature) {
			t.Errorf("written as %s: %v", other, err)
		}
	}
	for _, bad := range []string{"", "[]", `{"x":1,"x":2}`, `{"x":01}`, `{"x":"\ud800"}`} {
		if _, err := SignLenient([]byte(bad), a); err == nil {
			t.Errorf("signed %s", bad)
		}
	}
}

func TestSignJSON(t *testing.T) {
	t.Parallel()
	a, b := testKey(1), testKey(2)
	signed := must(SignJSON([]byte(`{"x":1,"unsigned":{"y":2},"signatures":{"old":{"ed25519:1":"x"}}}`), a))
	signed = must(SignJSON(signed, b))
	if !strings.Contains(string(signed), `"old":{"ed25519:1":"x"}`) || !strings.Contains(string(signed), `"unsigned":{"y":2}`) {
		t.Errorf("signing lost members: %s", signed)
	}
	for _, k := range []SigningKey{a, b} {
		if err := VerifyJSON(signed, k.Server, k.ID, public(k)); err != nil {
			t.Errorf("signed by %s: %v", k.Server, err)
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
