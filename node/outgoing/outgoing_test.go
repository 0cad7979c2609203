package outgoing

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRanges(t *testing.T) {
	t.Parallel()
	const public, private, neither = 1, 2, 0
	for ip, want := range map[string]int{
		"8.8.8.8": public, "2606:4700::1111": public,
		"127.0.0.1": private, "10.1.2.3": private, "192.168.1.1": private, "172.16.0.1": private, "::1": private, "fc00::1": private, "::ffff:10.0.0.1": private,
		"169.254.169.254": neither, "100.64.0.1": neither, "0.0.0.0": neither, "224.0.0.1": neither, "255.255.255.255": neither, "::": neither, "fe80::1": neither,
		"64:ff9b::a00:1": neither, "2002:a00:1::": neither, "ff02::1": neither, "::7f00:1": neither, "192.0.2.1": neither,
	} {
		got := neither
		if (Reach{Public: true}).holds(netip.MustParseAddr(ip)) {
			got |= public
		}
		if (Reach{Private: true}).holds(netip.MustParseAddr(ip)) {
			got |= private
		}
		if got != want {
			t.Errorf("%s: %d, want %d", ip, got, want)
		}
		if (Reach{Names: true}).holds(netip.MustParseAddr(ip)) {
			t.Errorf("%s is within a reach of nothing", ip)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	everything := Reach{Public: true, Private: true, Names: true}
	for _, c := range []struct {
		address string
		reach   Reach
		ok      bool
	}{
		{"https://example.org/x", everything, true},
		{"https://example.org/x", Reach{Public: true, Private: true}, false},
		{"http://127.0.0.1:8080/", everything, true},
		{"http://[::1]:8080/", everything, true},
		{"http://127.0.0.1:8080/", Reach{Public: true, Names: true}, false},
		{"http://8.8.8.8/", Reach{Private: true}, false},
		{"http://user@example.org/", everything, false},
		{"ftp://example.org/", everything, false},
		{"https:///x", everything, false},
		{"https://:443/x", everything, false},
		{"example.org", everything, false},
	} {
		u, err := url.Parse(c.address)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.reach.Check(u); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrOutOfReach) {
			t.Errorf("%s of %+v: %v", c.address, c.reach, err)
		}
	}
}

// TestTransport: the address is looked at when it is dialled, whatever name or redirect led to it.
func TestTransport(t *testing.T) {
	t.Parallel()
	called := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { called++ }))
	defer server.Close()
	redirect := httptest.NewServer(http.RedirectHandler(server.URL, http.StatusFound))
	defer redirect.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	get := func(reach Reach, address string) error {
		transport := reach.Transport(10 * time.Second)
		defer transport.CloseIdleConnections()
		res, err := (&http.Client{Transport: transport}).Get(address)
		if err == nil {
			res.Body.Close()
		}
		return err
	}
	for _, address := range []string{server.URL, "http://localhost:" + port, "http://[::ffff:127.0.0.1]:" + port, "http://0.0.0.0:" + port} {
		if err := get(Reach{Public: true, Names: true}, address); !errors.Is(err, ErrOutOfReach) {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := get(Reach{Private: true}, "http://localhost:"+port); !errors.Is(err, ErrOutOfReach) {
		t.Errorf("a name was looked up: %v", err)
	}
	if called != 0 {
		t.Error("a loopback address was called")
	}
	if err := get(Reach{Private: true}, redirect.URL); err != nil || called != 1 {
		t.Errorf("%v after %d calls", err, called)
	}
}
