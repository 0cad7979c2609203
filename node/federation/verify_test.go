package federation

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

func TestParseAuthorization(t *testing.T) {
	t.Parallel()
	want := authorization{origin: "a.org", destination: "b.org", key: "ed25519:1", sig: "AB/c+D"}
	for _, header := range []string{
		`X-Matrix origin="a.org",destination="b.org",key="ed25519:1",sig="AB/c+D"`,
		`x-matrix  origin=a.org,destination=b.org,key=ed25519:1,sig="AB/c+D"`,
		"X-Matrix sig=\"AB/c+D\" \t, KEY=\"ed25519:1\",Origin=a.org , destination=\"b\\.org\",extra=1",
	} {
		if got, err := parseAuthorization(header); err != nil || got != want {
			t.Errorf("%s: %+v, %v", header, got, err)
		}
	}
	for _, header := range []string{
		"", "X-Matrix", "Bearer abc", "X-Matrix ", `X-Matrix origin="a.org"`, `X-Matrix origin="a.org,key="k",sig="s"`,
		`X-Matrix origin="a.org" key="k",sig="s"`, `X-Matrix origin=a,origin=b,key=k,sig=s`, `X-Matrix origin="a\`, `X-Matrix origin`,
	} {
		if got, err := parseAuthorization(header); err == nil {
			t.Errorf("%q is taken for %+v", header, got)
		}
	}
}

func FuzzParseAuthorization(f *testing.F) {
	f.Add(`X-Matrix origin="a.org",destination="b.org",key="ed25519:1",sig="AB/c+D"`)
	f.Add(`X-Matrix origin=a,key=b,sig=c,x="\\\""`)
	f.Fuzz(func(t *testing.T, header string) {
		a, err := parseAuthorization(header)
		if err != nil {
			return
		}
		quote := func(s string) string {
			return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
		}
		again, err := parseAuthorization("X-Matrix origin=" + quote(string(a.origin)) + ",destination=" + quote(string(a.destination)) +
			",key=" + quote(string(a.key)) + ",sig=" + quote(a.sig))
		if err != nil || again != a {
			t.Fatalf("%q: %+v, then %+v, %v", header, a, again, err)
		}
	})
}

// raw sends a request as it is from one host to another, with any header.
func (h *host) raw(to *host, method, target, authorization, body string) (int, string) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, "http://x"+target, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := h.end.Do(h.t.Context(), to.end.id, req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	var e struct {
		Code string `json:"errcode"`
	}
	if err := json.Unmarshal(answer, &e); err != nil {
		h.t.Fatalf("%s %s answers %q, which is not JSON", method, target, answer)
	}
	return res.StatusCode, e.Code
}

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	const post = v1 + "user/keys/query"
	const body = `{"device_keys":{},"n":"<ä>"}`
	profile := target(v1+"query/profile", nil, map[string][]string{"user_id": {string(b.user("bob"))}})
	sign := func(from *Federation, dest eventgraph.ServerName, method, target, body string) string {
		t.Helper()
		var content []byte
		if body != "" {
			content = []byte(body)
		}
		header, err := from.authorize(dest, method, target, content)
		if err != nil {
			t.Fatal(err)
		}
		return header
	}
	good := sign(a.Federation, b.server, "POST", post, body)
	_, _, _, otherKey := newKeys("somebody else")
	forged := New(a.Federation.Config)
	forged.Key.Private = otherKey.Private
	for _, row := range []struct {
		name, method, target, authorization, body string
		status                                    int
		code                                      string
	}{
		{"right", "POST", post, good, body, 200, ""},
		{"right, spaced body", "POST", post, good, "  " + strings.ReplaceAll(body, ":", ": ") + "\n", 200, ""},
		{"right, without destination", "POST", post, strings.Replace(good, `destination="`+string(b.server)+`",`, "", 1), body, 200, ""},
		{"right, GET with a query", "GET", profile, sign(a.Federation, b.server, "GET", profile, ""), "", 200, ""},
		{"no header", "POST", post, "", body, 401, "M_UNAUTHORIZED"},
		{"another scheme", "POST", post, "Bearer x", body, 401, "M_UNAUTHORIZED"},
		{"another destination", "POST", post, sign(a.Federation, c.server, "POST", post, body), body, 401, "M_UNAUTHORIZED"},
		{"signed for another destination", "POST", post,
			strings.Replace(sign(a.Federation, c.server, "POST", post, body), string(c.server), string(b.server), 1), body, 401, "M_UNAUTHORIZED"},
		{"another's origin", "POST", post, sign(c.Federation, b.server, "POST", post, body), body, 401, "M_UNAUTHORIZED"},
		{"own origin", "POST", post, sign(b.Federation, b.server, "POST", post, body), body, 401, "M_UNAUTHORIZED"},
		{"no server name as origin", "POST", post, strings.Replace(good, string(a.server), "example.org", 1), body, 401, "M_UNAUTHORIZED"},
		{"wrong key", "POST", post, sign(forged, b.server, "POST", post, body), body, 401, "M_UNAUTHORIZED"},
		{"unknown key", "POST", post, strings.Replace(good, `key="ed25519:`, `key="ed25519:x`, 1), body, 401, "M_UNAUTHORIZED"},
		{"another body", "POST", post, good, `{"device_keys":{},"n":"<b>"}`, 401, "M_UNAUTHORIZED"},
		{"no body", "POST", post, good, "", 401, "M_UNAUTHORIZED"},
		{"another method", "PUT", post, good, body, 405, "M_UNRECOGNIZED"},
		{"another query", "POST", post + "?x=1", good, body, 401, "M_UNAUTHORIZED"},
		{"another spelling of the path", "POST", strings.Replace(post, "user", "%75ser", 1), good, body, 404, "M_UNRECOGNIZED"},
		{"unknown path", "POST", v1 + "nothing", good, body, 404, "M_UNRECOGNIZED"},
		{"not JSON", "POST", post, good, `{"device_keys":`, 400, "M_NOT_JSON"},
	} {
		status, code := a.raw(b, row.method, row.target, row.authorization, row.body)
		if status != row.status || code != row.code {
			t.Errorf("%s: %d %s, want %d %s", row.name, status, code, row.status, row.code)
		}
	}
}

// TestPeerMustSpeakForOrigin: a request with a right signature counts only over a connection of the server's own peer.
func TestPeerMustSpeakForOrigin(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "thief")
	a, b, thief := hosts[0], hosts[1], hosts[2]
	header, err := a.authorize(b.server, "GET", v1+"publicRooms", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := a.raw(b, "GET", v1+"publicRooms", header, ""); status != 200 {
		t.Fatalf("over its own peer: %d", status)
	}
	if status, code := thief.raw(b, "GET", v1+"publicRooms", header, ""); status != 401 || code != "M_UNAUTHORIZED" {
		t.Fatalf("over another's peer: %d %s", status, code)
	}
}

// TestPlainPeer: a server whose identity is its peer's key needs no certificate.
func TestPlainPeer(t *testing.T) {
	t.Parallel()
	w := newWire()
	b := newHost(t, w, "b")
	key := testKey("plain")
	peer := newPeerID(key)
	server := eventgraph.NewServerName(public(key))
	signing := eventgraph.SigningKey{Server: server, ID: peer.KeyID(), Private: key}
	document, err := eventgraph.SignKeyDocument(server, []eventgraph.SigningKey{signing}, nil, nil, time.Now().Add(time.Hour).UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	at := w.attach(peer)
	at.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "/_matrix/key/v2/server" {
			http.NotFound(w, r)
			return
		}
		w.Write(document.Raw)
	})
	plain := New(Config{Store: b.Store, Rooms: b.Rooms, Transport: at, Key: signing, KeyDocument: func() *eventgraph.KeyDocument { return document }, Now: time.Now})
	var answer map[string]json.RawMessage
	if err := plain.do(t.Context(), b.server, "GET", v1+"publicRooms", nil, &answer); err == nil {
		t.Fatal("reached by its server name alone, without a key document")
	}
	if _, err := plain.identify(t.Context(), b.end.id); err != nil {
		t.Fatal(err)
	}
	if err := plain.do(t.Context(), b.server, "GET", v1+"publicRooms", nil, &answer); err != nil {
		t.Fatal(err)
	}
	// The other way, a bare 404 is an answer and not a lack of one.
	_, err = b.Profile(t.Context(), eventgraph.UserID("@x:"+string(server)), "")
	wantCode(t, err, "M_UNRECOGNIZED")
}

func TestServesAsTheSpecSays(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]

	for _, open := range []string{"/_matrix/key/v2/server", "/_matrix/federation/v1/version", "/_matrix/key/v2/query/" + string(b.server),
		"/_matrix/federation/v1/openid/userinfo?access_token=of%20alice"} {
		if status, code := a.raw(b, "GET", open, "", ""); status != 200 {
			t.Errorf("%s without a signature: %d %s", open, status, code)
		}
	}
	if status, code := a.raw(b, "GET", v1+"openid/userinfo?access_token=x", "", ""); status != 401 || code != "M_UNKNOWN_TOKEN" {
		t.Errorf("an unknown OpenID token: %d %s", status, code)
	}
	big := `{"device_keys":"` + strings.Repeat("x", maxBody) + `"}`
	header, err := a.authorize(b.server, "POST", v1+"user/keys/query", []byte(big))
	if err != nil {
		t.Fatal(err)
	}
	if status, code := a.raw(b, "POST", v1+"user/keys/query", header, big); status != 413 || code != "M_TOO_LARGE" {
		t.Errorf("a body over the limit: %d %s", status, code)
	}
	if status, code := a.raw(b, "GET", v1+"event/"+strings.Repeat("x", maxURI), "", ""); status != 414 || code != "M_TOO_LARGE" {
		t.Errorf("a target over the limit: %d %s", status, code)
	}
	devices, err := a.UserDevices(t.Context(), b.user("bob"))
	if err != nil || !strings.Contains(string(devices), string(b.user("bob"))) {
		t.Errorf("devices: %s, %v", devices, err)
	}
	keys, err := a.ClaimKeys(t.Context(), b.server, json.RawMessage(`{"one_time_keys":{}}`))
	if err != nil || !strings.Contains(string(keys), string(a.server)) {
		t.Errorf("claimed keys: %s, %v", keys, err)
	}
	profile, err := a.Profile(t.Context(), b.user("bob"), "displayname")
	if err != nil || string(profile) != `{"displayname":"BOB"}` {
		t.Errorf("profile: %s, %v", profile, err)
	}
	_, err = a.Profile(t.Context(), b.user("nobody"), "")
	wantCode(t, err, "M_NOT_FOUND")
	_, _, err = a.ResolveAlias(t.Context(), eventgraph.RoomAlias("#no:"+string(b.server)))
	wantCode(t, err, "M_NOT_FOUND")

	room, err := b.Rooms.Create(t.Context(), rooms.CreateRequest{
		Creator: b.user("bob"), Alias: eventgraph.RoomAlias("#all/of us:" + string(b.server)), Published: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, via, err := a.ResolveAlias(t.Context(), eventgraph.RoomAlias("#all/of us:"+string(b.server)))
	if err != nil || got != room || len(via) != 1 || via[0] != b.server {
		t.Errorf("alias: %s via %s, %v", got, via, err)
	}
	var directory struct {
		Chunk []rooms.Summary `json:"chunk"`
	}
	if err := a.do(t.Context(), b.server, "GET", v1+"publicRooms", nil, &directory); err != nil {
		t.Fatal(err)
	}
	if len(directory.Chunk) != 1 || directory.Chunk[0].RoomID != room || directory.Chunk[0].Joined != 1 {
		t.Errorf("directory: %+v", directory.Chunk)
	}
	var ask rooms.PublicQuery
	for _, ask.Filter.Term = range []string{"", "not there"} {
		page, err := a.PublicRooms(t.Context(), b.server, ask)
		if err != nil || (len(page.Chunk) == 1) != (ask.Filter.Term == "") || page.NextBatch != "" {
			t.Errorf("directory with %q: %+v, %v", ask.Filter.Term, page, err)
		}
	}
	ask.Since = "x"
	_, err = a.PublicRooms(t.Context(), b.server, ask)
	wantCode(t, err, "M_INVALID_PARAM")
	ask.Since, ask.Filter.Term = "", strings.Repeat("x", 2000)
	_, err = a.PublicRooms(t.Context(), b.server, ask)
	wantCode(t, err, "M_INVALID_PARAM")
	ask.Filter.Term = strings.Repeat("x", maxDirectoryBody)
	_, err = a.PublicRooms(t.Context(), b.server, ask)
	wantCode(t, err, "M_TOO_LARGE")
	if list := wellFormed([]*rooms.Summary{nil, {RoomID: "no room"}, {RoomID: room}}); len(list) != 1 || list[0].RoomID != room {
		t.Errorf("of what is not well formed %v is left", list)
	}
}

// TestNotary: documents of third servers are handed on with a second signature, and no others are made up.
func TestNotary(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	if _, err := b.identify(t.Context(), c.end.id); err != nil {
		t.Fatal(err)
	}
	w.setAway(c.end.id, true)
	needed := []rooms.KeyNeeded{{Server: c.server, ID: c.Key.ID, TS: time.Now().UnixMilli()}}
	if err := a.ensureKeys(t.Context(), needed, []eventgraph.ServerName{b.server}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Rooms.Key(c.server, c.Key.ID, time.Now().UnixMilli(), true); err != nil {
		t.Fatal(err)
	}
	d := a.document(c.server)
	if strings.Contains(string(d.Raw), string(b.server)) {
		t.Error("the notary's signature is kept, and would grow with each hand")
	}
	unknown, _, _, key := newKeys("never seen")
	err := a.ensureKeys(t.Context(), []rooms.KeyNeeded{{Server: unknown, ID: key.ID, TS: 1}}, []eventgraph.ServerName{b.server})
	if err == nil {
		t.Error("a key that nobody has is there")
	}
}

// TestMet: contacts are told once they are known, again when they come back, and no more when they have gone.
func TestMet(t *testing.T) {
	t.Parallel()
	w := newWire()
	hosts := newHosts(t, w, "a", "b")
	a, b := hosts[0], hosts[1]
	first, turn, err := a.peers.met(t.Context(), 0)
	if err != nil || len(first) != 1 || first[0].Server != b.server || first[0].Peer != b.end.id {
		t.Fatalf("met %v, %v", first, err)
	}
	if server, ok := a.ServerOf(b.end.id); !ok || server != b.server {
		t.Errorf("the peer speaks for %q", server)
	}
	w.setAway(b.end.id, true)
	w.setAway(b.end.id, false)
	again, _, err := a.peers.met(t.Context(), turn)
	if err != nil || len(again) != 1 || again[0].Server != b.server || again[0].Since <= turn {
		t.Fatalf("met again %v, %v", again, err)
	}
}
