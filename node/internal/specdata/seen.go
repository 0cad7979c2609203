package specdata

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Seen keeps which endpoints were answered in which way.
type Seen struct {
	mu        sync.Mutex
	endpoints map[string]*answers
}

// answers are what was seen of one endpoint.
type answers struct {
	success, refused, wrong bool
	filled                  map[string]bool // the arrays and maps of successes that had something in them, as places names them
}

// Add records an answer.
func (s *Seen) Add(e *Endpoint, status int, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.endpoints[e.Name]
	if a == nil {
		a = &answers{filled: map[string]bool{}}
		if s.endpoints == nil {
			s.endpoints = map[string]*answers{}
		}
		s.endpoints[e.Name] = a
	}
	switch {
	case status < 400:
		a.success = true
		var value any
		if schema := e.body(status); schema != nil && json.Unmarshal(body, &value) == nil {
			fill(a.filled, schema, value, "")
		}
	case status == http.StatusUnauthorized:
		a.refused = true
	case status < 500:
		var refusal struct {
			Errcode string `json:"errcode"`
		}
		a.wrong = a.wrong || json.Unmarshal(body, &refusal) == nil && e.blames(status, refusal.Errcode)
	}
}

// commonBlame are the errcodes that say of any input that it is wrong, or that there is no such thing, or that it is not for who asks
// (Client-Server API, common error codes).
var commonBlame = []string{
	"M_BAD_JSON", "M_NOT_JSON", "M_MISSING_PARAM", "M_INVALID_PARAM", "M_NOT_FOUND", "M_FORBIDDEN", "M_TOO_LARGE",
}

// noBlame are errcodes that say nothing of the input, also where the specification names them: there is no such endpoint, or the
// server is busy, or it does not say.
var noBlame = []string{"M_UNRECOGNIZED", "M_LIMIT_EXCEEDED", "M_UNKNOWN", "M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"}

// blames says whether an answer with the status and the errcode is one to wrong input.
func (e *Endpoint) blames(status int, errcode string) bool {
	return !slices.Contains(noBlame, errcode) &&
		(slices.Contains(commonBlame, errcode) || slices.Contains(e.Errcodes[strconv.Itoa(status)], errcode))
}

// Missing says what of an endpoint was never seen: "success", "refusal without a token" for one that demands a proof, and
// "wrong input" for one that takes any, which is an error with an errcode that is common for wrong input or that the specification
// names for the endpoint and the status.
func (s *Seen) Missing(e *Endpoint) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.endpoints[e.Name]
	if a == nil {
		a = &answers{}
	}
	var missing []string
	if !a.success {
		missing = append(missing, "success")
	}
	if e.Auth && !a.refused {
		missing = append(missing, "refusal without a token")
	}
	if e.Input && !a.wrong {
		missing = append(missing, "wrong input")
	}
	return missing
}

// Untested says, a line for each endpoint of a part of the specification, what was never seen of it. Those in notServed are passed
// over, and what excused names of the others.
func (s *Seen) Untested(api string, notServed map[string]string, excused map[string][]string) []string {
	var lines []string
	for _, e := range Endpoints(api) {
		if _, not := notServed[e.Name]; not {
			continue
		}
		missing := slices.DeleteFunc(s.Missing(e), func(what string) bool { return slices.Contains(excused[e.Name], what) })
		if len(missing) > 0 {
			lines = append(lines, fmt.Sprintf("%-80s %s", e.Name, strings.Join(missing, ", ")))
		}
	}
	return lines
}

// Empty says, a line for each endpoint of a part of the specification that was seen to succeed, which arrays and maps of its
// successes were never seen with anything in them, so that what the specification says of their contents was never checked. Those
// that excused names are passed over, which maps the name of an endpoint to places, "" for any endpoint; a place at the end of which
// stands "…" is all those that begin as it does.
func (s *Seen) Empty(api string, excused map[string][]string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	for _, e := range Endpoints(api) {
		a := s.endpoints[e.Name]
		if a == nil || !a.success {
			continue
		}
		var missing []string
		for _, place := range e.places() {
			if !a.filled[place] && !listed(excused[e.Name], place) && !listed(excused[""], place) {
				missing = append(missing, place)
			}
		}
		if len(missing) > 0 {
			lines = append(lines, fmt.Sprintf("%-80s anything in %s", e.Name, strings.Join(missing, ", ")))
		}
	}
	return lines
}

// listed says whether a place is among those of a list.
func listed(list []string, place string) bool {
	return slices.ContainsFunc(list, func(l string) bool {
		beginning, all := strings.CutSuffix(l, "…")
		return l == place || all && strings.HasPrefix(place, beginning)
	})
}

// body returns the schema of the body of a status, as it stands in responses.json; nil if there is none.
func (e *Endpoint) body(status int) map[string]any {
	schema, _ := raw().endpoints[e.Name].Responses[strconv.Itoa(status)].(map[string]any)
	return schema
}

// rawData are the schemas of responses.json as they stand there.
type rawData struct {
	endpoints map[string]struct {
		Responses map[string]any `json:"responses"`
	}
	defs map[string]map[string]any
}

var raw = sync.OnceValue(func() (d rawData) {
	doc := map[string]any{"endpoints": &d.endpoints, "$defs": &d.defs}
	var parts map[string]json.RawMessage
	must(json.Unmarshal(data, &parts))
	for name, into := range doc {
		must(json.Unmarshal(parts[name], into))
	}
	return d
})

// resolved follows the references of a schema; nil for one that is none.
func resolved(schema any) map[string]any {
	for {
		s, _ := schema.(map[string]any)
		ref, ok := s["$ref"].(string)
		if !ok {
			return s
		}
		schema = raw().defs[strings.TrimPrefix(ref, "#/$defs/")]
	}
}

// parts calls do for the schemas of which a schema is made: those that hold of the same value.
func parts(schema map[string]any, do func(any)) {
	for _, word := range []string{"allOf", "anyOf", "oneOf"} {
		list, _ := schema[word].([]any)
		for _, part := range list {
			do(part)
		}
	}
}

// fill adds the arrays and maps of a value that have something in them to filled.
func fill(filled map[string]bool, schema any, value any, place string) {
	s := resolved(schema)
	parts(s, func(part any) { fill(filled, part, value, place) })
	switch value := value.(type) {
	case []any:
		for _, item := range value {
			filled[place+"[]"] = true
			fill(filled, s["items"], item, place+"[]")
		}
	case map[string]any:
		properties, _ := s["properties"].(map[string]any)
		patterns, _ := s["patternProperties"].(map[string]any)
		for name, member := range value {
			if property, known := properties[name]; known {
				fill(filled, property, member, place+"."+name)
				continue
			}
			filled[place+"{}"] = true
			of := s["additionalProperties"]
			for pattern, one := range patterns {
				if compiled(pattern).MatchString(name) {
					of = one
				}
			}
			fill(filled, of, member, place+"{}")
		}
	}
}

var compiledPatterns sync.Map // pattern to *regexp.Regexp

func compiled(pattern string) *regexp.Regexp {
	if r, ok := compiledPatterns.Load(pattern); ok {
		return r.(*regexp.Regexp)
	}
	r := regexp.MustCompile(pattern)
	compiledPatterns.Store(pattern, r)
	return r
}

// places returns the arrays and maps of the endpoint's successes of whose contents the specification says something, by name: an
// array is the way to it and "[]", a map the way and "{}", as in ".rooms.join{}.timeline.events[]". A schema inside itself is
// followed no further.
func (e *Endpoint) places() []string {
	places := map[string]bool{}
	for status := range e.Responses {
		if code, _ := strconv.Atoi(status); code < 400 {
			demand(places, e.body(code), "", nil)
		}
	}
	return slices.Sorted(maps.Keys(places))
}

// demand adds the arrays and maps of a schema to places; above are the references through which it was reached.
func demand(places map[string]bool, schema any, place string, above []string) {
	if s, ok := schema.(map[string]any); ok {
		if ref, ok := s["$ref"].(string); ok {
			if slices.Contains(above, ref) {
				return
			}
			above = append(slices.Clip(above), ref)
		}
	}
	s := resolved(schema)
	parts(s, func(part any) { demand(places, part, place, above) })
	if items := s["items"]; items != nil {
		places[place+"[]"] = true
		demand(places, items, place+"[]", above)
	}
	properties, _ := s["properties"].(map[string]any)
	for name, property := range properties {
		demand(places, property, place+"."+name, above)
	}
	members, _ := s["patternProperties"].(map[string]any)
	for _, member := range members {
		places[place+"{}"] = true
		demand(places, member, place+"{}", above)
	}
	if member, ok := s["additionalProperties"].(map[string]any); ok && len(member) > 0 {
		places[place+"{}"] = true
		demand(places, member, place+"{}", above)
	}
}
