package federation

import (
	"testing"

	"github.com/plexus-p2p/plexus/store"
)

// Only what was fetched into a break is of a time while we were away: by its order, whatever its verdict. What came after our join is not, though it
// be accepted and not logged, as a redaction that does not apply.
func TestOrdersOfABreak(t *testing.T) {
	t.Parallel()
	breaks := []store.Break{{After: 10, Next: 90, Before: 100}, {After: 120, Next: 200, Before: 200}}
	for order, want := range map[int64]bool{-1: false, 10: false, 11: true, 99: true, 100: false, 110: false, 120: false, 150: true, 200: false, 201: false} {
		if got := inBreak(breaks, order); got != want {
			t.Errorf("order %d: in a break %v", order, got)
		}
	}
	if inBreak(nil, 5) {
		t.Error("a room without breaks has none")
	}
}
