package federation

import (
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"slices"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// givenAtOnce files are given at one time, givenTo of them to one server; who finds no place is told to come again, or asks another holder.
	givenAtOnce = 16
	givenTo     = 4
)

// giving of media, over both ways.
type mediaGiving struct {
	mu   sync.Mutex
	all  int
	with map[eventgraph.ServerName]int
}

// enter takes a place.
func (g *mediaGiving) enter(server eventgraph.ServerName) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all == givenAtOnce || g.with[server] == givenTo {
		return nil, false
	}
	if g.with == nil {
		g.with = map[eventgraph.ServerName]int{}
	}
	g.all++
	g.with[server]++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.all--
		if g.with[server]--; g.with[server] == 0 {
			delete(g.with, server)
		}
	}, true
}

// mediaFor reads the record of media if the server may have them: it shares a room with a local user who has uploaded or fetched them. Else it learns no more than
// if they were not here. Errors: store.ErrNotFound, media.ErrNotYet.
func (f *Federation) mediaFor(ctx context.Context, server eventgraph.ServerName, id store.MediaID, patience time.Duration) (*store.Media, error) {
	allowed := false
	err := f.Store.View(func(r *store.Reader) error {
		m, err := r.Media(id)
		if err != nil {
			return err
		}
		see := func(user eventgraph.UserID) (bool, error) {
			servers, err := f.sharing(r, user)
			allowed = allowed || slices.Contains(servers, server)
			return !allowed, err
		}
		if m.Pending() {
			_, err = see(m.User)
			return err
		}
		return r.MediaUsers(id, see)
	})
	if err == nil && !allowed {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	return f.Media.Await(ctx, id, patience)
}

// handleMedia gives files to those who ask by the protocol of our own.
func (f *Federation) handleMedia() {
	f.Transport.Handle(protocolMedia, func(ctx context.Context, peer eventgraph.PeerID, stream io.ReadWriteCloser) {
		defer stream.Close()
		defer context.AfterFunc(ctx, func() { reset(stream) })()
		if err := f.giveMedia(ctx, peer, newPaced(stream)); err != nil && ctx.Err() == nil {
			reset(stream)
			f.Log.Debug("media not given", "peer", peer, "err", err)
		}
	})
}

func (f *Federation) giveMedia(ctx context.Context, peer eventgraph.PeerID, s paced) error {
	if err := f.admitStream(ctx, peer); err != nil {
		return err
	}
	server, err := f.asker(ctx, peer)
	if err != nil {
		return err
	}
	var m mediaMessage
	if err := readMessage(s, maxMediaMessage, &m); err != nil {
		return err
	}
	refuse := func(code string) error { return writeMessage(s, mediaMessage{Code: code}) }
	if !f.sharesRoom(server) || !media.ValidID(m.ID) || m.Offset < 0 || m.Patience < 0 {
		return refuse("M_NOT_FOUND")
	}
	leave, ok := f.givingMedia.enter(server)
	if !ok {
		return refuse("M_LIMIT_EXCEEDED")
	}
	defer leave()
	patience := time.Duration(0)
	if m.Server == f.server {
		patience = min(time.Duration(min(m.Patience, time.Minute.Milliseconds()))*time.Millisecond, time.Minute)
	}
	id := store.MediaID{Server: m.Server, ID: m.ID}
	record, err := f.mediaFor(ctx, server, id, patience)
	switch {
	case errors.Is(err, media.ErrNotYet):
		return refuse("M_NOT_YET_UPLOADED")
	case errors.Is(err, store.ErrNotFound):
		return refuse("M_NOT_FOUND")
	case err != nil:
		return err
	}
	content, err := f.Media.Open(id)
	if record.Proof == nil || errors.Is(err, store.ErrNotFound) || err == nil && content.Size() != record.Size {
		if err == nil {
			content.Close()
		}
		return refuse("M_NOT_FOUND") // it has no proof, and without one it would be taken from its own server only
	}
	if err != nil {
		return err
	}
	defer content.Close()
	if _, err := content.Seek(min(m.Offset, record.Size), io.SeekStart); err != nil {
		return err
	}
	if err := writeMessage(s, mediaMessage{Proof: record.Proof}); err != nil {
		return err
	}
	_, err = io.Copy(s, content)
	return err
}

func (f *Federation) mediaRoutes(r *router) {
	r.add(http.MethodGet, "/_matrix/federation/v1/media/download/{mediaId}", f.serveDownload)
	r.add(http.MethodGet, "/_matrix/federation/v1/media/thumbnail/{mediaId}", f.serveThumbnail)
}

func (f *Federation) serveDownload(q *request) (any, error) {
	return f.serveMedia(q, func(id store.MediaID) (*media.Content, error) { return f.Media.Open(id) })
}

func (f *Federation) serveThumbnail(q *request) (any, error) {
	want, problem, missing := media.ParseWanted(q.URL.Query())
	switch {
	case missing:
		return nil, fail(http.StatusBadRequest, "M_MISSING_PARAM", problem)
	case problem != "":
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", problem)
	}
	return f.serveMedia(q, func(id store.MediaID) (*media.Content, error) { return f.Media.Thumbnail(q.Context(), id, want) })
}

// serveMedia answers with our own media, or a thumbnail of them, as multipart/mixed (SS API, Content repository).
func (f *Federation) serveMedia(q *request, open func(store.MediaID) (*media.Content, error)) (any, error) {
	patience, ok := media.ParsePatience(q.URL.Query())
	if !ok {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "timeout_ms is not a number of milliseconds")
	}
	id := store.MediaID{Server: f.server, ID: q.path("mediaId")}
	if !media.ValidID(id.ID) {
		return nil, store.ErrNotFound
	}
	leave, ok := f.givingMedia.enter(q.origin)
	if !ok {
		return nil, &matrixError{Status: http.StatusTooManyRequests, RetryAfterMS: mediaStall.Milliseconds(),
			Refusal: rooms.Refusal{Code: "M_LIMIT_EXCEEDED", Reason: "too many files at one time"}}
	}
	_, err := f.mediaFor(q.Context(), q.origin, id, patience)
	var content *media.Content
	if err == nil {
		content, err = open(id)
	}
	if err != nil {
		leave()
		return nil, mediaError(err)
	}
	return direct(func(w http.ResponseWriter) error {
		defer leave()
		defer content.Close()
		parts := multipart.NewWriter(w)
		w.Header().Set("Content-Type", "multipart/mixed; boundary="+parts.Boundary())
		about, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/json"}})
		if err == nil {
			_, err = io.WriteString(about, "{}")
		}
		if err != nil {
			return err
		}
		file, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {content.Type()}, "Content-Disposition": {content.Disposition(content.Name)}})
		if err == nil {
			_, err = io.Copy(file, content)
		}
		return errors.Join(err, parts.Close())
	}), nil
}

// mediaError gives an error the code of the spec.
func mediaError(err error) error {
	switch {
	case errors.Is(err, media.ErrNotYet):
		return fail(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "the content has not been uploaded yet")
	case errors.Is(err, media.ErrNoPicture):
		return fail(http.StatusBadRequest, "M_UNKNOWN", err.Error())
	case errors.Is(err, media.ErrLargePicture):
		return fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", err.Error())
	}
	return err
}
