package hosts

import (
	"os"
	"strings"
	"testing"
	"time"
)

// logged waits until a line of the node's log has all the words. It runs with --verbose.
func (h *Host) logged(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, 30*time.Second, "in the log: "+strings.Join(words, " … "), func() bool {
		raw, err := os.ReadFile(h.logFile())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			missing := false
			for _, w := range words {
				missing = missing || !strings.Contains(line, w)
			}
			if !missing {
				return true
			}
		}
		return false
	})
}

// TestCarried: bob's node is off when alice writes to him, from a device that he knows and from one that never had a key of his. Then alice's
// node goes off; the node of carol, who is in the room, has it all for bob when he is back.
func TestCarried(t *testing.T) {
	t.Parallel()
	l := lan(t, 3)
	hostA, hostB, hostC := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	fileA, fileB, fileC := hostA.start(t, "--verbose"), hostB.start(t), hostC.start(t, "--verbose")
	a, b, c := sdkClient(t, hostA), sdkClient(t, hostB), sdkClient(t, hostC)
	together(t,
		func() { a.enter(fileA, "alice", true) },
		func() { b.enter(fileB, "bob", true) },
		func() { c.enter(fileC, "carol", true) })
	eventually(t, 10*time.Second, "all connected", func() bool {
		return connected(t, hostA, fileB.PeerID, fileC.PeerID) && connected(t, hostC, fileB.PeerID)
	})
	p := &couple{a: a, b: b, room: meet(t, a, b, args{"name": "Sealed", "encrypted": true})}
	join(t, p.room, a, c)
	for _, each := range []*client{a, c} {
		each.do("waitEncrypted", args{"room": p.room}, nil)
	}
	p.say(t, a, "all are here", b, c)
	hostA.logged(t, "keys handed over", b.User)

	if err := hostB.Stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "bob's node seen to be gone", func() bool { return !connected(t, hostA, fileB.PeerID) && !connected(t, hostC, fileB.PeerID) })
	a.do("newRoomKey", args{"room": p.room}, nil)
	p.say(t, a, "from a device that bob knows", c)
	hostC.logged(t, "messages are kept for other servers", "messages=1")
	a2 := sdkClient(t, hostA)
	a2.logIn(fileA, "alice", args{"crypto": true})
	p.say(t, a2, "first contact", c)
	hostC.keeps(t, 2)

	if err := hostA.Stop(); err != nil {
		t.Fatal(err)
	}
	hostB.start(t)
	b.do("retry", nil, nil)
	p.read(t, "from a device that bob knows", b)
	p.read(t, "first contact", b)
	p.say(t, b, "an answer") // while alice's node is still off: what bob knows of her new device has come with her message
	hostA.start(t)
	for _, each := range []*client{a, a2} {
		each.do("retry", nil, nil)
	}
	p.read(t, "an answer", a, a2)
}

// TestNeverMet: alice's node never meets bob's. What she writes is sealed with a key of his that carol's node has, which then carries it.
func TestNeverMet(t *testing.T) {
	t.Parallel()
	l := lan(t, 3)
	hostA, hostB, hostC := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	fileB, fileC := hostB.start(t), hostC.start(t, "--verbose")
	b, c := sdkClient(t, hostB), sdkClient(t, hostC)
	together(t, func() { b.enter(fileB, "bob", true) }, func() { c.enter(fileC, "carol", true) })
	eventually(t, 10*time.Second, "connected", func() bool { return connected(t, hostC, fileB.PeerID) })
	p := &couple{a: c, b: b, room: meet(t, c, b, args{"name": "Sealed", "encrypted": true})}
	p.say(t, c, "all are here", b)
	hostC.logged(t, "keys handed over", b.User)
	if err := hostB.Stop(); err != nil {
		t.Fatal(err)
	}

	fileA := hostA.start(t, "--verbose")
	a := sdkClient(t, hostA)
	a.enter(fileA, "alice", true)
	eventually(t, 10*time.Second, "connected", func() bool { return connected(t, hostA, fileC.PeerID) })
	join(t, p.room, c, a)
	a.do("waitEncrypted", args{"room": p.room}, nil)
	p.say(t, a, "we never met", c)
	hostC.keeps(t, 1)
	if err := hostA.Stop(); err != nil {
		t.Fatal(err)
	}
	hostB.start(t)
	b.do("retry", nil, nil)
	p.read(t, "we never met", b)
}

// keeps waits until the node has taken so many messages for others since its start.
func (h *Host) keeps(t *testing.T, messages int) {
	t.Helper()
	eventually(t, 30*time.Second, "messages kept for others", func() bool {
		raw, err := os.ReadFile(h.logFile())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(raw), "messages are kept for other servers") >= messages
	})
}

// join invites to the room and lets the invited join.
func join(t *testing.T, room string, inviter, guest *client) {
	t.Helper()
	inviter.do("invite", args{"room": room, "user": guest.User}, nil)
	guest.do("waitInvite", args{"room": room}, nil)
	guest.do("join", args{"room": room}, nil)
	guest.do("waitMember", args{"room": room, "user": inviter.User}, nil)
	inviter.do("waitMember", args{"room": room, "user": guest.User}, nil)
}
