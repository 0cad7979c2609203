// Package media keeps what users upload and fetch: it makes IDs, takes in content within bounds, has it signed for by this server,
// and makes thumbnails, one at a time. The files are package store's; who is given them is decided by node/clientapi and node/federation.
package media

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Defaults of Limits.
const (
	DefaultUploadSize = 50 << 20 // a few minutes of video
	DefaultUserBytes  = 4 << 30
	DefaultLocalBytes = 16 << 30
	DefaultCacheBytes = 2 << 30
)

const (
	// unusedLife is how long an ID waits for its content (CS API, POST /media/v1/create, recommends a day).
	unusedLife = 24 * time.Hour
	// maxName and maxContentType bound what clients say of a file.
	maxName        = 255
	maxContentType = 255
	// maxID bounds the IDs of other servers.
	maxID = 255
	// uploadsAtOnce are written at one time: their files are not counted before they are whole.
	uploadsAtOnce = 8
	// uploadsOfUser are of one user, so that nobody's slow ones keep all others waiting.
	uploadsOfUser = 2
)

var (
	// ErrTooLarge: the content is longer than may be.
	ErrTooLarge = errors.New("the content is too large")
	// ErrNotYet: the ID waits for its content.
	ErrNotYet = errors.New("the content has not been uploaded yet")
	// ErrProof: what is said to be signed by the uploader's server is not, or is of something else.
	ErrProof = errors.New("no valid signature of the uploader's server")
)

// Limits in bytes; 0: the default.
type Limits struct {
	Upload int64 // one file, uploaded or fetched
	User   int64 // one user's uploads
	Local  int64 // all users' uploads
	Cache  int64 // what was fetched from other servers
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		limit    *int64
		standard int64
	}{{&l.Upload, DefaultUploadSize}, {&l.User, DefaultUserBytes}, {&l.Local, DefaultLocalBytes}, {&l.Cache, DefaultCacheBytes}} {
		if *d.limit == 0 {
			*d.limit = d.standard
		}
	}
	return l
}

// Config of New; all fields but Limits are required.
type Config struct {
	Store  *store.Store
	Key    eventgraph.SigningKey
	Limits Limits
	Now    func() time.Time
}

// Repository is the node's media. It is for concurrent use and has no goroutine.
type Repository struct {
	Config
	uploads   chan struct{} // a slot for each file being uploaded
	uploaders Turns[eventgraph.UserID]
	thumbnail chan struct{} // a slot for the thumbnail being made

	mu       sync.Mutex
	uploaded chan struct{} // closed and replaced at each upload
}

// New makes the repository of a node.
func New(c Config) *Repository {
	c.Limits = c.Limits.withDefaults()
	return &Repository{Config: c, uploads: make(chan struct{}, uploadsAtOnce), uploaders: Turns[eventgraph.UserID]{Each: uploadsOfUser}, thumbnail: make(chan struct{}, 1), uploaded: make(chan struct{})}
}

// ValidID says whether an ID has only the letters that it may have (CS API, Content repository, Security considerations).
func ValidID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func (p *Repository) limits() store.MediaLimits {
	return store.MediaLimits{User: p.Limits.User, Local: p.Limits.Local, Remote: p.Limits.Cache}
}

// newID is of 160 random bits: who does not know it does not find it.
func (p *Repository) newID() store.MediaID {
	var id [20]byte
	rand.Read(id[:])
	return store.MediaID{Server: p.Key.Server, ID: base64.RawURLEncoding.EncodeToString(id[:])}
}

// Create makes an ID whose content is to follow. Error: store.ErrMediaPending.
func (p *Repository) Create(ctx context.Context, user eventgraph.UserID) (*store.Media, error) {
	now := p.Now()
	m := &store.Media{MediaID: p.newID(), User: user, CreatedTS: now.UnixMilli(), ExpiresTS: now.Add(unusedLife).UnixMilli()}
	_, err := p.Store.Update(ctx, func(tx *store.Tx) error { return tx.CreateMedia(m, now.UnixMilli()) })
	return m, err
}

// Upload takes in a user's file under a new ID, or under one that Create has made for him (ID not ""). Errors: ErrTooLarge, store.ErrMediaQuota,
// store.ErrMediaExists, store.ErrDiskFull, those of content.
func (p *Repository) Upload(ctx context.Context, user eventgraph.UserID, id string, content io.Reader, contentType, name string) (*store.Media, error) {
	release, err := p.uploaders.Take(ctx, user)
	if err != nil {
		return nil, err
	}
	defer release()
	select {
	case p.uploads <- struct{}{}:
		defer func() { <-p.uploads }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m := &store.Media{MediaID: p.newID(), User: user, CreatedTS: p.Now().UnixMilli(), ContentType: Clean(contentType, maxContentType), Name: Clean(name, maxName)}
	if id != "" {
		m.ID = id
	}
	w, err := p.Store.NewMedia()
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(w, io.LimitReader(content, p.Limits.Upload+1))
	if err == nil && n > p.Limits.Upload {
		err = ErrTooLarge
	}
	if err == nil {
		m.Size, m.SHA256 = w.Size(), w.SHA256()
		m.Proof, err = p.prove(m)
	}
	if err != nil {
		w.Abort()
		return nil, err
	}
	if err := p.Store.KeepMedia(ctx, w, m, true, p.limits()); err != nil {
		return nil, err
	}
	p.arrived()
	return m, nil
}

// KeepFetched keeps what was fetched for a local user. Errors: store.ErrMediaQuota, store.ErrMediaExists, store.ErrDiskFull.
func (p *Repository) KeepFetched(ctx context.Context, w *store.MediaWriter, m *store.Media) error {
	m.CreatedTS = p.Now().UnixMilli()
	return p.Store.KeepMedia(ctx, w, m, false, p.limits())
}

// Clean makes what others say of a file short and free of control characters.
func Clean(s string, limit int) string {
	out := make([]byte, 0, min(len(s), limit))
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			continue
		}
		if len(out)+utf8.RuneLen(r) > limit {
			break
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out)
}

// proof is what the uploader's server signs. It travels with the bytes, and proves a copy from anybody.
type proof struct {
	Server      eventgraph.ServerName `json:"server_name"`
	ID          string                `json:"media_id"`
	SHA256      string                `json:"sha256"` // unpadded base64
	Size        int64                 `json:"size"`
	TS          int64                 `json:"ts"` // ms: by the key of that time
	ContentType string                `json:"content_type,omitempty"`
	Name        string                `json:"name,omitempty"`
}

// prove signs for a file of this server.
func (p *Repository) prove(m *store.Media) (json.RawMessage, error) {
	object, err := json.Marshal(proof{m.Server, m.ID, base64.RawStdEncoding.EncodeToString(m.SHA256), m.Size, m.CreatedTS, m.ContentType, m.Name})
	if err != nil {
		return nil, err
	}
	signed, err := eventgraph.SignJSON(object, p.Key)
	if err != nil {
		return nil, fmt.Errorf("sign media: %w", err)
	}
	return signed, nil
}

// Proven reads a proof for the media with that ID into a record; key finds the keys of their server that are valid at a time in ms. Error: ErrProof.
func Proven(raw json.RawMessage, id store.MediaID, key func(eventgraph.KeyID, int64) (ed25519.PublicKey, error)) (*store.Media, error) {
	var said struct {
		proof
		Signatures map[eventgraph.ServerName]map[eventgraph.KeyID]string `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrProof, err)
	}
	sum, err := base64.RawStdEncoding.DecodeString(said.SHA256)
	if err != nil || len(sum) != sha256.Size || said.Size < 0 || said.Server != id.Server || said.ID != id.ID {
		return nil, fmt.Errorf("%w: it is of something else", ErrProof)
	}
	err = errors.New("it has none")
	for keyID := range said.Signatures[id.Server] {
		public, keyErr := key(keyID, said.TS)
		if keyErr != nil {
			err = keyErr
			continue
		}
		if err = eventgraph.VerifyJSON(raw, id.Server, keyID, public); err == nil {
			return &store.Media{MediaID: id, Size: said.Size, SHA256: sum, Proof: raw,
				ContentType: Clean(said.ContentType, maxContentType), Name: Clean(said.Name, maxName)}, nil
		}
	}
	return nil, fmt.Errorf("%w: %v", ErrProof, err)
}

// Content is a file to be given, open; the caller closes it.
type Content struct {
	*store.MediaFile
	ContentType string
	Name        string // "": none was said
	CreatedTS   int64
}

// Record reads what is known of media that are here. Errors: store.ErrNotFound, ErrNotYet.
func (p *Repository) Record(id store.MediaID) (m *store.Media, err error) {
	err = p.Store.View(func(r *store.Reader) error { m, err = r.Media(id); return err })
	switch {
	case err != nil:
		return nil, err
	case m.Pending() && m.ExpiresTS <= p.Now().UnixMilli():
		return nil, store.ErrNotFound
	case m.Pending():
		return nil, ErrNotYet
	}
	return m, nil
}

// Open opens media that are here. Errors: store.ErrNotFound, ErrNotYet.
func (p *Repository) Open(id store.MediaID) (*Content, error) {
	m, err := p.Record(id)
	if err != nil {
		return nil, err
	}
	f, err := p.Store.OpenMedia(m.File)
	if err != nil {
		return nil, err
	}
	return &Content{f, m.ContentType, m.Name, m.CreatedTS}, nil
}

// Thumbnail opens a thumbnail of media that are here, made now if it has not been; or the file itself, if that is no larger. Errors: store.ErrNotFound, ErrNotYet,
// ErrNoPicture, ErrLargePicture.
func (p *Repository) Thumbnail(ctx context.Context, id store.MediaID, want Wanted) (*Content, error) {
	original, err := p.Open(id)
	if err != nil {
		return nil, err
	}
	name := variant(want)
	if t, err := p.stored(id, name); err == nil {
		original.Close()
		return t, nil
	} else if !errors.Is(err, store.ErrNotFound) {
		original.Close()
		return nil, err
	}
	t, err := p.makeThumbnail(ctx, id, original, want, name)
	if errors.Is(err, errOriginal) {
		_, err = original.Seek(0, io.SeekStart)
		t = original
	}
	if err != nil || t != original {
		original.Close()
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

func variant(w Wanted) string {
	method, moves := "scale", ""
	if w.Crop {
		method = "crop"
	}
	if w.Animated {
		moves = " animated"
	}
	return fmt.Sprintf("%dx%d %s%s", min(w.Width, maxSide), min(w.Height, maxSide), method, moves)
}

func (p *Repository) stored(id store.MediaID, variant string) (*Content, error) {
	var t *store.Thumbnail
	if err := p.Store.View(func(r *store.Reader) (err error) { t, err = r.Thumbnail(id, variant); return err }); err != nil {
		return nil, err
	}
	f, err := p.Store.OpenMedia(t.File)
	if err != nil {
		return nil, err
	}
	return &Content{MediaFile: f, ContentType: t.ContentType}, nil
}

// makeThumbnail makes one, when it is its turn, and keeps it.
func (p *Repository) makeThumbnail(ctx context.Context, id store.MediaID, original *Content, want Wanted, variant string) (*Content, error) {
	select {
	case p.thumbnail <- struct{}{}:
		defer func() { <-p.thumbnail }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if t, err := p.stored(id, variant); err == nil {
		return t, nil // who was before us has made it
	}
	w, err := p.Store.NewMedia()
	if err != nil {
		return nil, err
	}
	contentType, err := thumbnail(original, w, want)
	if err != nil {
		w.Abort()
		if errors.Is(err, errOriginal) {
			original.ContentType = contentType // what it is, and not what was said: a thumbnail is a picture
		}
		return nil, err
	}
	t, err := w.Reopen()
	if err != nil {
		w.Abort()
		return nil, err
	}
	if _, err := p.Store.KeepThumbnail(ctx, w, id, variant, contentType); err != nil {
		t.Close()
		return nil, err
	}
	return &Content{MediaFile: t, ContentType: contentType}, nil
}

// Await waits at most so long for content that is to be uploaded here. Errors: ErrNotYet, store.ErrNotFound, that of ctx.
func (p *Repository) Await(ctx context.Context, id store.MediaID, patience time.Duration) (*store.Media, error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		uploaded := p.uploaded
		p.mu.Unlock()
		m, err := p.Record(id)
		if !errors.Is(err, ErrNotYet) {
			return m, err
		}
		select {
		case <-uploaded:
		case <-timeout.C:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// arrived wakes those who wait for content.
func (p *Repository) arrived() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.uploaded)
	p.uploaded = make(chan struct{})
}

// removeBatch is how many records are in memory at a time while media are removed.
const removeBatch = 1000

// Remove deletes the media of which which says so, and calls removed with the bytes of each. What is deleted when it ends early stays so.
func (p *Repository) Remove(ctx context.Context, which func(*store.Media) bool, removed func(bytes int64)) error {
	for {
		var batch []*store.Media
		err := p.Store.View(func(r *store.Reader) error {
			return r.AllMedia(func(m *store.Media) (bool, error) {
				if which(m) {
					batch = append(batch, m)
				}
				return len(batch) < removeBatch, nil
			})
		})
		if err != nil || len(batch) == 0 {
			return err
		}
		for _, m := range batch {
			if err := p.Store.DeleteMedia(ctx, m.MediaID); err == nil {
				removed(m.Size)
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
	}
}
