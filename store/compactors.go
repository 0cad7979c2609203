package store

import (
	_ "unsafe" // for go:linkname

	"github.com/dgraph-io/badger/v4"
)

// compactors lets Badger's compactors run only while there is something to compact. Each of them looks 20 times a second for
// as long as it runs: on an idle node that was nine tenths of all CPU time, and kept the processor from sleeping. Only
// the committer uses it.
type compactors struct {
	db      *badger.DB
	running bool
	quiet   bool // the last tick saw nothing to compact
	written int  // bytes since the last look
}

// newCompactors takes over from Badger, which has started them.
func newCompactors(db *badger.DB) *compactors { return &compactors{db: db, running: true} }

// wrote counts what was committed. New tables come with new writes only, about one for each memtable.
func (c *compactors) wrote(n int) {
	if c.written += n; c.written < int(c.db.Opts().MemTableSize)/2 {
		return
	}
	c.written = 0
	if !c.running && c.needed() {
		startCompactions(c.db)
		c.running, c.quiet = true, false
	}
}

// tick is called now and then. Two quiet ticks in a row stop the compactors, so that hardly ever one is at work, which would have
// to be waited for.
func (c *compactors) tick() {
	needed := c.needed()
	switch {
	case needed && !c.running:
		startCompactions(c.db)
		c.running = true
	case !needed && c.quiet && c.running:
		stopCompactions(c.db)
		c.running = false
	}
	c.quiet = !needed
}

// needed says whether a compactor would find work: Badger compacts a level whose score is at least 1.
func (c *compactors) needed() bool {
	for _, level := range c.db.Levels() {
		if level.Score >= 1 {
			return true
		}
	}
	return false
}

// Badger uses these two around DropPrefix and Flatten, and offers no others. Close stops them once more, which does no harm.

//go:linkname stopCompactions github.com/dgraph-io/badger/v4.(*DB).stopCompactions
func stopCompactions(db *badger.DB)

//go:linkname startCompactions github.com/dgraph-io/badger/v4.(*DB).startCompactions
func startCompactions(db *badger.DB)
