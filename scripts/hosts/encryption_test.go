package hosts

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/node"
)

// These are conversations of matrix-js-sdk clients with Rust crypto over two nodes: what a person does about encryption in Element.

// couple is alice on one node and bob on another, in an encrypted room.
type couple struct {
	hostA, hostB *Host
	fileA, fileB *node.NodeFile
	a, b         *client
	room         string
}

func newCouple(t *testing.T) *couple {
	t.Helper()
	p := newStrangers(t)
	p.room = meet(t, p.a, p.b, args{"name": "Sealed", "encrypted": true})
	p.a.do("waitEncrypted", args{"room": p.room}, nil)
	p.b.do("waitEncrypted", args{"room": p.room}, nil)
	return p
}

// newStrangers is a couple without a room.
func newStrangers(t *testing.T) *couple {
	t.Helper()
	l := lan(t, 2)
	p := &couple{hostA: l.Hosts[0], hostB: l.Hosts[1]}
	p.fileA, p.fileB = p.hostA.start(t), p.hostB.start(t)
	p.a, p.b = sdkClient(t, p.hostA), sdkClient(t, p.hostB)
	p.a.enter(p.fileA, "alice", true)
	p.b.enter(p.fileB, "bob", true)
	eventually(t, 10*time.Second, "the nodes connected", func() bool { return connected(t, p.hostA, p.fileB.PeerID) })
	return p
}

// say sends one message and waits until each of the others has decrypted it.
func (p *couple) say(t *testing.T, from *client, body string, others ...*client) {
	t.Helper()
	from.do("send", args{"room": p.room, "body": body}, nil)
	p.read(t, body, others...)
}

// read waits until each of the clients has decrypted the message.
func (p *couple) read(t *testing.T, body string, readers ...*client) {
	t.Helper()
	for _, c := range readers {
		if got := c.waitMessages(p.room, body, 1)[0]; !got.Encrypted || got.Body != body {
			t.Errorf("%s has %+v, want %q, encrypted", c.name, got, body)
		}
	}
}

// identity makes the user's cross-signing keys, for which a first upload asks for no password.
func identity(t *testing.T, c *client) {
	t.Helper()
	var made struct{ Prompts []any }
	c.do("bootstrapCrossSigning", nil, &made)
	if len(made.Prompts) != 0 {
		t.Errorf("%s: the first cross-signing keys asked for %v", c.name, made.Prompts)
	}
}

// secureBackup makes secret storage and a key backup, and returns the recovery key.
func secureBackup(t *testing.T, c *client) string {
	t.Helper()
	var made struct{ Key string }
	c.do("secureBackup", nil, &made)
	return made.Key
}

// verify lets one ask and the other accept, and both find the same emoji.
func verify(t *testing.T, asks *client, op string, how args, accepts *client) {
	t.Helper()
	type sas struct{ Emoji, Decimal string }
	var shown, other sas
	together(t,
		func() { asks.do(op, how, &shown) },
		func() { accepts.do("acceptVerification", args{"user": asks.User}, &other) })
	if shown != other || shown.Emoji == "" {
		t.Fatalf("one shows %v and the other %v", shown, other)
	}
	together(t, func() { asks.do("confirmSas", nil, nil) }, func() { accepts.do("confirmSas", nil, nil) })
}

// together runs what two clients do at the same time.
func together(t *testing.T, acts ...func()) {
	t.Helper()
	var wait sync.WaitGroup
	for _, act := range acts {
		wait.Go(act)
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// TestEncryption is one story: identities, verification of each other, a second device that is verified and gets the secrets, another
// login when all devices are gone, and an identity that is replaced.
func TestEncryption(t *testing.T) {
	t.Parallel()
	p := newCouple(t)
	a, b := p.a, p.b
	identity(t, a)
	identity(t, b)
	recovery := secureBackup(t, a)
	p.say(t, a, "sealed-a", b)
	p.say(t, b, "sealed-b", a)

	verify(t, a, "verifyUser", args{"user": b.User, "room": p.room}, b)
	trusted := args{"owner": true, "trusted": true}
	a.do("waitTrust", args{"user": b.User, "want": args{"verified": true, "devices": args{b.Device: trusted}}}, nil)
	b.do("waitTrust", args{"user": a.User, "want": args{"verified": true, "devices": args{a.Device: trusted}}}, nil)

	// A second device of alice's: bob's next message is for it too, though nobody vouches for it yet.
	a2 := sdkClient(t, p.hostA)
	a2.logIn(p.fileA, "alice", args{"crypto": true, "sliding": true})
	b.do("waitTrust", args{"user": a.User, "want": args{"devices": args{a2.Device: args{"owner": false, "trusted": false}}}}, nil)
	p.say(t, b, "for two devices", a, a2)

	// The first device verifies it: now bob trusts it, and it gets the secrets, and with the backup's key what was said before.
	a.do("waitBackedUp", args{"sessions": 2}, nil)
	a2.do("waitUnreadable", args{"room": p.room, "count": 2}, nil)
	verify(t, a, "verifyDevice", args{"device": a2.Device}, a2)
	b.do("waitTrust", args{"user": a.User, "want": args{"devices": args{a2.Device: trusted}}}, nil)
	a2.do("waitSecrets", nil, nil)
	p.read(t, "sealed-a", a2)
	p.read(t, "sealed-b", a2)
	p.say(t, a2, "by the second", a, b)
	a2.do("waitBackedUp", args{"sessions": 3}, nil)

	// Both are gone. A new login has the recovery key and nothing else.
	a.do("logout", nil, nil)
	b.do("waitTrust", args{"user": a.User, "want": args{"devices": args{a.Device: nil, a2.Device: trusted}}}, nil)
	a3 := sdkClient(t, p.hostA)
	a3.logIn(p.fileA, "alice", args{"crypto": true, "sliding": true})
	var removed struct{ Prompts []any }
	a3.do("removeDevice", args{"device": a2.Device, "password": passwordOf("alice")}, &removed)
	if len(removed.Prompts) != 1 {
		t.Errorf("a device was removed, and the password asked for %d times", len(removed.Prompts))
	}
	a3.do("unlock", args{"key": recovery}, nil)
	b.do("waitTrust", args{"user": a.User, "want": args{"verified": true, "devices": args{a2.Device: nil, a3.Device: trusted}}}, nil)
	a3.do("waitUnreadable", args{"room": p.room, "count": 4}, nil)
	var restored struct {
		Imported, Total int
		Trusted         bool
	}
	a3.do("restore", nil, &restored)
	if restored.Imported != restored.Total || restored.Total < 3 || !restored.Trusted {
		t.Errorf("restored %+v, want at least the three sessions of the room, from a trusted backup", restored)
	}
	for _, body := range []string{"sealed-a", "sealed-b", "for two devices", "by the second"} {
		p.read(t, body, a3)
	}
	p.say(t, b, "for the third", a3)

	// Another identity, which the password is asked for: bob sees that it is not the one he verified.
	var reset struct{ Prompts []any }
	a3.do("bootstrapCrossSigning", args{"reset": true, "password": passwordOf("alice")}, &reset)
	if len(reset.Prompts) != 1 {
		t.Errorf("the identity was replaced, and the password asked for %d times", len(reset.Prompts))
	}
	b.do("waitTrust", args{"user": a.User, "want": args{"verified": false, "was": true, "devices": args{a3.Device: args{"trusted": false}}}}, nil)
}

// TestEncryptedWhileAway: a message is sent while the other's node does not run, to a device that the sender knows, the sender's node is
// killed, and a device is made. When the node is back, the message is read, and the answer is for the new device too.
func TestEncryptedWhileAway(t *testing.T) {
	t.Parallel()
	p := newCouple(t)
	p.say(t, p.a, "before", p.b)
	p.say(t, p.b, "and before", p.a)
	if err := p.hostB.Stop(); err != nil {
		t.Fatal(err)
	}
	p.a.do("newRoomKey", args{"room": p.room}, nil) // which is sent to bob's device
	p.a.do("send", args{"room": p.room, "body": "while away"}, nil)
	if err := p.hostA.Kill(); err != nil { // what was acknowledged is on its disk
		t.Fatal(err)
	}
	p.hostA.start(t)
	p.a.do("retry", nil, nil)
	a2 := sdkClient(t, p.hostA)
	a2.logIn(p.fileA, "alice", args{"crypto": true})
	if file := p.hostB.start(t); file.ClientURL != p.fileB.ClientURL {
		t.Fatalf("bob's client has %s, and his node is now at %s", p.fileB.ClientURL, file.ClientURL)
	}
	p.b.do("retry", nil, nil)
	p.read(t, "while away", p.b)
	p.b.do("waitTrust", args{"user": p.a.User, "want": args{"devices": args{a2.Device: args{"owner": false}}}}, nil)
	p.say(t, p.b, "for the new device", p.a, a2)
}

// TestSharedHistory: who invites gives the keys of what was said before, as a file that the invited fetches from the other node
// (MSC4268; matrix-js-sdk does it by itself).
func TestSharedHistory(t *testing.T) {
	t.Parallel()
	p := newStrangers(t)
	identity(t, p.a)
	identity(t, p.b)
	var made struct{ Room string }
	p.a.do("createRoom", args{"name": "Sealed", "encrypted": true}, &made)
	p.room = made.Room
	p.a.do("waitEncrypted", args{"room": p.room}, nil)
	p.say(t, p.a, "before the invite", p.a)
	p.a.do("invite", args{"room": p.room, "user": p.b.User}, nil)
	p.b.do("waitInvite", args{"room": p.room}, nil)
	p.b.do("join", args{"room": p.room}, nil)
	p.b.do("history", args{"room": p.room}, nil) // pages back, as the room's timeline begins with the join
	p.read(t, "before the invite", p.b)
	p.say(t, p.b, "after the join", p.a)
}

// TestDehydratedDevice: a message comes while the user has no device that is logged in, and the next one reads it.
func TestDehydratedDevice(t *testing.T) {
	t.Parallel()
	p := newCouple(t)
	identity(t, p.a)
	identity(t, p.b)
	recovery := secureBackup(t, p.a)
	p.a.do("dehydrate", nil, nil)
	p.a.do("logout", nil, nil)
	p.b.do("waitTrust", args{"user": p.a.User, "want": args{"devices": args{p.a.Device: nil}}}, nil)
	const count = 3
	for i := range count {
		p.b.do("newRoomKey", args{"room": p.room}, nil) // each message has a key of its own, sent to the dehydrated device
		p.b.do("send", args{"room": p.room, "body": fmt.Sprintf("nobody-there %d", i)}, nil)
	}

	again := sdkClient(t, p.hostA)
	again.logIn(p.fileA, "alice", args{"crypto": true})
	again.do("unlock", args{"key": recovery}, nil)
	again.do("waitUnreadable", args{"room": p.room, "count": count}, nil)
	var rehydrated struct {
		RoomKeys, Messages int
		Completed          bool
	}
	again.do("dehydrate", nil, &rehydrated)
	if !rehydrated.Completed || rehydrated.RoomKeys != count {
		t.Errorf("rehydrated %+v, want %d room keys", rehydrated, count)
	}
	again.waitMessages(p.room, "nobody-there", count)
}
