package clientapi

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/store"
)

func (u *unreachable) FetchMedia(context.Context, store.MediaID, eventgraph.UserID, time.Duration) error {
	return federation.ErrUnreachable
}

// fetchable is a Remote that has media.
type fetchable struct {
	*unreachable
	s       *testServer
	content string
	err     error
	asked   int
}

func (f *fetchable) FetchMedia(ctx context.Context, id store.MediaID, user eventgraph.UserID, _ time.Duration) error {
	f.asked++
	if f.err != nil {
		return f.err
	}
	w, err := f.s.Store.NewMedia()
	if err != nil {
		return err
	}
	io.WriteString(w, f.content)
	return f.s.Media.KeepFetched(ctx, w, &store.Media{MediaID: id, User: user, ContentType: "text/html", Name: "page.html"})
}

// raw sends a request with a body as it is.
func (c client) raw(method, path, contentType, body string) answer {
	c.s.t.Helper()
	req, err := http.NewRequest(method, c.s.url+path, strings.NewReader(body))
	if err != nil {
		c.s.t.Fatal(err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return c.s.do(req)
}

// uploaded uploads a file and returns its path on the download endpoints: server and media ID.
func (c client) uploaded(contentType, name, body string) string {
	c.s.t.Helper()
	a := c.raw("POST", "/_matrix/media/v3/upload?filename="+url.QueryEscape(name), contentType, body)
	if a.status != 200 {
		c.s.t.Fatalf("upload: %d %s", a.status, a.raw)
	}
	path, ok := strings.CutPrefix(a.text("content_uri"), "mxc:/")
	if !ok {
		c.s.t.Fatalf("upload answered %s", a.raw)
	}
	return path
}

func wantError(t *testing.T, what string, a answer, status int, code string) {
	t.Helper()
	if a.status != status || a.code() != code {
		t.Errorf("%s: %d %s, want %d %s", what, a.status, a.raw, status, code)
	}
}

func TestUploadDownload(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, nobody := s.newClient("alice"), client{s: s}
	for _, c := range []struct{ contentType, name, ask, disposition string }{
		{"image/png", "a.png", "", "inline; filename=a.png"},
		{"img/png", "name with spaces", "", `attachment; filename="name with spaces"`},
		{"Text/Plain; charset=utf-8", "", "", "inline"},
		{"text/html", "name;with;semicolons", "", `attachment; filename="name;with;semicolons"`},
		{"image/svg+xml", "", "/chosen.svg", "attachment; filename=chosen.svg"},
		{"", "\u2615", "", "attachment; filename*=utf-8''%E2%98%95"},
		{"text/plain", "a.txt", "/" + url.PathEscape("\u2615"), "inline; filename*=utf-8''%E2%98%95"},
	} {
		path := alice.uploaded(c.contentType, c.name, "content")
		for _, prefix := range []string{"/_matrix/client/v1/media", "/_matrix/media/v3", "/_matrix/media/r0"} {
			a := alice.raw("GET", prefix+"/download"+path+c.ask, "", "")
			contentType := c.contentType
			if contentType == "" {
				contentType = "application/octet-stream"
			}
			if a.status != 200 || a.raw != "content" || a.header.Get("Content-Type") != contentType || a.header.Get("Content-Disposition") != c.disposition {
				t.Errorf("%s%s: %d %q as %q, %q", prefix, c.ask, a.status, a.raw, a.header.Get("Content-Type"), a.header.Get("Content-Disposition"))
			}
			if a.header.Get("Content-Security-Policy") != contentPolicy || a.header.Get("X-Content-Type-Options") != "nosniff" ||
				a.header.Get("Cross-Origin-Resource-Policy") != "cross-origin" || a.header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("headers %v", a.header)
			}
		}
	}
	wantError(t, "upload without a token", nobody.raw("POST", "/_matrix/media/v3/upload", "", "x"), 401, "M_MISSING_TOKEN")
	wantError(t, "download without a token", nobody.raw("GET", "/_matrix/client/v1/media/download/"+string(s.Server)+"/x", "", ""), 401, "M_MISSING_TOKEN")
	wantError(t, "with a name, without a token", nobody.raw("GET", "/_matrix/client/v1/media/download/"+string(s.Server)+"/x/y", "", ""), 401, "M_MISSING_TOKEN")
	for _, path := range []string{"/" + string(s.Server) + "/unknown", "/" + string(s.Server) + "/..%2F..%2Fetc", "/127.0.0.1/x", "/" + string(s.Server) + "/unknown/name"} {
		wantError(t, path, alice.raw("GET", "/_matrix/client/v1/media/download"+path, "", ""), 404, "M_NOT_FOUND")
		wantError(t, path, alice.raw("GET", "/_matrix/media/v3/download"+path, "", ""), 404, "M_NOT_FOUND")
	}
	wantError(t, "bad timeout", alice.raw("GET", "/_matrix/client/v1/media/download/"+string(s.Server)+"/x?timeout_ms=x", "", ""), 400, "M_INVALID_PARAM")
}

func TestUploadBounds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	large := strings.Repeat("x", 100<<10+1)
	wantError(t, "too large", alice.raw("POST", "/_matrix/media/v3/upload", "", large), 413, "M_TOO_LARGE")
	// The same without a length that was told.
	req, err := http.NewRequest("POST", s.url+"/_matrix/media/v3/upload", struct{ io.Reader }{strings.NewReader(large)})
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+alice.token)
	wantError(t, "too large, in chunks", s.do(req), 413, "M_TOO_LARGE")
	alice.uploaded("", "", large[1:])
	wantError(t, "beyond the quota", alice.raw("POST", "/_matrix/media/v3/upload", "", large[1:]), 403, "M_FORBIDDEN")
	bob.uploaded("", "", large[1:]) // has his own
	for _, path := range []string{"/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"} {
		if a := alice.raw("GET", path, "", ""); a.status != 200 || a.body["m.upload.size"] != float64(100<<10) {
			t.Errorf("%s: %d %s", path, a.status, a.raw)
		}
		wantError(t, path, client{s: s}.raw("GET", path, "", ""), 401, "M_MISSING_TOKEN")
	}
}

func TestAsyncUpload(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	create := func() string {
		t.Helper()
		a := alice.raw("POST", "/_matrix/media/v1/create", "", "")
		if a.status != 200 || a.body["unused_expires_at"] != float64(s.time().Add(24*time.Hour).UnixMilli()) {
			t.Fatalf("create: %d %s", a.status, a.raw)
		}
		return strings.TrimPrefix(a.text("content_uri"), "mxc:/")
	}
	const upload, download = "/_matrix/media/v3/upload", "/_matrix/client/v1/media/download"
	path := create()
	wantError(t, "not yet", alice.raw("GET", download+path+"?timeout_ms=0", "", ""), 504, "M_NOT_YET_UPLOADED")
	wantError(t, "not yet", alice.raw("GET", "/_matrix/media/v3/download"+path+"?timeout_ms=0", "", ""), 504, "M_NOT_YET_UPLOADED")
	wantError(t, "somebody else's", bob.raw("PUT", upload+path, "", "x"), 403, "M_FORBIDDEN")
	wantError(t, "without a token", client{s: s}.raw("PUT", upload+path, "", "x"), 401, "M_MISSING_TOKEN")
	wantError(t, "without a token", client{s: s}.raw("POST", "/_matrix/media/v1/create", "", ""), 401, "M_MISSING_TOKEN")

	waiting := make(chan answer, 1)
	go func() { waiting <- alice.raw("GET", download+path, "", "") }()
	if a := alice.raw("PUT", upload+path+"?filename=late.txt", "text/plain", "at last"); a.status != 200 {
		t.Fatalf("PUT: %d %s", a.status, a.raw)
	}
	if a := <-waiting; a.status != 200 || a.raw != "at last" || a.header.Get("Content-Disposition") != "inline; filename=late.txt" {
		t.Errorf("who has waited: %d %s", a.status, a.raw)
	}
	wantError(t, "again", alice.raw("PUT", upload+path, "", "other"), 409, "M_CANNOT_OVERWRITE_MEDIA")
	wantError(t, "never created", alice.raw("PUT", upload+"/"+string(s.Server)+"/abc", "", "x"), 404, "M_NOT_FOUND")
	wantError(t, "another server's", alice.raw("PUT", upload+"/k51qzi5uqu5dm1pqruhf5rcxk20b98zm3skw6vejvwfjbt6dpl466j206rp33g/abc", "", "x"), 404, "M_NOT_FOUND")
	expired := create()
	s.advance(25 * time.Hour)
	wantError(t, "expired", alice.raw("PUT", upload+expired, "", "x"), 404, "M_NOT_FOUND")
	wantError(t, "expired", alice.raw("GET", download+expired, "", ""), 404, "M_NOT_FOUND")
	for range store.MaxPendingMedia {
		create()
	}
	a := alice.raw("POST", "/_matrix/media/v1/create", "", "")
	wantError(t, "too many", a, 429, "M_LIMIT_EXCEEDED")
	if a.header.Get("Retry-After") == "" {
		t.Error("it is not said when to come again")
	}
}

func TestMediaRanges(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	path := alice.uploaded("video/mp4", "", "0123456789")
	for asked, want := range map[string]struct {
		status int
		body   string
	}{
		"bytes=2-4": {206, "234"},
		"bytes=7-":  {206, "789"},
		"bytes=-2":  {206, "89"},
		"bytes=20-": {416, ""},
		"lines=1-2": {416, ""},
	} {
		req, err := http.NewRequest("GET", s.url+"/_matrix/client/v1/media/download"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+alice.token)
		req.Header.Set("Range", asked)
		if a := s.do(req); a.status != want.status || want.status == 206 && a.raw != want.body {
			t.Errorf("%s: %d %q", asked, a.status, a.raw)
		}
	}
}

// TestLegacyMedia: old clients are served without a token; web pages from elsewhere are not.
func TestLegacyMedia(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	path := alice.uploaded("image/png", "", "content")
	for name, c := range map[string]struct {
		header map[string]string
		want   int
	}{
		"a program":                       {nil, 200},
		"a page of this machine":          {map[string]string{"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, 200},
		"a page of this machine, old":     {map[string]string{"Origin": "http://127.0.0.1:3000"}, 200},
		"an address that was entered":     {map[string]string{"Sec-Fetch-Site": "none"}, 200},
		"a page from elsewhere":           {map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		"one that claims to be from here": {map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403},
		"an old browser's page":           {map[string]string{"Origin": "https://evil.example"}, 403},
		"an old browser's image":          {map[string]string{"Referer": "https://evil.example/page"}, 403},
		"a sandboxed page":                {map[string]string{"Origin": "null"}, 403},
		"a page from elsewhere, token":    {map[string]string{"Sec-Fetch-Site": "cross-site", "Authorization": "Bearer " + alice.token}, 200},
	} {
		for _, base := range []string{"/_matrix/media/v3/download", "/_matrix/media/r0/download"} {
			req, err := http.NewRequest("GET", s.url+base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range c.header {
				req.Header.Set(k, v)
			}
			a := s.do(req)
			if a.status != c.want {
				t.Errorf("%s: %d, want %d", name, a.status, c.want)
			}
			if policy := a.header.Get("Cross-Origin-Resource-Policy"); a.status == 200 && c.header["Authorization"] == "" && policy != "same-site" {
				t.Errorf("%s: pages from elsewhere may embed it: %q", name, policy)
			}
		}
	}
	wantError(t, "a wrong token", client{s: s, token: "wrong"}.raw("GET", "/_matrix/media/v3/download"+path, "", ""), 401, "M_UNKNOWN_TOKEN")
}

func TestThumbnailEndpoint(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 400, 200))); err != nil {
		t.Fatal(err)
	}
	drawn, text := alice.uploaded("image/png", "a.png", picture.String()), alice.uploaded("image/png", "", "no picture")
	for _, prefix := range []string{"/_matrix/client/v1/media/thumbnail", "/_matrix/media/v3/thumbnail", "/_matrix/media/r0/thumbnail"} {
		a := alice.raw("GET", prefix+drawn+"?width=32&height=32&method=crop", "", "")
		c, err := png.DecodeConfig(strings.NewReader(a.raw))
		if a.status != 200 || err != nil || c.Width != 32 || c.Height != 32 || a.header.Get("Content-Type") != "image/png" || a.header.Get("Content-Disposition") != "inline" {
			t.Errorf("%s: %d, %dx%d, %v, %v", prefix, a.status, c.Width, c.Height, err, a.header)
		}
		wantError(t, "no picture", alice.raw("GET", prefix+text+"?width=32&height=32", "", ""), 400, "M_UNKNOWN")
		wantError(t, "no width", alice.raw("GET", prefix+drawn+"?height=32", "", ""), 400, "M_MISSING_PARAM")
		wantError(t, "no number", alice.raw("GET", prefix+drawn+"?width=0&height=32", "", ""), 400, "M_INVALID_PARAM")
		wantError(t, "no method", alice.raw("GET", prefix+drawn+"?width=1&height=32&method=bend", "", ""), 400, "M_INVALID_PARAM")
		wantError(t, "unknown", alice.raw("GET", prefix+"/"+string(s.Server)+"/unknown?width=1&height=1", "", ""), 404, "M_NOT_FOUND")
	}
	for _, said := range []string{"application/octet-stream", "image/svg+xml", ""} {
		a := alice.raw("GET", "/_matrix/client/v1/media/thumbnail"+alice.uploaded(said, "a.png", picture.String())+"?width=500&height=500", "", "")
		if a.raw != picture.String() || a.header.Get("Content-Type") != "image/png" || !strings.HasPrefix(a.header.Get("Content-Disposition"), "inline") {
			t.Errorf("a small picture that was uploaded as %q: %v", said, a.header)
		}
	}
	wantError(t, "no token", client{s: s}.raw("GET", "/_matrix/client/v1/media/thumbnail"+drawn, "", ""), 401, "M_MISSING_TOKEN")
}

func TestRemoteMedia(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	remote := &fetchable{unreachable: s.remote, s: s, content: "<script>"}
	s.SetRemote(remote)
	const server = "k51qzi5uqu5dm1pqruhf5rcxk20b98zm3skw6vejvwfjbt6dpl466j206rp33g"
	const path = "/_matrix/client/v1/media/download/" + server + "/"
	wantError(t, "not to be fetched", alice.raw("GET", "/_matrix/media/v3/download/"+server+"/x?allow_remote=false", "", ""), 404, "M_NOT_FOUND")
	for range 2 {
		a := alice.raw("GET", path+"x", "", "")
		if a.status != 200 || a.raw != "<script>" || a.header.Get("Content-Disposition") != "attachment; filename=page.html" {
			t.Fatalf("%d %s %v", a.status, a.raw, a.header)
		}
	}
	if remote.asked != 1 {
		t.Errorf("fetched %d times", remote.asked)
	}
	// Who reads what is here already counts as who has fetched it: others learn of it by whom they share rooms with.
	bob := s.newClient("bob")
	bob.raw("GET", path+"x", "", "")
	if err := s.Store.View(func(r *store.Reader) error {
		has, err := r.HasMediaUser(store.MediaID{Server: server, ID: "x"}, bob.user)
		if !has {
			t.Error("bob does not count as one who has fetched it")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{federation.ErrUnreachable, 502, "M_UNKNOWN"},
		{media.ErrTooLarge, 502, "M_TOO_LARGE"},
		{media.ErrNotYet, 504, "M_NOT_YET_UPLOADED"},
		{store.ErrNotFound, 404, "M_NOT_FOUND"},
		{fmt.Errorf("%w: of another", media.ErrProof), 502, "M_UNKNOWN"},
	} {
		remote.err = c.err
		wantError(t, c.err.Error(), alice.raw("GET", path+"y", "", ""), c.status, c.code)
	}
}

func TestPreviewURL(t *testing.T) {
	t.Parallel()
	off := newTestServer(t, nil)
	const path = "/_matrix/client/v1/media/preview_url"
	wantError(t, "off", off.newClient("alice").raw("GET", path+"?url=http://example.org", "", ""), 403, "M_FORBIDDEN")

	s := newTestServer(t, func(c *Config) { c.URLPreviews = true })
	alice := s.newClient("alice")
	called := false
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 4, 2))); err != nil {
		t.Fatal(err)
	}
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called = true
		switch r.URL.Path {
		case "/picture":
			w.Header().Set("Content-Type", "image/png")
			w.Write(picture.Bytes())
		default:
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, `<html><head><title>T</title><meta property="og:title" content="A &amp; B"><meta property="og:image" content="/picture"><meta name="description" content="D">`)
		}
	}))
	defer page.Close()
	wantError(t, "no token", client{s: s}.raw("GET", path+"?url=http://example.org", "", ""), 401, "M_MISSING_TOKEN")
	wantError(t, "no url", alice.raw("GET", path, "", ""), 400, "M_MISSING_PARAM")
	wantError(t, "no url, the old path", alice.raw("GET", "/_matrix/media/v3/preview_url", "", ""), 400, "M_MISSING_PARAM")
	for _, address := range []string{"file:///etc/passwd", "nothing", "http://user@example.org"} {
		wantError(t, address, alice.raw("GET", path+"?url="+url.QueryEscape(address), "", ""), 400, "M_INVALID_PARAM")
	}
	// The address is looked at when it is dialled, whatever name led to it.
	_, port, err := net.SplitHostPort(page.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{page.URL, "http://localhost:" + port, "http://[::ffff:127.0.0.1]:" + port, "http://0.0.0.0:" + port} {
		wantError(t, address, alice.raw("GET", path+"?url="+url.QueryEscape(address), "", ""), 502, "M_UNKNOWN")
	}
	if called {
		t.Error("a loopback address was called")
	}
	// Where the test lets it through, the page is read, and its image becomes media.
	s.previews.client.Transport = http.DefaultTransport
	if old := alice.raw("GET", "/_matrix/media/v3/preview_url?url="+url.QueryEscape(page.URL), "", ""); old.text("og:title") != "A & B" {
		t.Errorf("by the old path: %d %s", old.status, old.raw)
	}
	a := alice.raw("GET", path+"?url="+url.QueryEscape(page.URL), "", "")
	if a.status != 200 || a.text("og:title") != "A & B" || a.text("og:description") != "D" || a.body["matrix:image:size"] != float64(picture.Len()) || a.body["og:image:width"] != 4.0 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	if a := alice.raw("GET", "/_matrix/client/v1/media/download"+strings.TrimPrefix(a.text("og:image"), "mxc:/"), "", ""); a.raw != picture.String() {
		t.Errorf("the image: %d", a.status)
	}
}
