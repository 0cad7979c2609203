package node

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/plexus-p2p/plexus/store"
)

// adminReports adds what "plexus reports" asks for.
func (n *Node) adminReports(mux *http.ServeMux) {
	mux.HandleFunc("GET /reports", func(w http.ResponseWriter, r *http.Request) {
		reports, err := n.api.Reports()
		answerAdmin(w, reports, err)
	})
	mux.HandleFunc("DELETE /reports/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
		if err == nil {
			err = n.api.DeleteReport(r.Context(), id)
		}
		if err != nil && (id == 0 || errors.Is(err, store.ErrNotFound)) {
			err = fmt.Errorf("there is no report %s", r.PathValue("id"))
		}
		answerAdmin(w, struct{}{}, err)
	})
}
