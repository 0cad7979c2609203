package clientapi

import (
	"html/template"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// specVersions are the versions of the spec whose client API is offered; what of it is left out stands in ARCHITECTURE.md, section 11.
// r0.6.1 is what nio and other older clients look for.
var specVersions = []string{
	"r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13", "v1.14", "v1.15",
	"v1.16", "v1.17", "v1.18", "v1.19",
}

// discoveryRoutes registers what a client asks to learn what is here.
func (a *API) discoveryRoutes() {
	a.route("GET", "/_matrix/client/versions", public, a.versions)
	a.route("GET", "/.well-known/matrix/client", public, a.wellKnown)
	a.route("GET", "/_matrix/client/v3/capabilities", authed, a.capabilities)
}

func (a *API) versions(*request) (any, error) {
	return map[string]any{"versions": specVersions, "unstable_features": map[string]bool{
		"org.matrix.simplified_msc3575":                  true, // sliding sync, MSC4186
		"org.matrix.msc4151":                             true, // reports of rooms
		"org.matrix.msc4380.stable":                      true, // invite permission by its names in spec v1.18
		"uk.tcpip.msc4133":                               true, // profile fields, by their path before spec v1.16
		"uk.tcpip.msc4133.stable":                        true,
		"uk.half-shot.msc2666.query_mutual_rooms":        true,
		"uk.half-shot.msc2666.query_mutual_rooms.stable": true, // spec v1.19 has it
		delayedEventsFlag:                                true, // MSC4140
	}}, nil
}

// wellKnown names the address that the client has used: there is no other.
func (a *API) wellKnown(q *request) (any, error) {
	return map[string]any{"m.homeserver": map[string]string{"base_url": "http://" + q.Host}}, nil
}

func (a *API) capabilities(*request) (any, error) {
	available := map[eventgraph.RoomVersion]string{}
	for _, v := range eventgraph.SupportedVersions() {
		available[v] = "stable"
	}
	enabled := func(yes bool) any { return map[string]bool{"enabled": yes} }
	return map[string]any{"capabilities": map[string]any{
		"m.room_versions":            map[string]any{"default": a.RoomVersion, "available": available},
		"m.change_password":          enabled(true),
		"m.profile_fields":           enabled(true),
		"m.set_displayname":          enabled(true),
		"m.set_avatar_url":           enabled(true),
		"m.3pid_changes":             enabled(false),
		"m.get_login_token":          enabled(true),
		"m.forget_forced_upon_leave": enabled(false),
		delayedEventsLimit:           map[string]int64{"max_delay_ms": maxDelay.Milliseconds(), "max_scheduled": maxDelayed},
	}}, nil
}

// page is what a person sees who opens the address in a browser. Any web page can make a browser load it, so it says
// nothing that names an identity, user, room or peer, and no page may frame or read it.
func (a *API) page(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		a.writeError(w, r, fail(http.StatusMethodNotAllowed, "M_UNRECOGNIZED", "Here is only a page to read."))
		return
	}
	pageHeader(w.Header(), "form-action 'none'")
	connected := a.PeersConnected != nil && a.PeersConnected() > 0
	pageTemplate.Execute(w, struct {
		Address   string
		Connected bool
	}{"http://" + r.Host, connected}) // an error here means that the browser has gone
}

// pageHeader sets the header of a page of ours: it loads and runs nothing, but for what more of the policy allows, and no page may
// frame or read it.
func pageHeader(header http.Header, more string) {
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; "+more)
	header.Set("X-Frame-Options", "DENY")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cache-Control", "no-store")
	header.Del("Access-Control-Allow-Origin") // no other page reads it
}

// pageHead begins a page of ours.
const pageHead = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>plexus</title>
</head>
<body>
`

var pageTemplate = template.Must(template.New("page").Parse(pageHead + `<h1>plexus is running</h1>
<p>This is a Matrix homeserver on this device. To use it, open a Matrix client on this device and enter this
address as its homeserver:</p>
<p><strong>{{.Address}}</strong></p>
<p>To make an account the client asks for a registration token: it was printed where plexus was started.</p>
<p>{{if .Connected}}Other devices are connected.{{else}}No other device is connected at the moment.{{end}}</p>
</body>
</html>
`))
