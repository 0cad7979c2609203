package appservice

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// maxRegistration bounds a registration file, in bytes. Usual ones are below 2 KiB.
const maxRegistration = 1 << 20

// Namespace is one entry of a registration's namespaces: the names that its expression matches from their beginning.
type Namespace struct {
	Exclusive bool // nobody else may make or delete what is in it
	regex     *regexp.Regexp
}

func (n *Namespace) has(name string) bool { return n.regex.MatchString(name) }

// registration is the file as written (AS API, Registration). Members that it does not know are other servers' extensions.
type registration struct {
	ID              *string   `yaml:"id"`
	URL             yaml.Node `yaml:"url"` // null is allowed, absence is not
	ASToken         *string   `yaml:"as_token"`
	HSToken         *string   `yaml:"hs_token"`
	SenderLocalpart *string   `yaml:"sender_localpart"`
	Namespaces      *struct {
		Users   []namespace `yaml:"users"`
		Aliases []namespace `yaml:"aliases"`
		Rooms   []namespace `yaml:"rooms"`
	} `yaml:"namespaces"`
	RateLimited      *bool    `yaml:"rate_limited"`
	Protocols        []string `yaml:"protocols"`
	ReceiveEphemeral bool     `yaml:"receive_ephemeral"`
	// What the same was called before version 1.13 of the spec (MSC2409); most registrations in use say it.
	PushEphemeral         bool `yaml:"push_ephemeral"`
	PushEphemeralUnstable bool `yaml:"de.sorunome.msc2409.push_ephemeral"`
}

type namespace struct {
	Exclusive bool    `yaml:"exclusive"`
	Regex     *string `yaml:"regex"`
}

// readRegistration reads a file. Its errors name the file and say what to mend.
func readRegistration(path string, server eventgraph.ServerName) (*Service, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("application service: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRegistration+1))
	if err != nil {
		return nil, fmt.Errorf("application service: %w", err)
	}
	if len(text) > maxRegistration {
		return nil, fmt.Errorf("application service: %s is larger than %d bytes: that is no registration", path, maxRegistration)
	}
	s, err := parseRegistration(text, server)
	if err != nil {
		return nil, fmt.Errorf("application service: %s: %w", path, err)
	}
	return s, nil
}

func parseRegistration(text []byte, server eventgraph.ServerName) (*Service, error) {
	var r registration
	if err := yaml.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("not a registration in YAML: %w", err)
	}
	for _, m := range []struct {
		name    string
		missing bool
	}{
		{"id", r.ID == nil || *r.ID == ""}, {"url", r.URL.Kind == 0},
		{"as_token", r.ASToken == nil || *r.ASToken == ""}, {"hs_token", r.HSToken == nil || *r.HSToken == ""},
		{"sender_localpart", r.SenderLocalpart == nil || *r.SenderLocalpart == ""}, {"namespaces", r.Namespaces == nil},
	} {
		if m.missing {
			return nil, fmt.Errorf("%s is missing", m.name)
		}
	}
	s := &Service{
		ID: *r.ID, asToken: *r.ASToken, hsToken: *r.HSToken, server: server, Protocols: r.Protocols,
		RateLimited:       r.RateLimited == nil || *r.RateLimited,
		ReceiveEphemeral:  r.ReceiveEphemeral || r.PushEphemeral || r.PushEphemeralUnstable,
		unstableEphemeral: r.PushEphemeralUnstable,

		heard: make(chan struct{}, 1), asking: make(chan struct{}, maxQueries),
	}
	for name, token := range map[string]string{"as_token": s.asToken, "hs_token": s.hsToken} {
		if strings.ContainsFunc(token, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) || c > unicode.MaxASCII }) {
			return nil, fmt.Errorf("%s has characters that no header can carry", name)
		}
	}
	var err error
	if s.Sender, err = eventgraph.ParseUserID("@" + *r.SenderLocalpart + ":" + string(server)); err != nil {
		return nil, fmt.Errorf("sender_localpart %q is not the local part of a user ID: %w", *r.SenderLocalpart, err)
	}
	if s.url, err = baseURL(&r.URL); err != nil {
		return nil, err
	}
	for _, list := range []struct {
		name string
		from []namespace
		to   *[]Namespace
	}{{"users", r.Namespaces.Users, &s.users}, {"aliases", r.Namespaces.Aliases, &s.aliases}, {"rooms", r.Namespaces.Rooms, &s.rooms}} {
		if *list.to, err = namespaces(list.from); err != nil {
			return nil, fmt.Errorf("namespaces: %s: %w", list.name, err)
		}
	}
	if slices.Contains(s.Protocols, "") {
		return nil, errors.New("protocols: a protocol has no name")
	}
	return s, nil
}

// baseURL reads url: nil if the service wants no traffic.
func baseURL(node *yaml.Node) (*url.URL, error) {
	var text *string
	if err := node.Decode(&text); err != nil {
		return nil, errors.New("url is neither a string nor null")
	}
	if text == nil || *text == "" {
		return nil, nil
	}
	u, err := url.Parse(*text)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("url %q must be http:// or https:// with a host, and at most a path behind it", *text)
	}
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), ""
	return u, nil
}

func namespaces(from []namespace) ([]Namespace, error) {
	var to []Namespace
	for _, n := range from {
		if n.Regex == nil || *n.Regex == "" {
			return nil, errors.New("regex is missing")
		}
		// The spec says which names are meant, not where the expression begins and ends; registrations in use are written for servers that
		// match from the beginning of a name, wherever it ends.
		regex, err := regexp.Compile(`^(?:` + *n.Regex + `)`)
		if err != nil {
			return nil, fmt.Errorf("%q is not a regular expression: %w", *n.Regex, err)
		}
		to = append(to, Namespace{n.Exclusive, regex})
	}
	return to, nil
}
