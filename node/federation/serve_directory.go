package federation

import (
	"net/http"
	"strconv"

	"github.com/plexus-p2p/plexus/node/rooms"
)

// The directory of published rooms (SS API, Published room directory): our own, for other servers.

// maxDirectoryBody bounds the body of a question: a term and some types.
const maxDirectoryBody = 64 << 10

func (f *Federation) directoryRoutes(r *router) {
	r.add(http.MethodGet, v1+"publicRooms", f.servePublicRooms)
	r.add(http.MethodPost, v1+"publicRooms", f.servePublicRooms)
}

func (f *Federation) servePublicRooms(q *request) (any, error) {
	var ask rooms.PublicQuery
	if q.Method == http.MethodPost {
		if len(q.body) > maxDirectoryBody {
			return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "no question to a directory is so long")
		}
		if err := q.decode(&ask); err != nil {
			return nil, err
		}
	} else {
		if limit := q.URL.Query().Get("limit"); limit != "" {
			var err error
			if ask.Limit, err = strconv.Atoi(limit); err != nil {
				return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "limit is no number")
			}
		}
		ask.Since = q.URL.Query().Get("since")
	}
	return f.Rooms.Public(ask)
}
