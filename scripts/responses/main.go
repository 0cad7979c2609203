// Command responses reduces the Matrix specification's OpenAPI data to what a response can be checked against: for each
// endpoint and status the JSON schema of its body and the errcodes that are named, without words, examples, requests and
// parameters. Its output is
// node/internal/specdata/responses.json; it is run by hand when the specification has a new version:
//
//	go run ./scripts/responses SPEC > node/internal/specdata/responses.json
//
// SPEC is a checkout of the specification's repository.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// apis are the parts of the specification that are read, by the names of their folders below data/api.
var apis = []string{"application-service", "client-server", "server-server"}

// kept are the words of a JSON schema that decide whether a value fits. What is said about formats is left out: JSON Schema
// does not check them unless asked to.
var kept = []string{
	"type", "enum", "const", "required", "pattern", "minimum", "maximum", "minItems", "maxItems", "minProperties", "maxProperties",
	"minLength", "maxLength", "items", "properties", "patternProperties", "additionalProperties", "allOf", "anyOf", "oneOf",
}

// output is responses.json.
type output struct {
	// Endpoints maps a method and a path with its variables in braces to its endpoint.
	Endpoints map[string]endpoint `json:"endpoints"`
	// Defs are the schemas that others refer to, by name.
	Defs map[string]any `json:"$defs"`
}

// endpoint is one endpoint of the specification.
type endpoint struct {
	// API is the name of its part of the specification: "client-server", ….
	API string `json:"api"`
	// Auth says that the endpoint demands a proof of who asks.
	Auth bool `json:"auth,omitempty"`
	// Input says that it takes parameters or a body, so that these can be wrong.
	Input bool `json:"input,omitempty"`
	// Responses maps a status to the schema of its body, or to null where the body is not JSON.
	Responses map[string]any `json:"responses"`
	// Errcodes maps a status to the errcodes that the words and the examples of its response name.
	Errcodes map[string][]string `json:"errcodes,omitempty"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: responses SPEC (a checkout of the specification's repository)")
		os.Exit(2)
	}
	r := reader{root: filepath.Join(os.Args[1], "data"), files: map[string]map[string]any{}, out: output{Endpoints: map[string]endpoint{}, Defs: map[string]any{}}}
	if err := r.readAll(); err != nil {
		fmt.Fprintln(os.Stderr, "responses:", err)
		os.Exit(1)
	}
	enc := json.NewEncoder(os.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(r.out); err != nil {
		fmt.Fprintln(os.Stderr, "responses:", err)
		os.Exit(1)
	}
}

// reader gathers the output.
type reader struct {
	root  string
	files map[string]map[string]any
	out   output
}

func (r *reader) readAll() error {
	for _, api := range apis {
		files, err := fs.Glob(os.DirFS(r.root), path.Join("api", api, "*.yaml"))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("no API definitions in %s", filepath.Join(r.root, "api", api))
		}
		for _, file := range files {
			if err := r.readAPI(api, file); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return nil
}

// readAPI reads the endpoints of one file.
func (r *reader) readAPI(api, file string) error {
	doc, err := r.file(file)
	if err != nil {
		return err
	}
	base := ""
	for _, server := range list(doc["servers"]) {
		base, _ = at(server, "variables", "basePath", "default").(string)
	}
	for route, methods := range object(doc["paths"]) {
		for method, op := range object(methods) {
			if !slices.Contains([]string{"get", "put", "post", "delete"}, method) {
				continue
			}
			// Spaces and queries at the end of a path tell variants of one endpoint apart.
			route, _, _ := strings.Cut(strings.TrimSpace(route), "?")
			name := strings.ToUpper(method) + " " + base + route
			e, ok := r.out.Endpoints[name]
			if !ok {
				e = endpoint{API: api, Auth: demandsProof(op), Responses: map[string]any{}}
			}
			e.Input = e.Input || at(op, "requestBody") != nil || len(list(at(op, "parameters"))) > 0
			for status, response := range object(at(op, "responses")) {
				if e.Responses[status], err = r.response(file, response); err != nil {
					return fmt.Errorf("%s, %s: %w", name, status, err)
				}
				if status[0] == '4' {
					codes, err := r.errcodes(file, response)
					if err != nil {
						return fmt.Errorf("%s, %s: %w", name, status, err)
					}
					e.addErrcodes(status, codes)
				}
			}
			r.out.Endpoints[name] = e
		}
	}
	return nil
}

// demandsProof says whether an operation is refused to whoever does not prove who they are. An empty alternative means that
// one may.
func demandsProof(op any) bool {
	alternatives := list(at(op, "security"))
	for _, alternative := range alternatives {
		if len(object(alternative)) == 0 {
			return false
		}
	}
	return len(alternatives) > 0
}

// response returns the schema of a response's body; nil where it is not JSON or the specification gives none.
func (r *reader) response(file string, response any) (any, error) {
	if ref, ok := at(response, "$ref").(string); ok {
		in, target, err := r.resolve(file, ref)
		if err != nil {
			return nil, err
		}
		return r.response(in, target)
	}
	schema := at(response, "content", "application/json", "schema")
	if schema == nil {
		return nil, nil
	}
	return r.schema(file, schema)
}

// errcode is how an errcode of the specification looks.
var errcode = regexp.MustCompile(`\bM_[A-Z_]*[A-Z]\b`)

// errcodes returns the errcodes that a response names in its words and its examples.
func (r *reader) errcodes(file string, response any) ([]string, error) {
	if ref, ok := at(response, "$ref").(string); ok {
		in, target, err := r.resolve(file, ref)
		if err != nil {
			return nil, err
		}
		return r.errcodes(in, target)
	}
	text, err := yaml.Marshal(response)
	return errcode.FindAllString(string(text), -1), err
}

// addErrcodes adds to what the responses with a status name.
func (e *endpoint) addErrcodes(status string, codes []string) {
	if len(codes) == 0 {
		return
	}
	if e.Errcodes == nil {
		e.Errcodes = map[string][]string{}
	}
	all := append(e.Errcodes[status], codes...)
	slices.Sort(all)
	e.Errcodes[status] = slices.Compact(all)
}

// schema reduces a schema of a file to the words that are kept, and its references to definitions.
func (r *reader) schema(file string, in any) (any, error) {
	s, ok := in.(map[string]any)
	if !ok {
		return in, nil // true or false
	}
	out := map[string]any{}
	if ref, ok := s["$ref"].(string); ok {
		name, err := r.define(file, ref)
		if err != nil {
			return nil, err
		}
		out["$ref"] = "#/$defs/" + name
	}
	for _, word := range kept {
		value, ok := s[word]
		if !ok {
			continue
		}
		var err error
		switch word {
		case "items", "additionalProperties":
			value, err = r.schema(file, value)
		case "properties", "patternProperties":
			properties := map[string]any{}
			for name, property := range object(value) {
				if properties[name], err = r.schema(file, property); err != nil {
					return nil, err
				}
			}
			value = properties
		case "allOf", "anyOf", "oneOf":
			var parts []any
			for _, part := range list(value) {
				reduced, err := r.schema(file, part)
				if err != nil {
					return nil, err
				}
				parts = append(parts, reduced)
			}
			value = parts
		}
		if err != nil {
			return nil, err
		}
		out[word] = value
	}
	return out, nil
}

// define puts what a reference points at among the definitions and returns its name there.
func (r *reader) define(file, ref string) (string, error) {
	in, target, err := r.resolve(file, ref)
	if err != nil {
		return "", err
	}
	_, fragment, _ := strings.Cut(ref, "#")
	name := strings.TrimSuffix(strings.TrimPrefix(in, "api/"), ".yaml") + fragment
	name = strings.ReplaceAll(name, "/", ".")
	if _, done := r.out.Defs[name]; done {
		return name, nil
	}
	r.out.Defs[name] = true // stands for itself while it is read: schemas may refer to themselves
	r.out.Defs[name], err = r.schema(in, target)
	return name, err
}

// resolve finds what a reference in a file points at, and in which file that is.
func (r *reader) resolve(file, ref string) (string, any, error) {
	name, fragment, _ := strings.Cut(ref, "#")
	in := file
	if name != "" {
		in = path.Join(path.Dir(file), name)
	}
	doc, err := r.file(in)
	if err != nil {
		return "", nil, err
	}
	var target any = doc
	for word := range strings.SplitSeq(strings.Trim(fragment, "/"), "/") {
		if word != "" {
			target = at(target, word)
		}
	}
	if target == nil {
		return "", nil, fmt.Errorf("%q points at nothing", ref)
	}
	return in, target, nil
}

// file returns a YAML file of the specification, read once.
func (r *reader) file(name string) (map[string]any, error) {
	if doc, ok := r.files[name]; ok {
		return doc, nil
	}
	data, err := os.ReadFile(filepath.Join(r.root, filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	if doc == nil {
		return nil, errors.New("an empty file")
	}
	r.files[name] = doc
	return doc, nil
}

// at returns what lies below keys; nil where there is nothing.
func at(v any, keys ...string) any {
	for _, key := range keys {
		v = object(v)[key]
	}
	return v
}

// object returns a mapping with its keys as text; statuses are numbers in some files.
func object(v any) map[string]any {
	switch v := v.(type) {
	case map[string]any:
		return v
	case map[any]any:
		m := map[string]any{}
		for key := range maps.Keys(v) {
			m[fmt.Sprint(key)] = v[key]
		}
		return m
	}
	return nil
}

func list(v any) []any { l, _ := v.([]any); return l }
