package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/textproto"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBridge runs the real bridge between a real plexus and a real IRC server, on loopback.
func TestBridge(t *testing.T) {
	if os.Getenv("PLEXUS_HOST_TESTS") == "" {
		t.Skip("runs an IRC server and real binaries; PLEXUS_HOST_TESTS=1 asks for it")
	}
	ngircd, err := exec.LookPath("/usr/sbin/ngircd")
	if err != nil {
		t.Fatal("needs ngircd; scripts/test installs it")
	}
	dir := t.TempDir()
	build(t, dir, "plexus", "../../cmd/plexus")
	build(t, dir, "irc-bridge", ".")
	ircAddr, calls, client := freeAddr(t), freeAddr(t), freeAddr(t)
	_, ircPort, _ := net.SplitHostPort(ircAddr)
	config := filepath.Join(dir, "ngircd.conf")
	// The names end with dots: DNS and identd are not asked.
	if err := os.WriteFile(config, []byte("[Global]\nName = irc.example.org\nInfo = test\nListen = 127.0.0.1\nPorts = "+ircPort+
		"\nMotdPhrase = hello\n[Limits]\nMaxConnectionsIP = 0\nMaxNickLength = 20\nMaxPenaltyTime = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\nSyslogFacility = user\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, dir, "ngircd", ngircd, "-n", "-f", config)
	registration := filepath.Join(dir, "registration.yaml")
	if out, err := exec.Command(filepath.Join(dir, "irc-bridge"), "-generate", registration, "-listen", calls).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	server := []string{filepath.Join(dir, "plexus"), "--data", filepath.Join(dir, "data"), "--client-addr", client, "--p2p-addr", "/ip4/127.0.0.1/udp/0/quic-v1",
		"--mdns=false", "--registration", "open", "--appservice", registration}
	// The bridge comes first: it waits for the homeserver, and for the IRC server.
	bridge := []string{filepath.Join(dir, "irc-bridge"), "-registration", registration, "-listen", calls, "-homeserver", "http://" + client, "-irc", ircAddr,
		"-channel", "#plexus", "-channel", "#Two[x]"}
	stopBridge := start(t, dir, "bridge", bridge...)
	start(t, dir, "plexus", server...)

	bob := dialIRC(t, ircAddr, "Bob")
	bob.send("JOIN #plexus")
	bob.expect(" JOIN ", "matrix") // the bridge comes, before or after: see the names

	alice := register(t, "http://"+client, "alice")
	room := alice.joinAlias(t, "#irc_plexus:"+alice.server)
	bob.expect("PRIVMSG #plexus :* alice has joined on Matrix")
	alice.say(t, room, "m.text", "Hello \x02IRC\nin two lines")
	bob.expect("PRIVMSG #plexus :<alice> Hello IRC")
	bob.expect("PRIVMSG #plexus :<alice> in two lines")
	alice.say(t, room, "m.emote", "waves")
	bob.expect("PRIVMSG #plexus :\x01ACTION * alice waves\x01")
	alice.say(t, room, "m.text", strings.Repeat("long words ", 100)+"end")
	bob.expect("PRIVMSG #plexus :<alice> ", "end")
	alice.send(t, room, map[string]string{"msgtype": "m.image", "body": "cat.png", "url": "mxc://" + alice.server + "/abc"})
	bob.expect("PRIVMSG #plexus :<alice> sent cat.png (http://"+client+"/_matrix/media/v3/download/", "/abc)")

	ghost := "@irc_bob:" + alice.server
	bob.send("PRIVMSG #plexus :hello \x0304Matrix")
	alice.expect(t, room, ghost, "m.room.message", `"body":"hello Matrix"`)
	bob.send("PRIVMSG #plexus :\x01ACTION waves back\x01")
	alice.expect(t, room, ghost, "m.room.message", `"msgtype":"m.emote"`, `"body":"waves back"`)
	bob.send("NOTICE #plexus :take note")
	alice.expect(t, room, ghost, "m.room.message", `"msgtype":"m.notice"`, `"body":"take note"`)
	bob.send("NICK Robert")
	alice.expect(t, room, "@irc_robert:"+alice.server, "m.room.member", `"membership":"join"`)
	alice.expect(t, room, ghost, "m.room.member", `"membership":"leave"`)
	bob.send("PART #plexus :bye")
	alice.expect(t, room, "@irc_robert:"+alice.server, "m.room.member", `"membership":"leave"`)

	// The other channel, whose name a Matrix ID cannot have.
	two := alice.joinAlias(t, "#irc_two=5bx=5d:"+alice.server)
	bob.send("JOIN #Two[x]")
	bob.send("PRIVMSG #two[X] :second")
	alice.expect(t, two, "@irc_robert:"+alice.server, "m.room.message", `"body":"second"`)

	// What is said while the bridge is away waits, and comes once.
	stopBridge()
	alice.say(t, two, "m.text", "while it is away")
	start(t, dir, "bridge", bridge...)
	bob.expect("<alice> while it is away")
	alice.say(t, two, "m.text", "after that")
	if lines := bob.expect("<alice> after that"); strings.Contains(lines, "while it is away") || strings.Contains(lines, "second") {
		t.Errorf("something came twice: %s", lines)
	}
	bob.send("QUIT :gone")
	alice.expect(t, two, "@irc_robert:"+alice.server, "m.room.member", `"membership":"leave"`)
}

func build(t *testing.T, dir, name, of string) {
	t.Helper()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, name), of).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
}

// freeAddr is an address on which nobody listens now.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs a program until the test ends, or stop is called.
func start(t *testing.T, dir, name string, args ...string) (stop func()) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-done
			t.Errorf("%s did not end", name)
		}
		log.Close()
	}
	t.Cleanup(func() {
		stop()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s:\n%s", name, text)
		}
	})
	return stop
}

const patience = 30 * time.Second

// ircUser is a person on IRC.
type ircUser struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dialIRC(t *testing.T, addr, nick string) *ircUser {
	t.Helper()
	var conn net.Conn
	until(t, "the IRC server listens", func() (ok bool) {
		var err error
		conn, err = net.Dial("tcp", addr)
		return err == nil
	})
	t.Cleanup(func() { conn.Close() })
	u := &ircUser{t, conn, bufio.NewReader(conn)}
	u.send("NICK " + nick)
	u.send("USER " + nick + " 0 * :" + nick)
	u.expect(" 001 ")
	return u
}

func (u *ircUser) send(line string) {
	u.t.Helper()
	if _, err := fmt.Fprintf(u.conn, "%s\r\n", line); err != nil {
		u.t.Fatal(err)
	}
}

// expect reads until a line holds all of the parts, and returns what it read.
func (u *ircUser) expect(parts ...string) (read string) {
	u.t.Helper()
	u.conn.SetReadDeadline(time.Now().Add(patience))
	in := textproto.NewReader(u.in)
next:
	for {
		line, err := in.ReadLine()
		if err != nil {
			u.t.Fatalf("waiting for %q: %v; came: %s", parts, err, read)
		}
		if len(line) > maxLine-2 {
			u.t.Errorf("a line of %d bytes: %s", len(line), line)
		}
		read += line + "\n"
		if server, is := strings.CutPrefix(line, "PING "); is {
			u.send("PONG " + server)
		}
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		return read
	}
}

// until asks until it is so: other processes have no event to wait for here.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !is() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not in time: %s", what)
		}
	}
}

// matrixUser is a person on Matrix, with the bridge's own client.
type matrixUser struct {
	*matrix
	server string
}

func register(t *testing.T, base, name string) *matrixUser {
	t.Helper()
	u := &matrixUser{matrix: newMatrix(base, "")}
	var made struct {
		User  string `json:"user_id"`
		Token string `json:"access_token"`
	}
	until(t, "an account is made", func() bool {
		err := u.call(context.Background(), "", "POST", "/v3/register", map[string]any{
			"username": name, "password": "a long password", "auth": map[string]string{"type": "m.login.dummy"},
		}, &made)
		return err == nil
	})
	u.token, u.server = made.Token, serverOf(made.User)
	return u
}

func (u *matrixUser) joinAlias(t *testing.T, alias string) (room string) {
	t.Helper()
	var joined struct {
		Room string `json:"room_id"`
	}
	until(t, "join "+alias, func() bool {
		return u.call(t.Context(), "", "POST", "/v3/join/"+url.PathEscape(alias), struct{}{}, &joined) == nil
	})
	return joined.Room
}

func (u *matrixUser) say(t *testing.T, room, kind, body string) {
	t.Helper()
	u.send(t, room, map[string]string{"msgtype": kind, "body": body})
}

func (u *matrixUser) send(t *testing.T, room string, content map[string]string) {
	t.Helper()
	if err := u.call(t.Context(), "", "PUT", "/v3/rooms/"+url.PathEscape(room)+"/send/m.room.message/"+fmt.Sprint(time.Now().UnixNano()), content, nil); err != nil {
		t.Fatal(err)
	}
}

// expect waits for an event of somebody in the room whose JSON holds all of the parts.
func (u *matrixUser) expect(t *testing.T, room, sender, kind string, parts ...string) {
	t.Helper()
	until(t, fmt.Sprintf("%s of %s with %q", kind, sender, parts), func() bool {
		var page struct {
			Chunk []json.RawMessage `json:"chunk"`
		}
		if err := u.call(t.Context(), "", "GET", "/v3/rooms/"+url.PathEscape(room)+"/messages?dir=b&limit=50", nil, &page); err != nil {
			t.Fatal(err)
		}
	next:
		for _, raw := range page.Chunk {
			var e event
			if json.Unmarshal(raw, &e) != nil || e.Sender != sender || e.Type != kind {
				continue
			}
			for _, p := range parts {
				if !strings.Contains(string(raw), p) {
					continue next
				}
			}
			return true
		}
		return false
	})
}
