package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/node"
)

func TestRoomCommands(t *testing.T) {
	t.Parallel()
	b := build(t)
	dir := t.TempDir()
	p := b.start(dir, "--rate-limits=false")
	p.until("Peers")
	f := p.file(b)
	plexus := b.of(dir)
	plexus(0, "a password\n", "user add alice")
	plexus(0, "a password\n", "user add bob")
	alice, bob := logIn(t, f.ClientURL, "alice", "a password"), logIn(t, f.ClientURL, "bob", "a password")

	plexus(0, "", "room list", "no rooms")
	room := alice.must("POST", "/createRoom", map[string]string{"name": "A \x1b[2Jname", "room_alias_name": "here", "preset": "public_chat"}, "room_id")
	bob.must("POST", "/rooms/"+room+"/join", nil, "room_id")
	if out := plexus(0, "", "room list", room, "A �[2Jname", "EVENTS"); strings.Contains(out, "\x1b") {
		t.Errorf("%q", out)
	}
	var rooms []node.RoomInfo
	if err := json.Unmarshal([]byte(plexus(0, "", "room list --json")), &rooms); err != nil || len(rooms) != 1 || rooms[0].Members != 2 ||
		len(rooms[0].LocalUsers) != 2 || rooms[0].Servers != 1 || rooms[0].Version != "12" || rooms[0].Extremities != 1 || rooms[0].Events < 6 {
		t.Errorf("%+v %v", rooms, err)
	}

	plexus(0, "", "room state "+room, "m.room.create", "m.room.member", "@bob:")
	plexus(0, "", "room state #here m.room.name", "name")
	plexus(0, "", "room state #here m.room.nothing", "no such state")
	var state node.RoomState
	line := "room state #here m.room.member @bob:" + string(f.ServerName) + " --json"
	if err := json.Unmarshal([]byte(plexus(0, "", line)), &state); err != nil || len(state.State) != 1 || !strings.Contains(string(state.State[0].Content), `"join"`) {
		t.Errorf("%+v %v", state, err)
	}
	plexus(1, "", "room state !none:x.example", "there is no room")
	plexus(1, "", "room state here", "named by its ID")
	plexus(1, "", "room state #none", "no room here has the alias")

	var messages []string
	for i := range 10 {
		messages = append(messages, alice.must("PUT", fmt.Sprintf("/rooms/%s/send/m.room.message/%d", room, i), map[string]string{"msgtype": "m.text", "body": "x"}, "event_id"))
	}
	plexus(0, "", "room purge #here --before "+messages[5], "5 of ", "other servers keep")
	if status, body := alice.call("GET", "/rooms/"+room+"/event/"+messages[0], nil); status != 404 {
		t.Errorf("%d %s", status, body)
	}
	alice.must("GET", "/rooms/"+room+"/event/"+messages[5], nil, "")
	var purged struct{ Purged int }
	if err := json.Unmarshal([]byte(plexus(0, "", "room purge "+room+" --before 0s --json")), &purged); err != nil || purged.Purged != 4 {
		t.Errorf("%+v %v", purged, err)
	}
	plexus(1, "", "room purge #here --before yesterday", "is no time")
	plexus(1, "", "room purge #here --before $none", "there is no event $none")
	plexus(1, "", "room purge !none:x.example --before 1h", "there is no room")
	plexus(1, "", "room purge #here", "usage: plexus room")
	plexus(1, "", "room list --before 1h", "usage: plexus room")

	plexus(1, "", "room leave #here carol", "has no user @carol")
	plexus(0, "", "room leave #here bob", "@bob:")
	plexus(1, "", "room leave #here bob", "is not in the room")
	plexus(0, "", "room leave "+room+" --json", "@alice:")
	plexus(1, "", "room leave "+room, "nobody here is in the room")
	if status, body := alice.call("GET", "/joined_rooms", nil); status != 200 || strings.Contains(body, room) {
		t.Errorf("%d %s", status, body)
	}

	for _, name := range []string{"one", "two"} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", f.ClientURL+"/_matrix/media/v3/upload?filename="+name, strings.NewReader(strings.Repeat("x", 3000)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+alice.token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		resp.Body.Close()
	}
	plexus(0, "", "media stats --by-user", "2 files, 5.9 KiB", "@alice:")
	var stats node.MediaStats
	if err := json.Unmarshal([]byte(plexus(0, "", "media stats --json")), &stats); err != nil || stats.Local != (node.MediaCount{Files: 2, Bytes: 6000}) || stats.Remote.Files != 0 {
		t.Errorf("%+v %v", stats, err)
	}
	plexus(0, "", "media purge", "removed: 0 files")
	plexus(1, "", "media purge --unused never", "is no time")
	plexus(1, "", "media", "usage: plexus media")
}

// TestPurgeLines: while a purge goes on it says how far it is; one that breaks off says that it can be gone on with.
func TestPurgeLines(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ answer, out, errOut, err string }{
		"whole":  {`{"looked_at":500,"purged":200}{"looked_at":900,"purged":400,"done":true}`, "400 of 900 events purged", "500 events looked at, 200 purged\n", ""},
		"cut":    {`{"looked_at":500,"purged":200}{"looked`, "", "500 events looked at", "ended after 200 events; the same command goes on"},
		"failed": {`{"looked_at":5,"purged":0,"error":"the disk is full"}`, "", "", "the disk is full"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			served := http.NewServeMux()
			served.HandleFunc("POST /rooms/{room}/purge", func(w http.ResponseWriter, r *http.Request) {
				if r.PathValue("room") != "!a/b" || r.URL.Query().Get("event") != "$e" {
					t.Error(r.URL)
				}
				io.WriteString(w, test.answer)
			})
			serveSocket(t, dir, served)
			var out, errOut strings.Builder
			err := command(t.Context(), []string{"room", "purge", "!a/b", "--before", "$e", "--data", dir}, strings.NewReader(""), &out, &errOut)
			if !strings.Contains(out.String(), test.out) || !strings.Contains(errOut.String(), test.errOut) {
				t.Errorf("%q %q", out.String(), errOut.String())
			}
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Error(err)
			}
		})
	}
}

func TestMomentOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	for s, want := range map[string]time.Time{
		"36h":                  now.Add(-36 * time.Hour),
		"2026-01-02":           time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
		"2026-01-02T03:04":     time.Date(2026, 1, 2, 3, 4, 0, 0, time.Local),
		"2026-01-02T03:04:05Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	} {
		if got, err := momentOf(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "-1h", "soon", "2026-13-01"} {
		if got, err := momentOf(s, now); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// serveSocket answers on a directory's admin socket.
func serveSocket(t *testing.T, dir string, h http.Handler) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	t.Cleanup(func() { server.Shutdown(context.Background()); <-done })
}
