package clientapi

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"html/template"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Pages that stand in for clients (CS API, Client Authentication, Fallback and Login Fallback): one for a stage of User-Interactive Authentication that a
// client does not know, one for a login. They are opened in a browser, or in a view within the client.

// purposeOf is an operation in words, for the person who is asked to confirm it: the page may have been opened by somebody who wants their password for
// another thing than they think.
func purposeOf(operation string) string {
	for _, p := range []struct{ operation, words string }{
		{"register", "make an account on this homeserver"},
		{"change password", "change the password of your account"},
		{"deactivate", "deactivate your account for ever"},
		{"delete device", "log out devices of yours"},
		{"replace cross-signing keys", "replace the keys that show others which devices are yours"},
		{"get login token", "log in another client as you"},
	} {
		if strings.HasPrefix(operation, p.operation) {
			return p.words
		}
	}
	return "do something that needs your consent"
}

// authDone tells the client that the stage is done, in the words of the spec.
const authDone = `
if (window.onAuthDone) {
    window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
    window.opener.postMessage("authDone", "*");
}
`

// scriptPolicy allows one script in a page, by its hash, and nothing else.
func scriptPolicy(script string) string {
	sum := sha256.Sum256([]byte(script))
	return "script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// authView is what the page of a stage shows.
type authView struct {
	Stage, Session, Purpose string
	User                    string // whose password is asked for; "": theirs who names themself
	Terms                   Policies
	Problem                 string
	Done                    template.JS
}

// authSessionOf is the session that the request names, if it asks for the stage of its path.
func (a *API) authSessionOf(q *request, id string) (*authSession, error) {
	stage := q.path("authType")
	if stage != stageToken && stage != stagePassword && stage != stageDummy && stage != stageTerms {
		return nil, fail(http.StatusNotFound, "M_UNRECOGNIZED", "That authentication type is not offered here.")
	}
	if id == "" {
		return nil, missingParam("session is missing.")
	}
	session := a.auths.get(id)
	if session == nil {
		return nil, fail(http.StatusBadRequest, "M_UNKNOWN", "That session is not known, or no more: begin again in your client.")
	}
	if !slices.Contains(session.stages, stage) {
		return nil, fail(http.StatusBadRequest, "M_UNRECOGNIZED", "The session asks for another authentication type.")
	}
	return session, nil
}

// authPage is GET /auth/{authType}/fallback/web.
func (a *API) authPage(q *request) (any, error) {
	session, err := a.authSessionOf(q, q.URL.Query().Get("session"))
	if err != nil {
		return nil, err
	}
	return a.showAuth(q, http.StatusOK, session, "")
}

// authForm is what its form sends.
func (a *API) authForm(q *request) (any, error) {
	q.Body = http.MaxBytesReader(q.w, q.Body, maxPublicBody)
	if err := q.ParseForm(); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The form is too large.")
		}
		return nil, fail(http.StatusBadRequest, "M_UNKNOWN", "The form could not be read.")
	}
	session, err := a.authSessionOf(q, q.PostForm.Get("session"))
	if err != nil {
		return nil, err
	}
	err = a.checkAuthForm(q, session)
	var refused *matrixError
	switch {
	case err == nil:
		return a.showAuth(q, http.StatusOK, session, "")
	case errors.As(err, &refused):
		if ms, ok := refused.Extra["retry_after_ms"].(int64); ok {
			q.w.Header().Set("Retry-After", retryAfter(ms))
		}
		return a.showAuth(q, refused.Status, session, refused.Message)
	}
	return nil, err
}

// checkAuthForm checks what the form says, as interactive does what a client says.
func (a *API) checkAuthForm(q *request, session *authSession) error {
	stage := q.path("authType")
	if stage == stageTerms { // a client answers for its checkboxes itself
		for id := range a.Terms {
			if !slices.Contains(q.PostForm["accept"], id) {
				return forbidden("An account here needs each of them accepted.")
			}
		}
	}
	guesser := fromFallback
	if session.user == "" {
		guesser = a.guesser(q)
	}
	return a.passStage(q, session, &authData{
		Type: stage, User: q.PostForm.Get("user"), Password: q.PostForm.Get("password"), Token: q.PostForm.Get("token"),
	}, guesser)
}

// showAuth answers with the form of the stage that the path names, or, when it has been passed, with what tells the client so.
func (a *API) showAuth(q *request, status int, session *authSession, problem string) (any, error) {
	stage := q.path("authType")
	view := authView{
		Stage: stage, Session: session.id, Purpose: session.purpose, User: session.user.Localpart(), Terms: a.Terms, Problem: problem,
	}
	policy := "form-action 'self'"
	if session.passedTS(stage) != 0 {
		view.Done, policy = authDone, "form-action 'none'; "+scriptPolicy(authDone)
	}
	pageHeader(q.w.Header(), policy)
	q.w.WriteHeader(status)
	authTemplate.Execute(q.w, view) // an error here means that the browser has gone
	return written{}, nil
}

var authTemplate = template.Must(template.New("auth").Parse(pageHead + `{{if .Done}}
<h1>Done</h1>
<p>Go back to your Matrix client: it goes on by itself. You can close this page.</p>
<script>{{.Done}}</script>
{{else}}
<h1>{{if eq .Stage "m.login.password"}}Enter your password{{else if eq .Stage "m.login.registration_token"}}Enter the registration token{{else if eq .Stage "m.login.terms"}}Read and accept{{else}}Confirm{{end}}</h1>
<p>A Matrix client wants to <strong>{{.Purpose}}</strong>. Go on only if you have just asked it to.</p>
{{with .Problem}}<p role="alert"><strong>{{.}}</strong></p>{{end}}
<form method="post">
<input type="hidden" name="session" value="{{.Session}}">
{{if eq .Stage "m.login.password"}}{{if .User}}<p>User name: <strong>{{.User}}</strong></p>
{{else}}<p><label>User name<br><input name="user" autocomplete="username" autocapitalize="none" spellcheck="false" required autofocus></label></p>
{{end}}<p><label>Password<br><input name="password" type="password" autocomplete="current-password" required></label></p>
{{else if eq .Stage "m.login.registration_token"}}<p>It was printed where plexus was started.</p>
<p><label>Registration token<br><input name="token" autocomplete="off" autocapitalize="none" spellcheck="false" required autofocus></label></p>
{{else if eq .Stage "m.login.terms"}}<p>An account here needs that you accept:</p>
{{range $id, $policy := .Terms}}<p><label><input type="checkbox" name="accept" value="{{$id}}" required> I accept</label>
{{range $language, $text := $policy.In}}<a href="{{$text.URL}}" lang="{{$language}}" hreflang="{{$language}}" target="_blank" rel="noopener noreferrer">{{$text.Name}}</a>
{{end}}({{$policy.Version}})</p>
{{end}}{{end}}<p><button>Go on</button></p>
</form>
{{end}}</body>
</html>
`))

// loginPage is GET /_matrix/static/client/login/. What it is given to send with the login, its script reads from the address.
func (a *API) loginPage(q *request) (any, error) {
	pageHeader(q.w.Header(), "form-action 'none'; connect-src 'self'; "+scriptPolicy(loginScript))
	q.w.Header().Set("Content-Length", strconv.Itoa(len(loginHTML)))
	io.WriteString(q.w, loginHTML) // an error here means that the browser has gone
	return written{}, nil
}

const loginHTML = pageHead + `<h1>Log in</h1>
<p>Your Matrix client has opened this page to log you in to the homeserver on this device.</p>
<noscript><p>The page needs JavaScript.</p></noscript>
<form id="login">
<p><label>User name<br><input id="user" autocomplete="username" autocapitalize="none" spellcheck="false" required autofocus></label></p>
<p><label>Password<br><input id="password" type="password" autocomplete="current-password" required></label></p>
<p><button id="go">Log in</button></p>
</form>
<p id="said" role="status"></p>
<script>` + loginScript + `</script>
</body>
</html>
`

// loginScript logs in and hands the answer to the client, which puts its function into window.matrixLogin: some do so once the page is there, so the object must
// be. Where nobody would take the answer there is no login, for nobody could use it or end it.
const loginScript = `
"use strict";
window.matrixLogin = window.matrixLogin || {};
document.getElementById("login").addEventListener("submit", async function (event) {
    event.preventDefault();
    const say = function (text) { document.getElementById("said").textContent = text; };
    const go = document.getElementById("go");
    if (typeof window.matrixLogin.onLogin !== "function") {
        say("No Matrix client has opened this page, so there is nothing to log in. Enter this server's address in a client.");
        return;
    }
    const body = {
        type: "m.login.password",
        identifier: { type: "m.id.user", user: document.getElementById("user").value },
        password: document.getElementById("password").value,
    };
    const asked = new URLSearchParams(window.location.search);
    for (const name of ["device_id", "initial_device_display_name"]) {
        if (asked.has(name)) {
            body[name] = asked.get(name);
        }
    }
    if (asked.get("refresh_token") === "true") {
        body.refresh_token = true;
    }
    go.disabled = true;
    say("Logging in …");
    let answer;
    try {
        const response = await fetch("/_matrix/client/v3/login", {
            method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
        });
        answer = await response.json();
        if (!response.ok) {
            say(answer.error || "The server has refused the login.");
            go.disabled = false;
            return;
        }
    } catch (problem) {
        say("The server does not answer. Is plexus running?");
        go.disabled = false;
        return;
    }
    say("You are logged in. Go back to your Matrix client.");
    window.matrixLogin.onLogin(answer);
});
`
