package federation

import (
	"context"
	"net/http"
)

// runInbox takes in what waits in the inbox as it becomes possible, until ctx ends.
func (f *Federation) runInbox(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// serveSend answers PUT /_matrix/federation/v1/send/{txnId} (SS API, Transactions).
func (f *Federation) serveSend(q *request) (any, error) {
	return nil, fail(http.StatusServiceUnavailable, "M_UNKNOWN", "not yet served")
}
