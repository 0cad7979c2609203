package eventgraph

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// specKey is the signing key of the appendices, Cryptographic Test Vectors.
func specKey(t testing.TB) SigningKey {
	t.Helper()
	seed, err := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	return SigningKey{Server: "domain", ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(seed)}
}

// TestSpecJSONSigning: appendices, JSON Signing.
func TestSpecJSONSigning(t *testing.T) {
	t.Parallel()
	k := specKey(t)
	for _, c := range []struct{ in, want string }{
		{`{}`, `{"signatures":{"domain":{"ed25519:1":"K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"}}}`},
		{`{"one": 1, "two": "Two"}`, `{"one":1,"signatures":{"domain":{"ed25519:1":"KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"}},"two":"Two"}`},
	} {
		got, err := SignJSON([]byte(c.in), k)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.want {
			t.Errorf("SignJSON(%s)\n got %s\nwant %s", c.in, got, c.want)
		}
		if err := VerifyJSON(got, "domain", "ed25519:1", k.Private.Public().(ed25519.PublicKey)); err != nil {
			t.Errorf("VerifyJSON(%s): %v", got, err)
		}
	}
}

// TestSpecEventSigning: appendices, Event Signing. The second event there lacks fields that room versions
// from 3 on require, so it is sealed below the checks of the format.
func TestSpecEventSigning(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, in, hash, signature string }{
		{
			"minimal",
			`{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,
			"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3}`,
			"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
			"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
		},
		{
			"redactable content",
			`{"content":{"body":"Here is the message content"},"event_id":"$0:domain","origin":"domain",
			"origin_server_ts":1000000,"type":"m.room.message","room_id":"!r:domain","sender":"@u:domain"}`,
			"onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
			"Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			members := fieldsOf(t, []byte(c.in))
			h := contentHash(members)
			if got := encodeBase64(h[:]); got != c.hash {
				t.Errorf("content hash %s, want %s", got, c.hash)
			}
			hashed := must(canonicaljson.Marshal(json.RawMessage(`{"hashes":{"sha256":"` + c.hash + `"},` + c.in[1:])))
			members = fieldsOf(t, hashed)
			traits, _ := RoomVersion("3").Traits()
			message, err := traits.appendRedacted(nil, typeOf(members), members, false)
			if err != nil {
				t.Fatal(err)
			}
			signatures, err := addSignature(nil, specKey(t), message)
			if err != nil {
				t.Fatal(err)
			}
			if want := `{"domain":{"ed25519:1":"` + c.signature + `"}}`; string(signatures) != want {
				t.Errorf("signatures\n got %s\nwant %s", signatures, want)
			}
		})
	}
}

// fieldsOf the canonical form of an object.
func fieldsOf(t testing.TB, raw []byte) []canonicaljson.Field {
	t.Helper()
	canonical, err := canonicaljson.Canonicalize(raw, canonicaljson.Strict)
	if err != nil {
		t.Fatal(err)
	}
	fields, err := canonicaljson.Fields(nil, canonical)
	if err != nil {
		t.Fatal(err)
	}
	return fields
}
