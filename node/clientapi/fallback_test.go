package clientapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// fallback is the address of the page for a stage.
func fallback(stage, session string) string {
	return "/_matrix/client/v3/auth/" + url.PathEscape(stage) + "/fallback/web?session=" + url.QueryEscape(session)
}

// fill sends the form of such a page as a browser does.
func (s *testServer) fill(stage, session string, fields ...string) answer {
	s.t.Helper()
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return s.submit(stage, session, form)
}

// fillAll is fill for a form in which one name has several values.
func (s *testServer) fillAll(stage, session, name string, values ...string) answer {
	s.t.Helper()
	return s.submit(stage, session, url.Values{name: values})
}

func (s *testServer) submit(stage, session string, form url.Values) answer {
	s.t.Helper()
	form.Set("session", session)
	req, err := http.NewRequest("POST", s.url+fallback(stage, session), strings.NewReader(form.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return s.do(req)
}

// wantPage demands a page of ours with the words, and a policy that lets run the script that is in it, or none. It returns the script.
func wantPage(t *testing.T, a answer, status int, words ...string) string {
	t.Helper()
	policy := a.header.Get("Content-Security-Policy")
	if a.status != status || a.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(policy, "default-src 'none'") ||
		!strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") || a.header.Get("Access-Control-Allow-Origin") != "" {
		t.Fatalf("%d %v %s", a.status, a.header, a.raw)
	}
	for _, word := range words {
		if !strings.Contains(a.raw, word) {
			t.Errorf("%q is not in the page:\n%s", word, a.raw)
		}
	}
	_, script, has := strings.Cut(a.raw, "<script>")
	script, _, _ = strings.Cut(script, "</script>")
	if has != strings.Contains(policy, "script-src") || has && !strings.Contains(policy, scriptPolicy(script)) {
		t.Errorf("the policy %q does not fit the script:\n%s", policy, script)
	}
	for _, inline := range []string{" onclick", " onload", " style=", "javascript:"} {
		if strings.Contains(a.raw, inline) {
			t.Errorf("%q is in the page", inline)
		}
	}
	return script
}

// CS API, Client Authentication, Fallback: who registers by the pages alone, in each kind of registration.
func TestFallbackRegisters(t *testing.T) {
	t.Parallel()
	const path = "/_matrix/client/v3/register"
	for _, kind := range []struct {
		registration Registration
		stage        string
		fields       []string
	}{
		{RegistrationToken, stageToken, []string{"token", testToken}},
		{RegistrationOpen, stageDummy, nil},
	} {
		s := newTestServer(t, func(c *Config) { c.Registration = kind.registration })
		session := s.send("POST", path, "", map[string]any{}).text("session")
		wantPage(t, s.send("GET", fallback(kind.stage, session), "", nil), 200, `<form method="post">`, "make an account", session)
		body := map[string]any{"username": "alice", "password": testPassword, "auth": map[string]any{"session": session}}
		if a := s.send("POST", path, "", body); a.status != 401 || a.code() != "" || a.text("session") != session {
			t.Errorf("the form is not sent yet: %d %s", a.status, a.raw)
		}
		if kind.stage == stageToken {
			wantPage(t, s.fill(kind.stage, session, "token", "<b>guess"), 403, "That is not the registration token.", "<form")
		}
		script := wantPage(t, s.fill(kind.stage, session, kind.fields...), 200, "Go back to your Matrix client")
		if script != authDone {
			t.Errorf("script: %s", script)
		}
		wantPage(t, s.send("GET", fallback(kind.stage, session), "", nil), 200, authDone) // loaded again
		if a := s.send("POST", path, "", body); a.status != 200 || a.text("access_token") == "" {
			t.Errorf("%d %s", a.status, a.raw)
		}
		body["username"] = "bob"
		if a := s.send("POST", path, "", body); a.status != 401 || a.code() != "M_UNKNOWN" {
			t.Errorf("a spent session: %d %s", a.status, a.raw)
		}
	}
}

// What the page proves counts for one operation of one user.
func TestFallbackPassword(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	session := alice.call(401, "DELETE", "/v3/devices/X", map[string]any{}).text("session")
	page := s.send("GET", fallback(stagePassword, session), "", nil)
	wantPage(t, page, 200, "log out devices of yours", "<strong>alice</strong>", `type="password"`)
	if strings.Contains(page.raw, `name="user"`) {
		t.Error("the page asks who it is though only one can be")
	}
	wantPage(t, s.fill(stagePassword, session, "password", "wrong"), 403, "Wrong user name or password.")
	wantPage(t, s.fill(stagePassword, session, "user", "bob", "password", testPassword+" bob"), 403, "Wrong user name or password.")
	wantPage(t, s.fill(stagePassword, session, "password", testPassword), 200, authDone)
	proof := map[string]any{"auth": map[string]any{"session": session}}
	for _, other := range []struct {
		c    client
		path string
	}{{bob, "/v3/devices/X"}, {alice, "/v3/devices/Y"}} {
		if a := other.c.call(401, "DELETE", other.path, proof); a.code() != "M_UNKNOWN" {
			t.Errorf("%s of %s: %s", other.path, other.c.user, a.raw)
		}
	}
	alice.call(200, "DELETE", "/v3/devices/X", proof)
	alice.call(401, "DELETE", "/v3/devices/X", proof)

	// Without an access token the page asks who it is.
	change := map[string]any{"new_password": "another one"}
	session = s.send("POST", "/_matrix/client/v3/account/password", "", change).text("session")
	wantPage(t, s.send("GET", fallback(stagePassword, session), "", nil), 200, "change the password of your account", `name="user"`)
	wantPage(t, s.fill(stagePassword, session, "user", "nobody", "password", testPassword), 403, "Wrong user name or password.")
	wantPage(t, s.fill(stagePassword, session, "user", "Bob", "password", testPassword), 200, authDone)
	change["auth"] = map[string]any{"session": session}
	if a := s.send("POST", "/_matrix/client/v3/account/password", "", change); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	login := map[string]any{"type": stagePassword, "user": "bob", "password": "another one"}
	if a := s.send("POST", "/_matrix/client/v3/login", "", login); a.status != 200 || a.text("user_id") != string(bob.user) {
		t.Errorf("%d %s", a.status, a.raw)
	}
	for operation := range map[string]bool{"deactivate": true, "replace cross-signing keys": true, "get login token": true, "delete devices x": true} {
		if purposeOf(operation) == purposeOf("") {
			t.Errorf("%s has no words of its own", operation)
		}
	}
}

func TestFallbackWrongInput(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	session := s.send("POST", "/_matrix/client/v3/register", "", map[string]any{}).text("session")
	for _, test := range []struct {
		stage, session string
		status         int
		code           string
	}{
		{stageToken, "", 400, "M_MISSING_PARAM"},
		{stageToken, "x", 400, "M_UNKNOWN"},
		{stageToken, `"><script>`, 400, "M_UNKNOWN"},
		{stageDummy, session, 400, "M_UNRECOGNIZED"},
		{stageTerms, session, 400, "M_UNRECOGNIZED"},
		{"m.login.sso", "", 404, "M_UNRECOGNIZED"},
	} {
		for _, a := range []answer{s.send("GET", fallback(test.stage, test.session), "", nil), s.fill(test.stage, test.session, "token", testToken)} {
			if a.status != test.status || a.code() != test.code {
				t.Errorf("%s %q: %d %s, want %d %s", test.stage, test.session, a.status, a.raw, test.status, test.code)
			}
		}
	}
	if a := s.fill(stageToken, session, "token", strings.Repeat("x", maxPublicBody)); a.status != 413 || a.code() != "M_TOO_LARGE" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	if a := s.fill(stageToken, session, "token", "%zz"); a.status != 403 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	req, err := http.NewRequest("POST", s.url+fallback(stageToken, session), strings.NewReader("token=%zz"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if a := s.do(req); a.status != 400 || a.code() != "M_UNKNOWN" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	s.advance(sessionExpires + time.Second)
	if a := s.fill(stageToken, session, "token", testToken); a.status != 400 || a.code() != "M_UNKNOWN" {
		t.Errorf("an old session: %d %s", a.status, a.raw)
	}
	// A password is not guessed faster here than elsewhere.
	limited := newTestServer(t, func(c *Config) { c.RateLimits = true })
	session = limited.send("POST", "/_matrix/client/v3/register", "", map[string]any{}).text("session")
	for i := 0; ; i++ {
		a := limited.fill(stageToken, session, "token", fmt.Sprint("guess", i))
		if a.status == 429 {
			if a.header.Get("Retry-After") == "" {
				t.Errorf("%v %s", a.header, a.raw)
			}
			break
		}
		if a.status != 403 || i > 1000 {
			t.Fatalf("guess %d: %d %s", i, a.status, a.raw)
		}
	}
}

// pageHarness stands in for a browser: it runs the script of standard input with what the argument sets up in the window, and prints what was done.
const pageHarness = `
const fs = require("fs"), vm = require("vm");
const elements = {}, said = [];
const element = (id) => elements[id] ||= {
    value: { user: "alice", password: "secret" }[id], disabled: false,
    addEventListener(kind, f) { this[kind] = f; },
    set textContent(text) { said.push(text); },
};
const window = {};
const context = {
    window, document: { getElementById: element }, URLSearchParams, said,
    fetch: async (path, options) => {
        said.push([options.method, path, JSON.parse(options.body)]);
        const [status, body] = window.answer;
        if (status === 0) throw new Error("no network");
        return { ok: status === 200, json: async () => body };
    },
};
vm.createContext(context);
const [before, after] = JSON.parse(process.argv[1]);
vm.runInContext(before, context);
vm.runInContext(fs.readFileSync(0, "utf8"), context);
vm.runInContext(after, context);
(async () => {
    if (elements.login) await elements.login.submit({ preventDefault() {} });
    console.log(JSON.stringify({ said, disabled: element("go").disabled }));
})();
`

// run runs a page's script in node; before and after are what a client puts into the window before the script, or once the page is there.
func run(t *testing.T, script, before, after string) string {
	t.Helper()
	arguments, err := json.Marshal([]string{before, after})
	if err != nil {
		t.Fatal(err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not there; scripts/test installs it")
	}
	cmd := exec.CommandContext(t.Context(), node, "-e", pageHarness, string(arguments))
	cmd.Stdin = strings.NewReader(script)
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v %s", err, problems.String())
	}
	return strings.TrimSpace(string(out))
}

// The scripts do what the spec says, whatever the client that has opened the page put into it.
func TestPageScripts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	const path = "/_matrix/static/client/login/"
	page := s.send("GET", path+"?device_id=PHONE", "", nil)
	login := wantPage(t, page, 200, "Log in", `type="password"`)
	if !strings.Contains(page.header.Get("Content-Security-Policy"), "connect-src 'self'") {
		t.Error(page.header)
	}
	const taken, page2 = `window.matrixLogin.onLogin = (answer) => said.push(["taken", answer]);`, `window.location = {search: "?device_id=PHONE&refresh_token=true&password=x&type=y"};`
	for _, test := range []struct{ what, script, before, after, want string }{
		{"logged in", login, `window.location = {search: ""}; window.answer = [200, {user_id: "@alice:x"}];`, taken,
			`{"said":["Logging in …",["POST","/_matrix/client/v3/login",{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"secret"}],` +
				`"You are logged in. Go back to your Matrix client.",["taken",{"user_id":"@alice:x"}]],"disabled":true}`},
		{"the client was there first, with parameters", login, page2 + `window.answer = [200, {}]; window.matrixLogin = {};` + taken, "",
			`{"said":["Logging in …",["POST","/_matrix/client/v3/login",{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"secret",` +
				`"device_id":"PHONE","refresh_token":true}],"You are logged in. Go back to your Matrix client.",["taken",{}]],"disabled":true}`},
		{"refused", login, `window.location = {search: ""}; window.answer = [403, {errcode: "M_FORBIDDEN", error: "Wrong user name or password."}];`, taken,
			`{"said":["Logging in …",["POST","/_matrix/client/v3/login",{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"secret"}],` +
				`"Wrong user name or password."],"disabled":false}`},
		{"no network", login, `window.location = {search: ""}; window.answer = [0];`, taken,
			`{"said":["Logging in …",["POST","/_matrix/client/v3/login",{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"secret"}],` +
				`"The server does not answer. Is plexus running?"],"disabled":false}`},
		{"no client", login, "", "", `{"said":["No Matrix client has opened this page, so there is nothing to log in. Enter this server's address in a client."],"disabled":false}`},

		{"embedded", authDone, `window.onAuthDone = () => said.push("onAuthDone"); window.opener = {postMessage: (...a) => said.push(a)};`, "", `{"said":["onAuthDone"],"disabled":false}`},
		{"opened", authDone, `window.opener = {postMessage: (...a) => said.push(a)};`, "", `{"said":[["authDone","*"]],"disabled":false}`},
		{"by nobody", authDone, "", "", `{"said":[],"disabled":false}`},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			if got := run(t, test.script, test.before, test.after); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	if a := s.send("POST", path, "", map[string]any{}); a.status != 405 || a.code() != "M_UNRECOGNIZED" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
