package eventgraph

import (
	"bytes"
	"crypto/ed25519"
	"math/big"
	"slices"
	"strings"
	"testing"
)

func TestServerNames(t *testing.T) {
	t.Parallel()
	public := testKey(1).Private.Public().(ed25519.PublicKey)
	name := string(NewServerName(public))
	if len(name) != keyLabelLen || !strings.HasPrefix(name, "k51qzi5uqu5d") || name != strings.ToLower(name) {
		t.Errorf("name %s", name)
	}
	if got := ServerName(name + ".example.org").Tail(); got != name[54:] {
		t.Errorf("tail %s of %s", got, name)
	}
	if ServerName("x").Tail() != "x" || ServerName("").Tail() != "" || ServerName("example.org").PublicKey() != nil {
		t.Error("names that were never parsed")
	}
	for _, s := range []string{name, name + ".org", name + ".example.org"} {
		if n, err := ParseServerName(s); err != nil || !n.PublicKey().Equal(public) {
			t.Errorf("%s: %q, %v", s, n, err)
		}
	}
}

func TestPeerIDs(t *testing.T) {
	t.Parallel()
	public := testKey(1).Private.Public().(ed25519.PublicKey)
	id := NewPeerID(public)
	if !strings.HasPrefix(string(id), "12D3KooW") || id.KeyID() != "ed25519:"+KeyID(id) {
		t.Errorf("peer ID %s, key ID %s", id, id.KeyID())
	}
	if p, err := ParsePeerID(string(id)); err != nil || !p.PublicKey().Equal(public) {
		t.Errorf("%s: %s, %v", id, p, err)
	}
}

// TestValidPoint: keys are points, and other numbers are not. Vectors hold the points of small order.
func TestValidPoint(t *testing.T) {
	t.Parallel()
	for n := range byte(100) {
		if !validPoint(testKey(n).Private.Public().(ed25519.PublicKey)) {
			t.Errorf("key %d refused", n)
		}
	}
	// A slow second opinion: y is that of a point where a square root for x is found.
	on := 0
	for n := range 200 {
		y := bytes.Repeat([]byte{byte(n + 3)}, 32)
		y[31] &= 0x7f
		be := slices.Clone(y)
		slices.Reverse(be)
		yy := new(big.Int).Exp(new(big.Int).SetBytes(be), big.NewInt(2), fieldP)
		denominator := new(big.Int).Add(new(big.Int).Mul(curveD, yy), fieldOne)
		x2 := new(big.Int).Mul(new(big.Int).Sub(yy, fieldOne), denominator.ModInverse(denominator, fieldP))
		want := new(big.Int).ModSqrt(x2.Mod(x2, fieldP), fieldP) != nil
		if validPoint(y) != want {
			t.Errorf("%x: %v, want %v", y, !want, want)
		}
		if want {
			on++
		}
	}
	if on < 60 || on > 140 {
		t.Errorf("%d of 200 numbers are points", on)
	}
	if validPoint(nil) || validPoint(make([]byte, 33)) {
		t.Error("wrong lengths accepted")
	}
}

func TestPartsOfIdentifiers(t *testing.T) {
	t.Parallel()
	if u := UserID("@a:b:1"); u.Localpart() != "a" || u.Server() != "b:1" {
		t.Errorf("%s is %s on %s", u, u.Localpart(), u.Server())
	}
	if a := RoomAlias("#a:b"); a.Localpart() != "a" || a.Server() != "b" {
		t.Errorf("%s is %s on %s", a, a.Localpart(), a.Server())
	}
	if u := UserID(""); u.Localpart() != "" || u.Server() != "" {
		t.Error("an empty user ID has parts")
	}
}

func FuzzServerName(f *testing.F) {
	f.Add(string(testKey(1).Server))
	f.Add(string(testKey(2).Server) + ".example.org")
	f.Add(strings.ToUpper(string(testKey(1).Server)))
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseServerName(s)
		if err != nil {
			return
		}
		label, zone, hasZone := strings.Cut(s, ".")
		if again := string(NewServerName(n.PublicKey())); string(n) != s || again != label {
			t.Errorf("%q parsed as %q, whose key makes %q", s, n, again)
		}
		if hasZone && zone == "" {
			t.Errorf("%q has an empty zone", s)
		}
		if !isMatrixServerName(s) {
			t.Errorf("%q is no server name by the spec's grammar", s)
		}
	})
}
