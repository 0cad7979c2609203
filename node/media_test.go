package node_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// mediaSize is that of the file in TestLargeMedia; PLEXUS_MEDIA=full makes it as long as may be uploaded.
func mediaSize() int64 {
	if os.Getenv("PLEXUS_MEDIA") == "full" {
		return 50 << 20
	}
	return 12 << 20
}

// maxMediaHeap is how much more memory three nodes may use while a file passes: buffers of streams, not files.
const maxMediaHeap = 8 << 20

// media calls the content repository, and hands the body of the answer to read.
func (u *localUser) media(method, path string, body io.Reader, read func(*http.Response) error) error {
	req, err := http.NewRequestWithContext(u.t.Context(), method, u.base+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+u.token)
	req.Header.Set("Content-Type", "video/mp4")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(res.Body)
		return errors.New(res.Status + " " + string(raw))
	}
	return read(res)
}

// TestLargeMedia: over libp2p, a large file passes from its uploader and between clients in a few buffers; and nobody without a shared room has it.
func TestLargeMedia(t *testing.T) {
	a, _ := runNode(t)
	b, _ := runNode(t, a.P2PAddrs()[0])
	d, _ := runNode(t, a.P2PAddrs()[0])
	alice, bob, dave := register(t, a, "alice"), register(t, b, "bob"), register(t, d, "dave")
	room := alice.create(map[string]any{"preset": "public_chat"})
	within(t, 20*time.Second, "bob's join", func() bool {
		status, _ := bob.do("POST", "/join/"+url.PathEscape(string(room))+"?via="+string(a.ServerName()), struct{}{})
		return status == http.StatusOK
	})
	size := mediaSize()
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	// The heap is looked at all the time: while b fetches the file nothing of it comes to its client.
	passed, most := make(chan struct{}), make(chan uint64)
	go func() {
		highest := uint64(0)
		for {
			var now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&now)
			highest = max(highest, now.HeapAlloc)
			select {
			case <-passed:
				most <- highest
				return
			default:
			}
		}
	}()
	highest := sync.OnceValue(func() uint64 { close(passed); return <-most })
	defer highest()
	content := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	var uploaded struct {
		URI string `json:"content_uri"`
	}
	err := alice.media("POST", "/_matrix/media/v3/upload", content(), func(res *http.Response) error { return json.NewDecoder(res.Body).Decode(&uploaded) })
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.New()
	if _, err := io.Copy(want, content()); err != nil {
		t.Fatal(err)
	}
	path := "/_matrix/client/v1/media/download" + strings.TrimPrefix(uploaded.URI, "mxc:/")
	got := sha256.New()
	began := time.Now()
	if err := bob.media("GET", path, nil, func(res *http.Response) error { _, err := io.Copy(got, res.Body); return err }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("what was downloaded is not what was uploaded")
	}
	grown := int64(highest()) - int64(before.HeapAlloc)
	t.Logf("%d MiB in %v, the heap of all nodes grew by %d KiB", size>>20, time.Since(began), grown>>10)
	if grown > maxMediaHeap {
		t.Errorf("the heap grew by %d bytes for a file of %d", grown, size)
	}
	err = dave.media("GET", path+"?timeout_ms=0", nil, func(*http.Response) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "M_NOT_FOUND") {
		t.Errorf("who shares no room: %v", err)
	}
}
