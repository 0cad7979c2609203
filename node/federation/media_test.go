package federation

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
	"github.com/plexus-p2p/plexus/store"
)

// upload stores a file of a local user.
func (h *memHost) upload(user string, content []byte) store.MediaID {
	h.t.Helper()
	m, err := h.Media.Upload(context.Background(), h.user(user), "", bytes.NewReader(content), "text/plain", "notes.txt")
	if err != nil {
		h.t.Fatal(err)
	}
	return m.MediaID
}

func (h *memHost) fetch(user string, id store.MediaID) error {
	return h.FetchMedia(h.t.Context(), id, h.user(user), 0)
}

// shows demands that the host has the media with that content.
func (h *memHost) shows(id store.MediaID, want []byte) {
	h.t.Helper()
	c, err := h.Media.Open(id)
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) || c.Name != "notes.txt" || c.ContentType != "text/plain" {
		h.t.Errorf("%d bytes, %q, %q, %v; want %d bytes", len(got), c.Name, c.ContentType, err, len(want))
	}
}

// TestMediaFromAnyHolder: who shares a room has a file from its uploader; when that has gone, from who fetched it; and nobody else has it.
func TestMediaFromAnyHolder(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "c", "d")
	a, b, c, d := hosts[0], hosts[1], hosts[2], hosts[3]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	c.join(room, c.user("carol"), a.host)
	// d shares a room with b's other user, who has nothing to do with the file; and none with a.
	other := b.create("12", "public", "shared")
	d.join(other, d.user("dave"), b.host)
	b.wait("that the others have joined", func() bool { return b.Rooms.InRoom(room, c.server) && b.Rooms.InRoom(other, d.server) })
	a.wait("that the others have joined", func() bool { return a.Rooms.InRoom(room, b.server) && a.Rooms.InRoom(room, c.server) })
	c.wait("that b has joined", func() bool { return c.Rooms.InRoom(room, b.server) })

	content := bytes.Repeat([]byte("a file "), 50_000)
	id := a.upload("alice", content)
	if err := d.fetch("dave", id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("who shares no room asks the uploader: %v", err)
	}
	if err := b.fetch("bob", id); err != nil {
		t.Fatal(err)
	}
	b.shows(id, content)
	for _, h := range []*memHost{b, c, d} {
		cut(n, h, a)
		h.gone(a)
	}
	if err := c.fetch("carol", id); err != nil {
		t.Fatalf("from b, with a away: %v", err)
	}
	c.shows(id, content)
	if err := d.fetch("dave", id); err == nil {
		t.Error("who shares no room with one who has fetched it was given the file")
	}
}

// TestMediaForged: bytes, proofs and lengths that are not the uploader's are refused, and another holder is asked.
func TestMediaForged(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "c")
	a, b, c := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	c.join(room, c.user("carol"), a.host)
	a.wait("that the others have joined", func() bool { return a.Rooms.InRoom(room, b.server) && a.Rooms.InRoom(room, c.server) })
	c.wait("that b has joined", func() bool { return c.Rooms.InRoom(room, b.server) })
	content := []byte("what was uploaded")
	id, another := a.upload("alice", content), a.upload("alice", []byte("and another"))
	proof := func(id store.MediaID) []byte {
		m, err := a.Media.Record(id)
		if err != nil {
			t.Fatal(err)
		}
		return m.Proof
	}
	right, wrong := proof(id), proof(another)
	if err := b.fetch("bob", id); err != nil {
		t.Fatal(err)
	}
	cut(n, c, a)
	c.gone(a)
	for name, answer := range map[string]struct {
		head  mediaMessage
		bytes string
	}{
		"other bytes":                {mediaMessage{Proof: right}, "what was forged!!"},
		"proof of another file":      {mediaMessage{Proof: wrong}, "and another"},
		"proof changed":              {mediaMessage{Proof: bytes.Replace(right, []byte(`"size":17`), []byte(`"size":11`), 1)}, "and another"},
		"no proof":                   {mediaMessage{}, "and another"},
		"fewer bytes than were said": {mediaMessage{Proof: right}, "what"},
	} {
		b.Transport.Handle(protocolMedia, func(_ context.Context, _ eventgraph.PeerID, s io.ReadWriteCloser) {
			defer s.Close()
			var m mediaMessage
			if readMessage(s, maxMediaMessage, &m) == nil && writeMessage(s, answer.head) == nil {
				io.WriteString(s, answer.bytes[min(int(m.Offset), len(answer.bytes)):])
			}
		})
		if err := c.fetch("carol", id); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := c.Media.Open(id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: kept, %v", name, err)
		}
	}
	b.handleMedia() // what b really has
	if err := c.fetch("carol", id); err != nil {
		t.Fatal(err)
	}
	c.shows(id, content)
}

// TestMediaResumed: what came before a cut is not fetched again.
func TestMediaResumed(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b")
	a, b := hosts[0], hosts[1]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	a.wait("b", func() bool { return a.Rooms.InRoom(room, b.server) })
	content := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	id := a.upload("alice", content)
	var read, written atomic.Int64
	limit := 200_000
	broken := func(_ eventgraph.PeerID, s io.ReadWriteCloser) io.ReadWriteCloser {
		return counted{&short{s, limit}, &read, &written}
	}
	b.streams.f.Store(&broken)
	if err := b.fetch("bob", id); err == nil {
		t.Fatal("it was not cut")
	}
	limit = 1 << 20
	if err := b.fetch("bob", id); err != nil {
		t.Fatal(err)
	}
	b.shows(id, content)
	if all := read.Load(); all > int64(len(content))+10_000 {
		t.Errorf("%d bytes were read for a file of %d", all, len(content))
	}
}

// TestMediaOfPlainPeer: a peer that knows the spec's endpoint only gives its own media by it, and nobody else's.
func TestMediaOfPlainPeer(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	plain, b := newMemHost(t, n, "plain"), newMemHost(t, n, "b")
	plain.run(plain.runPeers)
	b.start()
	plain.meet(b.host)
	b.meet(plain.host)
	room := plain.create("12", "public", "shared")
	b.join(room, b.user("bob"), plain.host)
	plain.wait("b", func() bool { return plain.Rooms.InRoom(room, b.server) })
	content := []byte("of a plain peer")
	id := plain.upload("alice", content)
	var asked []string
	plain.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if strings.Contains(r.URL.Path, "/media/") {
			asked = append(asked, r.URL.Path)
		}
		return false
	})
	if err := b.fetch("bob", id); err != nil {
		t.Fatal(err)
	}
	b.shows(id, content)
	if m, err := b.Media.Record(id); err != nil || m.Proof != nil {
		t.Errorf("proof %s, %v: nothing but the endpoint said what it is", m.Proof, err)
	}
	if !slices.Equal(asked, []string{"/_matrix/federation/v1/media/download/" + id.ID}) {
		t.Errorf("asked %v", asked)
	}
	if err := b.fetch("bob", store.MediaID{Server: plain.server, ID: "unknown"}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown media: %v", err)
	}
	// Longer than may be, without an end.
	plain.on(func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !strings.Contains(r.URL.Path, "/media/") {
			return false
		}
		parts := multipart.NewWriter(w)
		w.Header().Set("Content-Type", "multipart/mixed; boundary="+parts.Boundary())
		parts.CreatePart(nil)
		p, _ := parts.CreatePart(nil)
		for range 1000 {
			if _, err := p.Write(make([]byte, 64<<10)); err != nil {
				return true
			}
		}
		return true
	})
	if err := b.fetch("bob", store.MediaID{Server: plain.server, ID: "endless"}); !errors.Is(err, media.ErrTooLarge) {
		t.Errorf("without an end: %v", err)
	}
}

// TestServeMedia is the spec's endpoints: a file, a thumbnail, and who gets none.
func TestServeMedia(t *testing.T) {
	t.Parallel()
	n := memnet.New()
	hosts := newMemHosts(t, n, "a", "b", "d")
	a, b, d := hosts[0], hosts[1], hosts[2]
	room := a.create("12", "public", "shared")
	b.join(room, b.user("bob"), a.host)
	a.wait("b", func() bool { return a.Rooms.InRoom(room, b.server) })
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 200, 100))); err != nil {
		t.Fatal(err)
	}
	file, drawn := a.upload("alice", []byte("text")), a.upload("alice", picture.Bytes())
	pending, err := a.Media.Create(t.Context(), a.user("alice"))
	if err != nil {
		t.Fatal(err)
	}
	get := func(h *memHost, path string) (parts []*multipart.Part, body []byte, err error) {
		err = h.request(t.Context(), a.server, http.MethodGet, v1+"media/"+path, nil, func(ctx context.Context, send sender) (bool, error) {
			return send(ctx, func(res *http.Response) (bool, error) {
				_, params, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
				if err != nil {
					return true, err
				}
				r := multipart.NewReader(res.Body, params["boundary"])
				for {
					p, err := r.NextPart()
					if errors.Is(err, io.EOF) {
						return true, nil
					}
					if err != nil {
						return true, err
					}
					parts = append(parts, p)
					if body, err = io.ReadAll(p); err != nil {
						return true, err
					}
				}
			})
		})
		return parts, body, err
	}
	parts, body, err := get(b, "download/"+file.ID)
	if err != nil || len(parts) != 2 || parts[0].Header.Get("Content-Type") != "application/json" || string(body) != "text" ||
		parts[1].Header.Get("Content-Disposition") != "inline; filename=notes.txt" {
		t.Errorf("download: %v %q %v", parts, body, err)
	}
	parts, body, err = get(b, "thumbnail/"+drawn.ID+"?width=20&height=20")
	if err != nil || len(parts) != 2 {
		t.Fatalf("thumbnail: %v %v", parts, err)
	}
	if c, err := png.DecodeConfig(bytes.NewReader(body)); err != nil || c.Width != 40 || c.Height != 20 {
		t.Errorf("thumbnail of %dx%d, %v", c.Width, c.Height, err)
	}
	for _, c := range []struct {
		who        *memHost
		path, code string
	}{
		{b, "download/unknown", "M_NOT_FOUND"},
		{b, "download/..%2Fetc", "M_NOT_FOUND"},
		{b, "download/" + pending.ID + "?timeout_ms=0", "M_NOT_YET_UPLOADED"},
		{b, "download/" + file.ID + "?timeout_ms=soon", "M_INVALID_PARAM"},
		{b, "thumbnail/" + file.ID + "?width=20&height=20", "M_UNKNOWN"},
		{b, "thumbnail/" + drawn.ID + "?width=20", "M_MISSING_PARAM"},
		{b, "thumbnail/" + drawn.ID + "?width=20&height=-1", "M_INVALID_PARAM"},
		{d, "download/" + file.ID, "M_NOT_FOUND"},
		{d, "thumbnail/" + drawn.ID + "?width=20&height=20", "M_NOT_FOUND"},
	} {
		_, _, err := get(c.who, c.path)
		wantCode(t, err, c.code)
	}
	// Without a signature.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+string(a.server)+v1+"media/download/"+file.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := b.Transport.Do(t.Context(), a.peer, req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("unsigned: %d", res.StatusCode)
	}
}
