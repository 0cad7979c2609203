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
	seen.Add(filter, 200)
	seen.Add(filter, 401)
	if got := seen.Missing(filter); !slices.Equal(got, []string{"wrong input"}) {
		t.Errorf("missing after a success and a refusal: %q", got)
	}
}
