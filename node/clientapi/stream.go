package clientapi

import (
	"bufio"
	"encoding/json"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Answers that grow with a room's members are written piece by piece: in memory are the events' IDs and one piece. While the client reads, no
// snapshot of the store is held.

// streamPiece is how many events are read from the store at once.
const streamPiece = 100

// streamEvents answers with before, the elements that element makes of the events, and after. What element returns nil for is left out. After the
// first byte an error can only break the answer off.
func (a *API) streamEvents(q *request, before string, ids []eventgraph.EventID, element func(r *store.Reader, e *store.StoredEvent) ([]byte, error), after string) (any, error) {
	var w *bufio.Writer
	first := true
	for begin := true; begin || len(ids) > 0; begin = false {
		var piece [][]byte
		n := min(len(ids), streamPiece)
		err := a.Store.View(func(r *store.Reader) error {
			for _, id := range ids[:n] {
				e, err := r.Event(id)
				if err != nil {
					return err
				}
				raw, err := element(r, e)
				if err != nil {
					return err
				}
				if raw != nil {
					piece = append(piece, raw)
				}
			}
			return nil
		})
		ids = ids[n:]
		switch {
		case err != nil && begin:
			return nil, err
		case err != nil:
			a.Log.Error("an answer was broken off", "route", routeForLog(q.Request), "error", err)
			panic(http.ErrAbortHandler)
		case begin:
			jsonHeader(q.w)
			q.w.WriteHeader(http.StatusOK)
			w = bufio.NewWriter(q.w)
			w.WriteString(before) // its errors come again with Flush
		}
		for _, raw := range piece {
			if !first {
				w.WriteByte(',')
			}
			first = false
			w.Write(raw)
		}
		if q.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the client has gone
		}
	}
	w.WriteString(after)
	w.Flush() // the client has gone if this fails
	return written{}, nil
}

// stateIDs lists the events of the state at root whose tuple passes.
func stateIDs(r *store.Reader, root eventgraph.Hash, passes func(eventgraph.StateTuple) bool) (ids []eventgraph.EventID, err error) {
	return ids, eventgraph.OpenTrie(r, root).Walk(func(t eventgraph.StateTuple, id eventgraph.EventID) error {
		if passes(t) {
			ids = append(ids, id)
		}
		return nil
	})
}

// memberProfile is a member as joined_members shows it: "@user:server":{…}.
func memberProfile(e *store.StoredEvent) ([]byte, error) {
	user, _ := e.StateKey()
	profile := profileOfMember(e.Event)
	// matrix-nio refuses the whole answer where a member has no display_name.
	shown := map[string]json.RawMessage{"display_name": nil, "avatar_url": nil}
	if name, ok := profile["displayname"]; ok {
		shown["display_name"] = name
	}
	if avatar, ok := profile["avatar_url"]; ok {
		shown["avatar_url"] = avatar
	}
	raw, err := json.Marshal(shown)
	return append(append(appendString(nil, user), ':'), raw...), err
}
