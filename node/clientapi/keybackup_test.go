package clientapi

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/store"
)

const keysPath = "/v3/room_keys/keys"

// newBackup makes a backup and returns its version.
func (c client) newBackup() string {
	c.s.t.Helper()
	a := c.call(200, "POST", "/v3/room_keys/version", map[string]any{
		"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": map[string]string{"public_key": "abc"},
	})
	if a.text("version") == "" {
		c.s.t.Fatal(a.raw)
	}
	return a.text("version")
}

func sessionKey(first, forwarded int, verified bool) map[string]any {
	return map[string]any{"first_message_index": first, "forwarded_count": forwarded, "is_verified": verified,
		"session_data": map[string]string{"ciphertext": "<x>"}}
}

func TestKeyBackupVersions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	const at = "/v3/room_keys/version"
	if a := alice.call(404, "GET", at, nil); a.code() != "M_NOT_FOUND" {
		t.Error(a.raw)
	}
	first := alice.newBackup()
	second := alice.newBackup()
	if a := alice.call(200, "GET", at, nil); a.text("version") != second || a.text("algorithm") == "" || a.text("etag") == "" || a.body["count"] != 0.0 {
		t.Errorf("the latest: %s", a.raw)
	}
	if a := alice.call(200, "GET", at+"/"+first, nil); a.text("version") != first || a.body["auth_data"].(map[string]any)["public_key"] != "abc" {
		t.Errorf("the first: %s", a.raw)
	}
	info := func(changes map[string]any) map[string]any {
		body := map[string]any{"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": map[string]string{"public_key": "new"}}
		for k, v := range changes {
			body[k] = v
		}
		return body
	}
	for _, test := range []struct {
		name, version string
		body          map[string]any
		status        int
		code          string
	}{
		{"unknown", "99", info(nil), 404, "M_NOT_FOUND"},
		{"no number", "x", info(nil), 404, "M_NOT_FOUND"},
		{"a number that we do not write", "01", info(nil), 404, "M_NOT_FOUND"},
		{"another version", second, info(map[string]any{"version": first}), 400, "M_INVALID_PARAM"},
		{"another algorithm", second, info(map[string]any{"algorithm": "x"}), 400, "M_INVALID_PARAM"},
		{"no algorithm", second, info(map[string]any{"algorithm": ""}), 400, "M_MISSING_PARAM"},
		{"no auth_data", second, map[string]any{"algorithm": "x"}, 400, "M_MISSING_PARAM"},
		{"auth_data of the wrong type", second, info(map[string]any{"auth_data": "x"}), 400, "M_BAD_JSON"},
		{"too much auth_data", second, info(map[string]any{"auth_data": map[string]string{"x": strings.Repeat("x", maxBackupAuth)}}), 413, "M_TOO_LARGE"},
		{"right", second, info(map[string]any{"version": second}), 200, ""},
	} {
		if a := alice.call(test.status, "PUT", at+"/"+test.version, test.body); a.code() != test.code {
			t.Errorf("%s: %s, want %s", test.name, a.raw, test.code)
		}
	}
	for _, test := range []struct {
		body   any
		status int
		code   string
	}{
		{map[string]any{}, 400, "M_MISSING_PARAM"}, {`[`, 400, "M_NOT_JSON"},
		{info(map[string]any{"algorithm": strings.Repeat("x", 300)}), 400, "M_INVALID_PARAM"},
	} {
		if a := alice.call(test.status, "POST", at, test.body); a.code() != test.code {
			t.Errorf("%v: %s", test.body, a.raw)
		}
	}
	if a := alice.call(200, "GET", at, nil); a.body["auth_data"].(map[string]any)["public_key"] != "new" {
		t.Errorf("changed: %s", a.raw)
	}

	// A backup is its user's own.
	bob.call(404, "GET", at+"/"+first, nil)
	bob.call(404, "DELETE", at+"/"+first, nil)
	alice.call(200, "DELETE", at+"/"+second, nil)
	alice.call(200, "DELETE", at+"/"+second, nil) // deleted before
	alice.call(404, "GET", at+"/"+second, nil)
	alice.call(404, "PUT", at+"/"+second, info(nil))
	if a := alice.call(404, "DELETE", at+"/99", nil); a.code() != "M_NOT_FOUND" {
		t.Error(a.raw)
	}
	if a := alice.call(200, "GET", at, nil); a.text("version") != first {
		t.Errorf("the one before: %s", a.raw)
	}
	if third := alice.newBackup(); third == second {
		t.Error("a version is given twice")
	}
}

func TestKeyBackupKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	if a := alice.call(404, "PUT", keysPath+"?version=1", map[string]any{"rooms": map[string]any{}}); a.code() != "M_NOT_FOUND" {
		t.Errorf("without a backup: %s", a.raw)
	}
	old := alice.newBackup()
	version := alice.newBackup()
	query := "?version=" + version
	room := func(id string) string { return keysPath + "/" + url.PathEscape(id) }

	put := alice.call(200, "PUT", room("!a:x")+"/one%2F1"+query, sessionKey(5, 1, false))
	if put.body["count"] != 1.0 || put.text("etag") == "" {
		t.Errorf("one key: %s", put.raw)
	}
	if same := alice.call(200, "PUT", room("!a:x")+"/one%2F1"+query, sessionKey(6, 1, false)); same.raw != put.raw {
		t.Errorf("a worse key changes the backup: %s, before %s", same.raw, put.raw)
	}
	two := alice.call(200, "PUT", room("!a:x")+query, map[string]any{"sessions": map[string]any{"two": sessionKey(0, 0, true), "one/1": sessionKey(4, 0, false)}})
	if two.body["count"] != 2.0 || two.text("etag") == put.text("etag") {
		t.Errorf("two: %s", two.raw)
	}
	three := alice.call(200, "PUT", keysPath+query, map[string]any{"rooms": map[string]any{
		"!b:x": map[string]any{"sessions": map[string]any{"three": sessionKey(0, 0, true)}}, "!c:x": map[string]any{"sessions": map[string]any{}}}})
	if three.body["count"] != 3.0 {
		t.Errorf("three: %s", three.raw)
	}
	if info := alice.call(200, "GET", "/v3/room_keys/version", nil); info.text("etag") != three.text("etag") || info.body["count"] != 3.0 {
		t.Errorf("%s, want the etag and count of %s", info.raw, three.raw)
	}

	one := alice.call(200, "GET", room("!a:x")+"/one%2F1"+query, nil)
	if one.body["first_message_index"] != 4.0 || one.body["forwarded_count"] != 0.0 || one.body["is_verified"] != false ||
		one.body["session_data"].(map[string]any)["ciphertext"] != "<x>" {
		t.Errorf("one: %s", one.raw)
	}
	shape := func(a answer) string {
		var all struct {
			Rooms map[string]struct{ Sessions map[string]json.RawMessage }
		}
		if err := json.Unmarshal([]byte(a.raw), &all); err != nil {
			t.Fatal(err)
		}
		names := map[string][]string{}
		for room, keys := range all.Rooms {
			for session := range keys.Sessions {
				names[room] = append(names[room], session)
			}
		}
		return fmt.Sprint(len(names), len(names["!a:x"]), len(names["!b:x"]))
	}
	if a := alice.call(200, "GET", keysPath+query, nil); shape(a) != "2 2 1" {
		t.Errorf("all: %s", a.raw)
	}
	if a := alice.call(200, "GET", room("!b:x")+query, nil); len(a.body["sessions"].(map[string]any)) != 1 {
		t.Errorf("one room: %s", a.raw)
	}
	if a := alice.call(200, "GET", room("!none:x")+query, nil); a.raw != `{"sessions":{}}` {
		t.Errorf("no keys of the room: %s", a.raw)
	}
	if a := alice.call(200, "GET", keysPath+"?version="+old, nil); a.raw != `{"rooms":{}}` {
		t.Errorf("no keys: %s", a.raw)
	}

	for _, test := range []struct {
		name, method, path string
		body               any
		status             int
		code               string
	}{
		{"unknown key", "GET", room("!a:x") + "/none" + query, nil, 404, "M_NOT_FOUND"},
		{"unknown version", "GET", room("!a:x") + "/two?version=99", nil, 404, "M_NOT_FOUND"},
		{"unknown version", "GET", room("!a:x") + "?version=99", nil, 404, "M_NOT_FOUND"},
		{"unknown version", "GET", keysPath + "?version=99", nil, 404, "M_NOT_FOUND"},
		{"unknown version", "DELETE", keysPath + "?version=99", nil, 404, "M_NOT_FOUND"},
		{"unknown version", "DELETE", room("!a:x") + "?version=99", nil, 404, "M_NOT_FOUND"},
		{"unknown version", "DELETE", room("!a:x") + "/two?version=99", nil, 404, "M_NOT_FOUND"},
		{"no version", "GET", keysPath, nil, 400, "M_MISSING_PARAM"},
		{"no version", "PUT", keysPath, map[string]any{"rooms": map[string]any{}}, 400, "M_MISSING_PARAM"},
		{"no version", "DELETE", keysPath, nil, 400, "M_MISSING_PARAM"},
		{"an old version", "PUT", keysPath + "?version=" + old, map[string]any{"rooms": map[string]any{}}, 403, "M_WRONG_ROOM_KEYS_VERSION"},
		{"an old version", "PUT", room("!a:x") + "?version=" + old, map[string]any{"sessions": map[string]any{}}, 403, "M_WRONG_ROOM_KEYS_VERSION"},
		{"an old version", "PUT", room("!a:x") + "/two?version=" + old, sessionKey(0, 0, true), 403, "M_WRONG_ROOM_KEYS_VERSION"},
		{"no rooms", "PUT", keysPath + query, map[string]any{}, 400, "M_MISSING_PARAM"},
		{"no sessions", "PUT", room("!a:x") + query, map[string]any{}, 400, "M_MISSING_PARAM"},
		{"an empty key", "PUT", room("!a:x") + "/two" + query, map[string]any{}, 400, "M_MISSING_PARAM"},
		{"a wrong type", "PUT", room("!a:x") + "/two" + query, map[string]any{"first_message_index": "x"}, 400, "M_BAD_JSON"},
		{"below 0", "PUT", room("!a:x") + "/two" + query, sessionKey(-1, 0, true), 400, "M_INVALID_PARAM"},
		{"no room ID", "PUT", room("a:x") + "/two" + query, sessionKey(0, 0, true), 400, "M_INVALID_PARAM"},
		{"a long session ID", "PUT", room("!a:x") + "/" + strings.Repeat("x", 256) + query, sessionKey(0, 0, true), 400, "M_INVALID_PARAM"},
		{"a large key", "PUT", room("!a:x") + "/two" + query, map[string]any{"first_message_index": 0, "forwarded_count": 0, "is_verified": true,
			"session_data": map[string]string{"x": strings.Repeat("x", maxSessionData)}}, 413, "M_TOO_LARGE"},
	} {
		a := alice.call(test.status, test.method, test.path, test.body)
		if a.code() != test.code || test.status == 403 && a.text("current_version") != version {
			t.Errorf("%s %s %s: %s, want %s", test.name, test.method, test.path, a.raw, test.code)
		}
	}
	bob.call(404, "GET", keysPath+query, nil)

	if a := alice.call(200, "DELETE", room("!a:x")+"/two"+query, nil); a.body["count"] != 2.0 || a.text("etag") == three.text("etag") {
		t.Errorf("one deleted: %s", a.raw)
	}
	if a := alice.call(200, "DELETE", room("!a:x")+query, nil); a.body["count"] != 1.0 {
		t.Errorf("a room deleted: %s", a.raw)
	}
	if a := alice.call(200, "DELETE", keysPath+query, nil); a.body["count"] != 0.0 {
		t.Errorf("all deleted: %s", a.raw)
	}
	for _, path := range []string{keysPath, room("!a:x"), room("!a:x") + "/two", "/v3/room_keys/version", "/v3/room_keys/version/1"} {
		for _, method := range []string{"GET", "PUT", "DELETE", "POST"} {
			if method == "POST" != strings.HasSuffix(path, "/version") && method != "GET" {
				continue
			}
			if a := s.send(method, "/_matrix/client"+path+query, "", nil); a.status != 401 || a.code() != "M_MISSING_TOKEN" {
				t.Errorf("%s %s without a token: %d %s", method, path, a.status, a.raw)
			}
		}
	}
}

// More keys than one transaction or one piece of an answer holds.
func TestKeyBackupOfManyKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	query := "?version=" + alice.newBackup()
	sessions := [2]map[string]any{{}, {}}
	const n = backupKeysAtOnce*2 + 7
	for i := range n {
		sessions[i%2][fmt.Sprint(i)] = sessionKey(i, 0, false)
	}
	body := map[string]any{"rooms": map[string]any{"!a:x": map[string]any{"sessions": sessions[0]}, "!b:x": map[string]any{"sessions": sessions[1]}}}
	if a := alice.call(200, "PUT", keysPath+query, body); a.body["count"] != float64(n) {
		t.Fatal(a.raw)
	}
	var got struct {
		Rooms map[string]struct {
			Sessions map[string]store.BackupKey
		}
	}
	if err := json.Unmarshal([]byte(alice.call(200, "GET", keysPath+query, nil).raw), &got); err != nil {
		t.Fatal(err)
	}
	count := 0
	for room, keys := range got.Rooms {
		for session, key := range keys.Sessions {
			count++
			if fmt.Sprint(key.FirstMessageIndex) != session || (key.FirstMessageIndex%2 == 0) != (room == "!a:x") {
				t.Fatalf("%s %s: %+v", room, session, key)
			}
		}
	}
	if count != n {
		t.Errorf("%d keys, want %d", count, n)
	}
	alice.call(200, "DELETE", "/v3/room_keys/version/1", nil)
	alice.call(404, "GET", keysPath+query, nil)
}
