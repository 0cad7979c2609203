package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const mediaUser eventgraph.UserID = "@a:here"

var plenty = MediaLimits{User: 1 << 20, Local: 1 << 20, Remote: 1 << 20}

// keepMedia stores content as local or fetched media.
func keepMedia(t testing.TB, s *Store, id MediaID, content string, local bool, limits MediaLimits, now int64) error {
	t.Helper()
	w, err := s.NewMedia()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	return s.KeepMedia(context.Background(), w, &Media{MediaID: id, User: mediaUser, CreatedTS: now}, local, limits)
}

// mediaContent is what a reader gets, or the error.
func mediaContent(s *Store, id MediaID) (string, error) {
	var m *Media
	if err := s.View(func(r *Reader) (err error) { m, err = r.Media(id); return err }); err != nil {
		return "", err
	}
	f, err := s.OpenMedia(m.File)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

// mediaFilesOf lists what lies in the media directory.
func mediaFilesOf(t testing.TB, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, mediaDirName), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMedia(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	s := openAt(t, dir, Options{small: true})
	id := MediaID{"here", "one"}
	if _, err := mediaContent(s, id); !errors.Is(err, ErrNotFound) {
		t.Fatalf("before it was stored: %v", err)
	}
	if err := keepMedia(t, s, id, "content", true, plenty, 1); err != nil {
		t.Fatal(err)
	}
	if got, err := mediaContent(s, id); got != "content" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if err := keepMedia(t, s, id, "another", true, plenty, 1); !errors.Is(err, ErrMediaExists) {
		t.Fatalf("overwritten: %v", err)
	}
	if got, _ := mediaContent(s, id); got != "content" {
		t.Fatalf("after a second upload it is %q", got)
	}
	files := mediaFilesOf(t, dir)
	if len(files) != 1 || strings.Contains(files[0], "one") {
		t.Fatalf("files %v: one was to be there, whose name tells nothing", files)
	}
	if err := s.DeleteMedia(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if files := mediaFilesOf(t, dir); len(files) != 0 {
		t.Fatalf("after deletion %v", files)
	}
	if err := s.View(func(r *Reader) error {
		local, remote, thumbnails, err := r.MediaUsage(mediaUser)
		if local+remote+thumbnails != 0 {
			t.Errorf("after deletion %d, %d and %d bytes are counted", local, remote, thumbnails)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestMediaQuota(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	s := openAt(t, dir, Options{small: true})
	limits := MediaLimits{User: 10, Local: 100, Remote: 20}
	if err := keepMedia(t, s, MediaID{"here", "a"}, "123456", true, limits, 1); err != nil {
		t.Fatal(err)
	}
	if err := keepMedia(t, s, MediaID{"here", "b"}, "123456", true, limits, 1); !errors.Is(err, ErrMediaQuota) {
		t.Fatalf("more than the user's quota: %v", err)
	}
	// Of what was fetched, the longest unused makes room.
	for i, name := range []string{"x", "y"} {
		if err := keepMedia(t, s, MediaID{"there", name}, "1234567890", false, limits, int64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.UseMedia(context.Background(), MediaID{"there", "x"}, mediaUser, 3*mediaUsedStep); err != nil {
		t.Fatal(err)
	}
	if err := keepMedia(t, s, MediaID{"there", "z"}, "1234567890", false, limits, 4*mediaUsedStep); err != nil {
		t.Fatal(err)
	}
	if _, err := mediaContent(s, MediaID{"there", "y"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("the longest unused stayed: %v", err)
	}
	for _, id := range []MediaID{{"here", "a"}, {"there", "x"}, {"there", "z"}} {
		if _, err := mediaContent(s, id); err != nil {
			t.Errorf("%v: %v", id, err)
		}
	}
	if files := mediaFilesOf(t, dir); len(files) != 3 {
		t.Errorf("files %v", files)
	}
}

func TestPendingMedia(t *testing.T) {
	t.Parallel()
	s := openAt(t, "", Options{InMemory: true})
	create := func(n int, now int64) error {
		_, err := s.Update(context.Background(), func(tx *Tx) error {
			return tx.CreateMedia(&Media{MediaID: MediaID{"here", fmt.Sprint("p", n)}, User: mediaUser, CreatedTS: now, ExpiresTS: now + 10}, now)
		})
		return err
	}
	for n := range MaxPendingMedia {
		if err := create(n, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := create(MaxPendingMedia, 1); !errors.Is(err, ErrMediaPending) {
		t.Fatalf("one more than may be: %v", err)
	}
	if err := keepMedia(t, s, MediaID{"here", "p0"}, "x", true, plenty, 1); err != nil {
		t.Fatal(err)
	}
	if err := create(MaxPendingMedia, 1); err != nil {
		t.Fatalf("after one was uploaded: %v", err)
	}
	if err := create(MaxPendingMedia+1, 100); err != nil {
		t.Fatalf("after the others have expired: %v", err)
	}
	if err := s.View(func(r *Reader) error { _, err := r.Media(MediaID{"here", "p1"}); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("an expired ID stayed: %v", err)
	}
}

// TestMediaPowerLoss loses the power at each step of storing and deleting media: a record always has its whole file, and no file stays without
// a record.
func TestMediaPowerLoss(t *testing.T) {
	t.Parallel()
	dir := ramDir(t)
	s := openAt(t, dir, Options{small: true})
	first, second := MediaID{"here", "first"}, MediaID{"here", "second"}
	if err := keepMedia(t, s, first, "first", true, plenty, 1); err != nil {
		t.Fatal(err)
	}
	before := mediaSnapshot(t, dir)
	if err := keepMedia(t, s, second, "second", true, plenty, 1); err != nil {
		t.Fatal(err)
	}
	after := mediaSnapshot(t, dir)
	var file string
	for name := range after.media {
		if _, old := before.media[name]; !old {
			file = name
		}
	}
	if file == "" || len(after.media) != 2 {
		t.Fatalf("two files were expected: %v", after.media)
	}
	if err := s.DeleteMedia(context.Background(), second); err != nil {
		t.Fatal(err)
	}
	deleted := mediaSnapshot(t, dir)

	const there, gone = true, false
	for _, c := range []struct {
		name   string
		store  files             // which records are durable
		change func(media files) // from the files after the upload
		second bool
	}{
		{"nothing lost", after.store, func(files) {}, there},
		{"half written", before.store, func(m files) { m["new/123"] = m[file]; delete(m, file); m.cut("new/123", 3) }, gone},
		{"written, not renamed", before.store, func(m files) { m["new/123"] = m[file]; delete(m, file) }, gone},
		{"renamed, no record", before.store, func(files) {}, gone},
		{"record deleted, file not", deleted.store, func(files) {}, gone},
	} {
		media := after.media.copy()
		c.change(media)
		lost := mediaFiles{c.store.copy(), media}.write(t)
		re, err := Open(lost, Options{small: true})
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		want := 1
		if c.second {
			want = 2
		}
		if got, err := mediaContent(re, first); got != "first" || err != nil {
			t.Errorf("%s: the first is %q, %v", c.name, got, err)
		}
		if got, err := mediaContent(re, second); (err == nil) != c.second || c.second && got != "second" {
			t.Errorf("%s: the second is %q, %v", c.name, got, err)
		}
		if left := mediaFilesOf(t, lost); len(left) != want {
			t.Errorf("%s: files %v, want %d", c.name, left, want)
		}
		if err := re.Close(); err != nil {
			t.Error(err)
		}
	}
}

// mediaFiles are a store's files with those of its media, by their path below the media directory.
type mediaFiles struct{ store, media files }

func mediaSnapshot(t testing.TB, dir string) mediaFiles {
	t.Helper()
	m := mediaFiles{snapshot(t, dir), files{}}
	delete(m.store, mediaDirName)
	for _, path := range mediaFilesOf(t, dir) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(filepath.Join(dir, mediaDirName), path)
		if err != nil {
			t.Fatal(err)
		}
		m.media[name] = file{bytes.Clone(content), int64(len(content))}
	}
	return m
}

func (m mediaFiles) write(t testing.TB) string {
	t.Helper()
	dir := m.store.write(t)
	for name, f := range m.media {
		path := filepath.Join(dir, mediaDirName, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, f.content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestThumbnailsAreBounded(t *testing.T) {
	t.Parallel()
	s := openAt(t, "", Options{InMemory: true})
	id := MediaID{"here", "picture"}
	if err := keepMedia(t, s, id, "picture", true, plenty, 1); err != nil {
		t.Fatal(err)
	}
	var kept []bool
	for n := range MaxThumbnails + 1 {
		w, err := s.NewMedia()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, "small")
		k, err := s.KeepThumbnail(context.Background(), w, id, fmt.Sprint(n), "image/png")
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, k)
	}
	if slices.Index(kept, false) != MaxThumbnails {
		t.Errorf("kept: %v", kept)
	}
	if err := s.DeleteMedia(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if err := s.View(func(r *Reader) error {
		if _, _, n, _ := r.MediaUsage(""); n != 0 {
			t.Errorf("%d bytes of thumbnails are counted after deletion", n)
		}
		_, err := r.Thumbnail(id, "1")
		return err
	}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a thumbnail stayed: %v", err)
	}
}
