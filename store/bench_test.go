package store

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkUpdate writes a record of 1 KiB and a change per operation, beside the floor of the machine: the same bytes
// appended to a file and synced. Compare the figures of one run only.
func BenchmarkUpdate(b *testing.B) {
	value := make([]byte, 1024)
	b.Run("floor", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "log"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		for b.Loop() {
			if _, err := f.Write(value); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, writers := range []int{1, 16} {
		b.Run(map[int]string{1: "1-writer", 16: "16-writers"}[writers], func(b *testing.B) {
			s := openAt(b, b.TempDir(), Options{})
			var n atomic.Uint64
			b.ResetTimer()
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for i := n.Add(1); i <= uint64(b.N); i = n.Add(1) {
						_, err := s.Update(context.Background(), func(tx *Tx) error {
							if _, err := tx.Log(Change{Kind: ChangeEvent, Room: "!room", Event: "$event"}); err != nil {
								return err
							}
							return tx.put(key(0xf0).u64(i), binary.AppendUvarint(value, i))
						})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
