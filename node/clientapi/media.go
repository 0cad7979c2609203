package clientapi

import (
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/store"
)

// mediaIdle is how long a client may neither send nor take anything. Of a whole file there is no other limit of time than media.Pace's.
const mediaIdle = time.Minute

// mediaRoutes registers the content repository. What older clients use is served, too: r0 is read as v3 (route.go).
func (a *API) mediaRoutes() {
	const v1, old = "/_matrix/client/v1/media", "/_matrix/media/v3"
	a.route("POST", old+"/upload", authed, a.upload)
	a.route("PUT", old+"/upload/{serverName}/{mediaId}", authed, a.uploadTo)
	a.route("POST", "/_matrix/media/v1/create", authed, a.createMedia)
	for _, name := range []string{"", "/{fileName}"} {
		a.route("GET", v1+"/download/{serverName}/{mediaId}"+name, authed, a.download)
		a.route("GET", old+"/download/{serverName}/{mediaId}"+name, optional, a.legacy(a.download))
	}
	a.route("GET", v1+"/thumbnail/{serverName}/{mediaId}", authed, a.thumbnail)
	a.route("GET", old+"/thumbnail/{serverName}/{mediaId}", optional, a.legacy(a.thumbnail))
	for _, prefix := range []string{v1, old} {
		a.route("GET", prefix+"/config", authed, a.mediaConfig)
		a.route("GET", prefix+"/preview_url", authed, a.previewURL)
	}
}

func (a *API) mediaConfig(*request) (any, error) {
	return map[string]int64{"m.upload.size": a.Media.Limits.Upload}, nil
}

func contentURI(id store.MediaID) string { return "mxc://" + string(id.Server) + "/" + id.ID }

// createMedia is POST /_matrix/media/v1/create.
func (a *API) createMedia(q *request) (any, error) {
	m, err := a.Media.Create(q.Context(), q.user)
	if err != nil {
		return nil, mediaError(err, false)
	}
	return map[string]any{"content_uri": contentURI(m.MediaID), "unused_expires_at": m.ExpiresTS}, nil
}

// upload is POST /_matrix/media/v3/upload.
func (a *API) upload(q *request) (any, error) {
	m, err := a.takeUpload(q, "")
	if err != nil {
		return nil, err
	}
	return map[string]string{"content_uri": contentURI(m.MediaID)}, nil
}

// uploadTo is PUT /_matrix/media/v3/upload/{serverName}/{mediaId}, to an ID of createMedia's.
func (a *API) uploadTo(q *request) (any, error) {
	id, err := mediaIDOf(q)
	if err != nil {
		return nil, err
	}
	if id.Server != a.Server {
		return nil, notFound("Media are uploaded to their own server.")
	}
	var m *store.Media
	if err := a.Store.View(func(r *store.Reader) error { m, err = r.Media(id); return err }); err != nil {
		return nil, mediaError(err, false)
	}
	switch {
	case m.User != q.user:
		return nil, forbidden("This media ID was created by somebody else.")
	case !m.Pending():
		return nil, mediaError(store.ErrMediaExists, false)
	case m.ExpiresTS <= a.Now().UnixMilli():
		return nil, notFound("This media ID has expired.")
	}
	_, err = a.takeUpload(q, id.ID)
	return nil, err
}

// takeUpload reads the body, as long as something of it comes.
func (a *API) takeUpload(q *request, id string) (*store.Media, error) {
	if q.ContentLength > a.Media.Limits.Upload {
		return nil, mediaError(media.ErrTooLarge, false)
	}
	deadline := http.NewResponseController(q.w)
	defer deadline.SetReadDeadline(time.Time{})
	body := pacedReader{q.Body, deadline, &media.Pace{Stall: mediaIdle, Grace: mediaIdle}}
	m, err := a.Media.Upload(q.Context(), q.user, id, body, q.Header.Get("Content-Type"), q.URL.Query().Get("filename"))
	if err != nil {
		return nil, mediaError(err, false)
	}
	return m, nil
}

// pacedReader gives each read of a body its time.
type pacedReader struct {
	io.Reader
	deadline *http.ResponseController
	pace     *media.Pace
}

// errUpload: the body did not come whole.
var errUpload = fail(http.StatusBadRequest, "M_UNKNOWN", "The upload broke off.")

func (r pacedReader) Read(b []byte) (int, error) {
	_ = r.deadline.SetReadDeadline(r.pace.Deadline(time.Now(), 0)) // not on connections that know no deadlines
	n, err := r.Reader.Read(b)
	r.pace.Moved(n)
	if err != nil && err != io.EOF {
		err = errUpload
	}
	return n, err
}

// mediaIDOf reads the ID from the path: what has other letters is nobody's (CS API, Content repository, Security considerations).
func mediaIDOf(q *request) (store.MediaID, error) {
	server, err := eventgraph.ParseServerName(q.path("serverName"))
	id := q.path("mediaId")
	if err != nil || !media.ValidID(id) {
		return store.MediaID{}, notFound("There are no such media.")
	}
	return store.MediaID{Server: server, ID: id}, nil
}

// legacy is what the endpoints without authentication ask in its place. Any web page can have a browser request them on localhost, though not read the answer
// of all; so they answer nobody who calls on behalf of a page from elsewhere. Who has a token is asked no more than on the new ones.
func (a *API) legacy(h handler) handler {
	return func(q *request) (any, error) {
		if q.user == "" && a.foreignPage(q.Request) {
			return nil, forbidden("Web pages get media from the endpoints that ask for an access token.")
		}
		return h(q)
	}
}

// foreignPage says whether a browser sends the request for a page that is not of this machine. Browsers say so themselves (Fetch Metadata); older ones at
// least name the page.
func (a *API) foreignPage(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "same-origin", "same-site", "none": // "none": somebody entered the address
		return false
	case "":
	default:
		return true
	}
	for _, name := range []string{"Origin", "Referer"} {
		value := r.Header.Get(name)
		if value == "" {
			continue
		}
		page, err := url.Parse(value)
		if err != nil || !a.isHere(page, r.Host) {
			return true
		}
	}
	return false
}

// isHere says whether a page is of this machine, or of the very host that was asked.
func (a *API) isHere(page *url.URL, host string) bool {
	name := hostOf(page.Host)
	if name == "" { // "null", or a file
		return false
	}
	if name == "localhost" || strings.EqualFold(name, hostOf(host)) {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// download is GET download, by all its paths.
func (a *API) download(q *request) (any, error) {
	id, err := mediaIDOf(q)
	if err != nil {
		return nil, err
	}
	content, err := a.openMedia(q, id, func() (*media.Content, error) { return a.Media.Open(id) })
	if err != nil {
		return nil, err
	}
	name := content.Name
	for _, p := range q.params {
		if p.name == "fileName" {
			name = p.value
		}
	}
	return a.giveFile(q, id, content, content.Disposition(name))
}

// thumbnail is GET thumbnail, by all its paths. Of media of other servers the whole file is fetched: nothing would prove a thumbnail made elsewhere.
func (a *API) thumbnail(q *request) (any, error) {
	id, err := mediaIDOf(q)
	if err != nil {
		return nil, err
	}
	want, problem, missing := media.ParseWanted(q.URL.Query())
	switch {
	case missing:
		return nil, missingParam(problem)
	case problem != "":
		return nil, invalidParam(problem)
	}
	content, err := a.openMedia(q, id, func() (*media.Content, error) { return a.Media.Thumbnail(q.Context(), id, want) })
	if err != nil {
		return nil, err
	}
	return a.giveFile(q, id, content, content.Disposition(""))
}

// openMedia opens media, or what is made of them, after fetching them if they are not here.
func (a *API) openMedia(q *request, id store.MediaID, open func() (*media.Content, error)) (*media.Content, error) {
	patience, ok := media.ParsePatience(q.URL.Query())
	if !ok {
		return nil, invalidParam("timeout_ms must be a number of milliseconds.")
	}
	elsewhere := id.Server != a.Server
	content, err := open()
	switch {
	case errors.Is(err, media.ErrNotYet):
		if _, err = a.Media.Await(q.Context(), id, patience); err == nil {
			content, err = open()
		}
	case errors.Is(err, store.ErrNotFound) && q.URL.Query().Get("allow_remote") != "false" && (elsewhere || a.hasLost(id)):
		if err = a.remote.FetchMedia(q.Context(), id, q.user, patience); err == nil {
			content, err = open()
		}
	}
	if err != nil {
		return nil, mediaError(err, elsewhere)
	}
	if q.user != "" {
		if err := a.Store.UseMedia(q.Context(), id, q.user, a.Now().UnixMilli()); err != nil && !errors.Is(err, store.ErrNotFound) {
			content.Close()
			return nil, err
		}
	}
	return content, nil
}

// hasLost says whether the file of media uploaded here is gone: others may have a copy, which our own signature proves.
func (a *API) hasLost(id store.MediaID) bool {
	_, err := a.Media.Record(id)
	return err == nil
}

// contentPolicy is the Content-Security-Policy that the spec recommends (CS API, Content repository).
const contentPolicy = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';"

// giveFile answers with the file, or the range of it that was asked for.
func (a *API) giveFile(q *request, id store.MediaID, content *media.Content, disposition string) (any, error) {
	defer content.Close()
	header := q.w.Header()
	header.Set("Content-Type", content.Type())
	header.Set("Content-Disposition", disposition)
	header.Set("Content-Security-Policy", contentPolicy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "private, max-age=31536000, immutable") // an ID has one content for ever
	// The spec's cross-origin is for pages that have a token; without one, no page from elsewhere may embed the file.
	policy := "cross-origin"
	if q.user == "" {
		policy = "same-site"
	}
	header.Set("Cross-Origin-Resource-Policy", policy)
	deadline := http.NewResponseController(q.w)
	defer deadline.SetWriteDeadline(time.Time{})
	http.ServeContent(idleWriter{q.w, deadline}, q.Request, "", time.UnixMilli(content.CreatedTS), content)
	return written{}, nil
}

// idleWriter gives each write of an answer mediaIdle.
type idleWriter struct {
	http.ResponseWriter
	deadline *http.ResponseController
}

func (w idleWriter) Write(b []byte) (int, error) {
	_ = w.deadline.SetWriteDeadline(time.Now().Add(mediaIdle)) // not on connections that know no deadlines
	return w.ResponseWriter.Write(b)
}

// mediaPending is when somebody who has created too many media IDs may try again: as an upload of his ends.
const mediaPending = 10 * time.Second

// mediaError gives an error the code of the spec; elsewhere says that the media are another server's.
func mediaError(err error, elsewhere bool) error {
	switch {
	case errors.Is(err, media.ErrTooLarge) && elsewhere, errors.Is(err, media.ErrLargePicture) && elsewhere:
		return fail(http.StatusBadGateway, "M_TOO_LARGE", "This is larger than this server takes from others.")
	case errors.Is(err, media.ErrTooLarge):
		return fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The file is larger than this server takes; GET media/config tells how much.")
	case errors.Is(err, media.ErrLargePicture):
		return fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The picture is too large for thumbnails.")
	case errors.Is(err, media.ErrNoPicture):
		return fail(http.StatusBadRequest, "M_UNKNOWN", "No thumbnail can be made of this file.")
	case errors.Is(err, media.ErrNotYet):
		return fail(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "The content has not been uploaded yet.")
	case errors.Is(err, media.ErrProof):
		return fail(http.StatusBadGateway, "M_UNKNOWN", "What other servers gave was not what was uploaded.")
	case errors.Is(err, store.ErrMediaExists):
		return fail(http.StatusConflict, "M_CANNOT_OVERWRITE_MEDIA", "This media ID has its content already.")
	case errors.Is(err, store.ErrMediaQuota):
		return forbidden("No more media may be stored here.")
	case errors.Is(err, store.ErrMediaPending):
		return &matrixError{Status: http.StatusTooManyRequests, Code: "M_LIMIT_EXCEEDED", Message: "Too many media IDs wait for their content.",
			Extra: map[string]any{"retry_after_ms": mediaPending.Milliseconds()}}
	case errors.Is(err, store.ErrNotFound):
		return notFound("There are no such media.")
	case errors.Is(err, federation.ErrUnreachable):
		return fail(http.StatusBadGateway, "M_UNKNOWN", "No server that has the media can be reached now.")
	}
	return err
}
