package p2ptransport

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// pipes is a listener of streams in memory.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

type named string

func (n named) Network() string { return "test" }
func (n named) String() string  { return string(n) }

type fromPeer struct {
	net.Conn
	peer named
}

func (c fromPeer) RemoteAddr() net.Addr { return c.peer }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return named("here") }

func (p *pipes) open(peer string) net.Conn {
	ours, theirs := net.Pipe()
	p.accept <- fromPeer{theirs, named(peer)}
	return ours
}

// TestFriendOnOldStream: who became a friend after it had opened its stream waits no longer behind strangers, who have all their places.
func TestFriendOnOldStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var friends atomic.Bool
		free := make(chan struct{})
		s := NewServer(t.Context(), Config{Log: slog.New(slog.DiscardHandler),
			Friend: func(p PeerID) bool { return p == "bob" && friends.Load() },
			Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/stay" {
					<-free
				}
			})})
		l := &pipes{accept: make(chan net.Conn), closed: make(chan struct{})}
		var serving sync.WaitGroup
		serving.Go(func() { s.Serve(l) })

		bob := l.open("bob")
		answers := bufio.NewReader(bob)
		ask := func() int {
			t.Helper()
			if _, err := fmt.Fprint(bob, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp.StatusCode
		}
		if got := ask(); got != http.StatusOK {
			t.Fatalf("a stranger's first request: %d", got)
		}
		var strangers []net.Conn
		for n := range maxStrangersServing {
			c := l.open(fmt.Sprint("stranger", n))
			if _, err := fmt.Fprint(c, "GET /stay HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			strangers = append(strangers, c)
		}
		synctest.Wait()
		friends.Store(true)
		if got := ask(); got != http.StatusOK {
			t.Errorf("a friend's request on the stream that it opened as a stranger, beside all strangers: %d", got)
		}
		if s.strangers != len(strangers) {
			t.Errorf("%d streams count as strangers', want %d", s.strangers, len(strangers))
		}
		close(free)
		for _, c := range append(strangers, bob) {
			c.Close()
		}
		l.Close()
		serving.Wait()
		s.Close()
	})
}
