package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/clientapi"
)

func TestNoticeCommand(t *testing.T) {
	t.Parallel()
	b := build(t)
	dir := t.TempDir()
	p := b.start(dir, "--rate-limits=false")
	p.until("Peers")
	f := p.file(b)
	plexus := b.of(dir)
	if info, err := os.Stat(filepath.Join(dir, "admin.sock")); err != nil || info.Mode().Perm() != 0o600 { // who may send notices
		t.Errorf("admin.sock: %v %v", info, err)
	}
	plexus(0, "", "notice --all hello", "there is nobody to tell")
	plexus(0, "a password\n", "user add alice")
	plexus(0, "a password\n", "user add bob")
	plexus(1, "a password\n", "user add _server", "M_USER_IN_USE")
	alice := logIn(t, f.ClientURL, "alice", "a password")

	plexus(0, "", "notice alice hello", "@alice:"+string(f.ServerName)+" was told: $")
	sent := func(line string, words ...string) (list []clientapi.NoticeSent) {
		t.Helper()
		if err := json.Unmarshal([]byte(plexus(0, "", line, words...)), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	first := sent("notice --json --txn t1 alice again")
	if again := sent("notice @alice:" + string(f.ServerName) + " again --txn t1 --json"); len(again) != 1 || again[0] != first[0] {
		t.Errorf("%+v and then %+v", first, again)
	}
	all := sent("notice --all everybody --json")
	if len(all) != 2 || all[0].Room != first[0].Room || all[1].User != eventgraph.UserID("@bob:"+string(f.ServerName)) {
		t.Errorf("%+v", all)
	}
	limit := `{"msgtype":"m.server_notice","body":"full","server_notice_type":"m.server_notice.usage_limit_reached","limit_type":"monthly_active_user","admin_contact":"mailto:a@x.example"}`
	plexus(0, "", "notice alice --content "+limit, "was told")
	var out strings.Builder
	if err := command(t.Context(), []string{"notice", "--data", dir, "alice", "--", "-- the disk is full"}, strings.NewReader(""), &out, &out); err != nil {
		t.Error(err)
	}
	room := string(first[0].Room)
	if status, body := alice.call("POST", "/rooms/"+room+"/leave", nil); status != 403 || !strings.Contains(body, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM") {
		t.Errorf("%d %s", status, body)
	}
	alice.must("POST", "/rooms/"+room+"/join", nil, "room_id")
	if _, body := alice.call("GET", "/rooms/"+room+"/messages?dir=b", nil); !strings.Contains(body, "the disk is full") || !strings.Contains(body, "everybody") {
		t.Error(body)
	}

	plexus(1, "", "notice carol hello", "has no user @carol:")
	plexus(1, "", "notice alice", "usage: plexus notice")
	plexus(1, "", "notice", "usage: plexus notice")
	plexus(1, "", "notice --all alice hello", "usage: plexus notice")
	plexus(1, "", "notice alice hello --content {}", "usage: plexus notice")
	plexus(1, "", "notice alice --content {", "not valid JSON")
	plexus(1, "", "notice alice --content {}", "M_MISSING_PARAM")
	plexus(1, "", "notice alice hello --txn "+strings.Repeat("x", 300), "transaction ID is too long")
	if err := command(t.Context(), []string{"notice", "--data", dir, "alice", ""}, strings.NewReader(""), &out, &out); err == nil {
		t.Error("an empty notice")
	}
	for body, want := range map[string]string{
		`{"text":"x"}`:                         "for one user, or for all",
		`{"user":"alice","all":true}`:          "for one user, or for all",
		`{"user":"alice"}`:                     "has a text, or content",
		`{"all":true,"text":"x","content":{}}`: "has a text, or content",
	} {
		if err := ask(t.Context(), dir, "POST", "/notices", json.RawMessage(body), &[]clientapi.NoticeSent{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// One who cannot be told is named, and the command fails though the others are told.
func TestNoticeNotForAll(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serveSocket(t, dir, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `[{"user_id":"@a:x","room_id":"!r","event_id":"$e"},{"user_id":"@b:x","error":"the disk is full"}]`)
	}))
	var out strings.Builder
	err := command(t.Context(), []string{"notice", "--all", "x", "--data", dir}, strings.NewReader(""), &out, &out)
	if err == nil || err.Error() != "1 of 2 were not told" || out.String() != "@a:x was told: $e in room !r\n@b:x was not told: the disk is full\n" {
		t.Errorf("%q %v", out.String(), err)
	}
}
