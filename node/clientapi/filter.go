package clientapi

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"

	"github.com/plexus-p2p/plexus/store"
)

// maxFilter bounds one stored filter, in bytes: it may list rooms and people.
const maxFilter = 64 << 10

// postFilter is POST /user/{userId}/filter. The ID is made from the content, so uploading a filter again adds nothing.
func (a *API) postFilter(q *request) (any, error) {
	if err := ownUser(q); err != nil {
		return nil, err
	}
	body, err := q.body()
	if err != nil {
		return nil, err
	}
	if len(body) > maxFilter {
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The filter is too large.")
	}
	if _, err := parseFilter(body); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	id := base64.RawURLEncoding.EncodeToString(sum[:12])
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		return tx.PutFilter(q.user, &store.Filter{ID: id, CreatedTS: a.Now().UnixMilli(), Body: body})
	})
	return map[string]string{"filter_id": id}, err
}

// getFilter is GET /user/{userId}/filter/{filterId}.
func (a *API) getFilter(q *request) (any, error) {
	if err := ownUser(q); err != nil {
		return nil, err
	}
	var filter *store.Filter
	err := a.Store.View(func(r *store.Reader) (err error) {
		filter, err = r.Filter(q.user, q.path("filterId"))
		return err
	})
	if err != nil {
		return nil, err
	}
	return filter.Body, nil
}
