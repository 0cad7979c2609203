package store

import (
	"bytes"
	"slices"

	"github.com/dgraph-io/badger/v4"
)

// gap answers for one prefix of a table after another that no key has it, as one does for each event of a timeline to which nothing
// relates. It keeps its iterator, for opening one costs as much as a look-up, and the stretch without keys that it came upon last: where
// a table is nearly empty, that is most of it. It belongs to a Reader outside Update, whose snapshot does not change.
type gap struct {
	it        *badger.Iterator // nil: not asked yet
	low, high []byte           // no key is greater than low, nil: the beginning of the table, and not greater than high
}

// none says whether no key with the prefix is at or before start. All prefixes are of the same table.
func (g *gap) none(r *Reader, prefix, start []byte) bool {
	if g.it != nil && bytes.Compare(g.low, prefix) < 0 && bytes.Compare(start, g.high) <= 0 {
		return true
	}
	if g.it == nil {
		g.it = r.txn.NewIterator(badger.IteratorOptions{Reverse: true, Prefix: slices.Clone(prefix[:1])})
	}
	r.s.reads.Add(1)
	g.it.Seek(start)
	g.low, g.high = nil, start
	if !g.it.Valid() {
		return true
	}
	g.low = g.it.Item().KeyCopy(nil)
	return !bytes.HasPrefix(g.low, prefix)
}

func (g *gap) close() {
	if g.it != nil {
		g.it.Close()
	}
}
