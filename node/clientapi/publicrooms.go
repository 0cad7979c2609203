package clientapi

import (
	"net/http"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// publicRooms is GET and POST /publicRooms: our directory of published rooms, or that of the server named in the query. The latter asks for a
// token, or anybody could have us call others.
func (a *API) publicRooms(q *request) (any, error) {
	query := q.URL.Query()
	var ask rooms.PublicQuery
	if q.Method == http.MethodPost {
		if err := q.decode(&ask); err != nil {
			return nil, err
		}
	} else {
		ask.Since = query.Get("since")
		if limit := query.Get("limit"); limit != "" {
			var err error
			if ask.Limit, err = strconv.Atoi(limit); err != nil {
				return nil, invalidParam("limit must be a number.")
			}
		}
	}
	if ask.Limit < 0 {
		return nil, invalidParam("limit must not be less than zero.")
	}
	if err := ask.Check(); err != nil {
		return nil, err
	}
	server := query.Get("server")
	if server == "" || server == string(a.Server) {
		return a.Rooms.Public(ask)
	}
	if q.user == "" {
		return nil, errMissingToken
	}
	name, err := eventgraph.ParseServerName(server)
	if err != nil {
		return nil, invalidParam("That is not a server name.")
	}
	return a.remote.PublicRooms(q.Context(), name, ask)
}
