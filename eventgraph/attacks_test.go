package eventgraph

import (
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// Signatures made to be accepted by some and refused by others. Were there two ways to verify here, say one by one and in batches, or
// with and without the cofactor, servers would disagree on events and so on the state of rooms. There is one: crypto/ed25519, which
// computes S·B - k·A and compares its encoding with R, byte by byte, without the cofactor (RFC 8032 section 5.1.7 allows both).
//
// The test makes these signatures with plain arithmetic on the curve, slow and not constant in time.

// fieldL is the order of the base point.
var fieldL, _ = new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)

// point is a point of the curve in affine coordinates.
type point struct{ x, y *big.Int }

func inField(n *big.Int) *big.Int { return n.Mod(n, fieldP) }

// plus is the addition law of RFC 8032 section 5.1.4, which is complete: it holds for doubling and for the neutral element.
func (a point) plus(b point) point {
	mul := func(m, n *big.Int) *big.Int { return inField(new(big.Int).Mul(m, n)) }
	t := mul(curveD, mul(mul(a.x, b.x), mul(a.y, b.y)))
	over := func(n, d *big.Int) *big.Int { return mul(n, new(big.Int).ModInverse(inField(d), fieldP)) }
	return point{
		over(new(big.Int).Add(mul(a.x, b.y), mul(a.y, b.x)), new(big.Int).Add(fieldOne, t)),
		over(new(big.Int).Add(mul(a.y, b.y), mul(a.x, b.x)), new(big.Int).Sub(fieldOne, t)),
	}
}

func (a point) times(n *big.Int) point {
	sum := point{new(big.Int), big.NewInt(1)}
	for i := n.BitLen() - 1; i >= 0; i-- {
		sum = sum.plus(sum)
		if n.Bit(i) == 1 {
			sum = sum.plus(a)
		}
	}
	return sum
}

func (a point) equal(b point) bool { return a.x.Cmp(b.x) == 0 && a.y.Cmp(b.y) == 0 }

// bytes is the encoding: y, with the lowest bit of x above it (RFC 8032 section 5.1.2).
func (a point) bytes() []byte {
	b := littleEndian(a.y)
	b[31] |= byte(a.x.Bit(0)) << 7
	return b
}

func littleEndian(n *big.Int) []byte {
	b := n.FillBytes(make([]byte, 32))
	slices.Reverse(b)
	return b
}

func fromLittleEndian(bytes []byte) *big.Int {
	b := slices.Clone(bytes)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

// decodePoint takes a canonical encoding of a point of the curve: x² = (y²-1) / (d·y²+1).
func decodePoint(t *testing.T, b []byte) point {
	t.Helper()
	odd := uint(b[31] >> 7)
	b = slices.Clone(b)
	b[31] &= 0x7f
	y := fromLittleEndian(b)
	y2 := inField(new(big.Int).Mul(y, y))
	v := inField(new(big.Int).Add(new(big.Int).Mul(curveD, y2), fieldOne))
	x2 := inField(new(big.Int).Mul(new(big.Int).Sub(y2, fieldOne), v.ModInverse(v, fieldP)))
	x := new(big.Int).ModSqrt(x2, fieldP)
	if x == nil {
		t.Fatalf("%x is no point", b)
	}
	if x.Bit(0) != odd {
		x = inField(x.Neg(x))
	}
	return point{x, y}
}

// basePoint is B, whose y is 4/5.
func basePoint(t *testing.T) point {
	return decodePoint(t, must(hex.DecodeString("5866666666666666666666666666666666666666666666666666666666666666")))
}

// challenge is k of a signature: the hash of R, A and the message, modulo L.
func challenge(r, a, message []byte) *big.Int {
	h := sha512.Sum512(slices.Concat(r, a, message))
	k := fromLittleEndian(h[:])
	return k.Mod(k, fieldL)
}

// holds says whether cofactor·(S·B - R - k·A) is the neutral element: with cofactor 8 what verification in batches, and RFC 8032 in its first
// form, ask of a signature; with 1 what we ask.
func holds(t *testing.T, cofactor int64, public, message, signature []byte) bool {
	t.Helper()
	minus := func(p point) point { return point{inField(new(big.Int).Neg(p.x)), p.y} }
	r, a := decodePoint(t, signature[:32]), decodePoint(t, public)
	rest := basePoint(t).times(fromLittleEndian(signature[32:])).plus(minus(r)).plus(minus(a.times(challenge(signature[:32], public, message))))
	return rest.times(big.NewInt(cofactor)).equal(point{new(big.Int), big.NewInt(1)})
}

// crafted is an event signed by hand: R and A may have components of order 8.
type crafted struct {
	server  SigningKey // whose name the event bears
	public  ed25519.PublicKey
	message []byte
	event   *Event
}

// craft signs an event with secret a and nonce r: the public key is a·B + inKey and R is r·B + inR.
func craft(t *testing.T, nonce int64, inKey, inR point) (c crafted, signature []byte) {
	t.Helper()
	b := basePoint(t)
	a := new(big.Int).SetInt64(0x5ca1ab1e)
	public := b.times(a).plus(inKey).bytes()
	c.server = SigningKey{Server: NewServerName(public), ID: NewPeerID(public).KeyID(), Private: testKey(1).Private}
	c.public = public
	unsigned := mustBuild(t, "12", draft("12", "m.room.message", `{"body":"crafted"}`, c.server), c.server)
	c.event = unsigned
	c.message = messageOf(t, unsigned)
	r := big.NewInt(nonce)
	encodedR := b.times(r).plus(inR).bytes()
	s := new(big.Int).Mul(challenge(encodedR, public, c.message), a)
	s.Add(s, r).Mod(s, fieldL)
	return c, append(encodedR, littleEndian(s)...)
}

// messageOf is what the signatures of an event cover.
func messageOf(t *testing.T, e *Event) []byte {
	t.Helper()
	members := must(canonicaljson.Split(e.Redact().Raw()))
	return canonicaljson.Join(dropMembers(members, "signatures", "unsigned"))
}

// verified says whether the event with that signature passes, as an event and as JSON; the two must agree with each other.
func (c crafted) verified(t *testing.T, signature []byte) bool {
	t.Helper()
	members := must(canonicaljson.Split(c.event.Raw()))
	members = setMember(members, "signatures", []byte(`{"`+string(c.server.Server)+`":{"`+string(c.server.ID)+`":"`+encodeBase64(signature)+`"}}`))
	e, err := ParseEvent("12", canonicaljson.Join(members))
	if err != nil || e.ID() != c.event.ID() {
		t.Fatalf("signatures are part of the event: %v", err)
	}
	ring := ringFunc(func(ServerName, KeyID, int64, bool) (ed25519.PublicKey, error) { return c.public, nil })
	err = e.VerifySignatures(ring)
	if err != nil && !errors.Is(err, ErrSignature) {
		t.Fatal(err)
	}
	if asJSON := VerifyJSON(e.Redact().Raw(), c.server.Server, c.server.ID, c.public); (asJSON == nil) != (err == nil) {
		t.Errorf("as an event %v, as JSON %v", err, asJSON)
	}
	return err == nil
}

// orderEight is a point of order 8.
func orderEight(t *testing.T) point {
	t.Helper()
	p := decodePoint(t, littleEndian(orderEightY))
	neutral := point{new(big.Int), big.NewInt(1)}
	if !p.times(big.NewInt(8)).equal(neutral) || p.times(big.NewInt(4)).equal(neutral) {
		t.Fatal("not of order 8")
	}
	return p
}

func TestAttackSignatureForBatches(t *testing.T) {
	t.Parallel()
	none := point{new(big.Int), big.NewInt(1)}
	small := orderEight(t)

	c, right := craft(t, 1000, none, none)
	if !holds(t, 1, c.public, c.message, right) || !c.verified(t, right) {
		t.Fatal("a plain signature made by hand does not verify")
	}

	// A component of small order in R: the equation with the cofactor holds, ours does not.
	c, signature := craft(t, 1000, none, small)
	if !holds(t, 8, c.public, c.message, signature) || holds(t, 1, c.public, c.message, signature) {
		t.Fatal("not the signature that was meant")
	}
	if c.verified(t, signature) {
		t.Error("a signature with a small-order component in R passes")
	}

	// Two of them in a batch without the cofactor: the components cancel each other when their random weights agree modulo 8.
	c2, other := craft(t, 2000, none, small.times(big.NewInt(7)))
	if c.verified(t, signature) || c2.verified(t, other) {
		t.Error("one of a pair that cancel each other passes")
	}

	// A component of small order in the key, which is no small-order key: the name is good. Which signatures pass depends on k modulo 8,
	// and the event alone decides that: with the cofactor all would.
	passed, refused := 0, 0
	for nonce := range int64(20) {
		c, signature := craft(t, 3000+nonce, small, none)
		if _, err := ParseServerName(string(c.server.Server)); err != nil {
			t.Fatal(err)
		}
		one := holds(t, 1, c.public, c.message, signature)
		k := challenge(signature[:32], c.public, c.message)
		if !holds(t, 8, c.public, c.message, signature) || one != (k.TrailingZeroBits() >= 3) {
			t.Fatal("not the signature that was meant")
		}
		if got := c.verified(t, signature); got != one {
			t.Errorf("passes: %v, the equation without the cofactor holds: %v", got, one)
		} else if got {
			passed++
		} else {
			refused++
		}
	}
	if passed == 0 || refused == 0 {
		t.Errorf("%d passed and %d were refused: both should occur", passed, refused)
	}
}

func TestAttackSignatureEncodings(t *testing.T) {
	t.Parallel()
	none := point{new(big.Int), big.NewInt(1)}
	c, right := craft(t, 1000, none, none)
	for name, signature := range map[string][]byte{
		"S + L":           append(slices.Clone(right[:32]), littleEndian(new(big.Int).Add(fromLittleEndian(right[32:]), fieldL))...),
		"S with a bit up": flipped(right, 63, 0x80),
		"-R":              flipped(right, 31, 0x80),
		"one byte more":   append(slices.Clone(right), 0),
		"one byte less":   right[:63],
		"none":            nil,
	} {
		if c.verified(t, signature) {
			t.Errorf("%s passes", name)
		}
	}

	// R is the neutral element, 1 + p in the place of 1 as its y, or with the sign of x = 0 set: S·B = k·A whichever way R is written, but
	// only its one encoding is what verification computes.
	for name, r := range map[string][]byte{
		"canonical": littleEndian(fieldOne),
		"y + p":     littleEndian(new(big.Int).Add(fieldP, fieldOne)),
		"-0":        flipped(littleEndian(fieldOne), 31, 0x80),
	} {
		s := new(big.Int).Mul(challenge(r, c.public, c.message), big.NewInt(0x5ca1ab1e))
		signature := append(slices.Clone(r), littleEndian(s.Mod(s, fieldL))...)
		if got := c.verified(t, signature); got != (name == "canonical") {
			t.Errorf("R %s passes: %v", name, got)
		}
	}
}

func flipped(b []byte, i int, bits byte) []byte {
	b = slices.Clone(b)
	b[i] ^= bits
	return b
}

// A key of small order, under which one signature fits about every message, has no server name and no peer ID, and stands in no key
// document (TestValidPoint, TestKeyDocumentRefused). crypto/ed25519 alone would take it.
func TestAttackSmallOrderKey(t *testing.T) {
	t.Parallel()
	neutral := littleEndian(fieldOne)
	anything := append(slices.Clone(neutral), make([]byte, 32)...) // R is neutral and S is 0
	for _, message := range []string{"one", "another"} {
		if !ed25519.Verify(neutral, []byte(message), anything) {
			t.Error("the attack has gone: crypto/ed25519 refuses keys of small order itself")
		}
	}
	small := orderEight(t)
	for i := range int64(8) {
		key := small.times(big.NewInt(i)).bytes()
		if validPoint(key) {
			t.Errorf("%d times a point of order 8 is taken as a key", i)
		}
		if _, err := ParseServerName(string(NewServerName(key))); err == nil {
			t.Errorf("%d times a point of order 8 has a server name", i)
		}
		if _, err := ParsePeerID(string(NewPeerID(key))); err == nil {
			t.Errorf("%d times a point of order 8 has a peer ID", i)
		}
	}
	// Not the one encoding of its point: y + p.
	if validPoint(littleEndian(new(big.Int).Add(fieldP, big.NewInt(3)))) {
		t.Error("a key with y beyond p is taken")
	}
}
