package main

import (
	"cmp"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/node/clientapi"
)

// configFile writes a config file and returns its path.
func configFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plexus.toml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsWinOverEnvironmentOverFile(t *testing.T) {
	t.Parallel()
	file := configFile(t, `
data = "/file"
registration = "closed"
mdns = false
rate-limits = false
client-addr = ["127.0.0.1:1", "127.0.0.1:2"]
peer = "/file/peer"
relay = true
lan-only = true
mesh-key = "/file/key"
default-room-version = "9"
`)
	for name, c := range map[string]struct {
		args, env []string
		want      settings
	}{
		"defaults": {want: settings{data: defaultDir(), registration: "token", mdns: true, rateLimits: true}},
		"file": {
			args: []string{"--config", file},
			want: settings{data: "/file", registration: "closed", clientAddrs: list{values: []string{"127.0.0.1:1", "127.0.0.1:2"}}, peers: list{values: []string{"/file/peer"}}, relay: true, lanOnly: true, meshKey: "/file/key", roomVersion: "9"},
		},
		"file named by the environment": {
			env:  []string{"PLEXUS_CONFIG=" + file},
			want: settings{data: "/file", registration: "closed", clientAddrs: list{values: []string{"127.0.0.1:1", "127.0.0.1:2"}}, peers: list{values: []string{"/file/peer"}}, relay: true, lanOnly: true, meshKey: "/file/key", roomVersion: "9"},
		},
		"environment over file": {
			args: []string{"--config", file},
			env:  []string{"PLEXUS_DATA=/env", "PLEXUS_MDNS=true", "PLEXUS_RELAY=false", "PLEXUS_MESH_KEY=/env/key", "PLEXUS_DEFAULT_ROOM_VERSION=11", "PLEXUS_CLIENT_ADDR=127.0.0.1:3,127.0.0.1:4", "HOME=/nowhere"},
			want: settings{
				data: "/env", registration: "closed", mdns: true, lanOnly: true, meshKey: "/env/key", roomVersion: "11",
				clientAddrs: list{values: []string{"127.0.0.1:3", "127.0.0.1:4"}}, peers: list{values: []string{"/file/peer"}},
			},
		},
		"flags over all": {
			args: []string{"--config", file, "--data=/flag", "--registration", "open", "--client-addr", "127.0.0.1:5", "--client-addr=127.0.0.1:6", "--rate-limits=true", "--relay", "--lan-only=false", "--mesh-key=/flag/key", "--default-room-version=8"},
			env:  []string{"PLEXUS_DATA=/env", "PLEXUS_RELAY=false", "PLEXUS_LAN_ONLY=true", "PLEXUS_MESH_KEY=/env/key", "PLEXUS_REGISTRATION=token", "PLEXUS_CLIENT_ADDR=127.0.0.1:3", "PLEXUS_PEER=/env/a,/env/b"},
			want: settings{
				data: "/flag", registration: "open", rateLimits: true, relay: true, meshKey: "/flag/key", roomVersion: "8",
				clientAddrs: list{values: []string{"127.0.0.1:5", "127.0.0.1:6"}}, peers: list{values: []string{"/env/a", "/env/b"}},
			},
		},
		"a comma in what is no list": {
			env:  []string{"PLEXUS_DATA=/a,b"},
			want: settings{data: "/a,b", registration: "token", mdns: true, rateLimits: true},
		},
		"variables of others, and empty ones": {
			env:  []string{"PLEXUS_HOST_TESTS=1", "PLEXUS_PEER=", "PLEXUS_MDNS=", "PLEXUS_CONFIG="},
			want: settings{data: defaultDir(), registration: "token", mdns: true, rateLimits: true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parse(c.args, c.env, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if got.data != c.want.data || got.registration != c.want.registration || got.mdns != c.want.mdns || got.rateLimits != c.want.rateLimits ||
				got.relay != c.want.relay || got.lanOnly != c.want.lanOnly || got.meshKey != c.want.meshKey ||
				got.roomVersion != cmp.Or(c.want.roomVersion, "12") {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			for _, l := range []struct {
				name      string
				got, want list
			}{{"client-addr", got.clientAddrs, c.want.clientAddrs}, {"peer", got.peers, c.want.peers}, {"p2p-addr", got.p2pAddrs, c.want.p2pAddrs}} {
				if !slices.Equal(l.got.values, l.want.values) {
					t.Errorf("%s: %q, want %q", l.name, l.got.values, l.want.values)
				}
			}
		})
	}
}

// What cannot be kept or understood is refused, in words that name it.
func TestRefusedSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args, env []string
		file      string
		word      string
	}{
		"lan-only":           {file: `lan-only = "perhaps"`, word: "lan-only"},
		"relay":              {env: []string{"PLEXUS_RELAY=perhaps"}, word: "relay"},
		"registration":       {args: []string{"--registration", "everybody"}, word: "everybody"},
		"room version 2":     {args: []string{"--default-room-version", "2"}, word: `3 to 12, not "2"`},
		"room version 13":    {file: `default-room-version = "13"`, word: "--default-room-version"},
		"unknown flag":       {args: []string{"--no-such-thing"}, word: "no-such-thing"},
		"stray argument":     {args: []string{"--mdns", "false"}, word: `unexpected argument "false"`},
		"no boolean":         {env: []string{"PLEXUS_MDNS=perhaps"}, word: "mdns"},
		"unknown in file":    {file: `clientaddr = "127.0.0.1:1"`, word: "clientaddr"},
		"number in file":     {file: `client-addr = 8008`, word: "client-addr"},
		"list for one value": {file: `data = ["/a", "/b"]`, word: "takes one value"},
		"no TOML":            {file: `data = `, word: "read config"},
		"relay for calls":    {args: []string{"--turn-secret", "s"}, word: "no URI"},
		"two ways to it":     {args: []string{"--turn-uri", "turn:example.org", "--turn-secret", "s", "--turn-user", "u"}, word: "either"},
		"turn-ttl":           {file: `turn-ttl = "soon"`, word: "turn-ttl"},
		"terms":              {file: `terms = "https://example.org/"`, word: "terms must be a table for each policy"},
		"a policy":           {file: "[terms]\nprivacy = \"https://example.org/\"", word: "terms.privacy must be a table"},
		"no version":         {file: "[terms.privacy]\nen = {name = \"Privacy\", url = \"https://example.org/\"}", word: "terms.privacy has no version"},
		"a number":           {file: "[terms.privacy]\nversion = 1.0", word: "terms.privacy.version must be a string"},
		"no language":        {file: "[terms.privacy]\nversion = \"1\"", word: "terms.privacy is in no language"},
		"a text":             {file: "[terms.privacy]\nversion = \"1\"\nen = \"Privacy\"", word: "terms.privacy.en must be a table with name and url"},
		"no url":             {file: "[terms.privacy]\nversion = \"1\"\nen = {name = \"Privacy\"}", word: `terms.privacy.en: the url ""`},
		"another url":        {file: "[terms.privacy]\nversion = \"1\"\nen = {name = \"Privacy\", url = \"javascript:x\"}", word: "begins with https://"},
		"no name":            {file: "[terms.privacy]\nversion = \"1\"\nen = {url = \"https://example.org/\"}", word: "terms.privacy.en: the document has no name"},
		"more of a language": {file: "[terms.privacy]\nversion = \"1\"\nen = {title = \"Privacy\"}", word: `no "title"`},
		"a language's name":  {file: "[terms.privacy]\nversion = \"1\"\n\"in English\" = {name = \"P\", url = \"https://example.org/\"}", word: `"in English" is no language`},
		"a policy's name":    {file: "[terms.\"a b\"]\nversion = \"1\"", word: `the name "a b" of a policy`},
		"a version":          {file: "[terms.privacy]\nversion = \"version 1\"", word: `the version "version 1"`},
		"no file":            {args: []string{"--config", "/no/such/file"}, word: "/no/such/file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := c.args
			if c.file != "" {
				args = append(args, "--config", configFile(t, c.file))
			}
			_, err := parse(args, c.env, io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.word) {
				t.Errorf("error %v, want one that says %q", err, c.word)
			}
		})
	}
	if _, err := parse([]string{"-h"}, nil, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}

func TestTermsSettings(t *testing.T) {
	t.Parallel()
	got, err := parse([]string{"--config", configFile(t, `
registration = "open"
[terms.privacy_policy]
version = "1.2"
en = {name = "Privacy Policy", url = "https://example.org/privacy-en"}
[terms.privacy_policy.pt-BR]
name = "Política de Privacidade"
url = "http://example.org/privacy-pt"
[terms.rules]
version = "b"
de = {name = "Regeln", url = "https://example.org/regeln"}
`)}, []string{"PLEXUS_TERMS=x"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := clientapi.Policies{
		"privacy_policy": {Version: "1.2", In: map[string]clientapi.PolicyText{
			"en":    {Name: "Privacy Policy", URL: "https://example.org/privacy-en"},
			"pt-BR": {Name: "Política de Privacidade", URL: "http://example.org/privacy-pt"},
		}},
		"rules": {Version: "b", In: map[string]clientapi.PolicyText{"de": {Name: "Regeln", URL: "https://example.org/regeln"}}},
	}
	if !reflect.DeepEqual(got.terms, want) || got.registration != "open" {
		t.Errorf("%+v, want %+v", got.terms, want)
	}
	if got, err = parse(nil, nil, io.Discard); err != nil || got.terms != nil {
		t.Errorf("none are set: %v %v", got.terms, err)
	}
}

func TestTurnSettings(t *testing.T) {
	t.Parallel()
	file := configFile(t, "turn-uri = [\"turn:a.example.org\", \"turns:b.example.org\"]\nturn-secret = \"s\"\nturn-ttl = \"12h\"\npush-private-gateways = true")
	got, err := parse([]string{"--config", file}, nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if turn := got.turn(); !got.privateGateways || len(turn.URIs) != 2 || turn.Secret != "s" || turn.TTL != 12*time.Hour {
		t.Errorf("%+v, %+v", got, turn)
	}
	if got, err = parse(nil, nil, io.Discard); err != nil || got.turn() != nil || got.privateGateways {
		t.Errorf("by default: %+v, %v", got, err)
	}
}
