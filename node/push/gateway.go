package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// pushTimeout is for one request. Gateways may ask their push provider before they answer; that takes a second or two.
	pushTimeout = 15 * time.Second
	// maxAnswer is what is read of an answer, in bytes: it names one pushkey at most that is ours.
	maxAnswer = 64 << 10
)

// formatEventIDOnly is the one format that the spec names (CS API, PusherData).
const formatEventIDOnly = "event_id_only"

var (
	// errRejected: the gateway says that the pushkey is not valid, or not any more.
	errRejected = errors.New("the gateway rejects the pushkey")
	// errUnfit: the gateway finds fault with this very request. It would again.
	errUnfit = errors.New("the gateway does not take this notification")
)

// newClient makes the client that calls gateways. A redirect is no answer: the URL is the one that the user has named.
func newClient(t http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       pushTimeout,
	}
}

// guarded sends each request within the reach of its URL's scheme.
type guarded map[string]*http.Transport

func (g Gateways) transport() guarded {
	t := guarded{}
	for _, scheme := range []string{"https", "http"} {
		t[scheme] = g.reach(scheme).Transport(pushTimeout)
		t[scheme].MaxIdleConns, t[scheme].IdleConnTimeout = pushesAtOnce, time.Minute
	}
	return t
}

// RoundTrip makes guarded a http.RoundTripper.
func (g guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	return g[r.URL.Scheme].RoundTrip(r)
}

// CloseIdleConnections is what http.Client looks for.
func (g guarded) CloseIdleConnections() {
	for _, t := range g {
		t.CloseIdleConnections()
	}
}

// notification is the body of POST /_matrix/push/v1/notify, inside of "notification".
type notification struct {
	EventID    eventgraph.EventID `json:"event_id,omitempty"`
	RoomID     eventgraph.RoomID  `json:"room_id,omitempty"`
	Type       string             `json:"type,omitempty"`
	Sender     eventgraph.UserID  `json:"sender,omitempty"`
	SenderName string             `json:"sender_display_name,omitempty"`
	RoomName   string             `json:"room_name,omitempty"`
	RoomAlias  string             `json:"room_alias,omitempty"`
	Target     bool               `json:"user_is_target,omitempty"`
	Prio       string             `json:"prio,omitempty"`
	Content    json.RawMessage    `json:"content,omitempty"`
	Counts     map[string]int     `json:"counts"`
	Devices    []device           `json:"devices"`
}

type device struct {
	AppID     string                     `json:"app_id"`
	Pushkey   string                     `json:"pushkey"`
	PushkeyTS int64                      `json:"pushkey_ts"` // s
	Data      json.RawMessage            `json:"data"`
	Tweaks    map[string]json.RawMessage `json:"tweaks,omitempty"`
}

// newNotification tells a pusher of n, or of the count alone if n is nil. A count of zero is left out, as the spec wishes, but where it is all that
// there is to tell: gateways take a badge from the device when they are given its zero, and leave it where nothing is said.
func newNotification(p *store.Pusher, n *Notice, unread int) *notification {
	out := &notification{
		Prio: "low", Counts: map[string]int{},
		Devices: []device{{AppID: p.AppID, Pushkey: p.Key, PushkeyTS: p.UpdatedTS / 1000, Data: p.Data}},
	}
	if unread > 0 || n == nil {
		out.Counts["unread"] = unread
	}
	if n == nil {
		return out
	}
	out.EventID, out.RoomID, out.Devices[0].Tweaks = n.Event, n.Room, n.Tweaks
	if n.Urgent {
		out.Prio = "high"
	}
	var data struct {
		Format string `json:"format"`
	}
	if json.Unmarshal(p.Data, &data) == nil && data.Format == formatEventIDOnly {
		return out
	}
	out.Type, out.Sender, out.SenderName, out.Content, out.Target = n.Type, n.Sender, n.SenderName, n.Content, n.Target
	out.RoomName, out.RoomAlias = n.RoomName, n.RoomAlias
	return out
}

// enter waits until one more request may be under way, of the user and of all.
func (s *Sender) enter(ctx context.Context, user eventgraph.UserID) (leave func(), err error) {
	s.mu.Lock()
	own := s.users[user]
	if own == nil {
		own = &share{slots: make(chan struct{}, pushesOfUser)}
		s.users[user] = own
	}
	own.in++
	s.mu.Unlock()
	out := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if own.in--; own.in == 0 {
			delete(s.users, user)
		}
	}
	select {
	case own.slots <- struct{}{}:
	case <-ctx.Done():
		out()
		return nil, ctx.Err()
	}
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots; <-own.slots; out() }, nil
	case <-ctx.Done():
		<-own.slots
		out()
		return nil, ctx.Err()
	}
}

// notify sends one request to the pusher's gateway: nil if it was taken, errRejected, errUnfit, or what else there was, after which it can be
// repeated: a gateway knows the event by its ID.
func (s *Sender) notify(ctx context.Context, p *store.Pusher, n *notification) error {
	if err := s.Gateways.Check(p.URL); err != nil { // this node may have been told otherwise when the pusher was set
		return err
	}
	body, err := json.Marshal(map[string]*notification{"notification": n})
	if err != nil {
		return err
	}
	leave, err := s.enter(ctx, p.User)
	if err != nil {
		return err
	}
	defer leave()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "plexus")
	res, err := s.client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	switch {
	case res.StatusCode == http.StatusBadRequest, res.StatusCode == http.StatusRequestEntityTooLarge, res.StatusCode == http.StatusUnprocessableEntity:
		return errUnfit
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("the gateway answers with status %d", res.StatusCode)
	case err != nil:
		return err
	}
	var answer struct {
		Rejected []string `json:"rejected"`
	}
	// An answer of 200 means that the gateway has taken it, whatever else it says.
	if json.Unmarshal(raw, &answer) == nil && slices.Contains(answer.Rejected, p.Key) {
		return errRejected
	}
	return nil
}
