package federation

import "context"

// runSender delivers to each server what concerns it, until ctx ends.
func (f *Federation) runSender(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
