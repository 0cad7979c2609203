package clientapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/appservice"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// transaction is one attempt of a transaction, which waits for its answer.
type transaction struct {
	id     string
	raw    string
	answer chan<- int
}

func (x transaction) body(t *testing.T) (events, ephemeral []map[string]any) {
	t.Helper()
	var body struct{ Events, Ephemeral []map[string]any }
	if err := json.Unmarshal([]byte(x.raw), &body); err != nil || body.Events == nil {
		t.Fatalf("transaction %s: %v: %s", x.id, err, x.raw)
	}
	return body.Events, body.Ephemeral
}

// receiver is an application service that shows each transaction to the test.
type receiver struct {
	*testServer
	url  string
	came chan transaction
}

// newReceiver starts a server with one service, which has the users @irc_…, the aliases #irc_…; more goes into its registration.
func newReceiver(t *testing.T, more string) (*receiver, client) {
	t.Helper()
	r := &receiver{came: make(chan transaction)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		id, ok := strings.CutPrefix(q.URL.Path, "/_matrix/app/v1/transactions/")
		body, err := io.ReadAll(q.Body)
		if !ok || err != nil || q.Method != http.MethodPut || q.Header.Get("Authorization") != "Bearer hs-secret" {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"errcode":"M_FORBIDDEN"}`)
			return
		}
		answer := make(chan int, 1)
		select {
		case r.came <- transaction{id, string(body), answer}:
		case <-q.Context().Done():
			return
		}
		select {
		case status := <-answer:
			w.WriteHeader(status)
			io.WriteString(w, `{"errcode":"ORG.EXAMPLE_BROKEN"}`)
		case <-q.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	file := t.TempDir() + "/irc.yaml"
	writeFile(t, file, "id: irc\nurl: "+server.URL+"\nas_token: as-secret\nhs_token: hs-secret\nsender_localpart: ircbot\n"+more+`
namespaces:
  users: [{exclusive: true, regex: "@irc_.*"}]
  aliases: [{exclusive: true, regex: "#irc_.*"}]
`)
	r.testServer = newTestServer(t, func(c *Config) {
		var err error
		if c.Services, err = appservice.Load([]string{file}, c.Server, false); err != nil {
			t.Fatal(err)
		}
	})
	if err := r.EnsureServiceUsers(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r, client{s: r.testServer, user: eventgraph.UserID("@ircbot:" + string(r.Server)), token: "as-secret"}
}

// run starts the sender, and returns how to stop it.
func (r *receiver) run(t *testing.T) (stop func()) {
	t.Helper()
	sender, err := appservice.NewSender(t.Context(), appservice.Config{
		Store: r.Store, Ephemeral: r.Ephemeral, Services: r.Services, Local: r.API, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sender.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != context.Canceled {
				t.Errorf("the sender ended: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func (r *receiver) next(t *testing.T) transaction {
	t.Helper()
	select {
	case x := <-r.came:
		return x
	case <-time.After(20 * time.Second):
		t.Fatal("no transaction came")
		panic("unreachable")
	}
}

// collect takes transactions until one has an event or ephemeral event of that kind and body.
func (r *receiver) collect(t *testing.T, until string) (all []map[string]any) {
	t.Helper()
	for {
		x := r.next(t)
		events, ephemeral := x.body(t)
		all = append(append(all, events...), ephemeral...)
		x.answer <- 200
		if strings.Contains(x.raw, until) {
			return all
		}
	}
}

func bodies(events []map[string]any) (all []string) {
	for _, e := range events {
		if content, ok := e["content"].(map[string]any); ok && content["body"] != nil {
			all = append(all, content["body"].(string))
		}
	}
	return all
}

// A service that a start left out is told, when it is there again, of what happens from then on: not of what it missed, nor of what was in flight.
func TestServiceThatComesBack(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "")
	alice := r.newClient("alice")
	room := alice.room()
	bot.join(room)
	stop := r.run(t)
	alice.message(room, text("refused"))
	x := r.next(t)
	if events, _ := x.body(t); len(events) != 1 || !slices.Equal(bodies(events), []string{"refused"}) {
		t.Errorf("a new service is told of %s", x.raw)
	}
	x.answer <- 500
	stop()
	services := r.Services
	r.Services = nil
	var log strings.Builder
	without := appservice.Config{Store: r.Store, Ephemeral: r.Ephemeral, Local: r.API, Log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 2 {
		if _, err := appservice.NewSender(t.Context(), without); err != nil {
			t.Fatal(err)
		}
	}
	if said := log.String(); strings.Count(said, "level=WARN") != 1 || !strings.Contains(said, "service=irc told=") || !strings.Contains(said, "in_flight=true") {
		t.Errorf("of the service that is left out and what it was not told the log says %s", said)
	}
	alice.message(room, text("while it is not registered"))
	r.Services = services
	r.run(t)
	alice.message(room, text("back"))
	x = r.next(t)
	if events, _ := x.body(t); len(events) != 1 || !slices.Equal(bodies(events), []string{"back"}) {
		t.Errorf("told of %s", x.raw)
	}
	x.answer <- 200
}

// What happened is sent once, in order, and a transaction that failed is repeated exactly, also after a restart.
func TestTransactionsAreRepeatedExactly(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "")
	alice := r.newClient("alice")
	room := alice.room()
	alice.message(room, text("before the service was there"))
	stop := r.run(t)
	bot.join(room)
	join := r.next(t)
	if events, _ := join.body(t); len(events) != 1 || events[0]["type"] != "m.room.member" || events[0]["state_key"] != string(bot.user) || events[0]["room_id"] != string(room) {
		t.Errorf("the first transaction: %s", join.raw)
	}
	join.answer <- 200

	alice.message(room, text("one <&>"))
	first := r.next(t)
	var want []string
	for i := range 150 { // more than one transaction may hold
		want = append(want, fmt.Sprint(i))
		alice.message(room, text(want[i]))
	}
	first.answer <- 500
	again := r.next(t)
	if again.id != first.id || again.raw != first.raw {
		t.Errorf("repeated as %s %s, was %s %s", again.id, again.raw, first.id, first.raw)
	}
	stop() // while it waits for the answer
	stop = r.run(t)
	restarted := r.next(t)
	if restarted.id != first.id || restarted.raw != first.raw {
		t.Errorf("after a restart %s %s, was %s %s", restarted.id, restarted.raw, first.id, first.raw)
	}
	if events, _ := restarted.body(t); !slices.Equal(bodies(events), []string{"one <&>"}) {
		t.Errorf("it held %s", restarted.raw)
	}
	restarted.answer <- 200
	var got []string
	ids := map[string]bool{first.id: true}
	for len(got) < len(want) {
		x := r.next(t)
		if ids[x.id] {
			t.Errorf("transaction ID %s came twice", x.id)
		}
		ids[x.id] = true
		events, _ := x.body(t)
		if len(events) > 100 {
			t.Errorf("%d events in one transaction", len(events))
		}
		got = append(got, bodies(events)...)
		x.answer <- 200
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	stop()
	r.run(t)
	alice.message(room, text("last"))
	// What was acknowledged last may be repeated as it was, with its ID; nothing else.
	for {
		x := r.next(t)
		x.answer <- 200
		if events, _ := x.body(t); ids[x.id] {
			continue
		} else if !slices.Equal(bodies(events), []string{"last"}) {
			t.Errorf("after another restart: %s", x.raw)
		}
		break
	}
}

func TestWhatServicesAreTold(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "")
	alice := r.newClient("alice")
	ghost := client{s: r.testServer, user: bridge{client: bot}.ghost("irc_nick")}
	private, shared, aliased := alice.room(), alice.room(), alice.room() // before the sender runs: it tells of nothing earlier
	r.run(t)

	alice.message(private, text("private"))
	ghost.join(shared)
	alice.state(shared, "m.room.topic", "", `{"topic":"first"}`)
	alice.state(shared, "m.room.topic", "", `{"topic":"second"}`)
	alice.message(shared, text("shared"))
	key := string(ghost.user)
	ghost.event(rooms.Draft{Room: shared, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"leave"}`)})
	alice.message(shared, text("after it left"))
	alice.event(rooms.Draft{Room: private, Type: "m.room.member", StateKey: &key, Content: json.RawMessage(`{"membership":"invite"}`)})
	alice.message(private, text("still private"))
	bot.join(aliased)
	bot.call(200, "PUT", "/v3/directory/room/%23irc_x:"+string(r.Server), map[string]any{"room_id": aliased})
	bot.call(200, "POST", "/v3/rooms/"+string(aliased)+"/leave", nil)
	alice.event(rooms.Draft{Room: aliased, Type: rooms.DummyEvent, Content: json.RawMessage(`{}`)})
	alice.message(aliased, text("aliased"))

	all := r.collect(t, `"aliased"`)
	if got, want := bodies(all), []string{"shared", "aliased"}; !slices.Equal(got, want) {
		t.Errorf("messages %q, want %q", got, want)
	}
	var members []string
	for _, e := range all {
		unsigned, _ := e["unsigned"].(map[string]any)
		switch e["type"] {
		case "m.room.member":
			members = append(members, e["content"].(map[string]any)["membership"].(string))
			if e["content"].(map[string]any)["membership"] == "invite" && unsigned["invite_room_state"] == nil {
				t.Errorf("an invite without stripped state: %v", e)
			}
		case "m.room.topic":
			prev, _ := unsigned["prev_content"].(map[string]any)
			if e["content"].(map[string]any)["topic"] == "second" && prev["topic"] != "first" {
				t.Errorf("a topic without what it replaced: %v", e)
			}
		case rooms.DummyEvent:
			t.Error("an event that no client is shown was sent")
		}
	}
	if want := []string{"join", "leave", "invite", "join", "leave"}; !slices.Equal(members, want) {
		t.Errorf("memberships %q, want %q", members, want)
	}
	for _, e := range all {
		if e["type"] == "m.typing" || e["type"] == "m.receipt" || e["type"] == "m.presence" {
			t.Errorf("ephemeral, though not asked for: %v", e)
		}
	}
}

func TestServicesAreToldOfTheMoment(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "receive_ephemeral: true")
	alice := r.newClient("alice")
	room, private := alice.room(), alice.room()
	id := alice.message(room, text("hello"))
	bot.join(room)
	r.run(t)
	path := "/v3/rooms/" + string(room)
	alice.call(200, "PUT", "/v3/rooms/"+string(private)+"/typing/"+string(alice.user), map[string]any{"typing": true})
	alice.call(200, "PUT", path+"/typing/"+string(alice.user), map[string]any{"typing": true})
	for _, e := range r.collect(t, `"m.typing"`) {
		if e["type"] == "m.typing" && (e["room_id"] != string(room) || !strings.Contains(fmt.Sprint(e["content"]), string(alice.user))) {
			t.Errorf("typing: %v", e)
		}
	}
	alice.call(200, "PUT", "/v3/presence/"+string(alice.user)+"/status", map[string]any{"presence": "online", "status_msg": "here"})
	for _, e := range r.collect(t, `"here"`) {
		if e["type"] == "m.presence" && e["sender"] != string(alice.user) {
			t.Errorf("presence: %v", e)
		}
	}
	alice.call(200, "POST", path+"/receipt/m.read.private/"+string(id), map[string]any{})
	alice.call(200, "POST", path+"/receipt/m.read/"+string(id), map[string]any{})
	for _, e := range r.collect(t, `"m.read"`) {
		if e["type"] == "m.receipt" && (e["room_id"] != string(room) || strings.Contains(fmt.Sprint(e["content"]), "m.read.private")) {
			t.Errorf("receipt: %v", e)
		}
	}
	// The service's own users' private receipts are its business.
	bot.call(200, "POST", path+"/receipt/m.read.private/"+string(id), map[string]any{})
	r.collect(t, `"m.read.private"`)
}

// A service that asks for ephemeral events under MSC2409's unstable name is sent them under that too, what is of the moment and receipts.
func TestServicesAreToldUnderTheUnstableName(t *testing.T) {
	t.Parallel()
	for registration, both := range map[string]bool{"receive_ephemeral: true": false, "de.sorunome.msc2409.push_ephemeral: true": true} {
		r, bot := newReceiver(t, registration)
		alice := r.newClient("alice")
		room := alice.room()
		id := alice.message(room, text("hello"))
		bot.join(room)
		r.run(t)
		path := "/v3/rooms/" + string(room)
		alice.call(200, "POST", path+"/receipt/m.read/"+string(id), map[string]any{})
		alice.call(200, "PUT", path+"/typing/"+string(alice.user), map[string]any{"typing": true})
		want := map[string]bool{"m.receipt": true, "m.typing": true}
		for len(want) > 0 {
			x := r.next(t)
			x.answer <- 200
			var body struct {
				Stable   []struct{ Type string } `json:"ephemeral"`
				Unstable []struct{ Type string } `json:"de.sorunome.msc2409.ephemeral"`
			}
			if err := json.Unmarshal([]byte(x.raw), &body); err != nil || both != (len(body.Unstable) > 0) && len(body.Stable) > 0 || both && !slices.Equal(body.Stable, body.Unstable) {
				t.Errorf("%s: %v: %s", registration, err, x.raw)
			}
			for _, e := range body.Stable {
				delete(want, e.Type)
			}
		}
	}
}

// A service is told of an invite of its user to a room that is not held here, and that it was taken back or rejected (AS API, transactions: all
// that concerns its users); once, also if a change came on top before the service was asked.
func TestServicesAreToldOfTheEndOfInvites(t *testing.T) {
	t.Parallel()
	r, bot := newReceiver(t, "")
	ghost := bridge{client: bot}.ghost("irc_nick")
	put := func(m store.Member) {
		t.Helper()
		_, err := r.Store.Update(t.Context(), func(tx *store.Tx) (err error) {
			m.User, m.Outside = ghost, true
			if m.Position, err = tx.Log(store.Change{Kind: store.ChangeMembership, Room: m.Room, User: m.User}); err != nil {
				return err
			}
			return tx.PutMember(&m)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	event := func(membership string) []byte {
		return fmt.Appendf(nil, `{"type":"m.room.member","state_key":%q,"sender":"@b:far","content":{"membership":%q,"reason":"r"},"origin_server_ts":7}`,
			ghost, membership)
	}
	invite := func(room eventgraph.RoomID) store.Member {
		return store.Member{Room: room, Membership: "invite", Event: "$invite", Invite: event("invite")}
	}
	r.run(t)
	put(invite("!first"))
	all := r.collect(t, `"invite"`)
	put(store.Member{Room: "!first", Membership: "leave", Event: "$kick", Invite: event("leave")})
	all = append(all, r.collect(t, `"leave"`)...)
	// Before the service has answered: an invite that comes and goes, one that is dropped, and one that is forgotten.
	put(invite("!hold"))
	held := r.next(t)
	put(invite("!second"))
	put(store.Member{Room: "!second", Membership: "leave", Event: "$ban", Invite: event("ban")})
	put(invite("!dropped"))
	put(store.Member{Room: "!dropped", Membership: "leave", Event: "$invite"})
	put(store.Member{Room: "!forgotten", Membership: "leave", Event: "$leave", Invite: event("leave"), Forgotten: true})
	put(invite("!last"))
	held.answer <- http.StatusOK
	all = append(all, r.collect(t, `"!last"`)...)
	var got []string
	for _, e := range all {
		content := e["content"].(map[string]any)
		got = append(got, fmt.Sprint(e["room_id"], " ", e["event_id"], " ", content["membership"]))
		unsigned, _ := e["unsigned"].(map[string]any)
		if _, has := unsigned["invite_room_state"]; has != (content["membership"] == "invite") {
			t.Errorf("%v", e)
		}
		if content["reason"] != "r" || e["sender"] != "@b:far" || e["state_key"] != string(ghost) || e["origin_server_ts"] != 7.0 {
			t.Errorf("%v", e)
		}
	}
	if want := []string{"!first $invite invite", "!first $kick leave", "!second $ban ban", "!last $invite invite"}; !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
}
