package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
	"github.com/plexus-p2p/plexus/node/media"
)

// settings are the flags of "plexus run", and what only its config file can say.
type settings struct {
	data, registration, meshKey, config string
	roomVersion                         string
	clientAddrs, p2pAddrs, peers        list
	appservices                         list
	mdns, rateLimits, relay, lanOnly    bool
	maxUpload, userMedia                size
	allMedia, mediaCache                size
	urlPreviews                         bool
	privateGateways                     bool
	turnURIs                            list
	turnUser, turnPassword, turnSecret  string
	turnTTL                             time.Duration
	verbose                             bool
	terms                               clientapi.Policies // of the config file alone
}

// list is a repeatable flag. The first value of a stronger source replaces those of the weaker ones.
type list struct {
	values []string
	source int // the source that set the values
	now    *int
}

func (l *list) String() string { return strings.Join(l.values, ",") }

func (l *list) Set(v string) error {
	if l.source != *l.now {
		l.values, l.source = nil, *l.now
	}
	l.values = append(l.values, v)
	return nil
}

// flags defines the flags; source is the number of the source being read, from 1.
func (s *settings) flags(source *int, errOut io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("plexus run", flag.ContinueOnError)
	f.SetOutput(errOut)
	for _, l := range []*list{&s.clientAddrs, &s.p2pAddrs, &s.peers, &s.appservices, &s.turnURIs} {
		l.now = source
	}
	f.StringVar(&s.data, "data", defaultDir(), "data `directory`")
	f.Var(&s.clientAddrs, "client-addr", "`host:port` for Matrix clients, repeatable; port 0 picks one (default "+node.DefaultClientAddr+")")
	f.Var(&s.p2pAddrs, "p2p-addr", "`multiaddr` for other nodes, repeatable (default QUIC and TCP on all interfaces)")
	f.Var(&s.peers, "peer", "static peer, a `multiaddr` with /p2p/ID, repeatable")
	f.BoolVar(&s.mdns, "mdns", true, "look for nodes on the LAN by mDNS")
	f.StringVar(&s.registration, "registration", string(clientapi.RegistrationToken), "`who` may register: token, open or closed")
	f.StringVar(&s.roomVersion, "default-room-version", string(eventgraph.DefaultRoomVersion), "room `version`, 3 to 12, of rooms for which a client names none")
	f.BoolVar(&s.rateLimits, "rate-limits", true, "limit how fast clients may call")
	f.BoolVar(&s.relay, "relay", false, "carry connections between nodes that share rooms with this one and cannot reach each other")
	f.StringVar(&s.meshKey, "mesh-key", "", "`file` with the key of a private mesh, made by \"plexus mesh-key FILE\": nodes without it are not talked to; TCP and WebSocket only")
	f.BoolVar(&s.lanOnly, "lan-only", false, "never send a packet outside of private address ranges, and look up no names")
	f.Var(&s.appservices, "appservice", "application service registration `file` in YAML, repeatable")
	s.maxUpload, s.userMedia, s.allMedia, s.mediaCache = media.DefaultUploadSize, media.DefaultUserBytes, media.DefaultLocalBytes, media.DefaultCacheBytes
	f.Var(&s.maxUpload, "max-upload-size", "the largest file that is taken, in `bytes`, or with K, M or G")
	f.Var(&s.userMedia, "media-quota", "what one user may upload in all, in `bytes`")
	f.Var(&s.allMedia, "media-total", "what all users may upload in all, in `bytes`")
	f.Var(&s.mediaCache, "media-cache", "what is kept of other servers' files, in `bytes`; the longest unused goes first")
	f.BoolVar(&s.urlPreviews, "url-previews", false, "fetch what is shown of links in messages; their servers then see that somebody here reads them")
	f.BoolVar(&s.privateGateways, "push-private-gateways", false, "let users have push gateways in private networks and on this machine, over http too")
	f.Var(&s.turnURIs, "turn-uri", "turn: or turns: `URI` of a relay for calls that clients are told of, repeatable")
	f.StringVar(&s.turnUser, "turn-user", "", "fixed `name` for that relay")
	f.StringVar(&s.turnPassword, "turn-password", "", "fixed `password` for that relay; other users of this machine see flags, so better in the file or the environment")
	f.StringVar(&s.turnSecret, "turn-secret", "", "`secret` shared with that relay, of which each client's password is made; likewise")
	f.DurationVar(&s.turnTTL, "turn-ttl", 24*time.Hour, "how long a password made of the secret serves, as `duration` like 12h")
	f.StringVar(&s.config, "config", "", "TOML `file` with the same names; flags win, PLEXUS_* variables come between")
	f.BoolVar(&s.verbose, "verbose", false, "log more")
	return f
}

// parse reads the sources from weakest to strongest: config file, environment, flags.
func parse(args, environ []string, errOut io.Writer) (*settings, error) {
	// A first look at the flags finds --config and mistakes.
	var first settings
	source := 1
	f := first.flags(&source, errOut)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; \"plexus help\" shows the usage", f.Arg(0))
	}
	env := environment(environ)
	config := cmp.Or(first.config, env["config"])

	s := &settings{}
	f = s.flags(&source, errOut)
	if config != "" {
		values, terms, err := readConfig(config)
		if err != nil {
			return nil, err
		}
		s.terms = terms
		if err := set(f, values, config); err != nil {
			return nil, err
		}
	}
	source++
	values := map[string][]string{}
	for name, v := range env {
		switch known := f.Lookup(name); {
		case known == nil: // somebody else's, like scripts/lan's
		case isList(known):
			values[name] = strings.Split(v, ",")
		default:
			values[name] = []string{v}
		}
	}
	if err := set(f, values, "environment"); err != nil {
		return nil, err
	}
	source++
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	return s, s.check()
}

func set(f *flag.FlagSet, values map[string][]string, where string) error {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		known := f.Lookup(name)
		if known == nil {
			return fmt.Errorf("%s: there is no setting %q; \"plexus run -h\" lists them", where, name)
		}
		if len(values[name]) != 1 && !isList(known) {
			return fmt.Errorf("%s: %s takes one value, not a list", where, name)
		}
		for _, v := range values[name] {
			if err := f.Set(name, v); err != nil {
				return fmt.Errorf("%s: %s: %w", where, name, err)
			}
		}
	}
	return nil
}

func isList(f *flag.Flag) bool {
	_, ok := f.Value.(*list)
	return ok
}

// environment picks PLEXUS_CLIENT_ADDR and the like; commas separate values of a repeatable setting. A variable that is set to
// nothing is none.
func environment(environ []string) map[string]string {
	env := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if name, ok := strings.CutPrefix(name, "PLEXUS_"); ok && value != "" {
			env[strings.ReplaceAll(strings.ToLower(name), "_", "-")] = value
		}
	}
	return env
}

// readConfig reads a TOML file whose keys are the names of flags; values are strings, booleans or arrays of strings. The table "terms" has
// what people who register have to accept.
func readConfig(path string) (map[string][]string, clientapi.Policies, error) {
	var raw map[string]any
	if _, err := toml.DecodeFile(path, &raw); err != nil {
		return nil, nil, fmt.Errorf("read config: %w", err)
	}
	terms, err := readTerms(raw["terms"])
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	delete(raw, "terms")
	values := map[string][]string{}
	for name, v := range raw {
		switch v := v.(type) {
		case string, bool:
			values[name] = []string{fmt.Sprint(v)}
		case []any:
			for _, one := range v {
				values[name] = append(values[name], fmt.Sprint(one))
			}
		default:
			return nil, nil, fmt.Errorf("%s: %s must be a string, a boolean or a list of strings", path, name)
		}
	}
	return values, terms, nil
}

// readTerms reads tables as [terms.privacy_policy], with a version and, for each language, a table with name and url. Nothing of them is left
// out: who registers must see what was meant.
func readTerms(v any) (clientapi.Policies, error) {
	if v == nil {
		return nil, nil
	}
	policies, err := tableOf(v, "terms", "a table for each policy, as [terms.privacy_policy]")
	if err != nil {
		return nil, err
	}
	terms := clientapi.Policies{}
	for id, v := range policies {
		name := "terms." + id
		definition, err := tableOf(v, name, "a table with a version and languages")
		if err != nil {
			return nil, err
		}
		policy := clientapi.Policy{In: map[string]clientapi.PolicyText{}}
		for key, v := range definition {
			if key == "version" {
				if policy.Version, err = stringOf(v, name+".version"); err != nil {
					return nil, err
				}
			} else if policy.In[key], err = readPolicyText(v, name+"."+key); err != nil {
				return nil, err
			}
		}
		terms[id] = policy
	}
	return terms, terms.Check()
}

func readPolicyText(v any, name string) (text clientapi.PolicyText, err error) {
	fields, err := tableOf(v, name, "a table with name and url: it stands for a language")
	for key, v := range fields {
		switch key {
		case "name":
			text.Name, err = stringOf(v, name+".name")
		case "url":
			text.URL, err = stringOf(v, name+".url")
		default:
			err = fmt.Errorf("%s has name and url, and no %q", name, key)
		}
		if err != nil {
			return text, err
		}
	}
	return text, err
}

func tableOf(v any, name, what string) (map[string]any, error) {
	if t, ok := v.(map[string]any); ok {
		return t, nil
	}
	return nil, fmt.Errorf("%s must be %s", name, what)
}

func stringOf(v any, name string) (string, error) {
	if s, ok := v.(string); ok {
		return s, nil
	}
	return "", fmt.Errorf("%s must be a string, in quotes", name)
}

// check refuses what this version cannot keep: a promise must not be taken silently.
func (s *settings) check() error {
	switch clientapi.Registration(s.registration) {
	case clientapi.RegistrationToken, clientapi.RegistrationOpen, clientapi.RegistrationClosed:
	default:
		return fmt.Errorf("--registration is token, open or closed, not %q", s.registration)
	}
	if _, known := eventgraph.RoomVersion(s.roomVersion).Traits(); !known {
		all := eventgraph.SupportedVersions()
		return fmt.Errorf("--default-room-version is %s to %s, not %q", all[0], all[len(all)-1], s.roomVersion)
	}
	if s.urlPreviews && s.lanOnly {
		return errors.New("--url-previews calls public addresses, and --lan-only calls none: choose one")
	}
	if t := s.turn(); t != nil {
		if err := t.Check(); err != nil {
			return err
		}
	}
	if s.mediaCache < s.maxUpload {
		return errors.New("--media-cache must hold one file of --max-upload-size at least")
	}
	return nil
}

// turn is the relay for calls; nil if none is named.
func (s *settings) turn() *clientapi.TURN {
	if len(s.turnURIs.values) == 0 && s.turnUser == "" && s.turnPassword == "" && s.turnSecret == "" {
		return nil
	}
	return &clientapi.TURN{URIs: s.turnURIs.values, User: s.turnUser, Password: s.turnPassword, Secret: s.turnSecret, TTL: s.turnTTL}
}

// defaultDir is the per-user data directory of the operating system: XDG on Linux and other Unix systems,
// Application Support on macOS, LocalAppData on Windows.
func defaultDir() string {
	home, err := os.UserHomeDir()
	if err != nil {
		return "plexus-data"
	}
	switch runtime.GOOS {
	case "darwin", "ios":
		return filepath.Join(home, "Library", "Application Support", "plexus")
	case "windows":
		if dir := os.Getenv("LocalAppData"); dir != "" {
			return filepath.Join(dir, "plexus")
		}
		return filepath.Join(home, "AppData", "Local", "plexus")
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "plexus")
	}
	return filepath.Join(home, ".local", "share", "plexus")
}
