// Command embed runs two whole plexus nodes inside one Go program and lets them chat: alice on one, bob on the
// other, over libp2p on loopback. It shows how a program embeds a homeserver through package node, and speaks to it as
// any Matrix client does.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "plexus-embed-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := chat(ctx, dir, os.Stdout); err != nil {
		log.Print(err)
		os.RemoveAll(dir)
		os.Exit(1)
	}
}

// chat starts both nodes below dir, lets alice and bob talk, and stops them.
func chat(ctx context.Context, dir string, out io.Writer) (err error) {
	a, stopA, err := start(ctx, filepath.Join(dir, "a"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopA()) }()
	b, stopB, err := start(ctx, filepath.Join(dir, "b"), a.P2PAddrs()...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopB()) }()
	fmt.Fprintf(out, "two nodes: …%s and …%s\n", a.ServerName().Tail(), b.ServerName().Tail())

	alice, err := register(ctx, a, "alice")
	if err != nil {
		return err
	}
	bob, err := register(ctx, b, "bob")
	if err != nil {
		return err
	}
	var room struct {
		ID string `json:"room_id"`
	}
	if err := alice.do(ctx, http.MethodPost, "/createRoom", map[string]any{"name": "Embedded", "invite": []string{bob.user}}, &room); err != nil {
		return err
	}
	if err := bob.wait(ctx, func(s sync) bool { _, ok := s.Rooms.Invite[room.ID]; return ok }); err != nil {
		return err
	}
	if err := bob.do(ctx, http.MethodPost, "/join/"+url.PathEscape(room.ID), struct{}{}, nil); err != nil {
		return err
	}
	if err := alice.say(ctx, room.ID, "Hello from the other node"); err != nil {
		return err
	}
	if err := bob.hear(ctx, room.ID, "Hello from the other node"); err != nil {
		return err
	}
	if err := bob.say(ctx, room.ID, "I hear you"); err != nil {
		return err
	}
	if err := alice.hear(ctx, room.ID, "I hear you"); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, "alice and bob have heard each other")
	return err
}

// start opens a node that talks on loopback only and runs it until stop is called.
func start(ctx context.Context, dir string, peers ...string) (n *node.Node, stop func() error, err error) {
	n, err = node.Open(ctx, node.Config{
		Dir: dir, ClientAddrs: []string{"127.0.0.1:0"}, P2PAddrs: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, NoMDNS: true,
		Peers: peers, Registration: clientapi.RegistrationOpen,
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	return n, func() error {
		cancel()
		return errors.Join(<-ended, n.Close())
	}, nil
}

// user is a minimal Matrix client.
type user struct {
	base, user, token, since string
}

func register(ctx context.Context, n *node.Node, name string) (*user, error) {
	u := &user{base: n.ClientURL()}
	var answer struct {
		User  string `json:"user_id"`
		Token string `json:"access_token"`
	}
	err := u.do(ctx, http.MethodPost, "/register", map[string]any{
		"username": name, "password": "a password for " + name, "auth": map[string]string{"type": "m.login.dummy"},
	}, &answer)
	u.user, u.token = answer.User, answer.Token
	return u, err
}

// do calls the client-server API.
func (u *user) do(ctx context.Context, method, path string, body, out any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, u.base+"/_matrix/client/v3"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+u.token)
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if raw, err = io.ReadAll(io.LimitReader(answer.Body, 16<<20)); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, raw)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

func (u *user) say(ctx context.Context, room, text string) error {
	path := fmt.Sprintf("/rooms/%s/send/m.room.message/%d", url.PathEscape(room), time.Now().UnixNano())
	return u.do(ctx, http.MethodPut, path, map[string]string{"msgtype": "m.text", "body": text}, nil)
}

// sync is the part of a /sync answer that this program looks at.
type sync struct {
	NextBatch string `json:"next_batch"`
	Rooms     struct {
		Invite map[string]any
		Join   map[string]struct {
			Timeline struct {
				Events []struct {
					Content struct{ Body string }
				}
			}
		}
	}
}

// wait syncs until found says yes.
func (u *user) wait(ctx context.Context, found func(sync) bool) error {
	for {
		var s sync
		if err := u.do(ctx, http.MethodGet, "/sync?timeout=10000&since="+url.QueryEscape(u.since), nil, &s); err != nil {
			return err
		}
		u.since = s.NextBatch
		if found(s) {
			return nil
		}
	}
}

func (u *user) hear(ctx context.Context, room, text string) error {
	return u.wait(ctx, func(s sync) bool {
		for _, e := range s.Rooms.Join[room].Timeline.Events {
			if e.Content.Body == text {
				return true
			}
		}
		return false
	})
}
