package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// matrix calls the homeserver's client API with the bridge's token.
type matrix struct {
	base, token string
	client      http.Client
}

func newMatrix(base, token string) *matrix {
	return &matrix{base: base, token: token, client: http.Client{Timeout: time.Minute}}
}

// apiError is an answer of the homeserver that is not 200.
type apiError struct {
	Status  int    `json:"-"`
	Code    string `json:"errcode"`
	Message string `json:"error"`
}

func (e *apiError) Error() string { return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message) }

func hasCode(err error, code string) bool {
	var e *apiError
	return errors.As(err, &e) && e.Code == code
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 4 << 20

// call calls the path below /_matrix/client as a user ("" = the bridge's own), and decodes the answer into out unless it is nil.
func (m *matrix) call(ctx context.Context, user, method, path string, body, out any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	address := m.base + "/_matrix/client" + path
	if user != "" {
		address += "?user_id=" + url.QueryEscape(user)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+m.token)
	resp, err := m.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		e := &apiError{Status: resp.StatusCode}
		_ = json.Unmarshal(answer, e) // what is no JSON is told by its status
		return fmt.Errorf("%s %s: %w", method, path, e)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

// whoami is the bridge's own user ID.
func (m *matrix) whoami(ctx context.Context) (string, error) {
	var who struct {
		User string `json:"user_id"`
	}
	err := m.call(ctx, "", "GET", "/v3/account/whoami", nil, &who)
	return who.User, err
}

// register makes a user of the bridge, if it is not there, and gives it a display name.
func (m *matrix) register(ctx context.Context, localpart, user, name string) error {
	err := m.call(ctx, "", "POST", "/v3/register", map[string]any{
		"type": "m.login.application_service", "username": localpart, "inhibit_login": true,
	}, nil)
	if err != nil && !hasCode(err, "M_USER_IN_USE") {
		return err
	}
	return m.call(ctx, user, "PUT", "/v3/profile/"+url.PathEscape(user)+"/displayname", map[string]string{"displayname": name}, nil)
}

// portal finds the room of an alias, or makes it, public, with the name.
func (m *matrix) portal(ctx context.Context, localAlias, alias, name string) (string, error) {
	var room struct {
		ID string `json:"room_id"`
	}
	err := m.call(ctx, "", "GET", "/v3/directory/room/"+url.PathEscape(alias), nil, &room)
	if hasCode(err, "M_NOT_FOUND") {
		err = m.call(ctx, "", "POST", "/v3/createRoom", map[string]any{
			"preset": "public_chat", "visibility": "public", "room_alias_name": localAlias, "name": name,
			"topic": "The IRC channel " + name,
		}, &room)
	}
	return room.ID, err
}

func (m *matrix) join(ctx context.Context, user, room string) error {
	return m.call(ctx, user, "POST", "/v3/rooms/"+url.PathEscape(room)+"/join", struct{}{}, nil)
}

func (m *matrix) leave(ctx context.Context, user, room, reason string) error {
	return m.call(ctx, user, "POST", "/v3/rooms/"+url.PathEscape(room)+"/leave", map[string]string{"reason": reason}, nil)
}

func (m *matrix) say(ctx context.Context, user, room, msgtype, body string) error {
	return m.call(ctx, user, "PUT", "/v3/rooms/"+url.PathEscape(room)+"/send/m.room.message/"+rand.Text(), map[string]string{"msgtype": msgtype, "body": body}, nil)
}

// members are the users joined to the room.
func (m *matrix) members(ctx context.Context, room string) ([]string, error) {
	var joined struct {
		Joined map[string]struct{} `json:"joined"`
	}
	if err := m.call(ctx, "", "GET", "/v3/rooms/"+url.PathEscape(room)+"/joined_members", nil, &joined); err != nil {
		return nil, err
	}
	var users []string
	for user := range joined.Joined {
		users = append(users, user)
	}
	return users, nil
}

// displayName is what a user is called in a room; their ID's local part if that cannot be had.
func (m *matrix) displayName(ctx context.Context, room, user string) string {
	var member struct {
		Name string `json:"displayname"`
	}
	err := m.call(ctx, "", "GET", "/v3/rooms/"+url.PathEscape(room)+"/state/m.room.member/"+url.PathEscape(user), nil, &member)
	if err == nil && member.Name != "" {
		return member.Name
	}
	return localpartOf(user)
}
