package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a store, a source that tells of every event, and a gateway, all in virtual time.
type world struct {
	t     *testing.T
	store *store.Store

	mu      sync.Mutex
	unread  int
	at      map[eventgraph.EventID]time.Time // when it came
	order   map[eventgraph.EventID]store.Position
	got     []string // what the gateway was sent, "after 3s $event 2"
	bodies  []map[string]any
	answer  func(attempt int) (int, string)
	begun   time.Time
	stopped chan error
	stop    context.CancelFunc
}

const user = eventgraph.UserID("@me:here")

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := store.Open("", store.Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &world{
		t: t, store: db, at: map[eventgraph.EventID]time.Time{}, order: map[eventgraph.EventID]store.Position{}, begun: time.Now(),
		answer: func(int) (int, string) { return 200, `{"rejected":[]}` },
	}
}

// start runs a sender over the store; end ends it.
func (w *world) start() {
	s := New(Config{Store: w.store, Source: w, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	s.client = newClient(w)
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop, w.stopped = cancel, make(chan error, 1)
	go func() { w.stopped <- s.Run(ctx) }()
}

func (w *world) end() {
	w.t.Helper()
	w.stop()
	if err := <-w.stopped; err != nil && !errors.Is(err, context.Canceled) {
		w.t.Error(err)
	}
}

func (w *world) update(f func(tx *store.Tx) error) store.Position {
	w.t.Helper()
	at, err := w.store.Update(w.t.Context(), f)
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

// pusher sets one.
func (w *world) pusher(key string, change func(*store.Pusher)) {
	w.t.Helper()
	p := &store.Pusher{
		PusherKey: store.PusherKey{User: user, AppID: "app", Key: key}, Device: "D", UpdatedTS: time.Now().UnixMilli(),
		URL: "https://push.example.org" + Path, Data: json.RawMessage(`{"own":"x"}`),
	}
	if change != nil {
		change(p)
	}
	w.update(func(tx *store.Tx) error { return tx.PutPusher(p) })
}

// member puts the user into a room.
func (w *world) member(room eventgraph.RoomID) {
	w.t.Helper()
	w.update(func(tx *store.Tx) error {
		return tx.PutMember(&store.Member{Room: room, User: user, Membership: "join", Event: "$j"})
	})
}

// events come into a room, in one commit.
func (w *world) events(room eventgraph.RoomID, names ...string) {
	w.t.Helper()
	w.update(func(tx *store.Tx) error {
		for _, name := range names {
			id := eventgraph.EventID("$" + name)
			at, err := tx.Log(store.Change{Kind: store.ChangeEvent, Room: room, Event: id})
			if err != nil {
				return err
			}
			w.mu.Lock()
			w.at[id], w.order[id] = time.Now(), at
			if room == "!r" {
				w.unread++
			}
			w.mu.Unlock()
		}
		return nil
	})
}

// read is a receipt of the user for all that there is.
func (w *world) read(room eventgraph.RoomID) {
	w.t.Helper()
	w.mu.Lock()
	w.unread = 0
	w.mu.Unlock()
	w.update(func(tx *store.Tx) error {
		_, err := tx.Log(store.Change{Kind: store.ChangeReceipt, Room: room, User: user, Key: "m.read"})
		return err
	})
}

func (w *world) Notices(_ *store.Reader, _ eventgraph.UserID, room eventgraph.RoomID, events []eventgraph.EventID, most int) ([]Notice, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var notices []Notice
	for _, id := range events[max(0, len(events)-most):] {
		notices = append(notices, Notice{
			Position: w.order[id], ReceivedTS: w.at[id].UnixMilli(), Event: id, Room: room, Type: "m.room.message", Sender: "@you:there", SenderName: "You",
			RoomName: "Room", Urgent: strings.HasPrefix(string(id), "$urgent"), Content: json.RawMessage(`{"body":"<&>"}`),
			Tweaks: map[string]json.RawMessage{"sound": json.RawMessage(`"default"`)},
		})
	}
	return notices, nil
}

func (w *world) Invitation(_ *store.Reader, m *store.Member) (*Notice, error) {
	if m.Membership != "invite" || m.Stranger {
		return nil, nil
	}
	return &Notice{Position: m.Position, Event: m.Event, Room: m.Room, Type: "m.room.member"}, nil
}

func (w *world) Unread(_ *store.Reader, _ eventgraph.UserID, room eventgraph.RoomID) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if room != "!r" {
		return 0, nil
	}
	return w.unread, nil
}

// RoundTrip makes the world the gateway.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var body struct{ Notification map[string]any }
	if err := json.Unmarshal(raw, &body); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := body.Notification
	counts := n["counts"].(map[string]any)
	line := fmt.Sprintf("%v %v", time.Since(w.begun).Round(time.Second), n["devices"].([]any)[0].(map[string]any)["pushkey"])
	if n["event_id"] != nil {
		line += fmt.Sprint(" ", n["event_id"])
	}
	if counts["unread"] != nil {
		line += fmt.Sprint(" ", counts["unread"])
	}
	w.got = append(w.got, line)
	w.bodies = append(w.bodies, n)
	status, answer := w.answer(len(w.got))
	if status == 0 {
		return nil, errors.New("no route to host")
	}
	return &http.Response{StatusCode: status, Header: http.Header{"Location": {"https://elsewhere.example.org/"}}, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
}

// sent waits until nothing happens any more but with time, and compares what the gateway was sent.
func (w *world) sent(want ...string) {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.got, want) {
		w.t.Errorf("sent\n%s\nwant\n%s", strings.Join(w.got, "\n"), strings.Join(want, "\n"))
	}
	w.got = nil
}

func (w *world) pushers() (n int) {
	w.t.Helper()
	err := w.store.View(func(r *store.Reader) error {
		return r.Pushers("", func(*store.Pusher) (bool, error) { n++; return true, nil })
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func TestEventsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.events("!r", "before")
		w.pusher("k", nil)
		w.start()
		w.events("!r", "a")
		w.sent("0s k $a 2")
		w.events("!elsewhere", "x")
		w.sent()
		w.events("!r", "b", "urgent")
		w.sent("0s k $b 4", "0s k $urgent 4")

		got, _ := json.Marshal(w.bodies[len(w.bodies)-1])
		want := fmt.Sprintf(`{"content":{"body":"\u003c\u0026\u003e"},"counts":{"unread":4},"devices":[{"app_id":"app","data":{"own":"x"},"pushkey":"k","pushkey_ts":%d,"tweaks":{"sound":"default"}}],`+
			`"event_id":"$urgent","prio":"high","room_id":"!r","room_name":"Room","sender":"@you:there","sender_display_name":"You","type":"m.room.message"}`, time.Now().Unix())
		if string(got) != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}

		// What is read is told as the count alone: once, also when it is zero.
		w.read("!r")
		w.sent("0s k 0")
		w.read("!r")
		w.sent()
		if n := w.bodies[len(w.bodies)-1]; n["event_id"] != nil || n["room_id"] != nil || n["content"] != nil || n["prio"] != "low" {
			t.Errorf("a count: %v", n)
		}

		// The short format gives away nothing but IDs.
		w.pusher("k", func(p *store.Pusher) { p.Data = json.RawMessage(`{"format":"event_id_only"}`) })
		w.events("!r", "c")
		w.sent("0s k $c 1")
		got, _ = json.Marshal(w.bodies[len(w.bodies)-1])
		want = fmt.Sprintf(`{"counts":{"unread":1},"devices":[{"app_id":"app","data":{"format":"event_id_only"},"pushkey":"k","pushkey_ts":%d,"tweaks":{"sound":"default"}}],`+
			`"event_id":"$c","prio":"low","room_id":"!r"}`, time.Now().Unix())
		if string(got) != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		w.end()
	})
}

// A gateway that does not answer is tried again, each time later, and told in order once it does; then the pauses begin anew.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("k", nil)
		w.answer = func(attempt int) (int, string) {
			switch attempt {
			case 1:
				return 0, "" // nobody there
			case 2:
				return 302, "" // leads elsewhere
			case 3:
				return 502, `{"rejected":["k"]}`
			case 4:
				return 404, ""
			}
			return 200, "not even JSON"
		}
		w.start()
		w.events("!r", "a")
		time.Sleep(2 * time.Second)
		w.events("!r", "b")
		time.Sleep(time.Minute)
		w.sent("0s k $a 1", "1s k $a 1", "3s k $a 2", "7s k $a 2", "15s k $a 2", "15s k $b 2")
		w.answer = func(attempt int) (int, string) {
			if attempt == 1 {
				return 500, ""
			}
			return 200, "{}"
		}
		w.events("!r", "c")
		time.Sleep(time.Minute)
		w.sent("1m2s k $c 3", "1m3s k $c 3")
		w.end()
	})
}

// The pauses have an end, and so has patience: of a day without the gateway the newest events are told, and what is older than a day is not.
func TestLongAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("k", nil)
		down := true
		attempts := 0
		w.answer = func(int) (int, string) {
			if attempts++; down {
				return 503, ""
			}
			return 200, "{}"
		}
		w.start()
		w.events("!r", "old")
		time.Sleep(30 * time.Hour)
		w.mu.Lock()
		if longest := int(24*time.Hour/retryLast) + 12; attempts > longest || attempts < 90 {
			t.Errorf("%d attempts, at most %d are expected", attempts, longest)
		}
		w.mu.Unlock()
		var names []string
		for i := range 3 * noticesOfRoom {
			names = append(names, fmt.Sprint(i))
		}
		w.events("!r", names...)
		w.member("!other")
		w.events("!other", "quiet")
		w.mu.Lock()
		down, w.got = false, nil
		w.mu.Unlock()
		time.Sleep(retryLast)
		synctest.Wait()
		w.mu.Lock()
		lines := w.got
		w.mu.Unlock()
		var told []string
		for _, line := range lines {
			told = append(told, strings.Fields(line)[2])
		}
		var want []string
		for _, name := range names[2*noticesOfRoom:] {
			want = append(want, "$"+name)
		}
		if want = append(want, "$quiet"); !slices.Equal(told, want) {
			t.Errorf("told %q\nwant %q", told, want)
		}
		w.end()
	})
}

// What a gateway finds fault with does not keep back what comes after.
func TestUnfit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("k", nil)
		w.answer = func(attempt int) (int, string) {
			if attempt == 1 {
				return 400, ""
			}
			return 200, "{}"
		}
		w.start()
		w.events("!r", "a", "b")
		time.Sleep(time.Minute)
		w.sent("0s k $a 2", "1s k $b 2")
		w.end()
	})
}

func TestRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("gone", nil)
		w.pusher("here", nil)
		w.answer = func(int) (int, string) { return 200, `{"rejected":["gone"]}` }
		w.start()
		w.events("!r", "a")
		synctest.Wait()
		slices.Sort(w.got)
		w.sent("0s gone $a 1", "0s here $a 1")
		if w.pushers() != 1 {
			t.Errorf("%d pushers are left, want 1", w.pushers())
		}
		// It can be set again; it begins there.
		w.answer = func(int) (int, string) { return 200, `{}` }
		w.pusher("gone", nil)
		synctest.Wait()
		w.events("!r", "b")
		synctest.Wait()
		slices.Sort(w.got)
		w.sent("0s gone $b 2", "0s here $b 2")
		w.end()
	})
}

// A restart goes on where it was: nothing is lost, and nothing that was taken is repeated.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("k", nil)
		w.answer = func(attempt int) (int, string) {
			if attempt == 2 {
				return 500, ""
			}
			return 200, "{}"
		}
		w.start()
		w.events("!r", "a", "b", "c")
		w.sent("0s k $a 3", "0s k $b 3")
		w.end()
		w.events("!r", "d")
		w.answer = func(int) (int, string) { return 200, "{}" }
		w.start()
		w.sent("0s k $b 4", "0s k $c 4", "0s k $d 4")
		w.end()
		w.start()
		w.sent()
		w.end()
	})
}

// A pusher that is set anew, or removed, does not wait for the end of a pause.
func TestSetAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("k", nil)
		w.pusher("gone", nil)
		w.answer = func(int) (int, string) { return 500, "" }
		w.start()
		w.events("!r", "a")
		time.Sleep(5 * time.Hour)
		w.mu.Lock()
		w.got, w.answer = nil, func(int) (int, string) { return 200, "{}" }
		w.mu.Unlock()
		w.update(func(tx *store.Tx) error {
			return tx.DeletePusher(store.PusherKey{User: user, AppID: "app", Key: "gone"})
		})
		w.pusher("k", nil)
		w.sent("5h0m0s k $a 1")
		time.Sleep(time.Hour)
		w.sent()
		w.end()
	})
}

// Who may not use their account is told nothing of it, neither then nor later.
func TestLocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("k", nil)
		w.update(func(tx *store.Tx) error { return tx.PutAccount(&store.Account{User: user, Locked: true}) })
		w.start()
		w.events("!r", "a")
		w.sent()
		w.update(func(tx *store.Tx) error { return tx.PutAccount(&store.Account{User: user}) })
		w.events("!r", "b")
		w.sent("0s k $b 2")
		w.end()
	})
}

// Invites to rooms that are not held here are told; those of strangers are not.
func TestInvitations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.pusher("k", nil)
		w.start()
		invite := func(room eventgraph.RoomID, stranger bool) {
			w.update(func(tx *store.Tx) error {
				at, err := tx.Log(store.Change{Kind: store.ChangeMembership, Room: room, User: user})
				if err != nil {
					return err
				}
				return tx.PutMember(&store.Member{
					Room: room, User: user, Membership: "invite", Event: eventgraph.EventID("$" + room[1:]), Position: at, Outside: true, Stranger: stranger,
				})
			})
		}
		invite("!friend", false)
		w.sent("0s k $friend")
		invite("!stranger", true)
		w.sent()
		w.end()
	})
}

// This node may have been told otherwise when the pusher was set: what Gateways does not allow is not called.
func TestGatewaysAreCheckedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.member("!r")
		w.pusher("k", func(p *store.Pusher) { p.URL = "http://192.168.1.1" + Path })
		w.start()
		w.events("!r", "a")
		time.Sleep(time.Hour)
		w.sent()
		w.end()
	})
}

// A gateway that sends without end, or not at all, holds up nobody for long.
func TestGatewayWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := New(Config{Store: w.store, Source: w, Now: time.Now})
		p := &store.Pusher{URL: "https://push.example.org" + Path, Data: json.RawMessage(`{}`)}
		s.client = newClient(roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), neverRead{t})), Request: r}, nil
		}))
		if err := s.notify(t.Context(), p, newNotification(p, nil, 0)); err != nil {
			t.Error(err)
		}
		s.client = newClient(roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}))
		begun := time.Now()
		if err := s.notify(t.Context(), p, newNotification(p, nil, 0)); err == nil || time.Since(begun) != pushTimeout {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
	})
}

// Many pushers of one user at a gateway that hangs hold up nobody else.
func TestUsersShareTheSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := New(Config{Store: w.store, Source: w, Now: time.Now})
		s.client = newClient(roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "push.example.org" {
				return &http.Response{StatusCode: 200, Body: http.NoBody, Request: r}, nil
			}
			<-r.Context().Done()
			return nil, r.Context().Err()
		}))
		notify := func(user eventgraph.UserID, host string) error {
			p := &store.Pusher{URL: "https://" + host + Path, Data: json.RawMessage(`{}`)}
			p.User = user
			return s.notify(t.Context(), p, newNotification(p, nil, 0))
		}
		var hanging sync.WaitGroup
		for range store.MaxPushers {
			hanging.Go(func() {
				if notify("@many:here", "hangs.example.org") == nil {
					t.Error("a gateway that hangs has answered")
				}
			})
		}
		synctest.Wait()
		begun := time.Now()
		if err := notify("@one:here", "push.example.org"); err != nil || time.Since(begun) != 0 {
			t.Errorf("the other user waits %v: %v", time.Since(begun), err)
		}
		hanging.Wait()
		if len(s.users) != 0 || len(s.slots) != 0 {
			t.Errorf("%d users and %d slots are left", len(s.users), len(s.slots))
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type neverRead struct{ t *testing.T }

func (n neverRead) Read([]byte) (int, error) {
	n.t.Error("more was read than an answer may have")
	return 0, io.EOF
}
