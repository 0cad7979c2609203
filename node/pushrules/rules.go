package pushrules

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind of a rule, in the spec's words.
type Kind string

// The kinds in the order in which they are checked.
const (
	Override  Kind = "override"
	Content   Kind = "content"
	Room      Kind = "room"
	Sender    Kind = "sender"
	Underride Kind = "underride"
)

// Ruleset is all rules of a user, each kind's in falling priority: what the spec calls "global".
type Ruleset struct {
	Override  []Rule `json:"override"`
	Content   []Rule `json:"content"`
	Room      []Rule `json:"room"`
	Sender    []Rule `json:"sender"`
	Underride []Rule `json:"underride"`
}

// Rule is one push rule.
type Rule struct {
	ID         string      `json:"rule_id"`
	Default    bool        `json:"default"`
	Enabled    bool        `json:"enabled"`
	Conditions []Condition `json:"conditions,omitzero"` // override and underride only
	Pattern    *string     `json:"pattern,omitempty"`   // content only
	Actions    []Action    `json:"actions"`
}

// Action is what a matching rule does: "notify", or a tweak to set. It is kept as the client wrote it.
type Action json.RawMessage

// MarshalJSON gives the action as it was written.
func (a Action) MarshalJSON() ([]byte, error) { return json.RawMessage(a).MarshalJSON() }

// UnmarshalJSON takes any JSON; Rule.check says whether it is an action.
func (a *Action) UnmarshalJSON(data []byte) error {
	*a = slices.Clone(data)
	return nil
}

// Condition is one condition of a rule, kept as the client wrote it: unknown kinds and fields stay.
type Condition struct {
	raw     json.RawMessage
	Kind    string
	Key     string
	Pattern *string
	Is      string
	Value   any // string, int64, bool or nil; anything else matches nothing
}

// MarshalJSON gives the condition as it was written.
func (c Condition) MarshalJSON() ([]byte, error) { return c.raw.MarshalJSON() }

// UnmarshalJSON reads a condition. Fields of the wrong type make one that never matches, as unknown kinds do.
func (c *Condition) UnmarshalJSON(data []byte) error {
	var fields struct {
		Kind    string          `json:"kind"`
		Key     string          `json:"key"`
		Pattern *string         `json:"pattern"`
		Is      string          `json:"is"`
		Value   json.RawMessage `json:"value"`
	}
	*c = Condition{raw: slices.Clone(data)}
	if err := json.Unmarshal(data, &fields); err != nil {
		var wrongType *json.UnmarshalTypeError
		if !errors.As(err, &wrongType) {
			return err
		}
		return nil
	}
	c.Kind, c.Key, c.Pattern, c.Is = fields.Kind, fields.Key, fields.Pattern, fields.Is
	c.Value = unsupported{}
	if fields.Value != nil {
		c.Value = scalar(decode(fields.Value))
	}
	return nil
}

// Bounds on what a user's clients can put into their rules. Clients make a rule per muted room and per keyword.
const (
	maxRules      = 1000 // of one kind
	maxRuleID     = 512  // bytes
	maxPattern    = 256  // bytes; matching costs its length times that of the message
	maxConditions = 32
	maxActions    = 16
	maxAction     = 1024 // bytes of one action or condition
)

// Errors of the changes below. ErrInvalid wraps what is wrong with a rule, in words for the client.
var (
	ErrNotFound = errors.New("there is no such push rule")
	ErrPosition = errors.New("the rule to stand before or after is not a rule of the user's own")
	ErrInvalid  = errors.New("not a valid push rule")
	ErrFull     = errors.New("too many push rules")
)

// of returns the rules of a kind; nil for an unknown one.
func (s *Ruleset) of(k Kind) *[]Rule {
	switch k {
	case Override:
		return &s.Override
	case Content:
		return &s.Content
	case Room:
		return &s.Room
	case Sender:
		return &s.Sender
	case Underride:
		return &s.Underride
	}
	return nil
}

// Find returns the rule, to read or to change; ErrNotFound.
func (s *Ruleset) Find(k Kind, id string) (*Rule, error) {
	rules := s.of(k)
	if rules == nil {
		return nil, ErrNotFound
	}
	i := slices.IndexFunc(*rules, func(r Rule) bool { return r.ID == id })
	if i < 0 {
		return nil, ErrNotFound
	}
	return &(*rules)[i], nil
}

// Put adds or replaces a rule of the user's own. A new one comes first among the user's own of its kind unless before or after
// names another of them: before makes it the next more important, after the next less; before wins.
// It sets Default and, of a new rule, Enabled. Errors: ErrInvalid, ErrPosition, ErrFull.
func (s *Ruleset) Put(k Kind, r Rule, before, after string) error {
	rules := s.of(k)
	if rules == nil {
		return fmt.Errorf("%w: unknown kind", ErrInvalid)
	}
	if err := r.check(k); err != nil {
		return err
	}
	r.Default, r.Enabled = false, true
	list := slices.Clone(*rules)
	own := func(id string) int {
		return slices.IndexFunc(list, func(other Rule) bool { return other.ID == id && !other.Default })
	}
	was := own(r.ID)
	if was >= 0 {
		r.Enabled = list[was].Enabled
		if before == "" && after == "" {
			list[was] = r
			*rules = list
			return nil
		}
		list = slices.Delete(list, was, was+1)
	} else if len(list) >= maxRules {
		return ErrFull
	}
	at := 0
	switch {
	case before != "":
		if at = own(before); at < 0 {
			return ErrPosition
		}
	case after != "":
		if at = own(after) + 1; at == 0 {
			return ErrPosition
		}
	case len(list) > 0 && list[0].ID == master:
		at = 1
	}
	*rules = slices.Insert(list, at, r)
	return nil
}

// Delete removes a rule of the user's own; ErrNotFound.
func (s *Ruleset) Delete(k Kind, id string) error {
	r, err := s.Find(k, id)
	if err != nil || r.Default {
		return ErrNotFound
	}
	rules := s.of(k)
	*rules = slices.DeleteFunc(slices.Clone(*rules), func(r Rule) bool { return r.ID == id })
	return nil
}

// SetActions replaces the actions of any rule; ErrNotFound, ErrInvalid.
func (s *Ruleset) SetActions(k Kind, id string, actions []Action) error {
	r, err := s.Find(k, id)
	if err != nil {
		return err
	}
	if actions, err = checkActions(actions); err != nil {
		return err
	}
	r.Actions = actions
	return nil
}

// check validates a rule that a client made, and drops what has no meaning for its kind or has none any more.
func (r *Rule) check(k Kind) (err error) {
	if r.ID == "" || len(r.ID) > maxRuleID || strings.HasPrefix(r.ID, ".") || strings.ContainsAny(r.ID, `/\`) {
		return fmt.Errorf(`%w: a rule ID must not be empty or too long, begin with ".", or contain slashes`, ErrInvalid)
	}
	if k == Content {
		if r.Pattern == nil || *r.Pattern == "" || len(*r.Pattern) > maxPattern {
			return fmt.Errorf("%w: a content rule needs a pattern of at most %d bytes", ErrInvalid, maxPattern)
		}
	} else {
		r.Pattern = nil
	}
	if k == Override || k == Underride {
		if r.Conditions == nil {
			r.Conditions = []Condition{}
		}
		if len(r.Conditions) > maxConditions {
			return fmt.Errorf("%w: at most %d conditions", ErrInvalid, maxConditions)
		}
		for _, c := range r.Conditions {
			if c.Kind == "" || len(c.raw) > maxAction || c.Pattern != nil && len(*c.Pattern) > maxPattern {
				return fmt.Errorf("%w: a condition has no kind or is too long", ErrInvalid)
			}
		}
	} else {
		r.Conditions = nil
	}
	r.Actions, err = checkActions(r.Actions)
	return err
}

// historical says whether the action is one that older clients send and that does nothing (CS API, Historical Actions). It is kept, as the client
// set it.
func (a Action) historical() bool {
	return string(a) == `"dont_notify"` || string(a) == `"coalesce"`
}

// checkActions validates actions.
func checkActions(actions []Action) ([]Action, error) {
	if actions == nil || len(actions) > maxActions {
		return nil, fmt.Errorf("%w: actions are missing or too many", ErrInvalid)
	}
	for _, a := range actions {
		switch v := decode(json.RawMessage(a)).(type) {
		case string:
		case map[string]any:
			if tweak, ok := v["set_tweak"].(string); !ok || tweak == "" {
				return nil, fmt.Errorf("%w: an action is an object without set_tweak", ErrInvalid)
			}
		default:
			return nil, fmt.Errorf("%w: an action is neither a string nor an object", ErrInvalid)
		}
		if len(a) > maxAction {
			return nil, fmt.Errorf("%w: an action is too long", ErrInvalid)
		}
	}
	return actions, nil
}
