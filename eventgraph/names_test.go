package eventgraph

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/mr-tron/base58"
	"github.com/multiformats/go-base36"
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
	good := []string{name, name + ".org", name + ".example.org", name + ".x1.a-b.c", name + "." + strings.Repeat("a", 63) + "." + strings.Repeat("b", 63)}
	for _, s := range good {
		n, err := ParseServerName(s)
		if err != nil || string(n) != s || !n.PublicKey().Equal(public) {
			t.Errorf("%s: %q, %v", s, n, err)
		}
	}
	raw := slices.Concat(cidPrefix, peerIDPrefix, public)
	cid := func(b ...byte) string { return "k" + base36.EncodeToStringLc(b) }
	changed := func(i int, b byte) string {
		c := slices.Clone(raw)
		c[i] = b
		return cid(c...)
	}
	for what, s := range map[string]string{
		"nothing":              "",
		"a domain":             "example.org",
		"upper case":           strings.ToUpper(name),
		"one upper-case":       name[:20] + strings.ToUpper(name[20:]),
		"base36 upper":         "K" + base36.EncodeToStringUc(raw),
		"port":                 name + ":8448",
		"empty zone":           name + ".",
		"empty label":          name + ".a..b",
		"zone ends in a dot":   name + ".org.",
		"zone in upper case":   name + ".Example.org",
		"underscore":           name + ".a_b",
		"hyphen first":         name + ".-a",
		"hyphen last":          name + ".a-",
		"long label":           name + "." + strings.Repeat("a", 64),
		"too long":             name + strings.Repeat(".aaaaaaa", 21) + ".a",
		"too short":            name[:61],
		"one more":             name + "0",
		"one more before":      "k0" + name[1:],
		"space":                " " + name,
		"base58":               string(NewPeerID(public)),
		"base32":               "b" + name[1:],
		"CIDv2":                changed(0, 2),
		"codec raw":            changed(1, 0x55),
		"hash SHA-256":         changed(2, 0x12),
		"RSA":                  changed(5, 0),
		"key of 31 bytes":      cid(raw[:39]...),
		"point of order 1":     cid(slices.Concat(cidPrefix, peerIDPrefix, []byte{1}, make([]byte, 31))...),
		"not on the curve":     cid(slices.Concat(cidPrefix, peerIDPrefix, []byte{2}, make([]byte, 31))...),
		"zone before":          "example." + name,
		"a second key in zone": "x" + name[1:] + "." + name,
	} {
		if n, err := ParseServerName(s); err == nil {
			t.Errorf("%s: accepted %q", what, n)
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
	if p, err := ParsePeerID(string(id)); err != nil || p != id || !p.PublicKey().Equal(public) {
		t.Errorf("%s: %s, %v", id, p, err)
	}
	for _, s := range []string{"", string(id) + "1", "1" + string(id), string(id)[1:], " " + string(id), string(NewServerName(public)), strings.Repeat("1", 1000),
		base58.Encode(append([]byte{0x12, 0x20}, public...)), base58.Encode(slices.Concat(peerIDPrefix, []byte{1}, make([]byte, 31)))} {
		if p, err := ParsePeerID(s); err == nil {
			t.Errorf("accepted %q as %s", s, p)
		}
	}
}

// TestValidPoint: keys are points; the eight of small order, their other spellings and other numbers are not.
func TestValidPoint(t *testing.T) {
	t.Parallel()
	for n := range byte(100) {
		if !validPoint(testKey(n).Private.Public().(ed25519.PublicKey)) {
			t.Errorf("key %d refused", n)
		}
	}
	// Encodings of points of small order, canonical and not, as listed in "Taming the many EdDSAs", table 1.
	for _, s := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000080",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		if validPoint(must(hex.DecodeString(s))) {
			t.Errorf("%s accepted", s)
		}
	}
	// y + p is another spelling of y, where it fits: the points with y of 2 to 18.
	for y := int64(0); y < 19; y++ {
		big := new(big.Int).Add(big.NewInt(y), fieldP).FillBytes(make([]byte, 32))
		slices.Reverse(big)
		if validPoint(big) {
			t.Errorf("p + %d accepted", y)
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

func TestIdentifiers(t *testing.T) {
	t.Parallel()
	parse := map[byte]func(string) error{
		'@': func(s string) error { _, err := ParseUserID(s); return err },
		'!': func(s string) error { _, err := ParseRoomID(s); return err },
		'#': func(s string) error { _, err := ParseRoomAlias(s); return err },
	}
	key := string(testKey(1).Server)
	for sigil, f := range parse {
		for _, s := range []string{
			"a:example.org", "a:" + key, "a:" + key + ".example.org", ":example.org", "a:x:1", "a:1.2.3.4:12345", "a:[::1]", "a:[1234:5678::abcd]:5678",
			"A B\x01é😀:example.org", "a/b=c+d-e._:MATRIX.org", strings.Repeat("a", 252) + ":x",
		} {
			if err := f(string(sigil) + s); err != nil {
				t.Errorf("%c%s: %v", sigil, s, err)
			}
		}
		for _, s := range []string{
			"", "a", "a:", "a:b:", "a:b:123456", "a:b:x", "a:b:1:2", "a:[::1", "a:[::1]x", "a:[::1]:", "a:[x]", "a:[1.2.3.4]", "a:b_c", "a:b c", "a:é", "a:b/c",
			"a\x00b:c", "\xff:c", "\xed\xa0\x80:c", strings.Repeat("a", 253) + ":x", "a:[fe80::1%eth0]",
		} {
			if err := f(string(sigil) + s); err == nil {
				t.Errorf("%c%s accepted", sigil, s)
			}
			if err := f(s); err == nil {
				t.Errorf("%s accepted without sigil", s)
			}
		}
	}
	hash := string(numberedID(1))[1:]
	if err := parse['!']("!" + hash); err != nil {
		t.Errorf("room ID of a hash: %v", err)
	}
	for _, s := range []string{hash[:42], hash + "A", strings.Repeat("_", 43), hash[:42] + "=", hash[:42] + "\n"} {
		if parse['!']("!"+s) == nil {
			t.Errorf("room ID !%q accepted", s)
		}
	}
	if parse['@']("@"+hash) == nil {
		t.Error("user ID without server accepted")
	}
	for s, ok := range map[string]bool{"$" + hash: true, "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk": true, "$old:example.org": true, "": false, "$": false,
		hash: false, "$" + strings.Repeat("a", 254): true, "$" + strings.Repeat("a", 255): false, "$\xff": false, "$a\x00": false} {
		if _, err := ParseEventID(s); (err == nil) != ok {
			t.Errorf("event ID %q: %v", s, err)
		}
	}
	for s, ok := range map[string]bool{"ed25519:1": true, "ed25519:a_B9": true, string(testKey(1).ID): true, "": false, "ed25519:": false, "curve25519:1": false,
		"ed25519:a-b": false, "ed25519:a:b": false, "ed25519:" + strings.Repeat("a", 120): true, "ed25519:" + strings.Repeat("a", 121): false} {
		if _, err := ParseKeyID(s); (err == nil) != ok {
			t.Errorf("key ID %q: %v", s, err)
		}
	}
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
