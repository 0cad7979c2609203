package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Badger writes through mappings: where the file system is full, that is not an error but SIGBUS, the end of the
// process, and at the next start again. So the last of the disk is never used. While less than lowWater is free, writes are
// refused; what is left then serves the compaction that is still under way. A reserve file holds blocks that nobody
// else can take: they are given up for opening and closing, and when even the rest is going.
const (
	// lowWater covers the largest compaction: level 0 (5 tables of 8 MiB) with all of level 1 (10 MiB).
	lowWater = 50 << 20
	// critical: the disk goes on filling; compaction now gets the reserve.
	critical = 24 << 20
	// reserveSize is what opening and closing may take: three memtables written as tables, and a new log.
	reserveSize = 40 << 20
	// regainMargin keeps the state from changing to and fro.
	regainMargin = 10 << 20
	// pollDisk is how often free space is looked at while nothing is written.
	pollDisk = 5 * time.Second
	// openNeeds is what Badger takes at Open beside the content of its logs, which it writes as tables.
	openNeeds = logBytes + 4<<20
)

// reserve guards against the full disk. Only Open, the committer and after it Close use it.
type reserve struct {
	dir  string // "": in memory, never full
	path string
	held bool // the file has its blocks
	full bool // writes are refused
	log  *slog.Logger
}

// newReserve looks at the disk before Badger is opened, whose logs have so many bytes to be written as tables; ErrDiskFull.
func newReserve(dir string, logged int64, log *slog.Logger) (*reserve, error) {
	r := &reserve{dir: dir, log: log}
	if dir == "" {
		return r, nil
	}
	r.path = filepath.Join(dir, "reserve")
	if fi, err := os.Stat(r.path); err == nil {
		r.held = fi.Size() == reserveSize
	}
	free, err := freeSpace(dir)
	if err != nil {
		return nil, err
	}
	need := openNeeds + logged
	if r.held && free < need {
		if err := r.release(); err != nil {
			return nil, err
		}
		if free, err = freeSpace(dir); err != nil {
			return nil, err
		}
	}
	if free < need {
		return nil, fmt.Errorf("%w: %d MiB are free in %s, opening needs %d", ErrDiskFull, free>>20, dir, need>>20+1)
	}
	if err := r.check(); err != nil && !errors.Is(err, ErrDiskFull) {
		return nil, err
	}
	return r, nil
}

// check looks at the disk, before each commit and now and then; ErrDiskFull.
func (r *reserve) check() error {
	if r.dir == "" {
		return nil
	}
	free, err := freeSpace(r.dir)
	if err != nil {
		return err
	}
	need := int64(lowWater)
	if r.full {
		need += regainMargin
	}
	if !r.held {
		need += reserveSize
	}
	if free < need {
		if !r.full {
			r.full = true
			r.log.Warn("the disk is nearly full: writes are refused until there is room", "dir", r.dir, "free", free)
		}
		if r.held && free < critical {
			if err := r.release(); err != nil {
				return err
			}
		}
		return ErrDiskFull
	}
	if !r.held {
		if err := r.take(); err != nil {
			return err
		}
	}
	if r.full {
		r.full = false
		r.log.Info("there is room on the disk again", "dir", r.dir, "free", free)
	}
	return nil
}

// forClosing makes room for what Badger writes when it closes, n bytes at most; false if there is none.
func (r *reserve) forClosing(n int64) bool {
	if r.dir == "" {
		return true
	}
	free, err := freeSpace(r.dir)
	if err == nil && free < n && r.held {
		if r.release() == nil {
			free, err = freeSpace(r.dir)
		}
	}
	return err == nil && free >= n
}

// take allocates the reserve file.
func (r *reserve) take() error {
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(reserveSize), allocate(f, reserveSize), f.Close()); err != nil {
		return fmt.Errorf("reserve: %w", err)
	}
	r.held = true
	return nil
}

// release gives its blocks back.
func (r *reserve) release() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reserve: %w", err)
	}
	r.held = false
	return nil
}
