package clientapi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// relating says something that relates to another event; more are further members of m.relates_to.
func (c client) relating(room eventgraph.RoomID, kind, to, more string) string {
	c.s.t.Helper()
	return string(c.message(room, fmt.Sprintf(`{"msgtype":"m.text","body":"t","m.relates_to":{"rel_type":%q,"event_id":%q%s}}`, kind, to, more)))
}

// A receipt is in the thread of its event, or there is none (receipts.yaml, 400).
func TestReceiptOutsideItsThread(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	relating := func(kind, to, more string) string { return alice.relating(room, kind, to, more) }
	root, other := string(alice.say(room, "root")), string(alice.say(room, "other"))
	reply := relating("m.thread", root, "")
	reaction := relating("m.annotation", reply, `,"key":"+"`)
	atRoot := relating("m.annotation", root, `,"key":"+"`)
	unknown := "$" + strings.Repeat("a", 43)
	orphan := relating("m.reference", unknown, "")
	for _, c := range []struct {
		event, thread string
		status        int
	}{
		{other, root, 400}, {other, "garbage", 400}, {reply, "main", 400}, {reply, other, 400}, {reaction, "main", 400}, {orphan, "garbage", 400},
		{root, unknown, 400},
		{root, root, 200}, {root, "main", 200}, {reply, root, 200}, {reaction, root, 200}, {atRoot, "main", 200}, {atRoot, root, 200},
		{other, "main", 200}, {orphan, "main", 200}, {orphan, root, 200},
	} {
		a := s.send("POST", "/_matrix/client/v3/rooms/"+string(room)+"/receipt/m.read/"+c.event, alice.token, map[string]any{"thread_id": c.thread})
		if a.status != c.status || a.status == 400 && a.code() != "M_INVALID_PARAM" {
			t.Errorf("%+v: %d %s", c, a.status, a.raw)
		}
	}
}

// Clients move what was redacted in a thread, and what relates to it, to the main timeline: its relation is gone from what they see. They send receipts
// there, or still in its thread.
func TestReceiptAtRedacted(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	relating := func(kind, to, more string) string { return alice.relating(room, kind, to, more) }
	root, other := string(alice.say(room, "root")), string(alice.say(room, "other"))
	reply := relating("m.thread", root, "")
	reaction := relating("m.annotation", reply, `,"key":"+"`)
	redaction := alice.call(200, "PUT", "/v3/rooms/"+string(room)+"/redact/"+reply+"/1", map[string]any{}).text("event_id")
	for _, c := range []struct {
		event, thread string
		status        int
	}{
		{reply, "main", 200}, {reply, root, 200}, {reaction, "main", 200}, {reaction, root, 200}, {redaction, "main", 200}, {reply, other, 400},
	} {
		a := s.send("POST", "/_matrix/client/v3/rooms/"+string(room)+"/receipt/m.read/"+c.event, alice.token, map[string]any{"thread_id": c.thread})
		if a.status != c.status {
			t.Errorf("%+v: %d %s", c, a.status, a.raw)
		}
	}
}

// A receipt that moves has that one sent, and not all that its user has in the room's threads.
func TestMovedReceiptIsSentAlone(t *testing.T) {
	t.Parallel()
	s := newTestAPI(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	read := func(id eventgraph.EventID, body map[string]any) {
		t.Helper()
		bob.call(200, "POST", "/v3/rooms/"+string(room)+"/receipt/m.read/"+string(id), body)
	}
	inThread := func(root eventgraph.EventID) eventgraph.EventID {
		id := alice.relate(room, "m.thread", root, "t")
		read(id, map[string]any{"thread_id": root})
		return id
	}
	roots := []eventgraph.EventID{alice.say(room, "one"), alice.say(room, "two"), alice.say(room, "three")}
	for _, root := range roots {
		inThread(root)
	}
	read(roots[2], map[string]any{})
	ask := window(0, 9, 5, "", `,"extensions":{"receipts":{"enabled":true}}`)
	since, pos := alice.sync("").NextBatch, alice.slide("", ask).Pos
	check := func(what string, want ...eventgraph.EventID) {
		t.Helper()
		body := alice.sync(since)
		var got []string
		for _, e := range body.Rooms.Join[room].Ephemeral.Events {
			for id := range e.Content {
				got = append(got, id)
			}
		}
		slid := alice.slide(pos, ask)
		since, pos = body.NextBatch, slid.Pos
		if n := strings.Count(slid.raw, `"m.read"`); n != len(want) || len(got) != len(want) {
			t.Errorf("%s: %q, and in sliding sync %d: %s", what, got, n, slid.raw)
		}
		for _, id := range want {
			if !strings.Contains(strings.Join(got, " "), string(id)) {
				t.Errorf("%s: %q, want %s", what, got, id)
			}
		}
	}
	moved := inThread(roots[1])
	check("in one thread", moved)
	inThread(roots[0])
	first, second := inThread(roots[0]), inThread(roots[1])
	check("in two, one of them twice", first, second)
	last := alice.say(room, "last")
	read(last, map[string]any{})
	check("outside threads", last)
	for range maxReceiptMoves + 1 {
		last = inThread(roots[2])
	}
	check("more than are remembered: all", first, second, last, alice.receiptOf(room, bob))
}

// receiptOf is where a user's receipt outside of threads is.
func (c client) receiptOf(room eventgraph.RoomID, of client) (id eventgraph.EventID) {
	c.s.t.Helper()
	err := c.s.Store.View(func(r *store.Reader) error {
		p, err := r.Receipt(room, of.user, "m.read", "")
		if err == nil {
			id = p.Event
		}
		return err
	})
	if err != nil {
		c.s.t.Fatal(err)
	}
	return id
}
