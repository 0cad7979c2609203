package appservice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

const (
	// queryAttempts is how often a service that gives no answer is asked (AS API, Querying: "should retry several times").
	queryAttempts = 3
	queryPause    = 200 * time.Millisecond // between attempts
)

// ErrNoAnswer is returned where a service that had to be asked has not answered.
var ErrNoAnswer = errors.New("the application service did not answer")

// FindUser asks the services in whose namespaces a local user without account is whether they make it, until one does. Once true is
// returned the account should be there. ErrNoAnswer.
func (a *Services) FindUser(ctx context.Context, user eventgraph.UserID) (bool, error) {
	return a.findEntity(ctx, "/_matrix/app/v1/users/"+url.PathEscape(string(user)), func(s *Service) bool { return s.HasUser(user) })
}

// FindAlias is FindUser for a local alias without room.
func (a *Services) FindAlias(ctx context.Context, alias eventgraph.RoomAlias) (bool, error) {
	return a.findEntity(ctx, "/_matrix/app/v1/rooms/"+url.PathEscape(string(alias)), func(s *Service) bool { return s.HasAlias(alias) })
}

func (a *Services) findEntity(ctx context.Context, path string, concerns func(*Service) bool) (bool, error) {
	silent := false
	for _, s := range a.All() {
		if s.url == nil || !concerns(s) {
			continue
		}
		r, err := s.query(ctx, path, nil)
		switch {
		case err != nil:
			silent = true
		case r.status == http.StatusOK:
			return true, nil
		}
	}
	if silent {
		return false, ErrNoAnswer
	}
	return false, nil
}

// query is call with GET, several times if there is no answer.
func (s *Service) query(ctx context.Context, path string, params url.Values) (*reply, error) {
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for attempt := 1; ; attempt++ {
		r, err := s.attempt(ctx, path, params)
		if err == nil || attempt == queryAttempts || errors.Is(err, ErrNoURL) {
			return r, err
		}
		select {
		case <-time.After(queryPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Service) attempt(ctx context.Context, path string, params url.Values) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return s.call(ctx, http.MethodGet, path, params, nil)
}

// Protocol is what services say of a third-party network (protocol.yaml); nil if none has it. Of the same protocol by several services
// the instances are put together. Each gets its instance_id here.
func (a *Services) Protocol(ctx context.Context, name string) (map[string]json.RawMessage, error) {
	var protocol map[string]json.RawMessage
	instances := []map[string]json.RawMessage{}
	for _, s := range a.All() {
		if !slices.Contains(s.Protocols, name) {
			continue
		}
		r, err := s.query(ctx, "/_matrix/app/v1/thirdparty/protocol/"+url.PathEscape(name), nil)
		if err != nil || r.status != http.StatusOK {
			continue // whoever is away has nothing to say of its network
		}
		var said map[string]json.RawMessage
		var its []map[string]json.RawMessage
		if json.Unmarshal(r.body, &said) != nil || said == nil {
			continue
		}
		if json.Unmarshal(said["instances"], &its) != nil {
			its = nil
		}
		for _, instance := range its {
			var network string
			if instance == nil || json.Unmarshal(instance["network_id"], &network) != nil {
				continue
			}
			id, err := json.Marshal(InstanceID(s.ID, network))
			if err != nil {
				return nil, err
			}
			instance["instance_id"] = id
			instances = append(instances, instance)
		}
		if protocol == nil {
			protocol = said
		}
	}
	if protocol == nil {
		return nil, nil
	}
	raw, err := json.Marshal(instances)
	protocol["instances"] = raw
	return protocol, err
}

// Protocols is Protocol of each that a service has registered.
func (a *Services) Protocols(ctx context.Context) (map[string]any, error) {
	all := map[string]any{}
	for _, s := range a.All() {
		for _, name := range s.Protocols {
			if all[name] != nil {
				continue
			}
			p, err := a.Protocol(ctx, name)
			if err != nil {
				return nil, err
			}
			if p != nil {
				all[name] = p
			}
		}
	}
	return all, nil
}

// InstanceID is the instance_id of a network of a service.
func InstanceID(service, network string) string { return service + "|" + network }

// Kind is what a look-up in third-party networks is for, as it stands in the paths.
type Kind string

const (
	Users     Kind = "user"
	Locations Kind = "location"
)

// LookUp asks for users or locations: of one protocol, or, if it is "", those that stand for the Matrix user or alias in params. Answers of
// several services are put together; nil if no service has answered that it knows any. Nothing but the objects' form is looked at.
func (a *Services) LookUp(ctx context.Context, kind Kind, protocol string, params url.Values) ([]json.RawMessage, error) {
	path := "/_matrix/app/v1/thirdparty/" + string(kind)
	if protocol != "" {
		path += "/" + url.PathEscape(protocol)
	}
	params.Del("access_token") // who asks is nothing for the service
	var found []json.RawMessage
	for _, s := range a.All() {
		if protocol != "" && !slices.Contains(s.Protocols, protocol) || protocol == "" && len(s.Protocols) == 0 {
			continue
		}
		r, err := s.query(ctx, path, params)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("look up in application services: %w", ctx.Err())
		}
		if err != nil || r.status != http.StatusOK {
			continue
		}
		var list []json.RawMessage
		if json.Unmarshal(r.body, &list) != nil {
			continue
		}
		if found == nil {
			found = []json.RawMessage{}
		}
		for _, entry := range list {
			if bytes.HasPrefix(bytes.TrimSpace(entry), []byte("{")) {
				found = append(found, entry)
			}
		}
	}
	return found, nil
}
