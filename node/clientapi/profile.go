package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of a profile (CS API, Profiles).
const (
	maxProfile     = 64 << 10 // bytes, all fields and their names
	maxProfileKey  = 255      // bytes
	maxDisplayName = 256      // bytes; it goes into every membership event
	maxAvatarURL   = 1000     // bytes; likewise
)

// profileKey is what a field may be called (CS API, PUT /profile/{userId}/{keyName}).
var profileKey = regexp.MustCompile(`^(avatar_url|displayname|[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+)$`)

// Profile answers federation.Local: what others may know of a local user, all of it or one field, without what is not set (SS API, GET /query/profile); store.ErrNotFound if there is no such user.
func (a *API) Profile(ctx context.Context, user eventgraph.UserID, field string) (json.RawMessage, error) {
	profile, err := a.localProfile(ctx, user)
	if errors.Is(err, appservice.ErrNoAnswer) {
		err = store.ErrNotFound // other servers are not told that an application service is silent
	}
	if err != nil {
		return nil, err
	}
	if field != "" {
		value, ok := profile[field]
		profile = map[string]json.RawMessage{}
		if ok {
			profile[field] = value
		}
	}
	return json.Marshal(profile)
}

// localProfile reads the profile of an account that can still be used; store.ErrNotFound. An application service may make one that is looked
// for; appservice.ErrNoAnswer.
func (a *API) localProfile(ctx context.Context, user eventgraph.UserID) (profile map[string]json.RawMessage, err error) {
	if user == a.serverUser() {
		return map[string]json.RawMessage{"displayname": json.RawMessage(serverUserName)}, nil
	}
	if err := a.findUser(ctx, user); err != nil {
		return nil, err
	}
	err = a.Store.View(func(r *store.Reader) error {
		account, err := r.Account(user)
		if err != nil {
			return err
		}
		if account.Deactivated {
			return store.ErrNotFound
		}
		profile, err = r.Profile(user)
		return err
	})
	return profile, err
}

// getProfile is GET /profile/{userId}. The spec asks for no access token; web pages need one here, and so does who asks about users of
// other servers, or anybody could have us call those.
func (a *API) getProfile(q *request) (any, error) {
	return a.profileOf(q, "")
}

// getProfileField is GET /profile/{userId}/{keyName}.
func (a *API) getProfileField(q *request) (any, error) {
	field := q.path("keyName")
	profile, err := a.profileOf(q, field)
	if err != nil {
		return nil, err
	}
	value, ok := profile[field]
	if !ok {
		return nil, notFound("The profile has no such field.")
	}
	return map[string]json.RawMessage{field: value}, nil
}

// remoteProfileTimeout is how long a person waits for the profile of somebody whose server does not answer.
const remoteProfileTimeout = 10 * time.Second

// profileOf is the profile of the path's user: a remote one's as their server gives it, or, if that cannot be reached,
// as their newest membership known here does.
func (a *API) profileOf(q *request, field string) (map[string]json.RawMessage, error) {
	user, err := eventgraph.ParseUserID(q.path("userId"))
	if err != nil {
		return nil, invalidParam("That is not a user ID.")
	}
	if a.isLocal(user) {
		return a.localProfile(q.Context(), user)
	}
	if q.user == "" {
		return nil, errMissingToken
	}
	ctx, cancel := context.WithTimeout(q.Context(), remoteProfileTimeout)
	defer cancel()
	answer, asked := a.remote.Profile(ctx, user, field)
	var profile map[string]json.RawMessage
	if asked == nil {
		if json.Unmarshal(answer, &profile) == nil && profile != nil {
			// SS API, GET /query/profile: what is not set may be null.
			maps.DeleteFunc(profile, func(_ string, value json.RawMessage) bool { return string(value) == "null" })
			return profile, nil
		}
		asked = fail(http.StatusBadGateway, "M_UNKNOWN", "The user's server answered with what is no profile.")
	}
	if profile, err = a.profileFromRooms(user); err != nil {
		return nil, err
	}
	if profile == nil {
		return nil, asked
	}
	return profile, nil
}

// profileFromRooms is what the user's newest membership event known here says of them; nil if there is none.
func (a *API) profileFromRooms(user eventgraph.UserID) (map[string]json.RawMessage, error) {
	var profile map[string]json.RawMessage
	err := a.Store.View(func(r *store.Reader) error {
		var newest store.Member
		err := r.RoomsOf(user, func(m *store.Member) (bool, error) {
			if isJoined(m) && m.Position >= newest.Position {
				newest = *m
			}
			return true, nil
		})
		if err != nil || newest.Event == "" {
			return err
		}
		event, err := r.Event(newest.Event)
		if err != nil {
			return err
		}
		profile = profileOfMember(event.Event)
		return nil
	})
	return profile, err
}

// profileOfMember takes the profile out of a membership event.
func profileOfMember(e *eventgraph.Event) map[string]json.RawMessage {
	var content map[string]json.RawMessage
	if json.Unmarshal(e.Content(), &content) != nil {
		content = nil // someone's server let them send it; it says nothing of them
	}
	profile := map[string]json.RawMessage{}
	for _, field := range []string{"displayname", "avatar_url"} {
		if value := content[field]; len(value) > 0 && value[0] == '"' {
			profile[field] = value
		}
	}
	return profile
}

// putProfileField is PUT /profile/{userId}/{keyName}.
func (a *API) putProfileField(q *request) (any, error) {
	field := q.path("keyName")
	if len(field) > maxProfileKey {
		return nil, fail(http.StatusBadRequest, "M_KEY_TOO_LARGE", "The field's name is too long.")
	}
	if !profileKey.MatchString(field) {
		return nil, invalidParam("That is no name of a profile field.")
	}
	body, err := q.body()
	if err != nil {
		return nil, err
	}
	var values map[string]json.RawMessage
	if err := decodeJSON(body, &values); err != nil {
		return nil, err
	}
	value, ok := values[field]
	if !ok {
		return nil, missingParam("The body must have the field named in the path.")
	}
	if limit := map[string]int{"displayname": maxDisplayName, "avatar_url": maxAvatarURL}[field]; limit > 0 {
		var text *string
		if err := json.Unmarshal(value, &text); err != nil {
			return nil, badJSON(field + " must be a string.")
		}
		if text == nil || *text == "" { // how clients older than DELETE take it away
			value = nil
		} else if len(*text) > limit {
			return nil, invalidParam(fmt.Sprintf("%s has at most %d bytes.", field, limit))
		}
	}
	return nil, a.changeProfile(q, field, value)
}

// deleteProfileField is DELETE /profile/{userId}/{keyName}.
func (a *API) deleteProfileField(q *request) (any, error) {
	if !profileKey.MatchString(q.path("keyName")) {
		return nil, invalidParam("That is no name of a profile field.")
	}
	return nil, a.changeProfile(q, q.path("keyName"), nil)
}

// changeProfile sets the caller's field, or removes it if value is nil, and tells it to the rooms they are in.
func (a *API) changeProfile(q *request, field string, value json.RawMessage) error {
	if err := ownUser(q); err != nil {
		return err
	}
	changed := false
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		profile, err := tx.Profile(q.user)
		if err != nil {
			return err
		}
		changed = string(profile[field]) != string(value)
		if !changed {
			return nil
		}
		if value == nil {
			delete(profile, field)
		} else {
			profile[field] = value
		}
		size := 0
		for name, value := range profile {
			size += len(name) + len(value) + len(`"":,`)
		}
		if size > maxProfile {
			return fail(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", "The profile would be over 64 KiB.")
		}
		_, err = tx.PutProfile(q.user, profile)
		return err
	})
	if err != nil || !changed || field != "displayname" && field != "avatar_url" {
		return err
	}
	return a.announceProfile(q.Context(), q.user)
}

// announceProfile sends the user's membership anew in every room they are in (CS API, Events on Change of Profile
// Information). A room that refuses it is passed over.
func (a *API) announceProfile(ctx context.Context, user eventgraph.UserID) error {
	var in []eventgraph.RoomID
	err := a.Store.View(func(r *store.Reader) (err error) {
		in, err = joinedTo(r, user)
		return err
	})
	if err != nil {
		return err
	}
	return atOnce(ctx, in, func(room eventgraph.RoomID) error {
		err := a.tellProfile(ctx, room, user)
		var refused *rooms.Refusal
		if errors.As(err, &refused) {
			a.Log.Info("a changed profile is not told to a room", "room", room, "err", refused)
			return nil
		}
		return err
	})
}

// tellProfile sends the user's membership anew in one room, if they are still in it when its turn comes. It may wait for another server. So what was
// sent is compared with the profile afterwards: a later change may have been told before.
func (a *API) tellProfile(ctx context.Context, room eventgraph.RoomID, user eventgraph.UserID) error {
	stateKey := string(user)
	for told := json.RawMessage(nil); ; {
		content, err := a.membershipContent(user, "join", "")
		if err != nil || bytes.Equal(content, told) {
			return err
		}
		draft := rooms.Draft{Room: room, Sender: user, Type: "m.room.member", StateKey: &stateKey, Content: content, Joined: true}
		if _, err := a.remote.Send(ctx, draft); err != nil {
			return err
		}
		told = content
	}
}

// membershipContent is the content of a membership event of a local user: with their profile, and a reason unless it is
// "".
func (a *API) membershipContent(user eventgraph.UserID, membership, reason string) (json.RawMessage, error) {
	content := map[string]any{"membership": membership}
	if reason != "" {
		content["reason"] = reason
	}
	err := a.Store.View(func(r *store.Reader) error {
		profile, err := r.Profile(user)
		for _, field := range []string{"displayname", "avatar_url"} {
			if value, ok := profile[field]; ok {
				content[field] = value
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(content)
}
