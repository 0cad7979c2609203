// Package specdata checks responses against the Matrix specification's own data, in tests. responses.json is what its OpenAPI
// definitions (data/api of the specification's repository) say about bodies of responses, reduced by scripts/responses;
// the npm package @matrix-org/spec does not carry those definitions.
package specdata

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

//go:embed responses.json
var data []byte

// Endpoint is one endpoint of the specification.
type Endpoint struct {
	// API is its part of the specification: "client-server", "server-server" or "application-service".
	API string `json:"api"`
	// Auth says that it demands a proof of who asks.
	Auth bool `json:"auth"`
	// Input says that it takes parameters or a body.
	Input bool `json:"input"`
	// Responses maps a status to the schema of its body, null where the body is not JSON.
	Responses map[string]json.RawMessage `json:"responses"`
	// Errcodes maps a status to the errcodes that the specification names for it.
	Errcodes map[string][]string `json:"errcodes"`

	// Name is the method and the path with its variables in braces: "GET /_matrix/client/v3/rooms/{roomId}/members".
	Name string `json:"-"`

	method   string
	segments []string
	schemas  map[string]*jsonschema.Schema
}

// anywhere are the schemas of answers that any endpoint may give: the standard error response, and the demand for
// User-Interactive Authentication.
type anywhere struct{ failure, interactive *jsonschema.Schema }

var load = sync.OnceValues(func() ([]*Endpoint, anywhere) {
	var doc struct {
		Endpoints map[string]*Endpoint `json:"endpoints"`
	}
	must(json.Unmarshal(data, &doc))
	resource, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	must(err)
	compiler := jsonschema.NewCompiler()
	must(compiler.AddResource("responses.json", resource))
	var all []*Endpoint
	for _, name := range slices.Sorted(maps.Keys(doc.Endpoints)) {
		e := doc.Endpoints[name]
		e.Name = name
		method, path, _ := strings.Cut(name, " ")
		e.method, e.segments, e.schemas = method, strings.Split(strings.TrimSuffix(path, "/"), "/"), map[string]*jsonschema.Schema{}
		for status, schema := range e.Responses {
			if string(schema) == "null" {
				e.schemas[status] = nil
				continue
			}
			pointer := "responses.json#/endpoints/" + strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D", " ", "%20").Replace(name) + "/responses/" + status
			e.schemas[status], err = compiler.Compile(pointer)
			must(err)
		}
		all = append(all, e)
	}
	failure, err := compiler.Compile("responses.json#/$defs/client-server.definitions.errors.error")
	must(err)
	interactive, err := compiler.Compile("responses.json#/$defs/client-server.definitions.auth_response")
	must(err)
	return all, anywhere{failure, interactive}
})

// must ends the test binary when responses.json itself is not as scripts/responses writes it.
func must(err error) {
	if err != nil {
		panic("specdata: responses.json: " + err.Error())
	}
}

// Endpoints returns all endpoints of a part of the specification, by name.
func Endpoints(api string) []*Endpoint {
	all, _ := load()
	return slices.DeleteFunc(slices.Clone(all), func(e *Endpoint) bool { return e.API != api })
}

// Match returns the endpoint that a request is for, nil for one that the specification does not have. The path is as sent,
// escaped, without a query. The release r0 is taken for v3, which has the same endpoints.
func Match(method, path string) *Endpoint {
	path = strings.Replace(strings.Replace(path, "/_matrix/client/r0/", "/_matrix/client/v3/", 1), "/_matrix/media/r0/", "/_matrix/media/v3/", 1)
	segments := strings.Split(strings.TrimSuffix(path, "/"), "/")
	var best *Endpoint
	most := -1
	all, _ := load()
	for _, e := range all {
		if literal, ok := e.matches(method, segments); ok && literal > most {
			best, most = e, literal
		}
	}
	return best
}

// matches says whether a path is one of the endpoint's, and how many of its segments are not variables. The last variable may
// be missing, as an empty state key is.
func (e *Endpoint) matches(method string, segments []string) (literal int, ok bool) {
	pattern := e.segments
	if len(pattern) == len(segments)+1 && pattern[len(pattern)-1] == "{stateKey}" {
		pattern = pattern[:len(segments)]
	}
	if e.method != method || len(pattern) != len(segments) {
		return 0, false
	}
	for i, want := range pattern {
		switch {
		case want == segments[i]:
			literal++
		case !strings.HasPrefix(want, "{"):
			return 0, false
		}
	}
	return literal, true
}

// Check says what is wrong with a response to a request for the endpoint: a success that the specification does not list, a
// body that does not fit the schema of its status, an error that is no standard error response.
func (e *Endpoint) Check(status int, body []byte) error {
	schema, listed := e.schemas[strconv.Itoa(status)]
	switch {
	case status == http.StatusPartialContent || status == http.StatusRequestedRangeNotSatisfiable:
		return nil // RFC 9110, section 14: said of all downloads
	case listed && schema == nil:
		return nil // not JSON, or nothing said about it
	case !listed && status < 300:
		return fmt.Errorf("%s answered %d, which the specification does not list", e.Name, status)
	case !listed && status < 400:
		return nil
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s answered %d with a body that is no JSON: %w", e.Name, status, err)
	}
	// Any endpoint may refuse with a standard error response, and any that demands a token may ask for User-Interactive
	// Authentication, whatever else is listed.
	_, general := load()
	for i, s := range []*jsonschema.Schema{schema, general.failure, general.interactive} {
		if s == nil || i > 0 && status < 400 || i == 2 && status != http.StatusUnauthorized {
			continue
		}
		problem := s.Validate(value)
		if problem == nil {
			return nil
		}
		if err == nil {
			err = problem
		}
	}
	return fmt.Errorf("%s answered %d with %.2000s\nwhich does not fit the specification's schema: %w", e.Name, status, body, err)
}

// Exit ends a test binary with the code of its tests. After a whole run that went well it prints what untested returns, and
// fails if that is anything.
func Exit(code int, untested func() []string) {
	whole := true
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz", "test.bench"} {
		whole = whole && flag.Lookup(name).Value.String() == ""
	}
	if code == 0 && whole {
		if lines := untested(); len(lines) > 0 {
			fmt.Printf("FAIL: no test shows\n%s\n", strings.Join(lines, "\n"))
			code = 1
		}
	}
	os.Exit(code)
}
