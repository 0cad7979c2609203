package media

import (
	"mime"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// inline are the content types that may be shown where they are opened (CS API, Serving inline content).
var inline = map[string]bool{
	"text/css": true, "text/plain": true, "text/csv": true,
	"application/json": true, "application/ld+json": true,
	"image/jpeg": true, "image/gif": true, "image/png": true, "image/apng": true, "image/webp": true, "image/avif": true,
	"video/mp4": true, "video/webm": true, "video/ogg": true, "video/quicktime": true,
	"audio/mp4": true, "audio/webm": true, "audio/aac": true, "audio/mpeg": true, "audio/ogg": true, "audio/wave": true, "audio/wav": true,
	"audio/x-wav": true, "audio/x-pn-wav": true, "audio/flac": true, "audio/x-flac": true,
}

// Type is the Content-Type under which a file is given.
func (c *Content) Type() string {
	if c.ContentType == "" {
		return "application/octet-stream"
	}
	return c.ContentType
}

// Disposition is the Content-Disposition under which it is given, by that name: only what no browser executes is shown inline.
func (c *Content) Disposition(name string) string {
	how := "attachment"
	if t, _, err := mime.ParseMediaType(c.Type()); err == nil && inline[t] {
		how = "inline"
	}
	if name != "" {
		if with := mime.FormatMediaType(how, map[string]string{"filename": name}); with != "" {
			return with
		}
	}
	return how
}

// FileName reads the name from another server's Content-Disposition; "" if there is none.
func FileName(disposition string) string {
	_, params, err := mime.ParseMediaType(disposition)
	if err != nil {
		return ""
	}
	return Clean(params["filename"], maxName)
}

// ParseWanted reads the query of a request for a thumbnail; problem, if not "", says what is wrong with it, and missing whether it is missing.
func ParseWanted(query url.Values) (want Wanted, problem string, missing bool) {
	for _, side := range []struct {
		name string
		to   *int
	}{{"width", &want.Width}, {"height", &want.Height}} {
		value := query.Get(side.name)
		if value == "" {
			return want, side.name + " is missing", true
		}
		n, err := strconv.Atoi(value)
		if err != nil || n <= 0 {
			return want, side.name + " must be a number of pixels", false
		}
		*side.to = n
	}
	switch query.Get("method") {
	case "", "scale":
	case "crop":
		want.Crop = true
	default:
		return want, "method is crop or scale", false
	}
	want.Animated = strings.EqualFold(query.Get("animated"), "true")
	return want, "", false
}

// Patience bounds of timeout_ms (CS API, GET /media/download).
const (
	defaultPatience = 20 * time.Second
	maxPatience     = time.Minute
)

// ParsePatience reads timeout_ms; ok is false if it is no number.
func ParsePatience(query url.Values) (patience time.Duration, ok bool) {
	value := query.Get("timeout_ms")
	if value == "" {
		return defaultPatience, true
	}
	ms, err := strconv.ParseInt(value, 10, 64)
	if err != nil || ms < 0 {
		return 0, false
	}
	return min(time.Duration(min(ms, maxPatience.Milliseconds()))*time.Millisecond, maxPatience), true
}
