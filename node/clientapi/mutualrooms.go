package clientapi

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// mutualPage bounds the rooms in one answer of mutualRooms: some 8 KB.
const mutualPage = 100

// mutualRooms is GET /mutual_rooms (CS API, Mutual rooms): the rooms in which both the caller and user_id are joined, in the order of
// their IDs. The token of a page is the last room of the one before, so it stays valid whatever changes.
func (a *API) mutualRooms(q *request) (any, error) {
	query := q.URL.Query()
	if n := len(query["user_id"]); n != 1 {
		return nil, invalidParam("One user_id is needed.")
	}
	other, err := eventgraph.ParseUserID(query.Get("user_id"))
	switch {
	case err != nil || !inLocalpart(other.Localpart()):
		return nil, invalidParam("user_id is not a user ID.")
	case other == q.user:
		return nil, invalidParam("user_id is your own: name somebody else.")
	}
	after, err := mutualAfter(query.Get("from"))
	if err != nil {
		return nil, err
	}
	mutual := []eventgraph.RoomID{}
	err = a.Store.View(func(r *store.Reader) error {
		own, err := joinedTo(r, q.user)
		if err != nil {
			return err
		}
		for _, room := range own {
			m, err := memberOf(r, room, other)
			if err != nil {
				return err
			}
			if isJoined(m) {
				mutual = append(mutual, room)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(mutual)
	answer := map[string]any{"count": len(mutual)}
	page := mutual
	if i := slices.IndexFunc(mutual, func(room eventgraph.RoomID) bool { return room > after }); i >= 0 {
		page = mutual[i:]
	} else {
		page = page[:0]
	}
	if len(page) > mutualPage {
		page = page[:mutualPage]
		answer["next_batch"] = base64.RawURLEncoding.EncodeToString([]byte(page[mutualPage-1]))
	}
	answer["joined"] = page
	return answer, nil
}

// mutualAfter reads next_batch of mutualRooms: the room after which the page begins. It is base64 of an ID, which in rooms of an old
// version may be so long that the token has 340 characters rather than the 255 of an opaque identifier.
func mutualAfter(token string) (eventgraph.RoomID, error) {
	if token == "" {
		return "", nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err == nil {
		if room, err := eventgraph.ParseRoomID(string(raw)); err == nil {
			return room, nil
		}
	}
	return "", invalidParam("from is no token of this endpoint.")
}

// inLocalpart says whether all characters may stand in a localpart (appendices, User Identifiers), historical ones aside.
func inLocalpart(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("._=-/+", c)
	})
}
