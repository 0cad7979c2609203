package store

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// badgerOptions are for small devices: design.md §5.
func badgerOptions(dir string, small bool, log *slog.Logger) badger.Options {
	o := badger.DefaultOptions(dir).
		WithInMemory(dir == "").
		WithLogger(badgerLog{log}).
		WithSyncWrites(!syncsMappedPages). // else logFile syncs
		WithDetectConflicts(false).        // one writer
		WithMetricsEnabled(false).
		WithMemTableSize(8 << 20).
		WithNumMemtables(3).
		WithNumCompactors(2).
		WithBaseTableSize(2 << 20).
		WithValueThreshold(1 << 20). // nothing goes to the value log
		WithCompression(options.None).
		WithBlockCacheSize(0). // tables are mapped and not compressed: the page cache is the cache
		WithIndexCacheSize(0).
		WithChecksumVerificationMode(options.OnBlockRead) // inspect has read them at Open
	if dir != "" {
		o = o.WithValueLogFileSize(1 << 20) // it stays empty
	}
	if small {
		o = o.WithMemTableSize(512 << 10).WithValueThreshold(64 << 10).WithBaseTableSize(128 << 10).WithBaseLevelSize(1 << 20)
	}
	return o
}

// openBadger opens the database in managed mode: our commit numbers are its timestamps, so that a snapshot is that
// of the newest durable commit and never waits for a commit under way.
func openBadger(dir string, small bool, log *slog.Logger) (db *badger.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: badger: %v", ErrDamaged, p)
		}
	}()
	db, err = badger.OpenManaged(badgerOptions(dir, small, log))
	switch {
	case err != nil && strings.Contains(err.Error(), "Cannot acquire directory lock"):
		return nil, ErrLocked
	case err != nil:
		return nil, fmt.Errorf("open badger: %w", err)
	}
	return db, nil
}

// badgerLog hands Badger's warnings and errors to slog.
type badgerLog struct{ log *slog.Logger }

func (l badgerLog) Errorf(f string, a ...any) {
	l.log.Error("badger: " + strings.TrimSpace(fmt.Sprintf(f, a...)))
}
func (l badgerLog) Warningf(f string, a ...any) {
	l.log.Warn("badger: " + strings.TrimSpace(fmt.Sprintf(f, a...)))
}
func (badgerLog) Infof(string, ...any)  {}
func (badgerLog) Debugf(string, ...any) {}
