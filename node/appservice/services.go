package appservice

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/outgoing"
)

// Service is one registered application service.
type Service struct {
	ID               string
	Sender           eventgraph.UserID // the user of sender_localpart
	Protocols        []string
	RateLimited      bool // requests in the name of users other than Sender
	ReceiveEphemeral bool
	// unstableEphemeral: it asked under MSC2409's unstable name, and may look for what it is sent under that only.
	unstableEphemeral bool

	url                   *url.URL // nil: it wants no traffic
	asToken, hsToken      string
	server                eventgraph.ServerName
	users, aliases, rooms []Namespace
	client                *http.Client
	heard                 chan struct{} // holds a token when the service has called us
	asking                chan struct{} // holds a token for each query that is under way
}

// Services are the registered application services. A nil *Services has none. Nothing of it changes, so it is for concurrent use.
type Services struct {
	all     []*Service
	byToken map[[sha256.Size]byte]*Service
}

// Load reads registration files. With lanOnly a service must be at a private address, not at a name. Errors say in words which file is wrong
// and why.
func Load(files []string, server eventgraph.ServerName, lanOnly bool) (*Services, error) {
	all := &Services{byToken: map[[sha256.Size]byte]*Service{}}
	reach := outgoing.Reach{Public: !lanOnly, Private: true, Names: !lanOnly}
	client := newClient(reach)
	for _, file := range files {
		s, err := readRegistration(file, server)
		if err != nil {
			return nil, err
		}
		if s.url != nil {
			if err := reach.Check(s.url); err != nil {
				return nil, fmt.Errorf("application service: %s: url: %w", file, err)
			}
		}
		for _, other := range all.all {
			switch {
			case other.ID == s.ID:
				return nil, fmt.Errorf("application service: %s: its id %q is another's too: each needs its own", file, s.ID)
			case other.asToken == s.asToken:
				return nil, fmt.Errorf("application service: %s: its as_token is that of %q too: each needs its own", file, other.ID)
			case other.Sender == s.Sender:
				return nil, fmt.Errorf("application service: %s: its sender_localpart is that of %q too: each needs its own", file, other.ID)
			}
		}
		s.client = client
		all.all = append(all.all, s)
		all.byToken[sha256.Sum256([]byte(s.asToken))] = s
	}
	return all, nil
}

// newClient makes the client for requests to services. They stand in a file that the owner of this node has chosen, so any address within
// reach may be called, but only that: no redirect is followed.
func newClient(reach outgoing.Reach) *http.Client {
	transport := reach.Transport(sendTimeout)
	transport.IdleConnTimeout = time.Minute
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     transport,
	}
}

// Close ends connections that wait for requests.
func (a *Services) Close() {
	if a != nil && len(a.all) > 0 {
		a.all[0].client.CloseIdleConnections() // all have the same
	}
}

// All lists the services in the order of their files.
func (a *Services) All() []*Service {
	if a == nil {
		return nil
	}
	return a.all
}

// ByToken is the service with that as_token; nil if there is none.
func (a *Services) ByToken(asToken string) *Service {
	if a == nil {
		return nil
	}
	return a.byToken[sha256.Sum256([]byte(asToken))] // by its hash: how long it takes tells nothing
}

// UserTaken is the service other than self, which may be nil, that alone may have the user: by an exclusive namespace, or because it is its
// sender. nil if there is none.
func (a *Services) UserTaken(user eventgraph.UserID, self *Service) *Service {
	return a.find(self, func(s *Service) bool { return user == s.Sender || excludes(s.users, string(user)) })
}

// AliasTaken is the service other than self, which may be nil, that alone may have the alias; nil if there is none.
func (a *Services) AliasTaken(alias eventgraph.RoomAlias, self *Service) *Service {
	return a.find(self, func(s *Service) bool { return excludes(s.aliases, string(alias)) })
}

func (a *Services) find(self *Service, is func(*Service) bool) *Service {
	for _, s := range a.All() {
		if s != self && is(s) {
			return s
		}
	}
	return nil
}

func excludes(list []Namespace, name string) bool {
	return slices.ContainsFunc(list, func(n Namespace) bool { return n.Exclusive && n.has(name) })
}

func contains(list []Namespace, name string) bool {
	return slices.ContainsFunc(list, func(n Namespace) bool { return n.has(name) })
}

// HasUser says whether the service may act as the user: a user of this server in its namespaces, or its sender.
func (s *Service) HasUser(user eventgraph.UserID) bool {
	return user == s.Sender || user.Server() == s.server && contains(s.users, string(user))
}

// HasAlias says whether the alias is in the service's namespaces.
func (s *Service) HasAlias(alias eventgraph.RoomAlias) bool {
	return contains(s.aliases, string(alias))
}

// Heard notes that the service has called: if it could not be reached, it is tried again.
func (s *Service) Heard() {
	select {
	case s.heard <- struct{}{}:
	default:
	}
}

// wait waits for d, or until the service has called, but then too for retryFirst.
func (s *Service) wait(ctx context.Context, d time.Duration) error {
	began := time.Now()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.heard:
		timer.Reset(min(d, max(0, retryFirst-time.Since(began))))
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
