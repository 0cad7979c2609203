package specdata

import (
	"slices"
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	for request, want := range map[string]string{
		"GET /_matrix/client/v3/sync":                        "GET /_matrix/client/v3/sync",
		"GET /_matrix/client/r0/sync":                        "GET /_matrix/client/v3/sync",
		"GET /_matrix/client/v3/rooms/!a/state/m.room.name":  "GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
		"GET /_matrix/client/v3/rooms/!a/state/m.room.name/": "GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
		"GET /_matrix/client/v3/rooms/!a/state":              "GET /_matrix/client/v3/rooms/{roomId}/state",
		"GET /_matrix/client/v3/pushrules/global/":           "GET /_matrix/client/v3/pushrules/global/",
		"PUT /_matrix/federation/v1/send/12":                 "PUT /_matrix/federation/v1/send/{txnId}",
		"GET /_matrix/client/v3/rooms/!a/nothing":            "",
		"GET /_matrix/client/unstable/org.example/sync":      "",
	} {
		method, path, _ := strings.Cut(request, " ")
		got := ""
		if e := Match(method, path); e != nil {
			got = e.Name
		}
		if got != want {
			t.Errorf("%s is taken for %q, want %q", request, got, want)
		}
	}
}

func TestCheck(t *testing.T) {
	whoami := Match("GET", "/_matrix/client/v3/account/whoami")
	for _, c := range []struct {
		status int
		body   string
		fits   bool
	}{
		{200, `{"user_id":"@a:b"}`, true},
		{200, `{"user_id":7}`, false},
		{200, `{}`, false},
		{200, `nothing`, false},
		{201, `{"user_id":"@a:b"}`, false},
		{401, `{"errcode":"M_UNKNOWN_TOKEN","error":"Gone","soft_logout":true}`, true},
		{401, `{"error":"Gone"}`, false},
		{418, `{"errcode":"M_UNKNOWN"}`, true},
		{418, `{}`, false},
	} {
		if err := whoami.Check(c.status, []byte(c.body)); (err == nil) != c.fits {
			t.Errorf("%d %s: %v", c.status, c.body, err)
		}
	}
}

func TestSeen(t *testing.T) {
	filter := Match("POST", "/_matrix/client/v3/user/@a:b/filter")
	var seen Seen
	if got := seen.Missing(filter); len(got) != 3 {
		t.Errorf("missing at first: %q", got)
	}
	seen.Add(filter, 200, []byte(`{"filter_id":"1"}`))
	seen.Add(filter, 401, []byte(`{"errcode":"M_UNKNOWN_TOKEN"}`))
	if got := seen.Missing(filter); !slices.Equal(got, []string{"wrong input"}) {
		t.Errorf("missing after a success and a refusal: %q", got)
	}
}

// Wrong input is shown only by an errcode that tells of it.
func TestSeenWrongInput(t *testing.T) {
	for _, c := range []struct {
		request string
		status  int
		body    string
		wrong   bool
	}{
		{"POST /_matrix/client/v3/user/@a:b/filter", 400, `{"errcode":"M_BAD_JSON"}`, true},
		{"POST /_matrix/client/v3/user/@a:b/filter", 403, `{"errcode":"M_FORBIDDEN"}`, true},
		{"POST /_matrix/client/v3/user/@a:b/filter", 404, `{"errcode":"M_UNRECOGNIZED"}`, false},
		{"POST /_matrix/client/v3/user/@a:b/filter", 429, `{"errcode":"M_LIMIT_EXCEEDED"}`, false},
		{"POST /_matrix/client/v3/user/@a:b/filter", 400, `{"errcode":"M_UNKNOWN"}`, false},
		{"POST /_matrix/client/v3/user/@a:b/filter", 400, `{"errcode":"M_ROOM_IN_USE"}`, false},
		{"POST /_matrix/client/v3/user/@a:b/filter", 500, `{"errcode":"M_BAD_JSON"}`, false},
		{"POST /_matrix/client/v3/user/@a:b/filter", 400, `gone`, false},
		{"POST /_matrix/client/v3/createRoom", 400, `{"errcode":"M_ROOM_IN_USE"}`, true},
		{"POST /_matrix/client/v3/createRoom", 403, `{"errcode":"M_ROOM_IN_USE"}`, false},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		e := Match(method, path)
		var seen Seen
		seen.Add(e, c.status, []byte(c.body))
		if got := !slices.Contains(seen.Missing(e), "wrong input"); got != c.wrong {
			t.Errorf("%s, %d %s: counts as wrong input: %t, want %t", c.request, c.status, c.body, got, c.wrong)
		}
	}
}

// What never held anything is named, place by place.
func TestSeenEmpty(t *testing.T) {
	e := Match("GET", "/_matrix/client/v3/rooms/!a/joined_members")
	empty := func(s *Seen, excused map[string][]string) string {
		return strings.Join(s.Empty("client-server", excused), "\n")
	}
	var seen Seen
	if got := empty(&seen, nil); got != "" {
		t.Errorf("before any answer: %s", got)
	}
	seen.Add(e, 200, []byte(`{"joined":{}}`))
	if got := empty(&seen, nil); !strings.HasSuffix(got, " anything in .joined{}") {
		t.Errorf("after an empty map: %s", got)
	}
	if got := empty(&seen, map[string][]string{e.Name: {".join…"}}); got != "" {
		t.Errorf("excused: %s", got)
	}
	seen.Add(e, 200, []byte(`{"joined":{"@a:b":{}}}`))
	if got := empty(&seen, nil); got != "" {
		t.Errorf("after a member: %s", got)
	}
}
