package push

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/node/outgoing"
	"github.com/plexus-p2p/plexus/store"
)

// TestGatewayIsGuarded: a name that leads to this machine is not called unless that is allowed, however innocent the URL looked; nor is what a
// gateway redirects to.
func TestGatewayIsGuarded(t *testing.T) {
	t.Parallel()
	calls := 0
	mux := http.NewServeMux()
	mux.HandleFunc(Path, func(w http.ResponseWriter, r *http.Request) { calls++; w.Write([]byte(`{}`)) })
	gateway := httptest.NewServer(mux)
	defer gateway.Close()
	redirect := httptest.NewServer(http.RedirectHandler(gateway.URL+Path, http.StatusTemporaryRedirect))
	defer redirect.Close()
	_, port, err := net.SplitHostPort(gateway.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	notify := func(g Gateways, address string) error {
		s := New(Config{Gateways: g, Now: time.Now})
		defer s.client.CloseIdleConnections()
		p := &store.Pusher{URL: address + Path, Data: json.RawMessage(`{}`)}
		return s.notify(t.Context(), p, newNotification(p, nil, 1))
	}
	for _, address := range []string{"https://localhost:" + port, "https://127.0.0.1:" + port, "http://localhost:" + port} {
		for _, g := range []Gateways{{}, {LANOnly: true}} {
			if err := notify(g, address); err == nil {
				t.Errorf("%+v: %s was called", g, address)
			}
		}
	}
	if err := notify(Gateways{}, "https://localhost:"+port); !errors.Is(err, outgoing.ErrOutOfReach) {
		t.Errorf("a name of this machine: %v", err)
	}
	if err := notify(Gateways{Private: true, LANOnly: true}, "http://localhost:"+port); !errors.Is(err, outgoing.ErrOutOfReach) {
		t.Errorf("a name was looked up with LANOnly: %v", err)
	}
	if err := notify(Gateways{Private: true}, redirect.URL); err == nil {
		t.Error("a redirect was taken for an answer")
	}
	if calls != 0 {
		t.Errorf("the gateway was called %d times", calls)
	}
	for i, g := range []Gateways{{Private: true}, {Private: true, LANOnly: true}} {
		if err := notify(g, gateway.URL); err != nil || calls != i+1 {
			t.Errorf("%+v: %v after %d calls", g, err, calls)
		}
	}
}
