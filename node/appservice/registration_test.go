package appservice

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	testServer = eventgraph.ServerName("example.org")
	// good is the spec's example (AS API, Registration), and a little of what others write.
	good = `
id: "IRC Bridge"
url: "http://127.0.0.1:1234/"
as_token: "30c05ae90a248a4188e620216fa72e349803310ec83e2a77b34fe90be6081f46"
hs_token: "312df522183efd404ec1cd22d2ffa4bbc76a8c1ccf541dd692eef281356bb74e"
sender_localpart: "_irc_bot" # Will result in @_irc_bot:example.org
de.sorunome.msc2409.push_ephemeral: true
org.example.unknown: [1, 2]
namespaces:
  users:
    - exclusive: true
      regex: "@_irc_bridge_.*"
  aliases:
    - exclusive: false
      regex: "#_irc_bridge_.*"
  rooms: []
`
)

func TestRegistration(t *testing.T) {
	t.Parallel()
	s, err := parseRegistration([]byte(good), testServer)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != "IRC Bridge" || s.Sender != "@_irc_bot:example.org" || s.url.String() != "http://127.0.0.1:1234" || !s.RateLimited || !s.ReceiveEphemeral {
		t.Errorf("%+v", s)
	}
	all := &Services{all: []*Service{s}}
	for user, want := range map[eventgraph.UserID][2]bool{ // its user; taken from others
		"@_irc_bridge_x:example.org": {true, true}, "@_irc_bot:example.org": {true, true}, "@x_irc_bridge_x:example.org": {false, false},
		"@_irc_bridge_x:example.com": {false, true}, "@alice:example.org": {false, false},
	} {
		if got := [2]bool{s.HasUser(user), all.UserTaken(user, nil) != nil}; got != want {
			t.Errorf("%s: %v, want %v", user, got, want)
		}
		if all.UserTaken(user, s) != nil {
			t.Errorf("%s is taken from its own service", user)
		}
	}
	if !s.HasAlias("#_irc_bridge_x:example.org") || all.AliasTaken("#_irc_bridge_x:example.org", nil) != nil {
		t.Error("the alias namespace is not exclusive, but the service's")
	}
}

// Each mistake is told in words that name it.
func TestWrongRegistrations(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ from, to, word string }{
		"no id":             {`id: "IRC Bridge"`, ``, "id is missing"},
		"no url":            {`url: "http://127.0.0.1:1234/"`, ``, "url is missing"},
		"url of another":    {"http://127.0.0.1:1234/", "ftp://x", "must be http"},
		"url with a query":  {":1234/", ":1234/?x=y", "must be http"},
		"url with password": {"http://127", "http://a:b@127", "must be http"},
		"url a list":        {`"http://127.0.0.1:1234/"`, "[a]", "url is neither"},
		"empty token":       {"312df522183efd404ec1cd22d2ffa4bbc76a8c1ccf541dd692eef281356bb74e", "", "hs_token is missing"},
		"token in lines":    {"30c05ae90a248", `a\nb`, "as_token has characters"},
		"no sender":         {"sender_localpart", "sender", "sender_localpart is missing"},
		"sender":            {`"_irc_bot"`, `"irc bot:x:y` + strings.Repeat("z", 250) + `"`, "sender_localpart"},
		"no namespaces":     {"namespaces:", "names:", "namespaces is missing"},
		"no regex":          {`regex: "@_irc_bridge_.*"`, "other: x", "users: regex is missing"},
		"bad regex":         {"#_irc_bridge_.*", "#_irc_(", "aliases: \"#_irc_(\" is not a regular expression"},
		"regex a list":      {`"#_irc_bridge_.*"`, "[x]", "not a registration in YAML"},
		"exclusive a word":  {"exclusive: true", "exclusive: perhaps", "not a registration in YAML"},
		"not YAML":          {"namespaces:", "\tnamespaces: [", "not a registration in YAML"},
		"twice the same":    {"  rooms: []", "  rooms: []\nid: other", "already defined"},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := parseRegistration([]byte(text), testServer); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, want %q", name, err, c.word)
		}
	}
	for _, url := range []string{"null", `""`, "~"} {
		s, err := parseRegistration([]byte(strings.Replace(good, `"http://127.0.0.1:1234/"`, url, 1)), testServer)
		if err != nil || s.url != nil {
			t.Errorf("url: %s: %v", url, err)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first := write("first.yaml", good)
	change := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(good) }
	const id, token, sender = "IRC Bridge", "30c05ae90a24", "_irc_bot"
	for name, c := range map[string]struct{ text, word string }{
		"same id":     {change(token, "other", sender, "other"), `id "IRC Bridge"`},
		"same token":  {change(id, "other", sender, "other"), "its as_token is that of"},
		"same sender": {change(id, "other", token, "other"), "its sender_localpart"},
		"all differ":  {change(id, "other", token, "other", sender, "other"), ""},
		"too large":   {good + strings.Repeat("#", maxRegistration), "larger than"},
	} {
		second := write(name, c.text)
		all, err := Load([]string{first, second}, testServer, true)
		switch {
		case c.word == "" && (err != nil || len(all.All()) != 2 || all.ByToken("other8a4188e620216fa72e349803310ec83e2a77b34fe90be6081f46") != all.All()[1]):
			t.Errorf("%s: %v", name, err)
		case c.word != "" && (err == nil || !strings.Contains(err.Error(), c.word) || !strings.Contains(err.Error(), second)):
			t.Errorf("%s: %v, want %q", name, err, c.word)
		}
	}
	if _, err := Load([]string{filepath.Join(dir, "none")}, testServer, false); err == nil {
		t.Error("a file that is not there was read")
	}
	far := write("far.yaml", change("127.0.0.1", "bridge.example.org"))
	if _, err := Load([]string{far}, testServer, false); err != nil {
		t.Error(err)
	}
	if _, err := Load([]string{far}, testServer, true); err == nil || !strings.Contains(err.Error(), "no names are looked up") {
		t.Errorf("with LAN only: %v", err)
	}
	var none *Services
	if none.All() != nil || none.ByToken("") != nil || none.UserTaken("@a:b", nil) != nil {
		t.Error("no services are some")
	}
}
