package clientapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// POST /account/deactivate with erase: whoever was in the room before goes on to see what the user said, who comes later sees it redacted, and nothing
// else of the user is left.
func TestErase(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol, dave := s.newClient("alice"), s.newClient("bob"), s.newClient("carol"), s.newClient("dave")
	room := alice.room()
	bob.join(room)
	dave.join(room)
	said := bob.message(room, `{"msgtype":"m.text","body":"a secret"}`)
	key := string(bob.user)
	named := bob.event(rooms.Draft{Room: room, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"join","displayname":"Bob Secret"}`)})
	dave.member(room, dave, "leave")
	invited := alice.room()
	alice.event(rooms.Draft{Room: invited, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})

	if _, err := s.Store.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.PutCrossSigningKeys(bob.user, map[string]json.RawMessage{"master": json.RawMessage(`{"keys":{"ed25519:x":"x"}}`)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	bob.call(200, "POST", "/v3/users/"+string(alice.user)+"/report", map[string]string{"reason": "x"})
	bob.call(200, "PUT", "/v3/user/"+key+"/account_data/x", map[string]any{"a": 1})
	mine, err := s.Media.Upload(t.Context(), bob.user, "", strings.NewReader("a secret"), "text/plain", "")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := s.Media.Upload(t.Context(), alice.user, "", strings.NewReader("hers"), "text/plain", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Media.Create(t.Context(), bob.user); err != nil {
		t.Fatal(err)
	}

	bob.prove("POST", "/v3/account/deactivate", map[string]any{"erase": true})
	carol.join(room)
	alice.message(room, `{"msgtype":"m.text","body":"hello"}`)

	event := "/v3/rooms/" + string(room) + "/event/"
	for _, c := range []client{alice, dave} {
		for _, id := range []eventgraph.EventID{said, named} {
			if a := c.call(200, "GET", event+string(id), nil); !strings.Contains(strings.ToLower(a.raw), "secret") {
				t.Errorf("%s no longer sees %s", c.user, a.raw)
			}
		}
	}
	if a := alice.call(200, "GET", "/v3/rooms/"+string(room)+"/messages?dir=b&limit=50", nil); !strings.Contains(a.raw, "a secret") {
		t.Errorf("alice no longer sees %s", a.raw)
	}
	dave.join(room) // now he comes later
	for _, c := range []client{carol, dave} {
		for _, path := range []string{event + string(said), event + string(named), "/v3/rooms/" + string(room) + "/messages?dir=b&limit=50", "/v3/sync",
			"/v3/rooms/" + string(room) + "/context/" + string(said), "/v3/rooms/" + string(room) + "/state/m.room.member/" + key, "/v3/rooms/" + string(room) + "/members"} {
			if a := c.call(200, "GET", path, nil); strings.Contains(strings.ToLower(a.raw), "secret") {
				t.Errorf("%s sees %s: %s", c.user, path, a.raw)
			}
		}
		a := c.call(200, "POST", "/v3/search", map[string]any{"search_categories": map[string]any{"room_events": map[string]any{"search_term": "secret"}}})
		if !strings.Contains(a.raw, `"count":0`) {
			t.Errorf("%s finds %s", c.user, a.raw)
		}
		a = c.call(200, "POST", "/v3/search", map[string]any{"search_categories": map[string]any{"room_events": map[string]any{
			"search_term": "hello", "event_context": map[string]any{"before_limit": 4, "include_profile": true}}}})
		if !strings.Contains(a.raw, `"count":1`) || !strings.Contains(a.raw, key) || strings.Contains(a.raw, "Secret") {
			t.Errorf("%s finds beside it %s", c.user, a.raw)
		}
	}

	if _, err := s.Media.Open(mine.MediaID); err == nil {
		t.Error("the upload is still there")
	}
	if f, err := s.Media.Open(theirs.MediaID); err != nil {
		t.Error("another's upload is gone:", err)
	} else {
		f.Close()
	}
	err = s.Store.View(func(r *store.Reader) error {
		if m, err := r.Member(invited, bob.user); err != nil || m.Membership != "leave" {
			t.Errorf("the invite: %+v %v", m, err)
		}
		if _, err := r.CrossSigningKey(bob.user, "master", bob.user); !errors.Is(err, store.ErrNotFound) {
			t.Error("a cross-signing key stays:", err)
		}
		return r.AllMedia(func(m *store.Media) (bool, error) {
			if m.User == bob.user {
				t.Errorf("media %+v stay", m)
			}
			return true, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := s.Reports(); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
	// As after a restart.
	again := rooms.New(rooms.Config{Store: s.Store, Key: s.key, Now: s.time})
	defer again.Close()
	err = s.Store.View(func(r *store.Reader) error {
		e, err := r.Event(said)
		if err != nil {
			return err
		}
		for user, clear := range map[eventgraph.UserID]bool{alice.user: true, carol.user: false} {
			shown, err := again.ShownToUser(user, e)
			if err != nil || strings.Contains(string(shown.Content()), "secret") != clear {
				t.Errorf("after a restart %s sees %s, %v", user, shown.Content(), err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Without erase what the user said and uploaded stays as it is.
func TestDeactivateWithoutErase(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob, carol := s.newClient("alice"), s.newClient("bob"), s.newClient("carol")
	room := alice.room()
	bob.join(room)
	said := bob.message(room, `{"msgtype":"m.text","body":"to stay"}`)
	m, err := s.Media.Upload(t.Context(), bob.user, "", strings.NewReader("to stay"), "text/plain", "")
	if err != nil {
		t.Fatal(err)
	}
	bob.prove("POST", "/v3/account/deactivate", map[string]any{})
	carol.join(room)
	if a := carol.call(200, "GET", "/v3/rooms/"+string(room)+"/event/"+string(said), nil); !strings.Contains(a.raw, "to stay") {
		t.Error(a.raw)
	}
	content, err := s.Media.Open(m.MediaID)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if raw, err := io.ReadAll(content); err != nil || string(raw) != "to stay" {
		t.Errorf("%q %v", raw, err)
	}
	if a := s.send("GET", "/_matrix/client/v3/profile/"+string(bob.user), "", nil); a.status != 404 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// At a start all are swept before any of them leaves a room: there it may take long to reach a policy server.
func TestDeactivationsAreSweptFirst(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, away, bob := s.newClient("alice"), s.newClient("away"), s.newClient("bob")
	away.join(alice.room())
	var files []store.MediaID
	for _, c := range []client{away, bob} {
		id, err := s.Media.Upload(t.Context(), c.user, "", strings.NewReader("theirs"), "text/plain", "")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, id.MediaID)
		if err := s.deactivateAccount(t.Context(), c.user, true); err != nil {
			t.Fatal(err)
		}
	}
	remote := newHolding(s)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.FinishDeactivations(context.Background())
	}()
	<-remote.began
	for i, id := range files {
		if content, err := s.Media.Open(id); err == nil {
			content.Close()
			t.Errorf("file %d is still there", i)
		}
	}
	close(remote.letGo)
	<-finished
}

// A node that stops in the middle of a deactivation goes on with it at the next start.
func TestDeactivationIsFinished(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	id, err := s.Media.Upload(t.Context(), bob.user, "", strings.NewReader("his"), "text/plain", "")
	if err != nil {
		t.Fatal(err)
	}
	token := bob.call(200, "POST", "/v3/user/"+string(bob.user)+"/openid/request_token", map[string]any{}).text("access_token")
	if err := s.deactivateAccount(t.Context(), bob.user, true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenIDUser(token); err == nil {
		t.Error("an OpenID token of a deactivated user names them")
	}
	s.FinishDeactivations(t.Context())
	if got := s.memberContent(room, bob.user); got != `{"membership":"leave"}` {
		t.Errorf("membership: %s", got)
	}
	if _, err := s.Media.Open(id.MediaID); err == nil {
		t.Error("the upload is still there")
	}

	// A later start does not look through the files again.
	if id, err = s.Media.Upload(t.Context(), bob.user, "", strings.NewReader("none of his"), "text/plain", ""); err != nil {
		t.Fatal(err)
	}
	s.FinishDeactivations(t.Context())
	content, err := s.Media.Open(id.MediaID)
	if err != nil {
		t.Fatal(err)
	}
	content.Close()
}

// Who is locked cannot say who they are by a token of before.
func TestTokensOfTheLocked(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	token := alice.call(200, "POST", "/v3/user/"+string(alice.user)+"/openid/request_token", map[string]any{}).text("access_token")
	if user, err := s.OpenIDUser(token); err != nil || user != alice.user {
		t.Fatalf("before: %s, %v", user, err)
	}
	if _, err := s.SetLocked(t.Context(), alice.user, true); err != nil {
		t.Fatal(err)
	}
	if user, err := s.OpenIDUser(token); err == nil {
		t.Errorf("while locked: %s", user)
	}
}
