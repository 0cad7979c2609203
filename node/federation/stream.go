package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Answers that hold the state of a large room are read as they come: one JSON object, of which one event at a time is in memory. That is so
// whoever answers; the members of the object may come in any order.

const (
	// maxStreamed bounds one value of such an answer: eventgraph takes no event of which more is written.
	maxStreamed = 512 << 10
	// maxStreamedMembers bounds the members of the object; the spec knows six.
	maxStreamedMembers = 64
	// stallTimeout is how long a server may give nothing in the midst of an answer.
	stallTimeout = attemptTimeout
)

var errNoObject = errors.New("the answer is no JSON object")

// objectStream reads one JSON object.
type objectStream struct {
	in     quota
	values *json.Decoder
}

// quota lets no value be longer than maxStreamed, and all of them together than what is left of total.
type quota struct {
	from         io.Reader
	total, value int64
}

func (q *quota) Read(p []byte) (int, error) {
	left := min(q.total, q.value)
	if left <= 0 {
		return 0, errTooLong
	}
	n, err := q.from.Read(p[:min(int64(len(p)), left)])
	q.total -= int64(n)
	q.value -= int64(n)
	return n, err
}

// readObject reads an object of at most limit bytes and calls member for each of its members; what member does not read is skipped. A name
// that comes twice is an error: who reads the first and who reads the last would differ.
func readObject(from io.Reader, limit int64, member func(name string, s *objectStream) error) error {
	s := &objectStream{in: quota{from: from, total: limit, value: maxStreamed}}
	s.values = json.NewDecoder(&s.in)
	if err := s.delim('{', errNoObject); err != nil {
		return err
	}
	seen := map[string]bool{}
	for s.values.More() {
		s.in.value = maxStreamed
		token, err := s.values.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string) // the decoder takes nothing else here
		if seen[name] || len(seen) == maxStreamedMembers {
			return fmt.Errorf("member %q of the answer comes twice, or it has too many", name)
		}
		seen[name] = true
		before := s.values.InputOffset()
		if err := member(name, s); err != nil {
			return err
		}
		if s.values.InputOffset() == before {
			if err := s.skip(); err != nil {
				return err
			}
		}
	}
	if err := s.delim('}', errNoObject); err != nil {
		return err
	}
	s.in.value = maxStreamed
	if _, err := s.values.Token(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("more after the answer")
		}
		return err
	}
	return nil
}

// delim reads a bracket.
func (s *objectStream) delim(want json.Delim, otherwise error) error {
	s.in.value = maxStreamed
	token, err := s.values.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	if err == nil && token != want {
		err = otherwise
	}
	return err
}

// value reads the member's value into v.
func (s *objectStream) value(v any) error {
	s.in.value = maxStreamed
	return s.values.Decode(v)
}

// array reads the member's value, which must be an array, and calls f with each element, which f may keep. null counts as empty.
func (s *objectStream) array(f func(raw json.RawMessage) error) error {
	s.in.value = maxStreamed
	token, err := s.values.Token()
	if err != nil || token == nil {
		return err
	}
	if token != json.Delim('[') {
		return errors.New("not an array")
	}
	for s.values.More() {
		s.in.value = maxStreamed
		var raw json.RawMessage
		if err := s.values.Decode(&raw); err != nil {
			return err
		}
		if err := f(raw); err != nil {
			return err
		}
	}
	return s.delim(']', errors.New("not an array"))
}

// skip passes over a value, however long it is as a whole.
func (s *objectStream) skip() error {
	for depth := 0; ; {
		s.in.value = maxStreamed
		token, err := s.values.Token()
		if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// patient ends a context when nothing has been read for stallTimeout.
type patient struct {
	from  io.Reader
	timer *time.Timer
}

func newPatient(ctx context.Context) (context.Context, *patient, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	p := &patient{timer: time.AfterFunc(stallTimeout, cancel)}
	return ctx, p, func() { p.timer.Stop(); cancel() }
}

func (p *patient) Read(b []byte) (int, error) {
	n, err := p.from.Read(b)
	p.timer.Reset(stallTimeout)
	return n, err
}
