package clientapi

import (
	"context"
	"sync"
	"time"
)

// What one request sends to many rooms may meet policy servers that are slow or away. So that these do not keep the other rooms waiting, who
// waits for long makes place for another.
const (
	roomsAtOnce    = 8                      // being written to, each with its commit
	slowRoom       = 500 * time.Millisecond // after this a send waits for another server, not for us
	maxWaitingSend = 64                     // goroutines of one request
)

// atOnce calls send for all, roomsAtOnce at a time, not counting those that have taken longer than slowRoom, of which there are maxWaitingSend at most. It
// returns when all have ended, with the first error; that keeps none from being sent. Once ctx ends no more are begun, and that is the error if there was none.
func atOnce[T any](ctx context.Context, all []T, send func(T) error) error {
	var group sync.WaitGroup
	var once sync.Once
	var first error
	fail := func(err error) { once.Do(func() { first = err }) }
	working, waiting := make(chan struct{}, roomsAtOnce), make(chan struct{}, maxWaitingSend)
	for _, one := range all {
		for _, place := range []chan struct{}{waiting, working} {
			select {
			case place <- struct{}{}:
			case <-ctx.Done():
			}
		}
		if err := ctx.Err(); err != nil {
			fail(err)
			break
		}
		group.Go(func() {
			makePlace := time.AfterFunc(slowRoom, func() { <-working })
			if err := send(one); err != nil {
				fail(err)
			}
			if makePlace.Stop() {
				<-working
			}
			<-waiting
		})
	}
	group.Wait()
	return first
}
