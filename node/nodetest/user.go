package nodetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// user is a user of a node, over its client API.
type user struct {
	name, token string
	node        *runningNode
	id          eventgraph.UserID
	since       string // of its last sync
	sent        int
}

// user returns the user "alice@a", registered at the first mention.
func (s *Scenario) user(name string) (*user, error) {
	if u := s.users[name]; u != nil {
		return u, nil
	}
	localpart, at, ok := strings.Cut(name, "@")
	n := s.nodes[at]
	if !ok || n == nil {
		return nil, fmt.Errorf("%s is no user of a node", name)
	}
	u := &user{name: name, node: n}
	var answer struct {
		User  eventgraph.UserID `json:"user_id"`
		Token string            `json:"access_token"`
	}
	body := map[string]any{"username": localpart, "password": "a password for " + name, "auth": map[string]string{"type": "m.login.dummy"}}
	if err := u.call("POST", "/register", body, &answer); err != nil {
		return nil, err
	}
	u.id, u.token = answer.User, answer.Token
	s.users[name], s.names[u.id] = u, name
	return u, nil
}

// refusal is an answer with an error code.
type refusal struct {
	Status int
	Code   string `json:"errcode"`
	Reason string `json:"error"`
}

func (r *refusal) Error() string { return fmt.Sprintf("%d %s: %s", r.Status, r.Code, r.Reason) }

// ignoreRefusal drops an error that may pass with time: what is asked for may not be here yet.
func ignoreRefusal(err error) error {
	if refused := (*refusal)(nil); errors.As(err, &refused) {
		return nil
	}
	return err
}

// call asks the user's node (CS API); the error is a *refusal if the node answers with one.
func (u *user) call(method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var content io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.node.ClientURL()+"/_matrix/client/v3"+path, content)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+u.token)
	req.Close = true // so that no idle connection outlives its node
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		refused := &refusal{Status: res.StatusCode}
		json.Unmarshal(raw, refused) // whatever it holds: the status stands
		return refused
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

// until looks after each sync of the user until check is true.
func (u *user) until(check func() (bool, error)) error {
	for limit := time.Now().Add(patience); time.Now().Before(limit); {
		if ok, err := check(); ok || err != nil {
			return err
		}
		var s struct {
			Next string `json:"next_batch"`
		}
		if err := u.call("GET", "/sync?timeout=500&since="+url.QueryEscape(u.since), nil, &s); err != nil {
			return err
		}
		u.since = s.Next
	}
	return errors.New("not in time")
}
