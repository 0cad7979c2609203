// Package canonicaljson reads JSON strictly and writes it in Matrix' canonical form: UTF-8, no
// insignificant space, members sorted by code point, the shortest escapes, and integers only
// (appendices, Canonical JSON). What is signed or hashed in Matrix is such bytes.
//
// It also looks into canonical bytes without building a tree: [Split], [Get], [String] and [Int] return
// slices of what they are given. Use them for the content of events rather than encoding/json into a
// struct: that matches member names without regard to case, so `"Membership"` would pass for
// "membership", and other servers would disagree on what the event says.
package canonicaljson

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"unicode/utf16"
	"unicode/utf8"
)

// Rules says which JSON is accepted.
type Rules uint8

const (
	// Strict is the grammar of the appendices: numbers are integers from -(2^53)+1 to 2^53-1, without
	// fraction, exponent or negative zero. Rooms of version 6 and up, and all signed JSON beside events.
	Strict Rules = iota
	// Lenient takes any number of JSON and keeps its literal as written, so that hashes of events of room
	// versions 3 to 5 come out as their senders made them. All else is as in Strict.
	Lenient
)

// MaxInt is the largest integer of canonical JSON; the least is -MaxInt.
const MaxInt = 1<<53 - 1

// MaxDepth bounds nesting: a value may stand in so many others. Servers written in Python stop near 1,000 levels (the interpreter's recursion
// limit), encoding/json at 10,000, so deeper events travel nowhere anyway.
const MaxDepth = 1000

// MaxPart bounds the nesting of what is made here to stand inside something else that is signed: an event in a request, keys in an
// EDU. Each of these wraps it by a few levels more, and others have read the request on some levels of a stack of their own.
// Nothing that clients make has ten.
const MaxPart = MaxDepth / 2

// ErrSyntax is wrapped by every error of this package: the input is not JSON that the rules accept.
var ErrSyntax = errors.New("not canonical JSON")

// Canonicalize returns the canonical form of raw, which must be one JSON value. It refuses repeated member
// names, invalid UTF-8 and lone surrogates: servers differ on what those mean. raw is not kept.
func Canonicalize(raw []byte, rules Rules) ([]byte, error) {
	return canonicalize(raw, rules, "")
}

// CanonicalizeWithout is Canonicalize of an object without its member of that name. The member must be
// JSON, but its numbers may be any: "unsigned" is dropped, so it need not be canonical.
func CanonicalizeWithout(raw []byte, rules Rules, member string) ([]byte, error) {
	return canonicalize(raw, rules, member)
}

// Marshal is json.Marshal in canonical form. Numbers in v must be integers within MaxInt.
func Marshal(v any) ([]byte, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return Canonicalize(raw, Strict)
}

// span is a member within the output, from start to end, with its decoded name.
type span struct {
	start, end int
	name       []byte
}

// unsorted is an object within the output whose members must change places.
type unsorted struct {
	start, end int
	members    []span // sorted
}

// parser checks and writes in one pass. The output is out and then in[kept:pos]: what is canonical already is not
// copied piece by piece, and an input that is so as a whole is copied once, at the end. Only when some object came
// unsorted is a second pass made, so that nested unsorted objects are not moved once per level.
type parser struct {
	in       []byte
	pos      int
	out      []byte
	kept     int
	rules    Rules
	drop     string // name of a top-level member to leave out
	members  []span // of the objects being read, innermost last
	unsorted []unsorted
}

func canonicalize(raw []byte, rules Rules, drop string) ([]byte, error) {
	var usual [32]span // enough for events, without an allocation
	p := parser{in: raw, rules: rules, drop: drop, members: usual[:0]}
	p.space()
	if err := p.value(0); err != nil {
		return nil, fmt.Errorf("%w: %v at byte %d", ErrSyntax, err, p.pos)
	}
	p.space()
	if p.pos != len(p.in) {
		return nil, fmt.Errorf("%w: more after the value at byte %d", ErrSyntax, p.pos)
	}
	if p.out == nil && len(p.unsorted) == 0 {
		return bytes.Clone(p.in[p.kept:p.pos]), nil
	}
	p.copy(p.pos)
	if len(p.unsorted) > 0 {
		// Objects were noted when they closed; the second pass meets them as they open.
		slices.SortFunc(p.unsorted, func(a, b unsorted) int { return a.start - b.start })
		return p.rearrange(make([]byte, 0, len(p.out)), 0, len(p.out)), nil
	}
	if cap(p.out)-len(p.out) > len(p.out)/8 {
		return bytes.Clone(p.out), nil // what was dropped is not kept in memory behind what stays
	}
	return p.out, nil
}

// copy brings the output up to in[:to] into out.
func (p *parser) copy(to int) {
	if p.out == nil {
		p.out = make([]byte, 0, len(p.in))
	}
	p.out = append(p.out, p.in[p.kept:to]...)
	p.kept = to
}

// length of the output so far.
func (p *parser) length() int { return len(p.out) + p.pos - p.kept }

// cut shortens the output to n bytes. What comes next is read from pos.
func (p *parser) cut(n int) {
	if n > len(p.out) {
		p.copy(p.kept + n - len(p.out))
	}
	p.out = p.out[:n]
	p.kept = p.pos
}

// rearrange appends out[from:to] to dst with the members of the unsorted objects in order.
func (p *parser) rearrange(dst []byte, from, to int) []byte {
	for {
		i := sort.Search(len(p.unsorted), func(i int) bool { return p.unsorted[i].start >= from })
		if i == len(p.unsorted) || p.unsorted[i].start >= to {
			return append(dst, p.out[from:to]...)
		}
		o := p.unsorted[i]
		dst = append(dst, p.out[from:o.start]...)
		dst = append(dst, '{')
		for j, m := range o.members {
			if j > 0 {
				dst = append(dst, ',')
			}
			dst = p.rearrange(dst, m.start, m.end)
		}
		dst = append(dst, '}')
		from = o.end
	}
}

// space leaves out white space.
func (p *parser) space() {
	if p.pos == len(p.in) || p.in[p.pos] > ' ' {
		return
	}
	start := p.pos
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
			continue
		}
		break
	}
	if p.pos > start {
		p.copy(start)
		p.kept = p.pos
	}
}

// peek returns the next byte, 0 at the end (0 itself is nowhere allowed).
func (p *parser) peek() byte {
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

func (p *parser) value(depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("nested deeper than %d", MaxDepth)
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		return p.array(depth)
	case c == '"':
		_, err := p.string()
		return err
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	case c == 't':
		return p.literal("true")
	case c == 'f':
		return p.literal("false")
	case c == 'n':
		return p.literal("null")
	case p.pos == len(p.in):
		return errors.New("input ends early")
	default:
		return errors.New("no value")
	}
}

func (p *parser) literal(word string) error {
	if !bytes.HasPrefix(p.in[p.pos:], []byte(word)) {
		return errors.New("no value")
	}
	p.pos += len(word)
	return nil
}

func (p *parser) array(depth int) error {
	p.pos++
	p.space()
	if p.peek() == ']' {
		p.pos++
		return nil
	}
	for {
		p.space()
		if err := p.value(depth + 1); err != nil {
			return err
		}
		p.space()
		switch p.peek() {
		case ',':
		case ']':
			p.pos++
			return nil
		default:
			return errors.New("no comma or end in array")
		}
		p.pos++
	}
}

func (p *parser) object(depth int) error {
	start, base, inOrder := p.length(), len(p.members), true
	p.pos++
	p.space()
	if p.peek() == '}' {
		p.pos++
		return nil
	}
	for {
		p.space()
		if p.peek() != '"' {
			return errors.New("no member name")
		}
		m, dropped, err := p.member(depth)
		if err != nil {
			return err
		}
		if dropped {
			p.cut(m.start)
			p.forget(m.start)
		} else {
			if n := len(p.members); n > base {
				switch c := bytes.Compare(p.members[n-1].name, m.name); {
				case c == 0:
					return fmt.Errorf("member %.80q is repeated", m.name)
				case c > 0:
					inOrder = false
				}
			}
			p.members = append(p.members, m)
		}
		p.space()
		if p.peek() == ',' {
			p.pos++
			if dropped {
				p.kept = p.pos // its comma goes with it
			}
			continue
		}
		if p.peek() != '}' {
			return errors.New("no comma or end in object")
		}
		if dropped && len(p.members) > base {
			p.cut(p.length() - 1) // the comma before it
		}
		p.pos++
		break
	}
	if !inOrder {
		if err := p.sort(start, slices.Clone(p.members[base:])); err != nil {
			return err
		}
	}
	p.members = p.members[:base]
	return nil
}

// member reads a name and its value. dropped says that it is the one to leave out.
func (p *parser) member(depth int) (m span, dropped bool, err error) {
	m.start = p.length()
	name := p.pos
	escaped, err := p.string()
	if err != nil {
		return m, false, err
	}
	m.name = p.in[name+1 : p.pos-1]
	if escaped {
		p.copy(p.pos)
		m.name = bytes.Clone(unescape(p.out[m.start+1 : len(p.out)-1]))
	}
	p.space()
	if p.peek() != ':' {
		return m, false, errors.New("no colon after member name")
	}
	p.pos++
	p.space()
	rules := p.rules
	dropped = depth == 0 && p.drop != "" && string(m.name) == p.drop
	if dropped {
		p.rules = Lenient
	}
	err = p.value(depth + 1)
	p.rules = rules
	m.end = p.length()
	return m, dropped, err
}

// forget drops the notes on what stood in the output from there on.
func (p *parser) forget(from int) {
	for n := len(p.unsorted); n > 0 && p.unsorted[n-1].start >= from; n-- {
		p.unsorted = p.unsorted[:n-1]
	}
}

// sort notes an object whose members came in another order: by code point, which is the order of UTF-8 bytes.
func (p *parser) sort(start int, members []span) error {
	slices.SortFunc(members, func(a, b span) int { return bytes.Compare(a.name, b.name) })
	for i := 1; i < len(members); i++ {
		if bytes.Equal(members[i-1].name, members[i].name) {
			return fmt.Errorf("member %.80q is repeated", members[i].name)
		}
	}
	p.unsorted = append(p.unsorted, unsorted{start, p.length(), members})
	return nil
}

func (p *parser) number() error {
	start := p.pos
	if p.peek() == '-' {
		p.pos++
	}
	switch c := p.peek(); {
	case c == '0':
		p.pos++
	case '1' <= c && c <= '9':
		p.digits()
	default:
		return errors.New("no digit in number")
	}
	integer := true
	if p.peek() == '.' {
		integer = false
		p.pos++
		if p.digits() == 0 {
			return errors.New("no digit after the point")
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		integer = false
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if p.digits() == 0 {
			return errors.New("no digit in exponent")
		}
	}
	if p.rules == Strict {
		if !integer {
			return errors.New("number with fraction or exponent")
		}
		if _, ok := Int(p.in[start:p.pos]); !ok {
			return errors.New("integer out of range")
		}
	}
	return nil
}

func (p *parser) digits() (n int) {
	for '0' <= p.peek() && p.peek() <= '9' {
		p.pos++
		n++
	}
	return n
}

// string reads a string. escaped says that it came with escapes, canonical or not.
func (p *parser) string() (escaped bool, err error) {
	p.pos++
	for {
		p.pos += plain(p.in[p.pos:])
		if p.pos == len(p.in) {
			return escaped, errors.New("string does not end")
		}
		switch c := p.in[p.pos]; {
		case c == '"':
			p.pos++
			return escaped, nil
		case c == '\\':
			escaped = true
			start := p.pos
			r, err := p.escape()
			if err != nil {
				return escaped, err
			}
			var space [8]byte
			if canonical := appendRune(space[:0], r); string(canonical) != string(p.in[start:p.pos]) {
				p.copy(start)
				p.out = append(p.out, canonical...)
				p.kept = p.pos
			}
		case c < 0x20:
			return escaped, errors.New("control character in string")
		default:
			r, n := utf8.DecodeRune(p.in[p.pos:])
			if r == utf8.RuneError && n == 1 {
				return escaped, errors.New("invalid UTF-8")
			}
			p.pos += n
		}
	}
}

// plain returns how many bytes at the start of b are ASCII that stands for itself within a string. It looks at eight
// at a time: most of an event is such text.
func plain(b []byte) int {
	const each = 0x0101010101010101
	n := 0
	for ; len(b)-n >= 8; n += 8 {
		w := binary.LittleEndian.Uint64(b[n:])
		// The high bit of a byte is set where it is below 0x20, a quote, a backslash, or not ASCII. A borrow can set that of
		// the bytes after such a one too, but only the first counts.
		odd := ((w - 0x20*each) | (w ^ '"'*each - each) | (w ^ '\\'*each - each) | w) & (0x80 * each)
		if odd != 0 {
			return n + bits.TrailingZeros64(odd)/8
		}
	}
	for ; n < len(b); n++ {
		if c := b[n]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			break
		}
	}
	return n
}

// escape reads an escape sequence, or two where they make a surrogate pair.
func (p *parser) escape() (rune, error) {
	p.pos++
	c := p.peek()
	p.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
	default:
		return 0, errors.New("unknown escape")
	}
	r, ok := hex4(p.in[p.pos:])
	if !ok {
		return 0, errors.New("escape \\u without four hexadecimal digits")
	}
	p.pos += 4
	if !utf16.IsSurrogate(r) {
		return r, nil
	}
	if p.pos+6 <= len(p.in) && p.in[p.pos] == '\\' && p.in[p.pos+1] == 'u' {
		low, ok := hex4(p.in[p.pos+2:])
		if pair := utf16.DecodeRune(r, low); ok && pair != utf8.RuneError {
			p.pos += 6
			return pair, nil
		}
	}
	return 0, errors.New("lone surrogate")
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
