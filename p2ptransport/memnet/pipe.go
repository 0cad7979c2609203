package memnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// pipeSize is what a direction of a stream holds before a writer waits, like a small socket buffer.
const pipeSize = 64 << 10

var errReset = errors.New("memnet: stream reset")

// half is one direction of a stream. Bytes become readable when they have travelled the path.
type half struct {
	path    *path
	observe Observer // nil: nobody does

	mu       sync.Mutex
	chunks   []chunk
	size     int
	eof      bool          // nothing more is written
	err      error         // set when the stream broke
	frozen   bool          // nothing becomes readable
	changed  chan struct{} // closed and replaced at each change
	readBy   time.Time
	writeBy  time.Time
	breaksIn int       // bytes until the stream breaks; negative: never
	arrived  time.Time // of the last byte written
}

type chunk struct {
	data []byte
	at   time.Time
}

func newHalf(breaksIn int, p *path) *half {
	return &half{changed: make(chan struct{}), breaksIn: breaksIn, path: p}
}

// touch wakes those that wait; it needs mu.
func (h *half) touch() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// wait releases mu until something changes or the time comes, and takes it again. A zero time never comes.
func (h *half) wait(until time.Time) {
	changed := h.changed
	h.mu.Unlock()
	defer h.mu.Lock()
	if until.IsZero() {
		<-changed
		return
	}
	t := time.NewTimer(time.Until(until))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case h.err != nil:
			return 0, h.err
		case !h.readBy.IsZero() && !now.Before(h.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case h.frozen:
			h.wait(h.readBy)
		case len(h.chunks) > 0 && !h.chunks[0].at.After(now):
			c := &h.chunks[0]
			n := copy(b, c.data)
			if c.data = c.data[n:]; len(c.data) == 0 {
				h.chunks = h.chunks[1:]
			}
			h.size -= n
			h.touch()
			return n, nil
		case len(h.chunks) == 0 && h.eof:
			return 0, io.EOF
		case len(h.chunks) > 0:
			h.wait(earlier(h.chunks[0].at, h.readBy))
		default:
			h.wait(h.readBy)
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// write waits for room. It returns errBroken when the stream's time has come.
func (h *half) write(b []byte) (n int, err error) {
	most := pipeSize
	if h.path.packets() {
		most = packetSize
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		room := pipeSize - h.size
		switch {
		case h.err != nil:
			return n, h.err
		case h.eof:
			return n, io.ErrClosedPipe
		case !h.writeBy.IsZero() && !time.Now().Before(h.writeBy):
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			return n, nil
		case h.breaksIn == 0:
			return n, errBroken
		case room == 0:
			h.wait(h.writeBy)
		default:
			m := min(room, len(b)-n, most)
			if h.breaksIn > 0 {
				m = min(m, h.breaksIn)
				h.breaksIn -= m
			}
			at, times := h.path.arrival(m)
			if at.Before(h.arrived) {
				at = h.arrived
			}
			h.arrived = at
			h.chunks = append(h.chunks, chunk{append([]byte(nil), b[n:n+m]...), at})
			if h.observe != nil {
				h.observe(b[n:n+m], times)
			}
			h.size += m
			n += m
			h.touch()
		}
	}
}

var errBroken = errors.New("memnet: stream broke")

func (h *half) set(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	h.touch()
}

func (h *half) end()           { h.set(func() { h.eof = true }) }
func (h *half) fail(err error) { h.set(func() { h.err, h.chunks = err, nil }) }

// stream is one end of a stream.
type stream struct {
	in, out       *half
	local, remote addr
	done          func() // forgets the stream; idempotent
}

type addr p2ptransport.PeerID

func (a addr) Network() string { return "memnet" }
func (a addr) String() string  { return string(a) }

func (s *stream) Read(b []byte) (int, error) { return s.in.read(b) }

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.out.write(b)
	if errors.Is(err, errBroken) {
		_ = s.Reset()
	}
	return n, err
}

// Close ends this side: what was written still arrives, what the other side writes is discarded.
func (s *stream) Close() error {
	s.out.end()
	s.in.set(func() {
		if s.in.err == nil && !s.in.eof {
			s.in.err = io.ErrClosedPipe
		}
	})
	s.done()
	return nil
}

// CloseWrite ends what is written.
func (s *stream) CloseWrite() error {
	s.out.end()
	return nil
}

// Reset breaks both directions.
func (s *stream) Reset() error {
	s.in.fail(errReset)
	s.out.fail(errReset)
	s.done()
	return nil
}

func (s *stream) LocalAddr() net.Addr  { return s.local }
func (s *stream) RemoteAddr() net.Addr { return s.remote }

func (s *stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.in.set(func() { s.in.readBy = t })
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	s.out.set(func() { s.out.writeBy = t })
	return nil
}
