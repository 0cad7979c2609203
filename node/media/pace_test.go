package media

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Who always sends something, but less than leastRate, has an end set; who is as quick has none but that of each step.
func TestPace(t *testing.T) {
	t.Parallel()
	const stall, grace = 30 * time.Second, time.Minute
	steps := func(every time.Duration, bytes, n int) int {
		p := Pace{Stall: stall, Grace: grace}
		now := time.UnixMilli(1)
		for i := range n {
			deadline := p.Deadline(now, 0)
			if deadline.After(now.Add(stall)) {
				t.Fatalf("a step may take %v", deadline.Sub(now))
			}
			if now = now.Add(every); now.After(deadline) {
				return i
			}
			p.Moved(bytes)
		}
		return n
	}
	if n := steps(20*time.Second, 1, 1000); n > 4 {
		t.Errorf("a byte every 20 s went on for %d steps", n)
	}
	if n := steps(29*time.Second, 4<<10, 1000); n > 5 {
		t.Errorf("4 KiB every 29 s went on for %d steps", n)
	}
	if n := steps(time.Second, 2<<10, 10_000); n != 10_000 {
		t.Errorf("2 KiB a second ended after %d steps", n)
	}
	if n := steps(time.Second, 500, 10_000); n != 10_000 { // one of three or four on a link of 16 kbit/s
		t.Errorf("500 bytes a second ended after %d steps", n)
	}
	p := Pace{Stall: stall, Grace: grace}
	now := time.UnixMilli(1)
	if d := p.Deadline(now, time.Hour); d != now.Add(time.Hour+stall) {
		t.Errorf("waiting for an upload ends after %v", d.Sub(now))
	}
	now = now.Add(time.Hour)
	if d := p.Deadline(now, 0); d != now.Add(stall) {
		t.Errorf("and the step after that after %v", d.Sub(now))
	}
}

// One key's turns are taken by no other, and what nobody uses is forgotten.
func TestTurns(t *testing.T) {
	t.Parallel()
	turns := Turns[string]{Each: 2}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var releases []func()
	for range 2 {
		release, err := turns.Take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	for range 10 { // of several cases that are ready, select takes any
		if _, err := turns.Take(ended, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("a third: %v", err)
		}
	}
	release, err := turns.Take(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	release()
	for _, release := range releases {
		release()
	}
	if len(turns.of) > 0 {
		t.Errorf("%d keys are remembered", len(turns.of))
	}
}
