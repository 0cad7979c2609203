package clientapi

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
)

// Nothing is begun any more when the request has ended, whether places are free or all wait; what was begun is waited for.
func TestAtOnceEnds(t *testing.T) {
	t.Parallel()
	for name, places := range map[string]int32{"places free": 1, "none free": roomsAtOnce} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			var begun, ended atomic.Int32
			err := atOnce(ctx, make([]int, 1000), func(int) error {
				if begun.Add(1) == places {
					cancel()
				}
				<-ctx.Done()
				ended.Add(1)
				return ctx.Err()
			})
			if err != context.Canceled {
				t.Errorf("got %v", err)
			}
			if n := begun.Load(); n > maxWaitingSend || n != ended.Load() {
				t.Errorf("%d were begun, %d had ended; at most %d fit", n, ended.Load(), maxWaitingSend)
			}
		})
	}
}

// One error tells what is wrong with all; it stops nobody.
func TestAtOnceFails(t *testing.T) {
	t.Parallel()
	var begun atomic.Int32
	broken := errors.New("broken")
	err := atOnce(t.Context(), make([]int, 100), func(int) error {
		if begun.Add(1)%2 == 0 {
			return nil
		}
		return broken
	})
	if err != broken || begun.Load() != 100 {
		t.Errorf("got %v after %d", err, begun.Load())
	}
}
