//go:build !linux

package store

import (
	"math"
	"os"
)

// What the platforms other than Linux do not offer, or offer under conditions that are not tested here: Badger's own
// lock and sync serve instead, and a full disk is met by Badger's errors.

const syncsMappedPages = false

func datasync(f *os.File) error { return f.Sync() }

func freeSpace(string) (int64, error) { return math.MaxInt64, nil }

func allocate(*os.File, int64) error { return nil }

func lockFile(*os.File) error { return nil }
