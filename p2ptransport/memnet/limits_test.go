package memnet_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/internal/transporttest"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// The bounds of p2ptransport.Server, in virtual time.

func node(t *testing.T, net *memnet.Network, h http.Handler) *memnet.Node {
	t.Helper()
	n, err := net.Node(p2ptransport.Config{Key: transporttest.Key(t), MDNS: true, Handler: h})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func open(t *testing.T, from, to *memnet.Node, sends string) net.Conn {
	t.Helper()
	s, err := from.OpenStream(t.Context(), to.ID(), p2ptransport.ProtocolFederation)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if _, err := io.WriteString(s, sends); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSlowPeers(t *testing.T) {
	for name, test := range map[string]struct {
		sends string
		after time.Duration
	}{
		"nothing":        {"", 10 * time.Second},
		"half a header":  {"GET / HTTP/1.1\r\nHost:", 10 * time.Second},
		"half a body":    {"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", 2 * time.Minute},
		"no new request": {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := memnet.New()
				server := node(t, network, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
				}))
				begin := time.Now()
				s := open(t, node(t, network, nil), server, test.sends)
				_, _ = io.Copy(io.Discard, s) // until the server closes
				if took := time.Since(begin); took < test.after || took > test.after+time.Second {
					t.Errorf("closed after %v, want %v", took, test.after)
				}
			})
		})
	}
}

func TestStalledReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		failed := make(chan time.Duration, 1)
		server := node(t, network, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begin := time.Now()
			for chunk := make([]byte, 1<<20); ; {
				if _, err := w.Write(chunk); err != nil {
					failed <- time.Since(begin)
					return
				}
			}
		}))
		open(t, node(t, network, nil), server, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // and does not read
		if took := <-failed; took != 30*time.Second {
			t.Errorf("the response was given up after %v", took)
		}
	})
}

// TestSlowLink: a response that takes long, but moves, is not cut.
func TestSlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		server := node(t, network, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for range 20 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil || r.Context().Err() != nil {
					t.Error(err, r.Context().Err())
					return
				}
				time.Sleep(20 * time.Second)
			}
		}))
		client := node(t, network, nil)
		r, _ := http.NewRequest(http.MethodGet, "http://x/", nil)
		resp, err := client.Do(t.Context(), server.ID(), r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 20*64<<10 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

func TestStreamsFromOnePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		server := node(t, network, http.NotFoundHandler())
		greedy, other := node(t, network, nil), node(t, network, nil)
		var streams []net.Conn
		for range 32 {
			streams = append(streams, open(t, greedy, server, "GET"))
		}
		synctest.Wait()
		begin := time.Now()
		extra, err := greedy.OpenStream(t.Context(), server.ID(), p2ptransport.ProtocolFederation)
		if err == nil {
			_, err = extra.Read(make([]byte, 1))
		}
		if err == nil || time.Since(begin) != 0 {
			t.Errorf("stream above the bound: %v after %v", err, time.Since(begin))
		}
		const request = " / HTTP/1.1\r\nHost: x\r\n\r\n"
		for _, s := range []net.Conn{open(t, other, server, "GET"), streams[0]} {
			if _, err := io.WriteString(s, request); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(s).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 404") {
				t.Errorf("%q, %v", line, err)
			}
		}
		_ = streams[0].Close()
		synctest.Wait()
		if line, _ := bufio.NewReader(open(t, greedy, server, "GET"+request)).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 404") {
			t.Errorf("after a stream was closed: %q", line)
		}
	})
}

func TestServingBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		release := make(chan struct{})
		server := node(t, network, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release }))
		var mu sync.Mutex
		answers := make(map[int]int)
		var wg sync.WaitGroup
		begin := time.Now()
		for range 6 {
			client := node(t, network, nil)
			for range 24 {
				wg.Go(func() {
					r, _ := http.NewRequest(http.MethodGet, "http://x/", nil)
					resp, err := client.Do(t.Context(), server.ID(), r)
					if err != nil {
						t.Error(err)
						return
					}
					_ = resp.Body.Close()
					mu.Lock()
					defer mu.Unlock()
					answers[resp.StatusCode]++
					if resp.StatusCode == http.StatusServiceUnavailable &&
						(resp.Header.Get("Retry-After") == "" || time.Since(begin) != 10*time.Second) {
						t.Errorf("%v after %v", resp.Header, time.Since(begin))
					}
				})
			}
		}
		time.Sleep(11 * time.Second)
		close(release)
		wg.Wait()
		if answers[http.StatusOK] != 128 || answers[http.StatusServiceUnavailable] != 16 {
			t.Errorf("answers: %v", answers)
		}
	})
}

func TestLargeHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		server := node(t, network, http.NotFoundHandler())
		s := open(t, node(t, network, nil), server, "GET /"+strings.Repeat("x", 40<<10)+" HTTP/1.1\r\n\r\n")
		if line, err := bufio.NewReader(s).ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 431") {
			t.Errorf("%q, %v", line, err)
		}
	})
}

// TestStrangersLeaveRoom: whoever makes any number of identities takes what strangers have together, and no more.
func TestStrangersLeaveRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := memnet.New()
		friend := node(t, network, nil)
		served := make(chan struct{})
		server, err := network.Node(p2ptransport.Config{
			Key: transporttest.Key(t), MDNS: true,
			Friend: func(p p2ptransport.PeerID) bool { return p == friend.ID() },
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if p, _ := p2ptransport.PeerFrom(r.Context()); p != friend.ID() {
					select {
					case <-served:
					case <-r.Context().Done():
					}
				}
			}),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Close() })
		for range 20 { // with 32 streams each, of 512
			stranger := node(t, network, nil)
			for range 32 {
				s, err := stranger.OpenStream(t.Context(), server.ID(), p2ptransport.ProtocolFederation)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Close() })
				_, _ = io.WriteString(s, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // those above the bound are reset
			}
		}
		synctest.Wait()
		r, _ := http.NewRequest(http.MethodGet, "http://x/", nil)
		begin := time.Now()
		resp, err := friend.Do(t.Context(), server.ID(), r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || time.Since(begin) > time.Second {
			t.Errorf("a friend got %d after %v", resp.StatusCode, time.Since(begin))
		}
		close(served)
	})
}
