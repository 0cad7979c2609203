package federation

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// Media of other servers are fetched from whoever has them: the uploader's server signs for ID, hash and length, so a copy is proven whoever
// gives it, and the uploader may be away.
//
//	asker  which media, from which offset
//	giver  what the uploader's server has signed; then the bytes from the offset to the end
//
// What has come before a cut stays, and the next giver goes on from there. A server that does not know the protocol is asked by the spec's endpoint, for
// its own media only: nothing proves what others would say of them.

// protocolMedia is spoken on streams of its own, each for one file.
const protocolMedia = "/plexus/media/1"

const (
	// maxMediaMessage bounds a question; maxMediaAnswer what goes before the bytes: a proof with a file's name.
	maxMediaMessage = 1 << 10
	maxMediaAnswer  = 8 << 10
	// mediaStall is how long either side may take for mediaChunk bytes, and mediaGrace what the whole may take beside what media.Pace gives its bytes: 50 MB
	// need nine hours at 16 kbit/s.
	mediaStall = 30 * time.Second
	mediaGrace = 2 * time.Minute
	mediaChunk = 16 << 10
	// mediaOpenTimeout is for reaching a server and its first answer.
	mediaOpenTimeout = 15 * time.Second
	// maxMediaGivers are asked for one file.
	maxMediaGivers = 16
	// fetchedAtOnce files are fetched at one time, fetchedOf them of one server, that it cannot keep those of all others waiting; maxMediaParts are kept of those that broke off.
	fetchedAtOnce = 8
	fetchedOf     = 3
	maxMediaParts = 8
	// maxProofKeys of the uploader's server are looked at: one key signs.
	maxProofKeys = 4
)

// mediaMessage is the question, or what goes before the bytes.
type mediaMessage struct {
	Server   eventgraph.ServerName `json:"server_name,omitempty"`
	ID       string                `json:"media_id,omitempty"`
	Offset   int64                 `json:"offset,omitempty"`
	Patience int64                 `json:"timeout_ms,omitempty"`
	Proof    json.RawMessage       `json:"proof,omitempty"`
	Code     string                `json:"errcode,omitempty"` // why there are no bytes: M_NOT_FOUND, M_NOT_YET_UPLOADED
}

// mediaPart is what has come of a file.
type mediaPart struct {
	w      *store.MediaWriter
	proven *store.Media
}

func (p *mediaPart) drop() {
	if p.w != nil {
		p.w.Abort()
	}
	p.w, p.proven = nil, nil
}

// fetching is what is being fetched, and the parts of what broke off.
type fetching struct {
	servers media.Turns[eventgraph.ServerName]
	one     keyedLock[store.MediaID]
	slots   chan struct{}

	mu    sync.Mutex
	order []store.MediaID // of parts, the oldest first
	parts map[store.MediaID]*mediaPart
	ended bool
}

func newFetching() *fetching {
	return &fetching{slots: make(chan struct{}, fetchedAtOnce), servers: media.Turns[eventgraph.ServerName]{Each: fetchedOf}, parts: map[store.MediaID]*mediaPart{}}
}

// take gives out the part of a file, perhaps an empty one.
func (g *fetching) take(id store.MediaID) *mediaPart {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.parts[id]
	if p == nil {
		return &mediaPart{}
	}
	delete(g.parts, id)
	g.order = slices.DeleteFunc(g.order, func(other store.MediaID) bool { return other == id })
	return p
}

// put keeps a part for another time.
func (g *fetching) put(id store.MediaID, p *mediaPart) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case p.w == nil:
	case g.ended:
		p.drop()
	default:
		if len(g.order) == maxMediaParts {
			g.parts[g.order[0]].drop()
			delete(g.parts, g.order[0])
			g.order = g.order[1:]
		}
		g.parts[id] = p
		g.order = append(g.order, id)
	}
}

// end drops all parts.
func (g *fetching) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for _, p := range g.parts {
		p.drop()
	}
	g.parts, g.order = nil, nil
}

// FetchMedia brings media here for a local user; if need be it waits so long for their upload. That they are here already is no error. Errors: store.ErrNotFound (nobody
// who was reached gave them), ErrUnreachable, media.ErrNotYet, media.ErrTooLarge, store.ErrMediaQuota, that of ctx.
func (f *Federation) FetchMedia(ctx context.Context, id store.MediaID, user eventgraph.UserID, patience time.Duration) error {
	unlock, err := f.fetching.one.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err := f.Media.Open(id); err == nil {
		return c.Close() // somebody else has fetched it meanwhile
	}
	leave, err := f.fetching.servers.Take(ctx, id.Server)
	if err != nil {
		return err
	}
	defer leave()
	release, err := take(ctx, f.fetching.slots)
	if err != nil {
		return err
	}
	defer release()
	part := f.fetching.take(id)
	m, err := f.fetchMedia(ctx, id, part, patience)
	if err != nil {
		f.fetching.put(id, part)
		return err
	}
	m.User = user
	if err = f.Media.KeepFetched(ctx, part.w, m); errors.Is(err, store.ErrMediaExists) {
		err = nil
	}
	return err
}

// fetchMedia completes a part. The uploader's server is asked first if it is connected, then others that are, then it is dialled.
func (f *Federation) fetchMedia(ctx context.Context, id store.MediaID, part *mediaPart, patience time.Duration) (*store.Media, error) {
	var last error
	asked := func(err error) bool { // whether that settles it
		if err != nil && (last == nil || errors.Is(last, ErrUnreachable) || errors.Is(err, media.ErrNotYet) || errors.Is(err, media.ErrTooLarge)) {
			last = err
		}
		return err == nil || ctx.Err() != nil || errors.Is(err, media.ErrTooLarge) || errors.Is(err, store.ErrDiskFull)
	}
	knows := id.Server == f.server // our own, whose file was lost: nobody is asked by the spec's endpoint
	for _, peer := range f.mediaGivers(id.Server) {
		own := slices.Contains(f.peers.of(id.Server), peer)
		wait := time.Duration(0)
		if own {
			wait = patience
		}
		err := f.fetchFrom(ctx, peer, id, part, wait)
		if own && !errors.Is(err, errNotSpoken) {
			knows = true
		}
		if errors.Is(err, errNotSpoken) {
			continue
		}
		if asked(err) {
			return part.proven, err
		}
		f.Log.Debug("media not had from a peer", "peer", peer, "server", id.Server, "err", err)
	}
	if !knows && !f.peers.isConnected(id.Server) {
		f.seek(ctx, id.Server)
		for _, peer := range f.candidates(id.Server) {
			err := f.fetchFrom(ctx, peer, id, part, patience)
			if errors.Is(err, errNotSpoken) {
				continue
			}
			knows = true
			if asked(err) {
				return part.proven, err
			}
		}
	}
	if !knows {
		m, err := f.fetchPlain(ctx, id, part, patience)
		if asked(err) {
			return m, err
		}
	}
	if last == nil {
		last = store.ErrNotFound
	}
	return nil, last
}

// mediaGivers are the connected peers that may have a server's media: its own, and those of servers that share a room with it and are not denied by the
// room's ACL. If it is denied itself, others have what was sent before.
func (f *Federation) mediaGivers(server eventgraph.ServerName) []eventgraph.PeerID {
	all := slices.Clone(f.peers.of(server))
	mates, err := f.meetings.sharing.mates(f.server, server, true)
	if err != nil {
		f.Log.Error("cannot tell who shares a room", "server", server, "err", err)
	}
	for _, c := range f.peers.contacts() {
		if mates[c.Server] && c.Server != server && len(all) < maxMediaGivers {
			all = append(all, c.Peer)
		}
	}
	return all
}

// errNotSpoken: the peer was not reached over the protocol, so it is not known what it has.
var errNotSpoken = errors.New("not spoken here")

// paced gives each read and write its time.
type paced struct {
	io.ReadWriteCloser
	pace *media.Pace
}

func newPaced(stream io.ReadWriteCloser) paced {
	return paced{stream, &media.Pace{Stall: mediaStall, Grace: mediaGrace}}
}

func (s paced) extend(more time.Duration) {
	deadline := s.pace.Deadline(time.Now(), more)
	if d, ok := s.ReadWriteCloser.(deadliner); ok {
		d.SetDeadline(deadline)
	}
}

func (s paced) Read(b []byte) (int, error) {
	s.extend(0)
	n, err := s.ReadWriteCloser.Read(b[:min(len(b), mediaChunk)])
	s.pace.Moved(n)
	return n, err
}

func (s paced) Write(b []byte) (n int, err error) {
	for first := true; err == nil && (first || n < len(b)); first = false {
		var m int
		s.extend(0)
		m, err = s.ReadWriteCloser.Write(b[n:min(len(b), n+mediaChunk)])
		s.pace.Moved(m)
		n += m
	}
	return n, err
}

// fetchFrom asks a peer for what is missing of a part, and checks the whole. On an error the part holds what may be gone on from.
func (f *Federation) fetchFrom(ctx context.Context, peer eventgraph.PeerID, id store.MediaID, part *mediaPart, patience time.Duration) error {
	opening, cancel := context.WithTimeout(ctx, mediaOpenTimeout)
	opened, err := f.Transport.OpenStream(opening, peer, protocolMedia)
	cancel()
	if err != nil {
		return fmt.Errorf("%w: %w: %v", ErrUnreachable, errNotSpoken, err)
	}
	s := newPaced(opened)
	defer s.Close()
	defer context.AfterFunc(ctx, func() { reset(opened) })()
	offset := int64(0)
	if part.w != nil {
		offset = part.w.Size()
	}
	if err := writeMessage(s, mediaMessage{Server: id.Server, ID: id.ID, Offset: offset, Patience: patience.Milliseconds()}); err != nil {
		return fmt.Errorf("%w: %w: %v", ErrUnreachable, errNotSpoken, err)
	}
	var answer mediaMessage
	s.extend(patience)
	if err := readMessage(opened, maxMediaAnswer, &answer); err != nil {
		return fmt.Errorf("%w: %w: %v", ErrUnreachable, errNotSpoken, err)
	}
	switch answer.Code {
	case "":
	case "M_NOT_YET_UPLOADED":
		return media.ErrNotYet
	default:
		return store.ErrNotFound
	}
	proven, err := f.proven(ctx, answer.Proof, id, peer)
	if err != nil {
		reset(opened)
		return err
	}
	return f.takeMedia(s, proven, part, offset)
}

// takeMedia reads the bytes from offset on.
func (f *Federation) takeMedia(s paced, proven *store.Media, part *mediaPart, offset int64) error {
	fail := func(err error) error { reset(s.ReadWriteCloser); return err }
	if proven.Size > f.Media.Limits.Upload {
		return fail(media.ErrTooLarge)
	}
	if part.proven != nil && !bytes.Equal(part.proven.SHA256, proven.SHA256) || part.proven == nil && part.w != nil || offset > proven.Size {
		part.drop() // the uploader's server has signed two contents, or none for what has come: begin anew, at the next giver
		return fail(fmt.Errorf("%w: not what had come before", media.ErrProof))
	}
	part.proven = proven
	if part.w == nil {
		w, err := f.Media.Store.NewMedia()
		if err != nil {
			return fail(err)
		}
		part.w = w
	}
	if _, err := io.CopyN(part.w, s, proven.Size-offset); err != nil {
		if errors.Is(err, store.ErrDiskFull) {
			return fail(err)
		}
		return fail(fmt.Errorf("%w: %v", ErrUnreachable, err))
	}
	if !bytes.Equal(part.w.SHA256(), proven.SHA256) {
		part.drop()
		return fail(fmt.Errorf("%w: the bytes are others than those signed for", media.ErrProof))
	}
	return nil
}

// proven checks a proof, with the uploader's key fetched if need be.
func (f *Federation) proven(ctx context.Context, raw json.RawMessage, id store.MediaID, giver eventgraph.PeerID) (*store.Media, error) {
	var said struct {
		TS         int64                                                 `json:"ts"`
		Signatures map[eventgraph.ServerName]map[eventgraph.KeyID]string `json:"signatures"`
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return nil, fmt.Errorf("%w: %v", media.ErrProof, err)
	}
	if id.Server != f.server { // else it is of our own media, whose file was lost
		var needed []rooms.KeyNeeded
		for key := range said.Signatures[id.Server] {
			if len(needed) < maxProofKeys {
				needed = append(needed, rooms.KeyNeeded{Server: id.Server, ID: key, TS: said.TS})
			}
		}
		var hints []eventgraph.ServerName
		if server, ok := f.ServerOf(giver); ok {
			hints = append(hints, server)
		}
		if err := f.ensureKeys(ctx, needed, hints); err != nil {
			return nil, fmt.Errorf("%w: %w", media.ErrProof, err)
		}
	}
	return media.Proven(raw, id, func(key eventgraph.KeyID, ts int64) (ed25519.PublicKey, error) {
		return f.Rooms.Key(id.Server, key, ts, true)
	})
}

// fetchPlain fetches media from their own server by the spec's endpoint (SS API, Content repository). What has come of them before is of use only for their hash.
func (f *Federation) fetchPlain(ctx context.Context, id store.MediaID, part *mediaPart, patience time.Duration) (m *store.Media, err error) {
	proven := part.proven
	part.drop()
	query := url.Values{"timeout_ms": {strconv.FormatInt(patience.Milliseconds(), 10)}}
	err = f.request(ctx, id.Server, http.MethodGet, target(v1+"media/download", []string{id.ID}, query), nil, func(attempt context.Context, send sender) (bool, error) {
		attempt, cancel := context.WithCancel(attempt)
		defer cancel()
		attempt, flow, stop := newPatient(attempt)
		defer stop()
		flow.timer.Reset(stallTimeout + patience)
		return send(attempt, func(res *http.Response) (bool, error) {
			flow.from = res.Body
			m, err = f.takePlain(res.Header.Get("Content-Type"), flow, id, part)
			return true, err
		})
	})
	var remote *remoteError
	switch {
	case err == nil && proven != nil && !bytes.Equal(proven.SHA256, part.w.SHA256()):
		err = fmt.Errorf("%w: the server gives others than it signed for", media.ErrProof)
	case errors.As(err, &remote) && remote.Refusal.Code == "M_NOT_YET_UPLOADED":
		err = media.ErrNotYet
	case errors.As(err, &remote) && remote.Refusal.Code == "M_TOO_LARGE":
		err = media.ErrTooLarge
	case errors.As(err, &remote) && remote.Status == http.StatusNotFound:
		err = store.ErrNotFound
	}
	if err != nil {
		part.drop() // without a proof nothing may be gone on from
	}
	return m, err
}

// takePlain reads a multipart answer: a JSON object, which says nothing yet, and the file.
func (f *Federation) takePlain(contentType string, body io.Reader, id store.MediaID, part *mediaPart) (*store.Media, error) {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil || kind != "multipart/mixed" || params["boundary"] == "" {
		return nil, malformed(id.Server, "media that are not multipart/mixed")
	}
	parts := multipart.NewReader(body, params["boundary"])
	about, err := parts.NextRawPart()
	if err != nil {
		return nil, malformed(id.Server, err.Error())
	}
	if _, err := readBounded(about, maxMediaAnswer); err != nil {
		return nil, malformed(id.Server, err.Error())
	}
	file, err := parts.NextRawPart()
	if err != nil {
		return nil, malformed(id.Server, err.Error())
	}
	if file.Header.Get("Location") != "" {
		return nil, malformed(id.Server, "media that lie at an address elsewhere") // we ask proven peers only
	}
	if part.w, err = f.Media.Store.NewMedia(); err != nil {
		return nil, err
	}
	n, err := io.Copy(part.w, io.LimitReader(file, f.Media.Limits.Upload+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	case n > f.Media.Limits.Upload:
		return nil, media.ErrTooLarge
	}
	return &store.Media{MediaID: id, ContentType: media.Clean(file.Header.Get("Content-Type"), maxMediaType),
		Name: media.FileName(file.Header.Get("Content-Disposition"))}, nil
}

// maxMediaType bounds the content type that another server names.
const maxMediaType = 255
