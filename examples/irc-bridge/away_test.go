package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// ircServer is the IRC server's side of the bridge's connections.
type ircServer struct {
	t    *testing.T
	l    net.Listener
	conn net.Conn
	in   *bufio.Reader
}

func (s *ircServer) accept() {
	s.t.Helper()
	conn, err := s.l.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	s.conn, s.in = conn, bufio.NewReader(conn)
	conn.SetDeadline(time.Now().Add(patience))
	s.expect("USER ")
	s.tell(":irc.example.org 001 matrix :welcome")
}

func (s *ircServer) expect(start string) {
	s.t.Helper()
	for {
		got, err := s.in.ReadString('\n')
		if err != nil {
			s.t.Fatalf("waiting for %q: %v", start, err)
		}
		if strings.HasPrefix(got, start) {
			return
		}
	}
}

func (s *ircServer) tell(lines ...string) {
	s.t.Helper()
	for _, text := range lines {
		if _, err := fmt.Fprintf(s.conn, "%s\r\n", text); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestBridgeAway: a connection that breaks is made again; a kick is followed by another join; and a channel that keeps us out is no obstacle to others.
func TestBridgeAway(t *testing.T) {
	t.Parallel()
	homeserver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := strings.TrimPrefix(r.URL.Path, "/_matrix/client/v3"); {
		case path == "/account/whoami":
			io.WriteString(w, `{"user_id":"@ircbridge:example.org"}`)
		case strings.HasPrefix(path, "/directory/room/#irc_one:"):
			io.WriteString(w, `{"room_id":"!one"}`)
		case strings.HasPrefix(path, "/directory/room/#irc_two:"):
			io.WriteString(w, `{"room_id":"!two"}`)
		default:
			io.WriteString(w, `{}`)
		}
	}))
	t.Cleanup(homeserver.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b := newBridge(newMatrix(homeserver.URL, "as"), l.Addr().String(), "matrix", []string{"#one", "#two"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.work(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != context.Canceled {
			t.Errorf("the bridge ended: %v", err)
		}
	})
	calls := b.calls("hs")
	txn := 0
	say := func(room, body string) int {
		txn++
		r := httptest.NewRequestWithContext(t.Context(), "PUT", fmt.Sprint("/_matrix/app/v1/transactions/", txn), strings.NewReader(fmt.Sprintf(
			`{"events":[{"type":"m.room.message","room_id":%q,"sender":"@alice:example.org","origin_server_ts":%d,"content":{"msgtype":"m.text","body":%q}}]}`,
			room, time.Now().UnixMilli(), body)))
		r.Header.Set("Authorization", "Bearer hs")
		w := httptest.NewRecorder()
		calls.ServeHTTP(w, r)
		return w.Code
	}

	s := &ircServer{t: t, l: l}
	s.accept()
	s.expect("JOIN #one")
	s.tell(":irc.example.org 366 matrix #one :end")
	s.expect("JOIN #two")
	s.tell("PING :x") // its answer shows that what came before is read
	s.expect("PONG :x")
	if code := say("!one", "too early"); code != http.StatusServiceUnavailable {
		t.Errorf("before all channels have answered: %d", code)
	}
	s.tell(":irc.example.org 474 matrix #two :banned", "PING :y")
	s.expect("PONG :y")
	if code := say("!two", "to where we are banned") + say("!one", "hello"); code != 400 {
		t.Errorf("with one channel shut: %d", code)
	}
	s.expect("PRIVMSG #one :<alice> hello")

	s.tell(":op!o@h KICK #one matrix :out")
	s.expect("JOIN #one")
	if code := say("!one", "while kicked"); code != http.StatusServiceUnavailable {
		t.Errorf("while it is kicked: %d", code)
	}
	s.tell(":irc.example.org 366 matrix #one :end", ":irc.example.org PONG irc.example.org :bridge")
	s.expect("JOIN #two") // it tries again where it was not let in

	s.tell("ERROR :closing")
	s.conn.Close()
	s.accept() // after retryFirst
	if code := say("!one", "while away"); code != http.StatusServiceUnavailable {
		t.Errorf("before the channels are joined again: %d", code)
	}
	s.tell(":irc.example.org 366 matrix #one :end", ":irc.example.org 366 matrix #two :end", "PING :z")
	s.expect("PONG :z")
	if code := say("!two", "again"); code != http.StatusOK {
		t.Errorf("after it came back: %d", code)
	}
	s.expect("PRIVMSG #two :<alice> again")

	// A line without end ends the connection, not the memory.
	go io.WriteString(s.conn, strings.Repeat("x", 10*maxRead))
	s.accept()
}
