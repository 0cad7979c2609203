package node

import (
	"testing"
	"time"
)

// Without internet clocks differ, and are set right later: the first device is certified whatever the clock said at first start.
func TestFirstCertificateIsNotBoundToTheClock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	firstStart := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, first, err := loadKeys(dir, firstStart.UnixMilli()); err != nil || !first {
		t.Fatalf("first start: %v, %v", first, err)
	}
	// The clock was ahead, and has been set right.
	later, first, err := loadKeys(dir, firstStart.AddDate(-4, 0, 0).UnixMilli())
	if err != nil || first {
		t.Fatalf("start with the clock set right: %v, %v", first, err)
	}
	// A peer whose clock is behind ours hears of us at once.
	if _, ok := later.certificate.Device(later.peer, firstStart.AddDate(-5, 0, 0).UnixMilli()); !ok {
		t.Error("not certified by the clock of a peer that is behind")
	}
}
