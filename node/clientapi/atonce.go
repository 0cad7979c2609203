package clientapi

import (
	"errors"
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
// returns when all have ended, with what they returned.
func atOnce[T any](all []T, send func(T) error) error {
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	working, waiting := make(chan struct{}, roomsAtOnce), make(chan struct{}, maxWaitingSend)
	for _, one := range all {
		waiting <- struct{}{}
		working <- struct{}{}
		group.Go(func() {
			makePlace := time.AfterFunc(slowRoom, func() { <-working })
			if err := send(one); err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
			}
			if makePlace.Stop() {
				<-working
			}
			<-waiting
		})
	}
	group.Wait()
	return errors.Join(failed...)
}
