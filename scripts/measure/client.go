package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// web is the HTTP client of all users; connections stay open, as a browser's would.
var web = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}, Timeout: time.Minute}

// client is a user at a node.
type client struct {
	base  string
	user  string
	token string
	txn   atomic.Int64
	since string // of the last sync
}

// call makes a request; every status but 200 is an error, unless accept names it.
func (c *client) call(ctx context.Context, method, path string, body, out any, accept ...int) error {
	var send io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/_matrix/client/v3"+path, send)
	if err != nil {
		return err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := web.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	ok := res.StatusCode == http.StatusOK
	for _, status := range accept {
		ok = ok || res.StatusCode == status
	}
	if !ok {
		return fmt.Errorf("%s %s: %s %s", method, path, res.Status, raw)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

// register makes an account with the registration token.
func register(ctx context.Context, p *process, name string) (*client, error) {
	c := &client{base: p.ClientURL}
	var uia struct{ Session string }
	body := map[string]any{"username": name, "password": "a password for " + name}
	if err := c.call(ctx, "POST", "/register", body, &uia, http.StatusUnauthorized); err != nil {
		return nil, err
	}
	body["auth"] = map[string]string{"type": "m.login.registration_token", "token": p.RegistrationToken, "session": uia.Session}
	var account struct {
		User  string `json:"user_id"`
		Token string `json:"access_token"`
	}
	if err := c.call(ctx, "POST", "/register", body, &account); err != nil {
		return nil, err
	}
	c.user, c.token = account.User, account.Token
	return c, nil
}

// create makes a public room.
func (c *client) create(ctx context.Context) (string, error) {
	var made struct {
		Room string `json:"room_id"`
	}
	err := c.call(ctx, "POST", "/createRoom", map[string]any{"preset": "public_chat", "name": "Bench"}, &made)
	return made.Room, err
}

func (c *client) join(ctx context.Context, room, via string) error {
	path := "/join/" + url.PathEscape(room)
	if via != "" {
		path += "?via=" + url.QueryEscape(via)
	}
	return c.call(ctx, "POST", path, map[string]any{}, nil)
}

// say sends a message as people write them and returns its event ID.
func (c *client) say(ctx context.Context, room string) (string, error) {
	n := c.txn.Add(1)
	text := fmt.Sprintf("Message %d: shall we meet at the usual place after work, or is it too late for you today?", n)
	var sent struct {
		Event string `json:"event_id"`
	}
	err := c.call(ctx, "PUT", fmt.Sprintf("/rooms/%s/send/m.room.message/%d", url.PathEscape(room), n), map[string]string{"msgtype": "m.text", "body": text}, &sent)
	return sent.Event, err
}

// syncFilter lets each /sync hold what a busy room brought since the last.
const syncFilter = `{"room":{"timeline":{"limit":1000}},"presence":{"types":[]}}`

// sync is one /sync; it returns the event IDs of the room's timeline and whether the user is shown the room as joined.
func (c *client) sync(ctx context.Context, room string, wait time.Duration) (ids []string, joined bool, err error) {
	q := url.Values{"filter": {syncFilter}, "timeout": {fmt.Sprint(wait.Milliseconds())}, "set_presence": {"offline"}}
	if c.since != "" {
		q.Set("since", c.since)
	}
	var answer struct {
		Next  string `json:"next_batch"`
		Rooms struct {
			Join map[string]struct {
				Timeline struct {
					Events []struct {
						ID string `json:"event_id"`
					}
				}
			}
		}
	}
	if err := c.call(ctx, "GET", "/sync?"+q.Encode(), nil, &answer); err != nil {
		return nil, false, err
	}
	c.since = answer.Next
	shown, joined := answer.Rooms.Join[room]
	for _, e := range shown.Timeline.Events {
		ids = append(ids, e.ID)
	}
	return ids, joined, nil
}

// arriveLimit is how long anything may take to show in a /sync.
const arriveLimit = 30 * time.Second

// until syncs until the room is shown with the event, or shown at all if event is "".
func (c *client) until(ctx context.Context, room, event string) error {
	ctx, cancel := context.WithTimeout(ctx, arriveLimit)
	defer cancel()
	for {
		ids, joined, err := c.sync(ctx, room, 10*time.Second)
		if err != nil {
			return fmt.Errorf("waiting for %s in %s: %w", event, room, err)
		}
		if joined && event == "" {
			return nil
		}
		for _, id := range ids {
			if id == event {
				return nil
			}
		}
	}
}

// count pages through the room's messages backwards.
func (c *client) count(ctx context.Context, room string) (n int, err error) {
	from := ""
	for range 1000 {
		var page struct {
			Chunk []struct{ Type string }
			End   string
		}
		path := "/rooms/" + url.PathEscape(room) + "/messages?dir=b&limit=500"
		if from != "" {
			path += "&from=" + url.QueryEscape(from)
		}
		if err := c.call(ctx, "GET", path, nil, &page); err != nil {
			return 0, err
		}
		for _, e := range page.Chunk {
			if strings.HasPrefix(e.Type, "m.room.message") {
				n++
			}
		}
		if page.End == "" {
			return n, nil
		}
		from = page.End
	}
	return n, fmt.Errorf("the history of %s has no end", room)
}
