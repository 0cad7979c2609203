package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Types of account data that the server itself reads.
const (
	typePushRules   = "m.push_rules"
	typeFullyRead   = "m.fully_read"
	typeTag         = "m.tag"
	typeIgnoredList = "m.ignored_user_list"
)

const (
	maxAccountDataType = 255       // bytes
	maxAccountData     = 512 << 10 // bytes of one content; m.direct of a busy account has some 100 KiB
)

// ownUser checks that the path names the caller: nobody sees or changes the data of others.
func ownUser(q *request) error {
	if q.path("userId") != string(q.user) {
		return forbidden("That is another user's.")
	}
	return nil
}

// getAccountData is GET …/account_data/{type}, for the user and for one room.
func (a *API) getAccountData(room func(*request) eventgraph.RoomID) handler {
	return func(q *request) (any, error) {
		if err := ownUser(q); err != nil {
			return nil, err
		}
		if q.path("type") == typePushRules && room(q) == "" {
			rules, err := a.pushRules(q.user)
			return map[string]any{"global": rules}, err
		}
		var data *store.AccountData
		err := a.Store.View(func(r *store.Reader) (err error) {
			data, err = r.AccountData(q.user, room(q), q.path("type"))
			return err
		})
		if err != nil {
			return nil, err
		}
		return data.Content, nil
	}
}

// putAccountData is PUT …/account_data/{type}, for the user and for one room.
func (a *API) putAccountData(room func(*request) eventgraph.RoomID) handler {
	return func(q *request) (any, error) {
		if err := ownUser(q); err != nil {
			return nil, err
		}
		dataType := q.path("type")
		if dataType == typePushRules || dataType == typeFullyRead {
			return nil, fail(http.StatusMethodNotAllowed, "M_BAD_JSON", "Cannot set "+dataType+" through this API.")
		}
		content, err := q.body()
		if err != nil {
			return nil, err
		}
		return nil, a.setAccountData(q, room(q), dataType, content)
	}
}

// setAccountData keeps one type for the caller.
func (a *API) setAccountData(q *request, room eventgraph.RoomID, dataType string, content json.RawMessage) error {
	if len(dataType) > maxAccountDataType {
		return invalidParam("The type is too long.")
	}
	if len(content) > maxAccountData {
		return fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The content is too large.")
	}
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		_, err := tx.PutAccountData(q.user, room, &store.AccountData{Type: dataType, Content: content, Origin: a.Peer})
		return err
	})
	return accountDataFull(err)
}

func accountDataFull(err error) error {
	if errors.Is(err, store.ErrAccountDataFull) {
		return forbidden("There are too many types of account data already.")
	}
	if errors.Is(err, store.ErrAccountDataBytes) {
		return fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "There is too much account data already.")
	}
	return err
}

func globalData(*request) eventgraph.RoomID { return "" }

func roomData(q *request) eventgraph.RoomID { return eventgraph.RoomID(q.path("roomId")) }

// ofKnownRoom lets the caller keep data for rooms that they are or were in, are invited to or knocked on, or are joining: strings that clients make up
// would fill the store.
func (a *API) ofKnownRoom(h handler) handler {
	return func(q *request) (any, error) {
		if err := ownUser(q); err != nil {
			return nil, err
		}
		room, err := eventgraph.ParseRoomID(q.path("roomId"))
		if err != nil {
			return nil, invalidParam("That is not a room ID.")
		}
		known := false
		err = a.Store.View(func(r *store.Reader) error {
			m, err := memberOf(r, room, q.user)
			if known = m != nil; known || err != nil {
				return err
			}
			j, err := joining(r, room, q.user)
			known = j != nil
			return err
		})
		if err != nil {
			return nil, err
		}
		if !known {
			return nil, forbidden("You have nothing to do with that room.")
		}
		return h(q)
	}
}

// Bounds of the tags of one room.
const (
	maxTags = 100
	maxTag  = 255 // bytes, as the spec says
)

// tags is the content of m.tag.
type tags struct {
	Tags map[string]json.RawMessage `json:"tags"`
}

func readTags(r *store.Reader, user eventgraph.UserID, room eventgraph.RoomID) (tags, error) {
	t := tags{Tags: map[string]json.RawMessage{}}
	data, err := r.AccountData(user, room, typeTag)
	if errors.Is(err, store.ErrNotFound) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	var stored tags
	if json.Unmarshal(data.Content, &stored) == nil && stored.Tags != nil { // a client may have put anything there
		t = stored
	}
	return t, nil
}

// getTags is GET …/tags.
func (a *API) getTags(q *request) (any, error) {
	if err := ownUser(q); err != nil {
		return nil, err
	}
	var t tags
	err := a.Store.View(func(r *store.Reader) (err error) {
		t, err = readTags(r, q.user, roomData(q))
		return err
	})
	return t, err
}

// putTag is PUT …/tags/{tag}.
func (a *API) putTag(q *request) (any, error) {
	body, err := q.body()
	if err != nil {
		return nil, err
	}
	var known struct {
		Order *float64 `json:"order"` // only checked: the tag is kept as it came
	}
	if err := decodeJSON(body, &known); err != nil {
		return nil, err
	}
	if len(q.path("tag")) > maxTag || len(body) > maxAccountData/maxTags {
		return nil, invalidParam("The tag is too long.")
	}
	return nil, a.changeTags(q, func(t tags) error {
		t.Tags[q.path("tag")] = body
		if len(t.Tags) > maxTags {
			return forbidden("The room has too many tags.")
		}
		return nil
	})
}

// deleteTag is DELETE …/tags/{tag}.
func (a *API) deleteTag(q *request) (any, error) {
	return nil, a.changeTags(q, func(t tags) error {
		delete(t.Tags, q.path("tag"))
		return nil
	})
}

// changeTags reads, changes and writes the tags of the room in one transaction.
func (a *API) changeTags(q *request, change func(tags) error) error {
	if err := ownUser(q); err != nil {
		return err
	}
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		t, err := readTags(&tx.Reader, q.user, roomData(q))
		if err != nil {
			return err
		}
		if err := change(t); err != nil {
			return err
		}
		content, err := json.Marshal(t)
		if err != nil {
			return err
		}
		_, err = tx.PutAccountData(q.user, roomData(q), &store.AccountData{Type: typeTag, Content: content, Origin: a.Peer})
		return err
	})
	return accountDataFull(err)
}
