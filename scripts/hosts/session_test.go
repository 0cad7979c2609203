package hosts

import (
	"testing"
	"time"
)

// TestSlidingSyncClient: matrix-js-sdk by simplified sliding sync on one node, by /sync on the other, in an encrypted room. The position
// that the first holds is good after its node was restarted.
func TestSlidingSyncClient(t *testing.T) {
	t.Parallel()
	l := lan(t, 2)
	hostB := l.Hosts[1]
	fileA, fileB := l.Hosts[0].start(t), hostB.start(t)
	a, b := sdkClient(t, l.Hosts[0]), sdkClient(t, hostB)
	a.enter(fileA, "alice", true)
	b.begin(b.register(fileB, "bob"), args{"crypto": true, "sliding": true})
	eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, l.Hosts[0], fileB.PeerID) })
	p := &couple{a: a, b: b, room: meet(t, a, b, args{"name": "Sealed", "encrypted": true})}
	a.do("waitEncrypted", args{"room": p.room}, nil)
	b.do("waitEncrypted", args{"room": p.room}, nil)
	p.say(t, a, "by sync", b)
	p.say(t, b, "by sliding sync", a)
	if err := hostB.Stop(); err != nil {
		t.Fatal(err)
	}
	a.do("newRoomKey", args{"room": p.room}, nil)
	a.do("send", args{"room": p.room, "body": "while the node was off"}, nil)
	hostB.start(t)
	p.read(t, "while the node was off", b)
	p.say(t, b, "after the restart", a)
	var statuses map[string]int
	b.do("statuses", nil, &statuses)
	if statuses["sync 200"] == 0 || statuses["sync 400"] != 0 {
		t.Errorf("answers to sliding sync: %v; want no 400, which tells the client to begin anew", statuses)
	}
}

// TestClientSession: a device that logs in by the token of another, and a client that is told to slow down and does.
func TestClientSession(t *testing.T) {
	t.Parallel()
	l := lan(t, 1)
	file := l.Hosts[0].start(t)
	c := sdkClient(t, l.Hosts[0])
	c.enter(file, "alice", false)
	var token struct {
		Prompted bool
		Session  map[string]any
		Again    string
	}
	c.do("loginToken", args{"password": passwordOf("alice")}, &token)
	if !token.Prompted || token.Session["user_id"] != c.User || token.Session["device_id"] == c.Device || token.Again != "M_FORBIDDEN" {
		t.Errorf("login by token: %+v; want another device of %s after the password, and M_FORBIDDEN for the second use", token, c.User)
	}
	second := sdkClient(t, l.Hosts[0])
	second.do("at", args{"url": file.ClientURL}, nil)
	second.begin(token.Session, nil)

	var made struct{ Room string }
	c.do("createRoom", args{"name": "Crowd"}, &made)
	var crowd struct {
		Sent    []sent
		Limited int
	}
	c.do("crowd", args{"room": made.Room, "prefix": "crowd"}, &crowd)
	t.Logf("%d messages, %d refused at first", len(crowd.Sent), crowd.Limited)
	inOrder(t, "crowd", crowd.Sent, second.waitMessages(made.Room, "crowd", len(crowd.Sent)))
}
