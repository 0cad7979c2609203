package store

import (
	"slices"
	"sort"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Limits of one write set. Badger allows 15 % of the memtable (1.2 MiB of 8) and an entry per 100 bytes of that.
const (
	maxWriteSet = 1_150_000 // bytes, as Badger counts them
	maxWrites   = 10_000
	groupTarget = 1_000_000  // the committer takes no further function beyond this
	maxValue    = 1<<20 - 64 // a larger value would go to Badger's value log, whose failing fsync it only logs
	maxKey      = 65_000     // Badger takes no longer one, and an error of a commit would end all writes
	writeExtra  = 12         // what Badger adds to key and value in its count
)

// write is one pending record.
type write struct {
	value   []byte
	deleted bool
}

// overlay is the write set of a group of functions, of which each sees the writes of those before it. A function that
// fails is undone by a journal.
type overlay struct {
	writes  map[string]write
	size    int
	sorted  []string // keys of writes in order, perhaps with keys that were undone
	fresh   []string // keys added since sorted was made
	journal []undo   // of the function now running
	full    bool     // it wrote too much

	events    map[eventgraph.EventID]pendingEvent // of writes, the events parsed
	unindexed map[eventgraph.RoomID]int           // events left without a segment; also those that were undone
}

type undo struct {
	key string
	was write
	had bool
}

func newOverlay() *overlay {
	return &overlay{writes: map[string]write{}, events: map[eventgraph.EventID]pendingEvent{}, unindexed: map[eventgraph.RoomID]int{}}
}

func (o *overlay) write(key []byte, w write) error {
	if len(w.value) > maxValue || len(key) > maxKey {
		o.full = true
		return errFull
	}
	k := string(key)
	was, had := o.writes[k]
	o.journal = append(o.journal, undo{k, was, had})
	if had {
		o.size += len(w.value) - len(was.value)
	} else {
		o.size += len(k) + len(w.value) + writeExtra
		o.fresh = append(o.fresh, k)
	}
	o.writes[k] = w
	if o.size > maxWriteSet || len(o.writes) > maxWrites {
		o.full = true
		return errFull
	}
	return nil
}

// has says whether the key was written or deleted.
func (o *overlay) has(key []byte) bool { _, ok := o.writes[string(key)]; return ok }

// keep ends a function that succeeded.
func (o *overlay) keep() { o.journal = o.journal[:0] }

// rollback takes back all writes since the last keep.
func (o *overlay) rollback() {
	for _, u := range slices.Backward(o.journal) {
		now := o.writes[u.key]
		if u.had {
			o.size += len(u.was.value) - len(now.value)
			o.writes[u.key] = u.was
		} else {
			o.size -= len(u.key) + len(now.value) + writeExtra
			delete(o.writes, u.key)
		}
	}
	o.journal = o.journal[:0]
	o.full = false
	// A key undone and then written again must not stand in the lists twice.
	o.sorted, o.fresh = nil, o.fresh[:0]
	for k := range o.writes {
		o.fresh = append(o.fresh, k)
	}
}

// order returns all keys in order.
func (o *overlay) order() []string {
	if len(o.fresh) > 0 {
		slices.Sort(o.fresh)
		merged := make([]string, 0, len(o.sorted)+len(o.fresh))
		a, b := o.sorted, o.fresh
		for len(a) > 0 && len(b) > 0 {
			if a[0] < b[0] {
				merged, a = append(merged, a[0]), a[1:]
			} else {
				merged, b = append(merged, b[0]), b[1:]
			}
		}
		o.sorted = append(append(merged, a...), b...)
		o.fresh = o.fresh[:0]
	}
	return o.sorted
}

// keys lists the keys that a scan would meet, in its order; see Reader.scan for the arguments.
func (o *overlay) keys(prefix, start []byte, backwards bool) []string {
	all := o.order()
	p := string(prefix)
	lo := sort.SearchStrings(all, p)
	hi := lo + sort.Search(len(all)-lo, func(i int) bool { return !strings.HasPrefix(all[lo+i], p) })
	in := all[lo:hi]
	if start != nil && !backwards {
		in = in[sort.SearchStrings(in, string(start)):]
	}
	if start != nil && backwards {
		in = in[:sort.Search(len(in), func(i int) bool { return in[i] > string(start) })]
	}
	in = slices.Clone(in)
	if backwards {
		slices.Reverse(in)
	}
	return in
}
