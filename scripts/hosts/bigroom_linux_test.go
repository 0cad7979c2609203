package hosts

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// crowdToken is that of the application service whose users fill rooms: they need no password, which takes long to hash.
const crowdToken = "crowd-of-a-host-test"

// crowdService writes its registration.
func crowdService(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "crowd.yaml")
	registration := fmt.Sprintf("id: crowd\nurl: null\nas_token: %q\nhs_token: unused\nsender_localpart: crowd\nrate_limited: false\n"+
		"namespaces:\n  users:\n    - {exclusive: true, regex: '@member.*'}\n", crowdToken)
	if err := os.WriteFile(file, []byte(registration), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// crowd lets n users of the host into the room.
func (k *talker) crowd(room string, n int) {
	k.t.Helper()
	service := &talker{t: k.t, name: "crowd", base: k.base, web: k.web, token: crowdToken}
	_, server, _ := strings.Cut(k.user, ":")
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for i := range numbers {
				name := fmt.Sprintf("member%d", i)
				as := "?user_id=" + url.QueryEscape("@"+name+":"+server)
				err := service.call(k.t.Context(), "POST", "/register", map[string]any{"type": "m.login.application_service", "username": name, "inhibit_login": true}, nil)
				if err == nil {
					err = service.call(k.t.Context(), "POST", "/rooms/"+url.PathEscape(room)+"/join"+as, map[string]any{}, nil)
				}
				if err != nil {
					k.t.Error(err)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	workers.Wait()
	if k.t.Failed() {
		k.t.FailNow()
	}
}

// TestBigRoomOverSlowLink: a matrix-js-sdk client joins a room of many members over a link on which that takes a while. It shows the room with its name and
// how far it is, its user opens it and tries to write, and in the end all is there. 5,000 members in a full run.
func TestBigRoomOverSlowLink(t *testing.T) {
	t.Parallel()
	l := lan(t, 2)
	hostA, hostB := l.Hosts[0], l.Hosts[1]
	hostB.rewire(t, wire{delay: 50 * time.Millisecond, rate: part(1_000_000, 512_000), queue: 64 << 10})
	fileA := hostA.start(t, "--rate-limits=false", "--appservice", crowdService(t))
	alice := newTalker(t, hostA, fileA, "alice")
	room := alice.createRoom()
	members := part(5000, 700)
	began := time.Now()
	alice.crowd(room, members)
	t.Logf("%d users joined on their own host in %v", members, time.Since(began).Round(time.Millisecond))
	say := func(body string) {
		t.Helper()
		txn := strings.ReplaceAll(body, " ", "-")
		if err := alice.call(t.Context(), http.MethodPut, "/rooms/"+url.PathEscape(room)+"/send/m.room.message/"+txn, args{"msgtype": "m.text", "body": body}, nil); err != nil {
			t.Fatal(err)
		}
	}
	say("said before")

	fileB := hostB.start(t, "--rate-limits=false")
	b := sdkClient(t, hostB)
	b.enter(fileB, "bob", false)
	eventually(t, time.Minute, "the nodes connected", func() bool { return connected(t, hostB, fileA.PeerID) })
	began = time.Now()
	joined := make(chan error, 1)
	go func() {
		joined <- b.call(t.Context(), "join", args{"room": room, "via": []string{string(fileA.ServerName)}}, nil)
	}()
	var shown struct {
		Name, Membership  string
		Arrived, Expected int
	}
	b.do("waitComing", args{"room": room}, &shown)
	t.Logf("shown after %v: %+v", time.Since(began).Round(time.Millisecond), shown)
	if shown.Name != "Harbour" || shown.Membership != "join" || shown.Arrived >= shown.Expected || shown.Expected < members {
		t.Errorf("while it comes the room is shown as %+v", shown)
	}
	say("said meanwhile")
	early := make(chan error, 1)
	go func() { early <- b.call(t.Context(), "send", args{"room": room, "body": "too early"}, nil) }()
	var opened struct {
		Name            string
		Members, Listed int
		Waited          int
		Events          []struct{ Type, Body string }
	}
	b.doWithin(5*time.Minute, "open", args{"room": room}, &opened)
	t.Logf("open after %v: %d members, %d events, asked again %d times", time.Since(began).Round(time.Millisecond), opened.Listed, len(opened.Events), opened.Waited)
	if err := <-joined; err != nil {
		t.Errorf("the join: %v", err)
	}
	if opened.Name != "Harbour" || opened.Listed != members+2 {
		t.Errorf("%q with %d members, want %d", opened.Name, opened.Listed, members+2)
	}
	// The SDK sends again what it was told to send later, four times.
	sent := 1
	if err := <-early; err != nil {
		t.Log(err)
		if sent = 0; !strings.Contains(err.Error(), "The room is still being fetched") || !strings.Contains(err.Error(), "Nothing can be sent") {
			t.Errorf("a message to a room that was coming: %v", err)
		}
	}
	var statuses map[string]int
	b.do("statuses", nil, &statuses)
	for answer, times := range statuses {
		if _, status, _ := strings.Cut(answer, " "); status >= "500" || answer == "other 429" && times != opened.Waited {
			t.Errorf("%d times the SDK was answered %s", times, answer)
		}
	}
	b.waitMessages(room, "said meanwhile", 1)
	b.do("send", args{"room": room, "body": "at last"}, nil)
	b.doWithin(time.Minute, "open", args{"room": room}, &opened)
	bodies := map[string]int{}
	for _, e := range opened.Events {
		bodies[e.Body]++
	}
	for body, want := range map[string]int{"said before": 1, "said meanwhile": 1, "too early": sent, "at last": 1} {
		if bodies[body] != want {
			t.Errorf("%q is %d times in the history of %d events, want %d", body, bodies[body], len(opened.Events), want)
		}
	}
}
