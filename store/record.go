package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Parts of binary records: numbers as varints, strings and bytes behind their length.

var errCutOff = errors.New("record in the store is cut off")

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// fieldReader takes a binary record apart in the order in which it was built. After an error all is zero.
type fieldReader struct {
	rest []byte
	err  error
}

// take returns the next n bytes, which belong to the record.
func (f *fieldReader) take(n uint64) []byte {
	if f.err != nil || n > uint64(len(f.rest)) {
		f.err = errCutOff
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fieldReader) hash() (h eventgraph.Hash) {
	copy(h[:], f.take(uint64(len(h))))
	return h
}

func (f *fieldReader) byte() byte {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *fieldReader) uvarint() uint64 {
	n, w := binary.Uvarint(f.rest)
	if w <= 0 {
		f.err = errCutOff
		return 0
	}
	f.take(uint64(w))
	return n
}

func (f *fieldReader) varint() int64 {
	n, w := binary.Varint(f.rest)
	if w <= 0 {
		f.err = errCutOff
		return 0
	}
	f.take(uint64(w))
	return n
}

func (f *fieldReader) string() string { return string(f.take(f.uvarint())) }

// joinBody makes a record of a JSON header and a body that is kept byte for byte.
func joinBody(header any, body []byte) ([]byte, error) {
	h, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("record for the store: %w", err)
	}
	b := make([]byte, 0, len(h)+len(body)+5)
	return append(append(binary.AppendUvarint(b, uint64(len(h))), h...), body...), nil
}

// splitBody takes such a record apart; the body is the record's.
func splitBody(record []byte, header any) ([]byte, error) {
	f := fieldReader{rest: record}
	h := f.take(f.uvarint())
	if f.err != nil {
		return nil, f.err
	}
	return f.rest, json.Unmarshal(h, header)
}
