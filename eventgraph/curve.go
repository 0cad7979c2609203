package eventgraph

import (
	"math/big"
	"slices"
)

// The field and curve of ed25519 (RFC 8032 section 5.1): -x² + y² = 1 + d·x²·y² modulo p.
var (
	fieldP, _ = new(big.Int).SetString("57896044618658097711785492504343953926634992332820282019728792003956564819949", 10)
	curveD, _ = new(big.Int).SetString("37095705934669439343138083508754565189542113879843219016388785533085940283555", 10)
	// orderEightY is the y of four of the points of order 8; the other four have -y.
	orderEightY, _ = new(big.Int).SetString("2707385501144840649318225287225658788936804267575313519463743609750303402022", 10)
	fieldOne       = big.NewInt(1)
)

// validPoint says whether key is the one encoding of a point of the curve that is not of small order.
// Under a small-order key one signature fits many messages, and a point with two encodings would
// give one key two names.
func validPoint(key []byte) bool {
	if len(key) != 32 {
		return false
	}
	be := slices.Clone(key)
	slices.Reverse(be)
	be[0] &= 0x7f // the sign of x
	y := new(big.Int).SetBytes(be)
	if y.Cmp(fieldP) >= 0 {
		return false
	}
	// The eight points of small order have y = 0, 1, -1 and ±orderEightY, whichever sign x has.
	// This also rejects x = 0 with a sign, since x is 0 only for y = 1 and -1.
	negative := new(big.Int).Sub(fieldP, y)
	if y.Sign() == 0 || y.Cmp(fieldOne) == 0 || negative.Cmp(fieldOne) == 0 ||
		y.Cmp(orderEightY) == 0 || negative.Cmp(orderEightY) == 0 {
		return false
	}
	// x² = (y²-1) / (d·y²+1) must be a square, which it is where (y²-1)·(d·y²+1) is one.
	y2 := new(big.Int).Mul(y, y)
	y2.Mod(y2, fieldP)
	u := new(big.Int).Sub(y2, fieldOne)
	v := y2.Mul(y2, curveD)
	v.Add(v, fieldOne)
	u.Mul(u, v).Mod(u, fieldP)
	return big.Jacobi(u, fieldP) == 1
}
