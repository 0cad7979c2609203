package node

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/plexus-p2p/plexus/store"
)

// collectAfter is when a run looks for room state that nothing refers to: late enough not to be in the way of a start, when devices meet and
// clients catch up. Once per run is enough, for nothing written since Open is removed.
const collectAfter = 10 * time.Minute

// collectTrieNodes removes once, some time after the start, what failed joins have left, if that is due. Whatever comes of it, the
// node goes on.
func collectTrieNodes(ctx context.Context, s *store.Store, now func() time.Time, log *slog.Logger) {
	wait := time.NewTimer(collectAfter)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
		return
	}
	due, err := s.CollectionDue(now())
	if err == nil && !due {
		return
	}
	removed := 0
	if err == nil {
		log.Info("looking for room state that nothing refers to")
		removed, err = s.CollectTrieNodes(ctx, now())
	}
	switch {
	case ctx.Err() != nil:
		log.Info("the search for room state that nothing refers to is put off until the next start")
	case errors.Is(err, store.ErrDiskFull):
		log.Warn("room state that nothing refers to stays until there is room on the disk", "removed", removed)
	case err != nil:
		log.Error("room state that nothing refers to stays", "removed", removed, "error", err)
	default:
		log.Info("removed room state that nothing refers to", "removed", removed)
	}
}
