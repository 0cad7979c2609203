package pushrules

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Event is what rules look at. It may be evaluated for several users, one after another.
type Event struct {
	ID       string
	Type     string
	Sender   string
	RoomID   string
	StateKey *string
	Redacts  string // "" if there is none
	OriginTS int64  // origin_server_ts
	Content  json.RawMessage

	parsed  bool
	content any
	texts   map[string]*text // by path
}

// Context is what must be known of the user and the room.
type Context struct {
	User        string // never notified of their own events
	DisplayName string // in that room, "" if none
	Members     int    // joined to the room
	// Permission says whether the sender has the power level that notifications of this key ("room") need.
	Permission func(key string) bool
	Budget     *Budget // nil: each evaluation may cost as much as any
}

// Outcome is what the first matching rule makes of an event.
type Outcome struct {
	Rule      string // its ID, "" if none matched
	Notify    bool
	Highlight bool // only if Notify
	Actions   []Action
}

// Evaluate finds the first enabled rule that matches, in the order of kinds and of the rules of a kind. It takes maxWork steps at most.
func (s *Ruleset) Evaluate(e *Event, c Context) Outcome {
	w := &work{left: maxWork}
	if c.Budget != nil {
		w.left = min(w.left, keptWork+usualWork+max(maxExtra-c.Budget.spent, 0))
	}
	full := w.left
	o := s.evaluate(e, c, w)
	if c.Budget != nil {
		c.Budget.spent += max(full-w.left-usualWork, 0)
	}
	return o
}

func (s *Ruleset) evaluate(e *Event, c Context, w *work) Outcome {
	if e.Sender == c.User {
		return Outcome{}
	}
	for _, k := range []Kind{Override, Content, Room, Sender, Underride} {
		rules := *s.of(k)
		for i := range rules {
			r := &rules[i]
			w.floor = keptWork
			if r.Default {
				w.floor = 0
			}
			if r.Enabled && r.matches(k, e, c, w) {
				return r.outcome()
			}
		}
	}
	return Outcome{}
}

// Tweaks are what the actions set, by name (CS API, Actions): highlight without a value is true, others are null.
func (o *Outcome) Tweaks() map[string]json.RawMessage {
	tweaks := map[string]json.RawMessage{}
	for _, a := range o.Actions {
		var set struct {
			Name  string          `json:"set_tweak"`
			Value json.RawMessage `json:"value"`
		}
		if json.Unmarshal(a, &set) != nil || set.Name == "" {
			continue
		}
		switch {
		case set.Value != nil:
		case set.Name == "highlight":
			set.Value = json.RawMessage("true")
		default:
			set.Value = json.RawMessage("null")
		}
		tweaks[set.Name] = set.Value
	}
	return tweaks
}

func (r *Rule) matches(k Kind, e *Event, c Context, w *work) bool {
	switch k {
	case Content:
		if r.Pattern == nil {
			return false
		}
		body := e.text("content.body", w)
		return body != nil && w.words(*r.Pattern, body)
	case Room:
		return r.ID == e.RoomID
	case Sender:
		return r.ID == e.Sender
	}
	for i := range r.Conditions {
		if !r.Conditions[i].holds(e, c, w) {
			return false
		}
	}
	return true
}

// outcome reads the actions; those not known here change nothing.
func (r *Rule) outcome() Outcome {
	o := Outcome{Rule: r.ID, Actions: r.Actions}
	if slices.ContainsFunc(r.Actions, Action.historical) {
		o.Actions = slices.DeleteFunc(slices.Clone(r.Actions), Action.historical)
	}
	for _, a := range r.Actions {
		switch v := decode(json.RawMessage(a)).(type) {
		case string:
			o.Notify = o.Notify || v == "notify"
		case map[string]any:
			if v["set_tweak"] == "highlight" {
				value, given := v["value"]
				o.Highlight = !given || value == true
			}
		}
	}
	o.Highlight = o.Highlight && o.Notify
	return o
}

// holds says whether the condition is true of the event (CS API, Conditions). Unknown kinds never hold, nor does what is not looked at for its cost.
func (c *Condition) holds(e *Event, in Context, w *work) bool {
	if !w.take(8 + len(c.Key)/4) {
		return false
	}
	switch c.Kind {
	case "event_match":
		if c.Pattern == nil {
			return false
		}
		value := e.text(c.Key, w)
		if value == nil {
			return false
		}
		if c.Key == "content.body" {
			return w.words(*c.Pattern, value)
		}
		return w.glob(*c.Pattern, value)
	case "event_property_is":
		value := scalar(e.property(c.Key))
		return value != unsupported{} && value == c.Value
	case "event_property_contains":
		values, _ := e.property(c.Key).([]any)
		for _, v := range values {
			if !w.take(4) {
				return false
			}
			if v := scalar(v); v != (unsupported{}) && v == c.Value {
				return true
			}
		}
		return false
	case "contains_display_name":
		if in.DisplayName == "" || !w.take(len(in.DisplayName)) {
			return false
		}
		body := e.text("content.body", w)
		return body != nil && w.plainWords(body.lower, strings.ToLower(in.DisplayName))
	case "room_member_count":
		return countHolds(c.Is, in.Members)
	case "sender_notification_permission":
		return in.Permission != nil && in.Permission(c.Key)
	}
	return false
}

// countHolds applies "2", "==2", "<3", ">=2", … to n.
func countHolds(is string, n int) bool {
	digits := strings.TrimLeft(is, "=<>")
	want, err := strconv.Atoi(digits)
	if err != nil {
		return false
	}
	switch strings.TrimSuffix(is, digits) {
	case "", "==":
		return n == want
	case "<":
		return n < want
	case ">":
		return n > want
	case "<=":
		return n <= want
	case ">=":
		return n >= want
	}
	return false
}

// unsupported stands for what conditions do not compare: absent, arrays, objects, numbers that are no integers.
type unsupported struct{}

// text returns the text at a path, to match patterns with; nil if there is none, or no work left to make it.
func (e *Event) text(path string, w *work) *text {
	if t := e.texts[path]; t != nil {
		return t
	}
	value, ok := e.property(path).(string)
	if !ok || !w.take(min(len(value), maxText)) {
		return nil
	}
	t := newText(value)
	if len(e.texts) < maxTexts {
		if e.texts == nil {
			e.texts = map[string]*text{}
		}
		e.texts[path] = t
	}
	return t
}

// property returns the decoded value at a dot-separated path (appendices, Dot-separated property paths);
// unsupported{} if there is none.
func (e *Event) property(path string) any {
	first, rest, more := cutPath(path)
	if !more {
		switch first {
		case "type":
			return e.Type
		case "sender":
			return e.Sender
		case "room_id":
			return e.RoomID
		case "event_id":
			return e.ID
		case "origin_server_ts":
			return json.Number(strconv.FormatInt(e.OriginTS, 10))
		case "redacts":
			if e.Redacts != "" {
				return e.Redacts
			}
		case "state_key":
			if e.StateKey != nil {
				return *e.StateKey
			}
		}
	}
	if first != "content" {
		return unsupported{}
	}
	if !e.parsed {
		e.parsed, e.content = true, decode(e.Content)
	}
	value := e.content
	for more {
		first, rest, more = cutPath(rest)
		object, ok := value.(map[string]any)
		if !ok {
			return unsupported{}
		}
		if value, ok = object[first]; !ok {
			return unsupported{}
		}
	}
	return value
}

// cutPath splits the first name off a path. A backslash before a dot or another backslash makes it part of the name;
// before anything else it is itself.
func cutPath(path string) (first, rest string, more bool) {
	i := strings.IndexAny(path, `.\`)
	if i < 0 {
		return path, "", false
	}
	if path[i] == '.' {
		return path[:i], path[i+1:], true
	}
	var name strings.Builder
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '.':
			return name.String(), path[i+1:], true
		case path[i] == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			fallthrough
		default:
			name.WriteByte(path[i])
		}
	}
	return name.String(), "", false
}

// decode reads JSON with its numbers as written; unsupported{} if it is none.
func decode(data json.RawMessage) any {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return unsupported{}
	}
	return v
}

// scalar is v if conditions compare it, integers as int64; else unsupported{}.
func scalar(v any) any {
	switch v := v.(type) {
	case nil, string, bool:
		return v
	case json.Number:
		const most = 1<<53 - 1 // canonical JSON's integers
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil && n >= -most && n <= most {
			return n
		}
	}
	return unsupported{}
}
