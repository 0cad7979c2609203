package clientapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/store"
)

const registerPath = "/_matrix/client/v3/register"

// testTerms are two policies, one of them in two languages.
var testTerms = Policies{
	"terms_of_service": {Version: "1.2", In: map[string]PolicyText{
		"en": {"Terms of Service", "https://example.org/somewhere/terms-1.2-en.html"},
		"fr": {"Conditions d'utilisation", "https://example.org/somewhere/terms-1.2-fr.html"},
	}},
	"privacy_policy": {Version: "b", In: map[string]PolicyText{"en": {"Privacy <Policy>", "https://example.org/privacy?a&b"}}},
}

func newTermsServer(t *testing.T, registration Registration) *testServer {
	return newTestServer(t, func(c *Config) { c.Registration, c.Terms = registration, testTerms })
}

// registerWith asks for an account, with that auth.
func (s *testServer) registerWith(name string, auth map[string]any) answer {
	s.t.Helper()
	body := map[string]any{"username": name, "password": testPassword}
	if auth != nil {
		body["auth"] = auth
	}
	return s.send("POST", registerPath, "", body)
}

// wantAsked demands a 401 that goes on with the session, with the code and what was passed until now. It returns the session.
func wantAsked(t *testing.T, a answer, code string, completed ...string) string {
	t.Helper()
	var ask struct {
		Completed []string
		Session   string
	}
	if err := json.Unmarshal([]byte(a.raw), &ask); err != nil {
		t.Fatal(err)
	}
	if a.status != 401 || a.code() != code || ask.Session == "" || !slices.Equal(ask.Completed, completed) {
		t.Fatalf("%d %s, want code %q and %q completed", a.status, a.raw, code, completed)
	}
	return ask.Session
}

// acceptedBy is what is kept of the account.
func (s *testServer) acceptedBy(name string) (all []store.AcceptedPolicy) {
	s.t.Helper()
	account, err := s.account(s.userNamed(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return account.Accepted
}

// CS API, Terms of service at registration: the policies stand in the params as the definition m.login.terms params demands, both stages are
// asked for in any order, and what was accepted is kept.
func TestRegisterWithTerms(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct {
		registration Registration
		proof        map[string]any
	}{
		{RegistrationToken, map[string]any{"type": stageToken, "token": testToken}},
		{RegistrationOpen, map[string]any{"type": stageDummy}},
	} {
		first := kind.proof["type"].(string)
		for name, order := range map[string][]map[string]any{
			"alice": {maps.Clone(kind.proof), {"type": stageTerms}},
			"bob":   {{"type": stageTerms}, maps.Clone(kind.proof)},
		} {
			t.Run(first+" "+name, func(t *testing.T) {
				t.Parallel()
				s := newTermsServer(t, kind.registration)
				ask := s.registerWith(name, nil)
				session := wantAsked(t, ask, "")
				var said struct {
					Flows  []struct{ Stages []string }
					Params map[string]struct {
						Policies map[string]map[string]any
					}
				}
				if err := json.Unmarshal([]byte(ask.raw), &said); err != nil || len(said.Flows) != 1 || !slices.Equal(said.Flows[0].Stages, []string{first, stageTerms}) {
					t.Errorf("%v %s", err, ask.raw)
				}
				policies := said.Params[stageTerms].Policies
				if got, want := fmt.Sprint(policies["terms_of_service"]), "map[en:map[name:Terms of Service url:https://example.org/somewhere/terms-1.2-en.html]"+
					" fr:map[name:Conditions d'utilisation url:https://example.org/somewhere/terms-1.2-fr.html] version:1.2]"; got != want || len(policies) != 2 {
					t.Errorf("%s", ask.raw)
				}
				order[0]["session"], order[1]["session"] = session, session
				for range 2 { // a stage that is passed again counts once
					if got := wantAsked(t, s.registerWith(name, order[0]), "", order[0]["type"].(string)); got != session {
						t.Errorf("went on in %s, not %s", got, session)
					}
				}
				wantAsked(t, s.registerWith(name, map[string]any{"session": session}), "", order[0]["type"].(string))
				if a := s.registerWith(name, order[1]); a.status != 200 || a.text("access_token") == "" {
					t.Fatalf("%d %s", a.status, a.raw)
				}
				ts := s.time().UnixMilli()
				if got, want := s.acceptedBy(name), []store.AcceptedPolicy{{Policy: "privacy_policy", Version: "b", TS: ts}, {Policy: "terms_of_service", Version: "1.2", TS: ts}}; !slices.Equal(got, want) {
					t.Errorf("%+v, want %+v", got, want)
				}
				if accounts, err := s.Accounts(); err != nil || len(accounts) != 1 || len(accounts[0].Accepted) != 2 {
					t.Errorf("%+v %v", accounts, err)
				}
				if got := wantAsked(t, s.registerWith("carol", order[1]), "M_UNKNOWN"); got == session {
					t.Error("the session made an account already")
				}
			})
		}
	}
}

// What a session has proven stays when a later stage fails, and goes with the session; neither stage alone is enough, and a stage counts in its own
// session and for its own operation.
func TestTermsSessions(t *testing.T) {
	t.Parallel()
	s := newTermsServer(t, RegistrationToken)
	session := wantAsked(t, s.registerWith("alice", map[string]any{"type": stageTerms}), "", stageTerms) // without a session to begin with
	wantAsked(t, s.registerWith("alice", map[string]any{"type": stageToken, "session": session, "token": "guess"}), "M_FORBIDDEN", stageTerms)
	wantAsked(t, s.registerWith("alice", map[string]any{"type": stageDummy, "session": session}), "M_UNRECOGNIZED", stageTerms)
	other := wantAsked(t, s.registerWith("alice", map[string]any{"type": stageToken, "token": testToken}), "", stageToken)
	wantAsked(t, s.registerWith("alice", map[string]any{"type": stageToken, "session": other, "token": testToken}), "", stageToken)

	accepted := s.time().UnixMilli()
	s.advance(sessionExpires / 2)
	if a := s.registerWith("alice", map[string]any{"type": stageToken, "session": session, "token": testToken}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	if got := s.acceptedBy("alice"); len(got) != 2 || got[0].TS != accepted {
		t.Errorf("%+v, want the time of the acceptance: %d", got, accepted)
	}
	s.advance(sessionExpires / 2)
	if got := wantAsked(t, s.registerWith("bob", map[string]any{"type": stageTerms, "session": other}), "M_UNKNOWN"); got == other {
		t.Error("an expired session goes on")
	}

	// Accounts that no client registers need none, and other operations ask for none.
	if _, err := s.CreateUser(t.Context(), "carol", testPassword); err != nil || s.acceptedBy("carol") != nil {
		t.Errorf("%v %v", err, s.acceptedBy("carol"))
	}
	carol := s.logIn("carol", "PHONE")
	session = wantAsked(t, s.registerWith("bob", map[string]any{"type": stageTerms}), "", stageTerms)
	if a := carol.call(401, "DELETE", "/v3/devices/X", map[string]any{"auth": map[string]any{"session": session}}); a.code() != "M_UNKNOWN" || stages(a) != stagePassword {
		t.Errorf("%s", a.raw)
	}
}

// A registration whose flow has several stages is done by the pages of the stages alone, with each box ticked.
func TestFallbackTerms(t *testing.T) {
	t.Parallel()
	s := newTermsServer(t, RegistrationToken)
	session := wantAsked(t, s.registerWith("alice", nil), "")
	page := s.send("GET", fallback(stageTerms, session), "", nil)
	wantPage(t, page, 200, `<form method="post">`, "make an account", session, "Privacy &lt;Policy&gt;", `href="https://example.org/privacy?a&amp;b" lang="en"`,
		`href="https://example.org/somewhere/terms-1.2-fr.html" lang="fr" hreflang="fr" target="_blank" rel="noopener noreferrer">Conditions`, "(1.2)")
	if n := strings.Count(page.raw, `type="checkbox"`); n != len(testTerms) {
		t.Errorf("%d boxes", n)
	}
	wantPage(t, s.fill(stageTerms, session, "accept", "privacy_policy"), 403, "needs each of them accepted", "<form")
	wantAsked(t, s.registerWith("alice", map[string]any{"session": session}), "")
	wantPage(t, s.fill(stageToken, session, "token", testToken), 200, authDone)
	wantPage(t, s.send("GET", fallback(stageToken, session), "", nil), 200, authDone)
	wantPage(t, s.send("GET", fallback(stageTerms, session), "", nil), 200, "<form") // that one is still to be done
	wantAsked(t, s.registerWith("alice", map[string]any{"session": session}), "", stageToken)
	wantPage(t, s.fillAll(stageTerms, session, "accept", "privacy_policy", "terms_of_service"), 200, authDone)
	if a := s.registerWith("alice", map[string]any{"session": session}); a.status != 200 || len(s.acceptedBy("alice")) != 2 {
		t.Errorf("%d %s %v", a.status, a.raw, s.acceptedBy("alice"))
	}

	// One stage by the page, the other by the client.
	session = wantAsked(t, s.registerWith("bob", map[string]any{"type": stageToken, "token": testToken}), "", stageToken)
	wantPage(t, s.fillAll(stageTerms, session, "accept", "privacy_policy", "terms_of_service"), 200, authDone)
	if a := s.registerWith("bob", map[string]any{"session": session}); a.status != 200 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
