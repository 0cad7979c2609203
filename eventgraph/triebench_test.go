package eventgraph

import (
	"fmt"
	"maps"
	"testing"
)

// BenchmarkTrie measures one operation on a stored state, opened anew each time as rooms does, at three sizes. A NodeReader of a
// map stands for a store with warm caches. "reads/op" are nodes, "written-B/op" their bytes with their keys.
func BenchmarkTrie(b *testing.B) {
	for _, size := range []int{10, 1_000, 100_000} {
		nodes := newNodes()
		root := buildTrie(b, nodes, bigState(size))
		each := func(name string, op func(i int) (written int)) {
			b.Run(fmt.Sprint(name, "/", size), func(b *testing.B) {
				b.ReportAllocs()
				nodes.reads = 0
				written, i := 0, 0
				for b.Loop() {
					written += op(i)
					i++
				}
				b.ReportMetric(float64(nodes.reads)/float64(i), "reads/op")
				if written > 0 {
					b.ReportMetric(float64(written)/float64(i), "written-B/op")
				}
			})
		}
		at := func(i int) int { return i * 7919 % size }
		members, ids := make([]StateTuple, size), make([]EventID, size)
		for i := range members {
			members[i], ids[i] = member(i), numberedID(-1-i)
		}
		each("Get", func(i int) int {
			if id, ok, err := OpenTrie(nodes, root).Get(members[at(i)]); err != nil || !ok {
				b.Fatal(id, err)
			}
			return 0
		})
		each("Set", func(i int) int {
			trie := OpenTrie(nodes, root)
			if err := trie.Set(members[at(i)], ids[at(i)], 1000); err != nil {
				b.Fatal(err)
			}
			_, made := trie.Commit()
			return storedSize(made)
		})
		each("Insert", func(i int) int {
			trie := OpenTrie(nodes, root)
			if err := trie.Set(StateTuple{"m.room.member", string(ids[at(i)])}, ids[at(i)], 1000); err != nil {
				b.Fatal(err)
			}
			_, made := trie.Commit()
			return storedSize(made)
		})
		each("Delete", func(i int) int {
			trie := OpenTrie(nodes, root)
			if err := trie.Delete(members[at(i)]); err != nil {
				b.Fatal(err)
			}
			_, made := trie.Commit()
			return storedSize(made)
		})
		for _, changes := range []int{1, 50} {
			if changes > size {
				continue
			}
			trie := OpenTrie(nodes, root)
			for i := range changes {
				if err := trie.Set(members[at(i)], ids[at(i)], 1000); err != nil {
					b.Fatal(err)
				}
			}
			after, made := trie.Commit()
			maps.Copy(nodes.nodes, made)
			each(fmt.Sprintf("Diff%d", changes), func(int) int {
				n := 0
				if err := Diff(nodes, root, after, func(Difference) error { n++; return nil }); err != nil || n != changes {
					b.Fatal(n, err)
				}
				return 0
			})
		}
		each("Walk", func(int) int {
			n := 0
			if err := OpenTrie(nodes, root).Walk(func(StateTuple, EventID) error { n++; return nil }); err != nil || n != size {
				b.Fatal(n, err)
			}
			return 0
		})
	}
}
