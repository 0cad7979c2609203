package search

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"

	"github.com/plexus-p2p/plexus/store"
)

// The index of a segment is
//
//	uvarint count, and of each event that has a text, from the oldest on: varint order, less the one before
//	and of each word of theirs, in their order as bytes:
//		uvarint bytes that it has in common with the one before, uvarint length of the rest, the rest,
//		uvarint length of what follows, and of each event that has the word: uvarint its number among the above, less the one before
//
// A word stands for all those that begin with it if it is of maxWord bytes, or empty: they are too long, or too many. It is not compressed: of
// chat it takes 20 bytes a message, and compressed by S2 18, by zstd 13, which would need twice the time to be looked through.

const (
	// maxWord is what is kept of a word, in bytes. A sentence without spaces is one word: of Chinese 170 characters.
	maxWord = 512
	// fullAt is the size, as it is estimated, at which a segment takes no further event: a thousand messages of usual length have half of it.
	fullAt = store.MaxSegment / 2
	// What the encoding takes at most, in bytes: for an order, the number of an event, and a word beside its own.
	orderSize, numberSize, wordExtra = binary.MaxVarintLen64, 3, 7
)

var errDamaged = errors.New("a segment of the search index is damaged")

// segment is an index under construction. Events are added from the newest to the oldest.
type segment struct {
	orders []int64
	words  map[string][]int // which of orders have it
	size   int              // of the encoding, at most
}

func newSegment() *segment { return &segment{words: map[string][]int{}, size: 2 * numberSize} }

func (s *segment) full() bool { return s.size >= fullAt }

// add takes in an event with its text.
func (s *segment) add(order int64, text string) {
	words := Words(text)
	if len(words) == 0 {
		return
	}
	s.orders = append(s.orders, order)
	s.size += orderSize + numberSize
	for _, w := range words {
		w = w[:min(len(w), maxWord)]
		if s.size+len(w)+wordExtra+2*numberSize > store.MaxSegment { // an event of tens of thousands of words
			s.mark("")
			return
		}
		s.mark(w)
	}
}

// mark notes that the event added last has the word.
func (s *segment) mark(w string) {
	n := len(s.orders) - 1
	in, known := s.words[w]
	if known && in[len(in)-1] == n {
		return
	}
	if !known && w != "" {
		s.size += len(w) + wordExtra
	}
	s.size += numberSize
	s.words[w] = append(in, n)
}

// encode is the index.
func (s *segment) encode() []byte {
	b := binary.AppendUvarint(make([]byte, 0, s.size), uint64(len(s.orders)))
	last := int64(0)
	for _, order := range slices.Backward(s.orders) {
		b = binary.AppendVarint(b, order-last)
		last = order
	}
	words := make([]string, 0, len(s.words))
	for w := range s.words {
		words = append(words, w)
	}
	slices.Sort(words)
	before := ""
	var numbers []byte
	for _, w := range words {
		common := 0
		for common < min(len(before), len(w)) && before[common] == w[common] {
			common++
		}
		b = binary.AppendUvarint(b, uint64(common))
		b = binary.AppendUvarint(b, uint64(len(w)-common))
		b = append(b, w[common:]...)
		numbers = numbers[:0]
		last := 0
		for _, n := range slices.Backward(s.words[w]) {
			n = len(s.orders) - 1 - n // from the oldest on
			numbers = binary.AppendUvarint(numbers, uint64(n-last))
			last = n
		}
		b = binary.AppendUvarint(b, uint64(len(numbers)))
		b = append(b, numbers...)
		before = w
	}
	return b
}

// Candidates are the orders of the events of a segment's index in which each word of a term may fit some word, the newest first. What is not
// among them does not fit; what is may not either.
func Candidates(index []byte, terms []string) ([]int64, error) {
	d := decoder{rest: index}
	orders := make([]int64, d.length())
	last := int64(0)
	for i := range orders {
		last += d.varint()
		orders[i] = last
	}
	has := make([][]uint64, len(terms)) // of each word of the term, a bit for each event
	for i := range has {
		has[i] = make([]uint64, (len(orders)+63)/64)
	}
	word := make([]byte, 0, maxWord)
	for len(d.rest) > 0 && !d.damaged {
		common := d.length()
		if common > len(word) {
			return nil, errDamaged
		}
		word = append(word[:common], d.take(d.length())...)
		numbers := d.take(d.length())
		for i, term := range terms {
			if mayFit(word, term) && !markAll(has[i], numbers, len(orders)) {
				return nil, errDamaged
			}
		}
	}
	if d.damaged {
		return nil, errDamaged
	}
	var found []int64
	for at := len(orders)/64 + 1; at > 0; at-- {
		if at > len(has[0]) {
			continue
		}
		all := has[0][at-1]
		for _, h := range has[1:] {
			all &= h[at-1]
		}
		for all != 0 {
			n := bits.Len64(all) - 1
			all &^= 1 << n
			found = append(found, orders[(at-1)*64+n])
		}
	}
	return found, nil
}

// mayFit is Fits of a word of the index: of one that is cut, whether a word that begins so may fit.
func mayFit(word []byte, term string) bool {
	switch {
	case len(word) == 0:
		return true
	case len(word) == maxWord && (anywhere(term) || len(term) > maxWord && string(word) == term[:maxWord]):
		return true
	case len(word) < len(term):
		return false
	}
	return string(word[:len(term)]) == term || anywhere(term) && bytes.Contains(word, []byte(term))
}

// markAll sets the bits of numbers, below n.
func markAll(set []uint64, numbers []byte, n int) bool {
	d := decoder{rest: numbers}
	at := 0
	for len(d.rest) > 0 {
		if at += d.length(); d.damaged || at >= n {
			return false
		}
		set[at/64] |= 1 << (at % 64)
	}
	return true
}

// decoder takes an index apart. After an error all is zero.
type decoder struct {
	rest    []byte
	damaged bool
}

// length is a number of bytes, or of things that take one at least; none is greater than a segment.
func (d *decoder) length() int {
	if len(d.rest) > 0 && d.rest[0] < 0x80 { // most
		n := d.rest[0]
		d.rest = d.rest[1:]
		return int(n)
	}
	n, w := binary.Uvarint(d.rest)
	if w <= 0 || n > store.MaxSegment {
		d.rest, d.damaged = nil, true
		return 0
	}
	d.rest = d.rest[w:]
	return int(n)
}

func (d *decoder) varint() int64 {
	n, w := binary.Varint(d.rest)
	if w <= 0 {
		d.rest, d.damaged = nil, true
		return 0
	}
	d.rest = d.rest[w:]
	return n
}

func (d *decoder) take(n int) []byte {
	if n > len(d.rest) {
		d.rest, d.damaged = nil, true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}
