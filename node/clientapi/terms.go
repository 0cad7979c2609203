package clientapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"

	"github.com/plexus-p2p/plexus/store"
)

// Policies are the documents that people have to accept to register (CS API, Terms of service at registration), by their IDs.
type Policies map[string]Policy

// Policy is one version of a document.
type Policy struct {
	Version string
	In      map[string]PolicyText // by language, as in RFC 5646; at least one
}

// PolicyText is a document in one language.
type PolicyText struct {
	Name string `json:"name"`
	URL  string `json:"url"` // http or https
}

// MarshalJSON writes the Policy Definition of the specification, in which languages stand beside the version.
func (p Policy) MarshalJSON() ([]byte, error) {
	definition := map[string]any{"version": p.Version}
	for language, text := range p.In {
		definition[language] = text
	}
	return json.Marshal(definition)
}

var (
	opaqueIdentifier = regexp.MustCompile(`^[0-9A-Za-z._~-]{1,255}$`)           // appendices, Opaque Identifiers
	languageCode     = regexp.MustCompile(`^[A-Za-z]{2,8}([-_][0-9A-Za-z]+)*$`) // some write en_US
)

// Check says in words what is wrong, if anything is.
func (p Policies) Check() error {
	for _, id := range slices.Sorted(maps.Keys(p)) {
		policy := p[id]
		if !opaqueIdentifier.MatchString(id) {
			return fmt.Errorf("terms: the name %q of a policy may only have letters, digits and . _ ~ -, 255 of them at most", id)
		}
		switch {
		case policy.Version == "":
			return fmt.Errorf("terms.%s has no version", id)
		case !opaqueIdentifier.MatchString(policy.Version):
			return fmt.Errorf("terms.%s: the version %q may only have letters, digits and . _ ~ -, 255 of them at most", id, policy.Version)
		case len(policy.In) == 0:
			return fmt.Errorf("terms.%s is in no language: it needs a name and a url in one at least, as en = {name = \"…\", url = \"https://…\"}", id)
		}
		for _, language := range slices.Sorted(maps.Keys(policy.In)) {
			if err := policy.In[language].check(language); err != nil {
				return fmt.Errorf("terms.%s.%s: %w", id, language, err)
			}
		}
	}
	return nil
}

func (t PolicyText) check(language string) error {
	if !languageCode.MatchString(language) || language == "version" {
		return fmt.Errorf("%q is no language, as en, fr or pt-BR is", language)
	}
	if t.Name == "" {
		return errors.New("the document has no name")
	}
	u, err := url.Parse(t.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return fmt.Errorf("the url %q is none that begins with https:// or http://", t.URL)
	}
	return nil
}

// accepted says that all of them were accepted at that time, in ms; nil for 0.
func (p Policies) accepted(ts int64) []store.AcceptedPolicy {
	if ts == 0 {
		return nil
	}
	var all []store.AcceptedPolicy
	for _, id := range slices.Sorted(maps.Keys(p)) {
		all = append(all, store.AcceptedPolicy{Policy: id, Version: p[id].Version, TS: ts})
	}
	return all
}
