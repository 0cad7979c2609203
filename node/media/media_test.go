package media

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

const user eventgraph.UserID = "@alice:here"

func newRepository(t testing.TB, limits Limits) *Repository {
	t.Helper()
	s, err := store.Open("", store.Options{InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32))
	public := private.Public().(ed25519.PublicKey)
	key := eventgraph.SigningKey{Server: eventgraph.NewServerName(public), ID: eventgraph.NewPeerID(public).KeyID(), Private: private}
	return New(Config{Store: s, Key: key, Limits: limits, Now: func() time.Time { return time.UnixMilli(1_800_000_000_000) }})
}

func (p *Repository) put(t testing.TB, content []byte) store.MediaID {
	t.Helper()
	m, err := p.Upload(context.Background(), user, "", bytes.NewReader(content), "image/png", "a.png")
	if err != nil {
		t.Fatal(err)
	}
	return m.MediaID
}

// halves is a picture whose left half is red and whose right half is blue.
func halves(width, height int) *image.RGBA {
	m := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			c := color.RGBA{R: 255, A: 255}
			if x >= width/2 {
				c = color.RGBA{B: 255, A: 255}
			}
			m.SetRGBA(x, y, c)
		}
	}
	return m
}

func pngOf(t testing.TB, m image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func isRed(c color.Color) bool { r, _, b, _ := c.RGBA(); return r > 0xa000 && b < 0x6000 }

func TestFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		width, height int
		want          Wanted
		to            image.Point
		from          image.Rectangle
	}{
		{800, 400, Wanted{Width: 100, Height: 100}, image.Pt(200, 100), image.Rect(0, 0, 800, 400)},
		{400, 800, Wanted{Width: 100, Height: 100}, image.Pt(100, 200), image.Rect(0, 0, 400, 800)},
		{800, 400, Wanted{Width: 100, Height: 100, Crop: true}, image.Pt(100, 100), image.Rect(200, 0, 600, 400)},
		{50, 40, Wanted{Width: 100, Height: 100}, image.Pt(50, 40), image.Rect(0, 0, 50, 40)},
		{50, 40, Wanted{Width: 100, Height: 100, Crop: true}, image.Pt(50, 40), image.Rect(0, 0, 50, 40)},
		{50, 400, Wanted{Width: 100, Height: 100}, image.Pt(50, 400), image.Rect(0, 0, 50, 400)},                      // nobody is given less than asked for, nor more than there is
		{50, 400, Wanted{Width: 100, Height: 100, Crop: true}, image.Pt(50, 50), image.Rect(0, 175, 50, 225)},         // the proportions
		{10000, 10000, Wanted{Width: 1 << 30, Height: 1 << 30}, image.Pt(2048, 2048), image.Rect(0, 0, 10000, 10000)}, // bounded
		{10000, 1, Wanted{Width: 1, Height: 1, Crop: true}, image.Pt(1, 1), image.Rect(4999, 0, 5000, 1)},
	} {
		if to, from := fit(c.width, c.height, c.want); to != c.to || from != c.from {
			t.Errorf("%dx%d as %+v: %v of %v, want %v of %v", c.width, c.height, c.want, to, from, c.to, c.from)
		}
	}
}

func TestThumbnail(t *testing.T) {
	t.Parallel()
	p := newRepository(t, Limits{})
	id := p.put(t, pngOf(t, halves(400, 200)))
	for range 2 { // made, then stored
		c, err := p.Thumbnail(context.Background(), id, Wanted{Width: 50, Height: 50})
		if err != nil {
			t.Fatal(err)
		}
		m, format, err := image.Decode(c)
		c.Close()
		if err != nil || format != "png" || c.ContentType != "image/png" || m.Bounds().Max != image.Pt(100, 50) {
			t.Fatalf("%s of %v as %s, %v", format, m.Bounds(), c.ContentType, err)
		}
		if !isRed(m.At(10, 25)) || isRed(m.At(90, 25)) {
			t.Error("the thumbnail does not look like the picture")
		}
	}
	if err := p.Store.View(func(r *store.Reader) error { _, err := r.Thumbnail(id, "50x50 scale"); return err }); err != nil {
		t.Errorf("it was not stored: %v", err)
	}
	c, err := p.Thumbnail(context.Background(), id, Wanted{Width: 4000, Height: 4000})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, _ := io.ReadAll(c); !bytes.Equal(b, pngOf(t, halves(400, 200))) || c.Name != "a.png" {
		t.Error("a picture smaller than asked for is not given as it is")
	}
}

func TestThumbnailUpright(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, halves(400, 200), &jpeg.Options{Quality: 95}); err != nil {
		t.Fatal(err)
	}
	// Exif, orientation 6: turned by a quarter to the right, so left becomes top.
	exif := "Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
	segment := append([]byte{0xff, 0xe1}, binary.BigEndian.AppendUint16(nil, uint16(len(exif)+2))...)
	turned := append(append(append([]byte{}, b.Bytes()[:2]...), append(segment, exif...)...), b.Bytes()[2:]...)
	var out bytes.Buffer
	contentType, err := thumbnail(bytes.NewReader(turned), &out, Wanted{Width: 50, Height: 50})
	if err != nil || contentType != "image/jpeg" {
		t.Fatal(contentType, err)
	}
	m, err := jpeg.Decode(&out)
	if err != nil || m.Bounds().Max != image.Pt(50, 100) {
		t.Fatalf("%v, %v", m.Bounds(), err)
	}
	if !isRed(m.At(25, 10)) || isRed(m.At(25, 90)) {
		t.Error("it is not upright")
	}
}

// animation is a GIF of two frames, of which the second changes a part.
func animation(t testing.TB, width, height int) []byte {
	t.Helper()
	palette := color.Palette{color.RGBA{R: 255, A: 255}, color.RGBA{B: 255, A: 255}}
	first := image.NewPaletted(image.Rect(0, 0, width, height), palette)
	second := image.NewPaletted(image.Rect(width/2, 0, width, height), palette)
	for i := range second.Pix {
		second.Pix[i] = 1
	}
	var b bytes.Buffer
	if err := gif.EncodeAll(&b, &gif.GIF{Image: []*image.Paletted{first, second}, Delay: []int{10, 20}, Disposal: []byte{gif.DisposalNone, gif.DisposalNone}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestThumbnailMoves(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	contentType, err := thumbnail(bytes.NewReader(animation(t, 200, 100)), &out, Wanted{Width: 40, Height: 40, Crop: true, Animated: true})
	if err != nil || contentType != "image/gif" {
		t.Fatal(contentType, err)
	}
	moving, err := gif.DecodeAll(&out)
	if err != nil || len(moving.Image) != 2 || moving.Image[0].Rect.Max != image.Pt(40, 40) || moving.Delay[1] != 20 {
		t.Fatalf("%+v, %v", moving, err)
	}
	if !isRed(moving.Image[0].At(30, 20)) || isRed(moving.Image[1].At(30, 20)) || !isRed(moving.Image[1].At(10, 20)) {
		t.Error("the frames do not show what they did")
	}
	out.Reset()
	for _, want := range []Wanted{{Width: 40, Height: 40}, {Width: 4000, Height: 4000}} {
		if contentType, err = thumbnail(bytes.NewReader(animation(t, 200, 100)), &out, want); err != nil || contentType != "image/png" {
			t.Errorf("a still was asked for, %+v: %s, %v", want, contentType, err)
		}
	}
	if _, err := thumbnail(bytes.NewReader(animation(t, 20, 10)), &out, Wanted{Width: 40, Height: 40, Animated: true}); !errors.Is(err, errOriginal) {
		t.Errorf("a small animation: %v", err)
	}
}

// TestBombs: what is small on disk and large in memory is refused before it is unfolded.
func TestBombs(t *testing.T) {
	t.Parallel()
	large := pngOf(t, image.NewGray(image.Rect(0, 0, 10, 10)))
	binary.BigEndian.PutUint32(large[16:], 60000)
	binary.BigEndian.PutUint32(large[20:], 60000)
	fixPNG(large)
	if _, err := thumbnail(bytes.NewReader(large), io.Discard, Wanted{Width: 32, Height: 32}); !errors.Is(err, ErrLargePicture) {
		t.Errorf("a large PNG: %v", err)
	}
	if _, err := thumbnail(bytes.NewReader(grayPNG(t, 9000, false, "tRNS")), io.Discard, Wanted{Width: 32, Height: 32}); !errors.Is(err, ErrLargePicture) {
		t.Errorf("a large gray PNG that is transparent in part: %v", err)
	}
	if _, err := thumbnail(bytes.NewReader(grayPNG(t, 5000, true, "")), io.Discard, Wanted{Width: 32, Height: 32}); !errors.Is(err, ErrLargePicture) {
		t.Errorf("an interlaced PNG: %v", err)
	}
	for name, before := range map[string]string{"none": "", "a fill byte": "\xff", "RST0": "\xff\xd0", "any": "any", "an escaped ff": "\xff\x00", "a comment": "\xff\xfe\x00\x03\xff"} {
		if _, err := thumbnail(strings.NewReader(progressiveJPEG(before, 6600)), io.Discard, Wanted{Width: 32, Height: 32}); !errors.Is(err, ErrLargePicture) {
			t.Errorf("a large progressive JPEG, before whose frame header there is %s: %v", name, err)
		}
	}
	one := animation(t, 200, 100)
	wide := bytes.Clone(one) // its canvas says to be
	copy(wide[6:], "\x88\x13\x88\x13")
	if contentType, err := thumbnail(bytes.NewReader(wide), io.Discard, Wanted{Width: 32, Height: 32, Animated: true}); contentType == "image/gif" {
		t.Errorf("an animation on a canvas of 5000 by 5000 was made: %v", err)
	}
	many := append(bytes.TrimSuffix(one, []byte{0x3b}), bytes.Repeat([]byte{0x2c, 0, 0, 0, 0, 1, 0, 1, 0, 0, 2, 2, 0x44, 1, 0}, maxFrames)...)
	var out bytes.Buffer
	contentType, err := thumbnail(bytes.NewReader(append(many, 0x3b)), &out, Wanted{Width: 32, Height: 32, Animated: true})
	if err != nil || contentType != "image/png" {
		t.Errorf("an animation of too many frames: %s, %v; a still was expected", contentType, err)
	}
	for _, c := range []string{"", "no picture", "GIF89a", "\x89PNG\r\n\x1a\n", "\xff\xd8\xff\xe1\x00"} {
		if _, err := thumbnail(strings.NewReader(c), io.Discard, Wanted{Width: 32, Height: 32}); !errors.Is(err, ErrNoPicture) {
			t.Errorf("%q: %v", c, err)
		}
	}
}

// grayPNG has nothing but its head, and a chunk of that type.
func grayPNG(t *testing.T, side uint32, interlaced bool, chunk string) []byte {
	t.Helper()
	file := pngOf(t, image.NewGray(image.Rect(0, 0, 10, 10)))
	binary.BigEndian.PutUint32(file[16:], side)
	binary.BigEndian.PutUint32(file[20:], side)
	if interlaced {
		file[28] = 1
	}
	fixPNG(file)
	if chunk == "" {
		return file
	}
	added := append([]byte{0, 0, 0, 2}, chunk+"\x00\x00"...)
	added = binary.BigEndian.AppendUint32(added, crc32.ChecksumIEEE(added[4:]))
	return slices.Insert(file, 33, added...)
}

// progressiveJPEG has three components; before is what stands before its frame header.
func progressiveJPEG(before string, side uint16) string {
	size := string(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, side), side))
	return "\xff\xd8" + before + "\xff\xc2\x00\x11\x08" + size + "\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00" +
		"\xff\xc4\x00\x14\x00\x01" + strings.Repeat("\x00", 16) +
		"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x00\x00"
}

func TestUpload(t *testing.T) {
	t.Parallel()
	p := newRepository(t, Limits{Upload: 10, User: 15})
	ctx := context.Background()
	if _, err := p.Upload(ctx, user, "", strings.NewReader("12345678901"), "", ""); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	m, err := p.Upload(ctx, user, "", strings.NewReader("1234567890"), "text/plain\r\nX: y", "a\x00b")
	if err != nil || m.ContentType != "text/plainX: y" || m.Name != "ab" {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := p.Upload(ctx, user, "", strings.NewReader("1234567890"), "", ""); !errors.Is(err, store.ErrMediaQuota) {
		t.Errorf("beyond the quota: %v", err)
	}
	pending, err := p.Create(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(pending.MediaID); !errors.Is(err, ErrNotYet) {
		t.Errorf("before it was uploaded: %v", err)
	}
	if _, err := p.Upload(ctx, user, pending.ID, strings.NewReader("1"), "", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Upload(ctx, user, pending.ID, strings.NewReader("2"), "", ""); !errors.Is(err, store.ErrMediaExists) {
		t.Errorf("overwritten: %v", err)
	}
}

func TestProof(t *testing.T) {
	t.Parallel()
	p := newRepository(t, Limits{})
	m, err := p.Upload(context.Background(), user, "", strings.NewReader("content"), "text/plain", "a")
	if err != nil {
		t.Fatal(err)
	}
	d, err := eventgraph.SignKeyDocument(p.Key.Server, []eventgraph.SigningKey{p.Key}, nil, nil, p.Now().Add(time.Hour).UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	key := func(id eventgraph.KeyID, ts int64) (ed25519.PublicKey, error) { return d.KeyFor(id, ts, true) }
	got, err := Proven(m.Proof, m.MediaID, key)
	if err != nil || got.Size != 7 || !bytes.Equal(got.SHA256, m.SHA256) || got.Name != "a" || got.ContentType != "text/plain" {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, forged := range map[string]string{
		"length":       strings.Replace(string(m.Proof), `"size":7`, `"size":8`, 1),
		"type":         strings.Replace(string(m.Proof), "text/plain", "text/html_", 1),
		"no signature": `{"server_name":"` + string(m.Server) + `","media_id":"` + m.ID + `","sha256":"` + strings.Repeat("A", 43) + `","size":1}`,
		"no JSON":      "{",
	} {
		if _, err := Proven([]byte(forged), m.MediaID, key); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Proven(m.Proof, store.MediaID{Server: m.Server, ID: "other"}, key); !errors.Is(err, ErrProof) {
		t.Errorf("for another ID: %v", err)
	}
}

func FuzzThumbnail(f *testing.F) {
	f.Add(pngOf(f, halves(40, 20)), true)
	f.Add(animation(f, 40, 20), true)
	f.Add([]byte("\xff\xd8\xff\xe1\x00\x20Exif\x00\x00II\x2a\x00\x08\x00\x00\x00"), false)
	f.Fuzz(func(t *testing.T, file []byte, animated bool) {
		var out bytes.Buffer
		if _, err := thumbnail(bytes.NewReader(file), &out, Wanted{Width: 8, Height: 8, Animated: animated}); err == nil && out.Len() == 0 {
			t.Error("neither a thumbnail nor an error")
		}
	})
}

// fixPNG puts the right checksum behind a changed header.
func fixPNG(file []byte) {
	binary.BigEndian.PutUint32(file[29:], crc32.ChecksumIEEE(file[12:29]))
}

// begun tells when it is read the first time, and then comes to nothing until it is closed.
type begun struct {
	tell chan<- struct{}
	end  <-chan struct{}
	once sync.Once
}

func (b *begun) Read([]byte) (int, error) {
	b.once.Do(func() { b.tell <- struct{}{} })
	<-b.end
	return 0, io.ErrUnexpectedEOF
}

// A user's slow uploads keep nobody else's waiting, however many they are.
func TestSlowUploads(t *testing.T) {
	t.Parallel()
	p := newRepository(t, Limits{})
	told, end := make(chan struct{}, 4*uploadsAtOnce), make(chan struct{})
	var group sync.WaitGroup
	for range 2 * uploadsAtOnce {
		group.Go(func() {
			p.Upload(t.Context(), "@mallory:x", "", &begun{tell: told, end: end}, "", "")
		})
	}
	for range uploadsOfUser {
		<-told
	}
	if _, err := p.Upload(t.Context(), user, "", strings.NewReader("1"), "", ""); err != nil {
		t.Error(err)
	}
	if n := len(told); n > 0 {
		t.Errorf("%d uploads of a user are taken beside %d", n, uploadsOfUser)
	}
	close(end)
	group.Wait()
}
