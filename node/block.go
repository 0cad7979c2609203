package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Block ends all dealings with a server until Unblock, also after a restart. What its users say in shared rooms may still come from other
// servers of these rooms, and what ours say may reach it through them.
func (n *Node) Block(ctx context.Context, server eventgraph.ServerName) error {
	return n.fed.Block(ctx, server)
}

// Unblock ends Block. Error: store.ErrNotFound.
func (n *Node) Unblock(ctx context.Context, server eventgraph.ServerName) error {
	return n.fed.Unblock(ctx, server)
}

// Blocked lists the blocked servers by name.
func (n *Node) Blocked() ([]eventgraph.ServerName, error) { return n.fed.Blocked() }

// adminBlock adds what "plexus block" and "plexus unblock" ask for.
func (n *Node) adminBlock(mux *http.ServeMux) {
	mux.HandleFunc("GET /blocked", func(w http.ResponseWriter, r *http.Request) {
		servers, err := n.Blocked()
		if servers == nil {
			servers = []eventgraph.ServerName{}
		}
		answerAdmin(w, servers, err)
	})
	mux.HandleFunc("POST /blocked", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Server eventgraph.ServerName `json:"server_name"`
		}
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody)).Decode(&body)
		if err == nil {
			err = n.Block(r.Context(), body.Server)
		}
		answerAdmin(w, struct{}{}, err)
	})
	mux.HandleFunc("DELETE /blocked/{server}", func(w http.ResponseWriter, r *http.Request) {
		server := eventgraph.ServerName(r.PathValue("server"))
		err := n.Unblock(r.Context(), server)
		if errors.Is(err, store.ErrNotFound) {
			err = fmt.Errorf("%s is not blocked", server)
		}
		answerAdmin(w, struct{}{}, err)
	})
}
