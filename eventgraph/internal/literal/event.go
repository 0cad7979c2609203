package literal

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Event is a PDU as JSON, decoded with json.Decoder.UseNumber.
type Event struct {
	ID       string
	JSON     map[string]any
	Rejected bool // verdict when it was received
}

// Key is the key of a state map: the type and the state key of a state event.
type Key struct{ Type, StateKey string }

// State maps keys to the IDs of state events.
type State map[Key]string

// Get returns the event with the ID, or nil if there is no such event.
type Get func(id string) *Event

// Parse decodes a PDU. The ID is taken as given; EventID computes it.
func Parse(id string, raw []byte) (*Event, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil {
		return nil, err
	}
	if object == nil {
		return nil, errors.New("an event is a JSON object")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("data after the event")
	}
	return &Event{ID: id, JSON: object}, nil
}

// number gives the room version as a number, for the comparisons "from version N on".
func number(version string) int {
	n, err := strconv.Atoi(version)
	if err != nil || n < 3 || n > 12 {
		panic(fmt.Sprintf("literal: room version %q", version))
	}
	return n
}

func (e *Event) text(name string) string {
	s, _ := e.JSON[name].(string)
	return s
}

func (e *Event) typ() string    { return e.text("type") }
func (e *Event) sender() string { return e.text("sender") }

func (e *Event) content() map[string]any {
	c, _ := e.JSON["content"].(map[string]any)
	return c
}

// stateKey tells whether e is a state event, and its state key.
func (e *Event) stateKey() (string, bool) {
	s, ok := e.JSON["state_key"].(string)
	return s, ok
}

// key is the key that a state event has in a state map.
func (e *Event) key() (Key, bool) {
	s, ok := e.stateKey()
	return Key{e.typ(), s}, ok
}

func (e *Event) membership() string {
	s, _ := e.content()["membership"].(string)
	return s
}

// ids are the strings of the array called name: auth_events or prev_events.
func (e *Event) ids(name string) []string {
	list, _ := e.JSON[name].([]any)
	var ids []string
	for _, entry := range list {
		if id, ok := entry.(string); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

func (e *Event) timestamp() int64 {
	n, _ := e.JSON["origin_server_ts"].(json.Number)
	ts, _ := integer(n.String())
	return ts
}

// domain is what follows the first colon of a user ID or room ID; ok is false if there is none.
func domain(id string) (name string, ok bool) {
	_, name, ok = strings.Cut(id, ":")
	return name, ok
}

// validUserID follows the appendices, User Identifiers, with the localparts of Historical User IDs, which servers MUST
// accept: any code points but ':' and NUL, and the empty string. A user ID has at most 255 bytes.
func validUserID(id string) bool {
	rest, ok := strings.CutPrefix(id, "@")
	if !ok || len(id) > 255 || !utf8.ValidString(id) {
		return false
	}
	localpart, server, ok := strings.Cut(rest, ":")
	return ok && !strings.Contains(localpart, "\x00") && validServerName(server)
}

// validServerName follows the grammar of the appendices, Server Name. An IPv4 address is also a dns-name there.
func validServerName(name string) bool {
	const digits = "0123456789"
	host, port := name, ""
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
		host, port = name[:i], name[i+1:]
		if len(port) < 1 || len(port) > 5 || strings.Trim(port, digits) != "" {
			return false
		}
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		return ok && len(inner) >= 2 && len(inner) <= 45 && only(inner, digits+"ABCDEFabcdef:.")
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	return len(host) >= 1 && len(host) <= 255 && only(host, digits+letters+"-.")
}

// only tells whether every byte of s is in set.
func only(s, set string) bool {
	for i := range len(s) {
		if strings.IndexByte(set, s[i]) < 0 {
			return false
		}
	}
	return true
}

// EventID computes the ID of an event: the reference hash of SS API, Calculating the reference hash for an event.
func EventID(version string, event map[string]any) string {
	// Step 1: the event is put through the redaction algorithm.
	redacted := Redact(version, event)
	// Step 2: signatures and unsigned are removed.
	delete(redacted, "signatures")
	delete(redacted, "unsigned")
	// Steps 3 and 4: canonical JSON, SHA-256.
	sum := sha256.Sum256(canonical(redacted))
	if number(version) == 3 {
		return "$" + base64.RawStdEncoding.EncodeToString(sum[:])
	}
	return "$" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// ContentHash is the SHA-256 of SS API, Calculating the content hash for an event, in unpadded base64.
func ContentHash(event map[string]any) string {
	sum := sha256.Sum256(canonical(without(event, "unsigned", "signatures", "hashes")))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// without is a copy of object that lacks the names.
func without(object map[string]any, names ...string) map[string]any {
	rest := map[string]any{}
	for name, value := range object {
		rest[name] = value
	}
	for _, name := range names {
		delete(rest, name)
	}
	return rest
}

// canonical is the encoding of the appendices, Canonical JSON. Numbers stay as they are written.
func canonical(value any) []byte {
	var out bytes.Buffer
	writeCanonical(&out, value)
	return out.Bytes()
}

func writeCanonical(out *bytes.Buffer, value any) {
	switch value := value.(type) {
	case map[string]any:
		names := make([]string, 0, len(value))
		for name := range value {
			names = append(names, name)
		}
		sort.Strings(names) // bytes of UTF-8 sort as code points do
		out.WriteByte('{')
		for i, name := range names {
			if i > 0 {
				out.WriteByte(',')
			}
			writeString(out, name)
			out.WriteByte(':')
			writeCanonical(out, value[name])
		}
		out.WriteByte('}')
	case []any:
		out.WriteByte('[')
		for i, entry := range value {
			if i > 0 {
				out.WriteByte(',')
			}
			writeCanonical(out, entry)
		}
		out.WriteByte(']')
	case string:
		writeString(out, value)
	default: // null, true, false, numbers
		text, err := json.Marshal(value)
		if err != nil {
			panic(err) // the values come from a JSON decoder
		}
		out.Write(text)
	}
}

// writeString writes the grammar's string: escapes for the quotation mark, the reverse solidus and control characters
// alone. The encoder of the standard library escapes two code points more (U+2028, U+2029).
func writeString(out *bytes.Buffer, s string) {
	short := map[rune]string{'\b': `\b`, '\t': `\t`, '\n': `\n`, '\f': `\f`, '\r': `\r`, '"': `\"`, '\\': `\\`}
	out.WriteByte('"')
	for _, c := range s {
		switch escaped := short[c]; {
		case escaped != "":
			out.WriteString(escaped)
		case c < 0x20:
			fmt.Fprintf(out, `\u%04x`, c)
		default:
			out.WriteRune(c)
		}
	}
	out.WriteByte('"')
}
