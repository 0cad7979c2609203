package store

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// One Reader asks for many events in turn what relates to them, in any order and from any place, and finds it each time as if it were the
// first; where hardly anything relates to anything, it rarely has to look.
func TestRelatedOfMany(t *testing.T) {
	t.Parallel()
	const parents = 300
	for _, related := range []int{0, 1, 40, 1000} {
		t.Run(fmt.Sprint(related), func(t *testing.T) {
			t.Parallel()
			s := open(t)
			random := rand.New(rand.NewPCG(1, uint64(related)))
			var ids []eventgraph.EventID
			for i := range parents {
				ids = append(ids, message(t, fmt.Sprintf(`{"body":"%d"}`, i)).ID())
			}
			want := map[eventgraph.EventID][]int64{} // newest first
			mustUpdate(t, s, func(tx *Tx) error {
				for order := range int64(related) {
					parent := ids[random.IntN(parents)]
					e := message(t, fmt.Sprintf(`{"body":"%d","m.relates_to":{"rel_type":"m.annotation","event_id":%q}}`, order, parent))
					if err := tx.PutEvent(&StoredEvent{Event: e, Verdict: Accepted, Order: order - 20}); err != nil {
						return err
					}
					if order != 20 { // an event without an order is not indexed
						want[parent] = slices.Insert(want[parent], 0, order-20)
					}
				}
				return nil
			})
			const turns = 3000
			before := s.Reads()
			mustView(t, s, func(r *Reader) error {
				for range turns {
					parent, from := ids[random.IntN(parents)], int64(math.MaxInt64)
					if random.IntN(3) == 0 {
						from = random.Int64N(int64(related)+50) - 30
					}
					var got []int64
					err := r.Related(parent, from, true, func(c Related) (bool, error) {
						got = append(got, c.Order)
						return true, nil
					})
					expected := slices.DeleteFunc(slices.Clone(want[parent]), func(order int64) bool { return order > from })
					if err != nil || !slices.Equal(got, expected) {
						t.Fatalf("of %s from %d: %d, %v, want %d", parent, from, got, err, expected)
					}
				}
				return nil
			})
			if reads := s.Reads() - before; related == 0 && reads > 20 || related == 1 && reads > turns {
				t.Errorf("%d reads for %d turns", reads, turns)
			}
		})
	}
}
