package clientapi

import (
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/gif" // what images of pages are made of
	_ "image/jpeg"
	_ "image/png"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/net/html"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/media"
	"github.com/plexus-p2p/plexus/node/outgoing"
	"github.com/plexus-p2p/plexus/store"
)

// Previews of links are off unless Config.URLPreviews: who sends a link could otherwise have each reader's device call an address of his choice. Where they are
// on, nothing but public addresses is called: each connection is looked at when its address is known, so neither a redirect nor a name that
// resolves to something else the second time leads to this machine or its network.

const (
	// previewTimeout is for a page and its image; maxPreviewPage what is read of a page, whose head stands first; maxPreviewImage what is read of an image.
	previewTimeout  = 20 * time.Second
	maxPreviewPage  = 512 << 10
	maxPreviewImage = 4 << 20
	maxRedirects    = 5
	// previewsKept of pages, each for previewLife: the people of a room look at the same link.
	previewsKept = 128
	previewLife  = time.Hour
	// previewsAtOnce are fetched at one time.
	previewsAtOnce = 4
	// maxPreviewField bounds each thing that a page says of itself, maxPreviewFields their number.
	maxPreviewField  = 1 << 10
	maxPreviewFields = 32
)

// previewReach is where previews are fetched from.
var previewReach = outgoing.Reach{Public: true, Names: true}

// previews fetches what pages say of themselves (Open Graph).
type previews struct {
	client *http.Client
	slots  chan struct{}
	kept   *lru.Cache[string, keptPreview]
}

type keptPreview struct {
	fields map[string]any
	until  time.Time
}

func newPreviews() *previews {
	p := &previews{slots: make(chan struct{}, previewsAtOnce)}
	p.kept, _ = lru.New[string, keptPreview](previewsKept) // fails only on a size below 1
	transport := previewReach.Transport(previewTimeout)
	transport.DisableKeepAlives = true
	p.client = &http.Client{
		Transport: transport,
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return errors.New("too many redirects")
			}
			return previewable(r.URL)
		},
		Timeout: previewTimeout,
	}
	return p
}

// previewable refuses what is no address of a web page.
func previewable(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("that is no address of a web page")
	}
	return nil
}

// previewURL is GET preview_url.
func (a *API) previewURL(q *request) (any, error) {
	if !a.URLPreviews {
		return nil, forbidden("Previews of links are off on this server.")
	}
	address := q.URL.Query().Get("url")
	if address == "" {
		return nil, missingParam("url is missing.")
	}
	u, err := url.Parse(address)
	if err != nil || previewable(u) != nil {
		return nil, invalidParam("url is no address of a web page.")
	}
	u.Fragment = ""
	if kept, ok := a.previews.kept.Get(u.String()); ok && a.Now().Before(kept.until) {
		return kept.fields, nil
	}
	select {
	case a.previews.slots <- struct{}{}:
		defer func() { <-a.previews.slots }()
	case <-q.Context().Done():
		return nil, q.Context().Err()
	}
	ctx, cancel := context.WithTimeout(q.Context(), previewTimeout)
	defer cancel()
	fields, err := a.preview(ctx, u, q.user)
	if err != nil {
		// Why is not told: who asks could find out by it what there is in this network.
		a.Log.Debug("no preview", "err", err)
		return nil, fail(http.StatusBadGateway, "M_UNKNOWN", "There is no preview of this address.")
	}
	a.previews.kept.Add(u.String(), keptPreview{fields, a.Now().Add(previewLife)})
	return fields, nil
}

func (a *API) preview(ctx context.Context, u *url.URL, user eventgraph.UserID) (map[string]any, error) {
	page, err := a.previews.get(ctx, u)
	if err != nil {
		return nil, err
	}
	defer page.Body.Close()
	fields := map[string]any{}
	switch kind, _, _ := mime.ParseMediaType(page.Header.Get("Content-Type")); {
	case kind == "text/html", kind == "application/xhtml+xml":
		for name, value := range readPage(io.LimitReader(page.Body, maxPreviewPage)) {
			fields[name] = value
		}
		picture, _ := fields["og:image"].(string)
		delete(fields, "og:image")
		if at, err := page.Request.URL.Parse(picture); picture != "" && err == nil && previewable(at) == nil {
			if image, err := a.previews.get(ctx, at); err == nil {
				a.keepPicture(ctx, image, user, fields)
				image.Body.Close()
			}
		}
	case strings.HasPrefix(kind, "image/"):
		a.keepPicture(ctx, page, user, fields)
	}
	return fields, nil
}

func (p *previews) get(ctx context.Context, u *url.URL) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "plexus (preview of a link)")
	r.Header.Set("Accept", "text/html, image/*;q=0.9")
	res, err := p.client.Do(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("status %d", res.StatusCode)
	}
	return res, nil
}

// keepPicture stores a page's image as the user's, and names it in the fields. A preview without one is one, too.
func (a *API) keepPicture(ctx context.Context, res *http.Response, user eventgraph.UserID, fields map[string]any) {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if !strings.HasPrefix(kind, "image/") || res.ContentLength > maxPreviewImage {
		return
	}
	m, err := a.Media.Upload(ctx, user, "", &bounded{res.Body, maxPreviewImage}, kind, "")
	if err != nil {
		return
	}
	fields["og:image"] = contentURI(m.MediaID)
	fields["og:image:type"] = kind
	fields["matrix:image:size"] = m.Size
	if width, height, err := a.pictureSize(m.MediaID); err == nil {
		fields["og:image:width"], fields["og:image:height"] = width, height
	}
}

func (a *API) pictureSize(id store.MediaID) (width, height int, err error) {
	c, err := a.Media.Open(id)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	config, _, err := image.DecodeConfig(c)
	return config.Width, config.Height, err
}

// bounded fails after so many bytes.
type bounded struct {
	io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, media.ErrTooLarge
	}
	return n, err
}

// readPage finds what a page says of itself: meta elements with a property og:…, and its title.
func readPage(page io.Reader) map[string]string {
	fields := map[string]string{}
	set := func(name, value string) {
		value = strings.TrimSpace(value)
		if fields[name] == "" && value != "" && len(fields) < maxPreviewFields {
			fields[name] = media.Clean(value, maxPreviewField)
		}
	}
	title, description := "", ""
	for tokens := html.NewTokenizer(page); ; {
		switch tokens.Next() {
		case html.ErrorToken:
			set("og:title", title)
			set("og:description", description)
			return fields
		case html.StartTagToken, html.SelfClosingTagToken:
			token := tokens.Token()
			switch token.Data {
			case "title":
				if title == "" && tokens.Next() == html.TextToken {
					title = tokens.Token().Data
				}
			case "meta":
				attributes := map[string]string{}
				for _, at := range token.Attr {
					attributes[at.Key] = at.Val
				}
				if name := attributes["property"]; strings.HasPrefix(name, "og:") && len(name) < 64 {
					set(name, attributes["content"])
				}
				if strings.EqualFold(attributes["name"], "description") {
					description = attributes["content"]
				}
			}
		}
	}
}
