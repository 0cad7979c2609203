package federation

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: pieces become as large as pass within a few seconds, in whatever time an answer comes, and no larger.
func TestPace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name        string
		speed       int // bytes a second
		latency     time.Duration
		least, most int
	}{
		{"16 kbit/s, 4 s there and back", 2000, 4 * time.Second, 4 << 10, 8 << 10},
		{"the same, hardly a delay", 2000, 50 * time.Millisecond, 4 << 10, 8 << 10},
		{"1 Mbit/s", 125_000, 100 * time.Millisecond, 128 << 10, 512 << 10},
		{"cable", 50_000_000, time.Millisecond, chunkBytes, chunkBytes},
		{"4 kbit/s", 500, time.Second, paceLeast, paceLeast},
	} {
		p := newPace()
		p.went(200, test.latency, false)
		for range 30 {
			n := p.batch(chunkBytes)
			p.went(n, test.latency+time.Duration(n)*time.Second/time.Duration(test.speed), false)
		}
		if got := p.batch(chunkBytes); got < test.least || got > test.most {
			t.Errorf("%s: %d bytes at one go, want %d to %d", test.name, got, test.least, test.most)
		}
		if n := p.batch(chunkBytes); attemptTimeout+passing(n) < time.Duration(n)*time.Second/time.Duration(test.speed)+test.latency {
			t.Errorf("%s: not waited for", test.name)
		}
	}

	p := newPace()
	for range 20 {
		p.went(3000, 10*time.Millisecond, false) // a message now and then
	}
	if p.batch(chunkBytes) != paceFirst {
		t.Errorf("small pieces have shown that %d bytes pass quickly", p.batch(chunkBytes))
	}
	if p.went(0, time.Minute, true); p.batch(chunkBytes) != paceFirst/2 || p.chunk(chunkBytes) != paceFirst/2 {
		t.Errorf("after a failure %d bytes are sent, %d asked for", p.batch(chunkBytes), p.chunk(chunkBytes))
	}
	p.came(paceFirst/2, 10*time.Millisecond, false)
	if p.batch(chunkBytes) != paceFirst/2 || p.chunk(chunkBytes) != paceFirst {
		t.Errorf("once both directions are measured %d bytes are sent, %d asked for", p.batch(chunkBytes), p.chunk(chunkBytes))
	}
	if p.batch(100) != 100 {
		t.Error("more than the bound")
	}
}

// TestSlowMessage: a message that needs longer than meetTurn is read as long as it comes at some speed, and no drop after drop.
func TestSlowMessage(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		speed int // bytes a second
		want  error
	}{{2000, nil}, {50, os.ErrDeadlineExceeded}} {
		synctest.Test(t, func(t *testing.T) {
			reader, writer := net.Pipe()
			defer reader.Close()
			body, err := json.Marshal(&meetMessage{Events: &meetEvents{Events: []meetEvent{{PDU: json.RawMessage(`"` + string(bytes.Repeat([]byte("x"), 100<<10)) + `"`)}}}})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer writer.Close()
				tick := time.NewTicker(time.Second)
				defer tick.Stop()
				for rest := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...); len(rest) > 0; {
					n, err := writer.Write(rest[:min(test.speed, len(rest))])
					if rest = rest[n:]; err != nil {
						return
					}
					select {
					case <-tick.C:
					case <-t.Context().Done():
						return
					}
				}
			}()
			began := time.Now()
			m, err := meetStream{reader}.read(maxFrame)
			if took := time.Since(began); test.want == nil && (err != nil || m.Events.size() < 100<<10) || test.want != nil && took > meetTurn+10*time.Second {
				t.Errorf("at %d bytes a second: %v after %v", test.speed, err, took)
			}
			if (err == nil) != (test.want == nil) {
				t.Errorf("at %d bytes a second: %v, want %v", test.speed, err, test.want)
			}
		})
	}
}
