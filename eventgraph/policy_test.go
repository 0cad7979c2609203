package eventgraph

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// policyEvent names the server of k as a policy server.
func policyEvent(t *testing.T, v RoomVersion, content string, k SigningKey) *Event {
	t.Helper()
	d := draft(v, PolicyType, content, k)
	d.StateKey = pointer("")
	return mustBuild(t, v, d, k)
}

func TestPolicyServer(t *testing.T) {
	t.Parallel()
	a := testKey(1)
	key := encodeBase64(a.Private.Public().(ed25519.PublicKey))
	for content, want := range map[string]bool{
		`{"public_keys":{"ed25519":"` + key + `"},"via":"policy.example.org"}`:         true,
		`{"public_keys":{"ed25519":"` + key + `","x":"y"},"via":"policy.example.org"}`: true,
		`{"public_keys":{"ed25519":"no key"},"via":"policy.example.org"}`:              true, // valid, and nothing can be signed
		`{"public_keys":{"ed25519":7},"via":"policy.example.org"}`:                     false,
		`{"public_keys":{"ed448":"` + key + `"},"via":"policy.example.org"}`:           false,
		`{"public_keys":"` + key + `","via":"policy.example.org"}`:                     false,
		`{"public_keys":{"ed25519":"` + key + `"}}`:                                    false,
		`{"public_keys":{"ed25519":"` + key + `"},"via":["policy.example.org"]}`:       false,
		`{"public_key":"` + key + `","via":"policy.example.org"}`:                      false, // of the proposal's early form
		`{}`: false,
	} {
		p, used := policyEvent(t, "12", content, a).PolicyServer()
		if used != want {
			t.Errorf("%s: used is %v", content, used)
		}
		if good := strings.Contains(content, `"ed25519":"`+key); used && (p.Name != "policy.example.org" || (p.Key != nil) != good) {
			t.Errorf("%s: %+v", content, p)
		}
	}
	// A redacted one names none, and of small order no key counts.
	redacted := policyEvent(t, "12", `{"public_keys":{"ed25519":"`+key+`"},"via":"policy.example.org"}`, a).Redact()
	if _, used := redacted.PolicyServer(); used {
		t.Error("a redacted policy is used")
	}
	small := policyEvent(t, "12", `{"public_keys":{"ed25519":"`+encodeBase64(make([]byte, 32))+`"},"via":"policy.example.org"}`, a)
	if p, used := small.PolicyServer(); !used || p.Key != nil {
		t.Errorf("a key of small order: %+v, %v", p, used)
	}

	if small.NeedsPolicySignature() {
		t.Error("the event that names a policy server needs its signature")
	}
	for _, key := range []*string{nil, pointer("other")} {
		d := draft("12", PolicyType, `{"public_keys":{"ed25519":"`+encodeBase64(a.Private.Public().(ed25519.PublicKey))+`"},"via":"p"}`, a)
		d.StateKey = key
		e := mustBuild(t, "12", d, a)
		if _, used := e.PolicyServer(); used || !e.NeedsPolicySignature() {
			t.Errorf("m.room.policy with another state key, or none: used %v", used)
		}
	}
}

func TestPolicySignature(t *testing.T) {
	t.Parallel()
	for _, v := range SupportedVersions() {
		a, policy := testKey(1), testKey(2)
		p := PolicyServer{Name: "policy.example.org", Key: policy.Private.Public().(ed25519.PublicKey)}
		sign := func(e *Event, k SigningKey) []byte {
			return fmt.Appendf(nil, `{ "%s": {"%s": "%s"}, "else.example.org": {"ed25519:1": "x"}}`, p.Name, PolicyKeyID,
				encodeBase64(ed25519.Sign(k.Private, e.redacted(nil, false))))
		}
		e := mustBuild(t, v, draft(v, "m.room.message", `{"body":"hello","msgtype":"m.text"}`, a), a)
		if err := e.VerifyPolicySignature(p); !errors.Is(err, ErrSignature) {
			t.Errorf("version %s: unsigned: %v", v, err)
		}
		signed, err := e.WithPolicySignature(p, sign(e, policy))
		if err != nil {
			t.Fatalf("version %s: %v", v, err)
		}
		if signed.ID() != e.ID() || signed.HashMismatch() || signed.VerifyPolicySignature(p) != nil || strings.Contains(string(signed.Raw()), "else.example.org") {
			t.Errorf("version %s: signed: %s", v, signed.Raw())
		}
		if parsed, err := ParseEvent(v, signed.Raw()); err != nil {
			t.Error(err)
		} else {
			same(t, signed, parsed)
		}
		// It covers the redacted form, and is no signature of the sender's server.
		if err := signed.Redact().VerifyPolicySignature(p); err != nil {
			t.Errorf("version %s: redacted: %v", v, err)
		}
		if err := signed.VerifySignatures(testRing{a}); err != nil {
			t.Errorf("version %s: the sender's signature: %v", v, err)
		}
		// The policy server may be the sender's own: its other signatures stay, and the one of policies is no server's key (step 2).
		own := PolicyServer{Name: a.Server, Key: p.Key}
		both, err := e.WithPolicySignature(own, fmt.Appendf(nil, `{%q:{%q:%q}}`, a.Server, PolicyKeyID, encodeBase64(ed25519.Sign(policy.Private, e.redacted(nil, false)))))
		if err != nil {
			t.Fatal(err)
		}
		asked := ringFunc(func(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
			if id == PolicyKeyID {
				t.Errorf("version %s: asked for a policy server's key", v)
			}
			return testRing{a}.Key(server, id, ts, strict)
		})
		if err := both.VerifySignatures(asked); err != nil || !slices.Equal(both.SignedBy(a.Server), []KeyID{a.ID}) || both.VerifyPolicySignature(own) != nil {
			t.Errorf("version %s: sent by the policy server itself: %v, signed by %v", v, err, both.SignedBy(a.Server))
		}
		// Another key, another server's name, no key, nonsense.
		for what, answer := range map[string][]byte{
			"of another key": sign(e, a), "nothing": []byte(`{}`), "no object": []byte(`[]`), "no JSON": []byte(`{`),
			"under another ID": fmt.Appendf(nil, `{"%s":{"ed25519:1":"%s"}}`, p.Name, encodeBase64(ed25519.Sign(policy.Private, e.redacted(nil, false)))),
			"of another event": sign(mustBuild(t, v, draft(v, "m.room.message", `{"body":"bye"}`, a), a).Redact(), a),
		} {
			if _, err := e.WithPolicySignature(p, answer); !errors.Is(err, ErrSignature) {
				t.Errorf("version %s: answer %s: %v", v, what, err)
			}
		}
		for _, other := range []PolicyServer{{p.Name, nil}, {p.Name, a.Private.Public().(ed25519.PublicKey)}, {"other.example.org", p.Key}} {
			if err := signed.VerifyPolicySignature(other); !errors.Is(err, ErrSignature) {
				t.Errorf("version %s: fits %s as well: %v", v, other.Name, err)
			}
		}
		// A wrong one is replaced.
		wrong, err := e.withSignature(p.Name, PolicyKeyID, "d3Jvbmc")
		if err != nil {
			t.Fatal(err)
		}
		if again, err := wrong.WithPolicySignature(p, sign(e, policy)); err != nil || string(again.Raw()) != string(signed.Raw()) {
			t.Errorf("version %s: a wrong signature replaced: %v", v, err)
		}
	}
}

func TestPolicySignatureMustFit(t *testing.T) {
	t.Parallel()
	a, policy := testKey(1), testKey(2)
	p := PolicyServer{Name: "policy.example.org", Key: policy.Private.Public().(ed25519.PublicKey)}
	empty := mustBuild(t, "12", draft("12", "m.room.message", `{"body":""}`, a), a)
	e := mustBuild(t, "12", draft("12", "m.room.message", `{"body":"`+strings.Repeat("x", maxEvent-len(empty.Raw()))+`"}`, a), a)
	answer := fmt.Appendf(nil, `{%q:{%q:%q}}`, p.Name, PolicyKeyID, encodeBase64(ed25519.Sign(policy.Private, e.redacted(nil, false))))
	if _, err := e.WithPolicySignature(p, answer); !errors.Is(err, ErrTooLarge) {
		t.Errorf("an event of the greatest size: %v", err)
	}
}
