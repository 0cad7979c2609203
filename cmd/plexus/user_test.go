package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/store"
)

// of runs subcommands for one node, in this process: they must end with the exit code, and their output hold the words.
func (b *binary) of(dir string) func(code int, stdin, line string, words ...string) string {
	return func(code int, stdin, line string, words ...string) string {
		b.t.Helper()
		var out, errOut strings.Builder
		err := command(b.t.Context(), append(strings.Fields(line), "--data", dir), strings.NewReader(stdin), &out, &errOut)
		if (err != nil) != (code != 0) {
			b.t.Fatalf("plexus %s: %v, want exit code %d\n%s%s", line, err, code, out.String(), errOut.String())
		}
		said := fmt.Sprint(out.String(), errOut.String(), err)
		for _, w := range words {
			if !strings.Contains(said, w) {
				b.t.Errorf("plexus %s: %q is not in\n%s", line, w, said)
			}
		}
		return out.String()
	}
}

// What the config file asks people to accept is asked of who registers, and the administrator sees what was accepted.
func TestTermsAreAccepted(t *testing.T) {
	t.Parallel()
	b := build(t)
	dir := t.TempDir()
	p := b.start(dir, "--registration", "open", "--config", configFile(t, `
[terms.rules]
version = "1.0"
en = {name = "Rules", url = "https://example.org/rules"}
`))
	if greeting := p.until("Peers"); !strings.Contains(greeting, "whoever registers: rules") {
		t.Errorf("the greeting does not speak of the terms:\n%s", greeting)
	}
	c := testClient{t: t, base: p.file(b).ClientURL}
	auth := map[string]string{}
	for _, stage := range []string{"", "m.login.terms", "m.login.dummy"} {
		auth["type"] = stage
		status, raw := c.call("POST", "/register", map[string]any{"username": "alice", "password": "hunter2", "auth": auth})
		var answer struct{ Session string }
		if err := json.Unmarshal([]byte(raw), &answer); err != nil || (status == 200) != (stage == "m.login.dummy") {
			t.Fatalf("%q: %d %s", stage, status, raw)
		}
		auth["session"] = answer.Session
	}
	plexus := b.of(dir)
	plexus(0, "hunter2\n", "user add bob")
	var users []clientapi.AccountStatus
	if err := json.Unmarshal([]byte(plexus(0, "", "user list --json", `"accepted_terms"`, `"accepted_ts"`)), &users); err != nil || len(users) != 2 ||
		len(users[0].Accepted) != 1 || users[0].Accepted[0].Policy != "rules" || users[0].Accepted[0].Version != "1.0" || users[1].Accepted != nil {
		t.Errorf("%+v %v", users, err)
	}
}

func TestUserCommands(t *testing.T) {
	t.Parallel()
	b := build(t)
	dir := t.TempDir()
	p := b.start(dir)
	p.until("Peers")
	f := p.file(b)
	plexus := b.of(dir)
	alice := "@alice:" + string(f.ServerName)
	plexus(0, "", "user list", "there are no users")
	plexus(0, "hunter2 hunter2\n", "user add alice", alice)
	c := logIn(t, f.ClientURL, "alice", "hunter2 hunter2")

	plexus(0, "", "user list", alice, "DEVICES")
	var users []clientapi.AccountStatus
	if err := json.Unmarshal([]byte(plexus(0, "", "user list --json")), &users); err != nil || len(users) != 1 || users[0].Devices != 1 {
		t.Errorf("%+v %v", users, err)
	}
	var devices []clientapi.DeviceStatus
	if err := json.Unmarshal([]byte(plexus(0, "", "device list alice --json")), &devices); err != nil || len(devices) != 1 {
		t.Fatalf("%+v %v", devices, err)
	}
	plexus(0, "", "device list "+alice, string(devices[0].ID), "127.0.0.1")

	plexus(0, "a password\n", "user add BigName", "@bigname:"+string(f.ServerName))
	plexus(0, "", "device list BigName", "no device is logged in")
	plexus(0, "", "user disable alice", "is disabled")
	plexus(0, "", "user disable alice", "nothing has changed")
	plexus(0, "", "user list", "disabled")
	if status, body := c.call("GET", "/account/whoami", nil); status != 401 || !strings.Contains(body, "M_USER_LOCKED") {
		t.Errorf("%d %s", status, body)
	}
	plexus(0, "", "user enable alice", "is enabled")
	if status, body := c.call("GET", "/account/whoami", nil); status != 200 {
		t.Errorf("%d %s", status, body)
	}

	plexus(1, "", "device delete alice NONE", "has no device NONE")
	plexus(0, "", "device delete alice "+string(devices[0].ID), string(devices[0].ID))
	plexus(0, "", "device list alice", "no device")
	if status, body := c.call("GET", "/account/whoami", nil); status != 401 || !strings.Contains(body, "M_UNKNOWN_TOKEN") {
		t.Errorf("%d %s", status, body)
	}

	c = logIn(t, f.ClientURL, "alice", "hunter2 hunter2")
	plexus(0, "another one\n", "user reset-password alice --keep-devices", "stays so")
	if status, body := c.call("GET", "/account/whoami", nil); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	var reset struct{ Password string }
	if err := json.Unmarshal([]byte(plexus(0, "", "user reset-password alice --generate --json")), &reset); err != nil || len(reset.Password) < 20 {
		t.Errorf("%+v %v", reset, err)
	}
	if status, body := c.call("GET", "/account/whoami", nil); status != 401 {
		t.Errorf("%d %s", status, body)
	}
	c = logIn(t, f.ClientURL, "alice", reset.Password)

	plexus(1, "", "user disable bob", "has no user @bob:")
	plexus(1, "", "user frobnicate alice", "usage: plexus user list")
	plexus(1, "", "device list", "usage: plexus device")
	if status, body := c.call("POST", "/account/deactivate", map[string]any{"auth": map[string]any{
		"type": "m.login.password", "password": reset.Password, "identifier": map[string]string{"type": "m.id.user", "user": "alice"}}}); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	plexus(1, "", "user enable alice", "has been deactivated")
	plexus(0, "", "user list", "deactivated")
}

func TestReportCommands(t *testing.T) {
	t.Parallel()
	b := build(t)
	dir := t.TempDir()
	p := b.start(dir)
	p.until("Peers")
	f := p.file(b)
	plexus := b.of(dir)
	plexus(0, "a password\n", "user add alice")
	c := logIn(t, f.ClientURL, "alice", "a password")
	plexus(0, "", "reports", "nothing has been reported")
	room := c.must("POST", "/createRoom", map[string]any{}, "room_id")
	event := c.must("PUT", "/rooms/"+room+"/send/m.room.message/1", map[string]string{"msgtype": "m.text", "body": "\x1b[2Jbuy"}, "event_id")
	c.must("POST", "/rooms/"+room+"/report/"+event, map[string]string{"reason": "it sells\x1b[2J"}, "")
	out := plexus(0, "", "reports", "1  ", event, room, "it sells�", "buy", "by @alice:")
	if strings.Contains(out, "\x1b") {
		t.Errorf("what others wrote reaches the terminal raw: %q", out)
	}
	var list []clientapi.ReportStatus
	if err := json.Unmarshal([]byte(plexus(0, "", "reports --json")), &list); err != nil || len(list) != 1 || list[0].Reason != "it sells\x1b[2J" {
		t.Errorf("%+v %v", list, err)
	}
	plexus(1, "", "reports delete 7", "there is no report 7")
	plexus(0, "", "reports delete 1", "deleted")
	plexus(0, "", "reports", "nothing has been reported")
	plexus(1, "", "reports frobnicate", "usage: plexus reports")
}

// Clients choose the IDs of their devices, and hardly a character is forbidden in a user ID: none of it acts on the terminal, nor turns its text around.
func TestWhatOthersChoseIsPrintable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := table(&out, func(row func(...any)) {
		row(store.DeviceID("\x1b]0;x\a"), eventgraph.UserID("@\u009b2J\u202eb:x"), 7, "a\tb 👩\u200d🚀")
	})
	if want := "�]0;x�  @�2J�b:x  7  a�b 👩\u200d🚀\n"; err != nil || out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
