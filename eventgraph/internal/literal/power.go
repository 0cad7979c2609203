package literal

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// power is a power level: an integer, or that of a creator in version 12, which is infinitely high.
type power struct {
	infinite bool
	level    int64
}

// less tells whether p is lower than q. Two infinite levels are equal.
func (p power) less(q power) bool {
	if p.infinite || q.infinite {
		return !p.infinite
	}
	return p.level < q.level
}

// below tells whether p is lower than a level that the power levels event states.
func (p power) below(level int64) bool { return p.less(power{level: level}) }

// scalarLevels are the properties named by the rule on added, changed or removed levels.
var scalarLevels = []string{"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"}

// level reads one value of a power levels event. Before version 10 it is an integer, a string or a float (pages 3 to 9,
// Deprecated event content schemas); from 10 on an integer. ok is false for anything else.
func level(v int, value any) (n int64, ok bool) {
	switch value := value.(type) {
	case json.Number:
		if n, ok := integer(value.String()); ok {
			return n, true
		}
		if v >= 10 {
			return 0, false
		}
		return truncated(value.String())
	case string:
		if v >= 10 {
			return 0, false
		}
		return stringLevel(value)
	}
	return 0, false
}

// stringLevel reads "a single base 10 integer, no float values or decimal points, optionally with any number of leading
// zeroes", "optionally prefixed with a single - or + character before the integer", "optionally with any number of
// leading or trailing whitespace characters".
func stringLevel(s string) (int64, bool) {
	s = strings.TrimFunc(s, unicode.IsSpace)
	if rest, ok := strings.CutPrefix(s, "+"); ok {
		if strings.HasPrefix(rest, "-") {
			return 0, false
		}
		s = rest
	}
	return integer(s)
}

// integer reads an optional minus and digits. Values outside int64 become its ends.
func integer(s string) (int64, bool) {
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || !only(digits, "0123456789") {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil { // out of range: n is the nearer end
		if strings.HasPrefix(s, "-") {
			return math.MinInt64, true
		}
		return math.MaxInt64, true
	}
	return n, true
}

// truncated reads a float of JSON (page 3, m.room.power_levels events accept values as floats): "First, exponential
// notation is applied", "Second, the value is truncated at the decimal point". Both are done on the digits, so nothing
// is rounded. "Values outside the range represented by IEEE754 binary64 cause the power level event to be rejected."
func truncated(s string) (int64, bool) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, false
	}
	if math.Abs(f) < 0.5 { // also spares the exact arithmetic from a huge negative exponent
		return 0, true
	}
	exact, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, false
	}
	whole := new(big.Int).Quo(exact.Num(), exact.Denom()) // Quo truncates toward zero
	return integer(whole.String())
}

// levels are the values of the map called name (users, events, notifications) in a power levels content. An entry that
// is no level is left out: before version 10 null stands for an absent entry, and other such events are refused by
// powerLevels.
func levels(v int, content map[string]any, name string) map[string]int64 {
	entries, _ := content[name].(map[string]any)
	result := map[string]int64{}
	for key, value := range entries {
		if n, ok := level(v, value); ok {
			result[key] = n
		}
	}
	return result
}

// scalar is the level called name in the power levels event of the state, or the default if the event or the level is
// absent. The defaults are those of the m.room.power_levels schema.
func (r *room) scalar(name string, otherwise int64) int64 {
	if pl := r.event("m.room.power_levels", ""); pl != nil {
		if n, ok := level(r.v, pl.content()[name]); ok {
			return n
		}
	}
	return otherwise
}

func (r *room) inviteLevel() int64 { return r.scalar("invite", 0) }
func (r *room) kickLevel() int64   { return r.scalar("kick", 50) }
func (r *room) banLevel() int64    { return r.scalar("ban", 50) }

// requiredLevel is the required power level of SS API, Definitions: the event type "is either listed explicitly in the
// events section or given by either state_default or events_default depending on if the event is a state event or not".
func (r *room) requiredLevel(e *Event) int64 {
	if pl := r.event("m.room.power_levels", ""); pl != nil {
		entries, _ := pl.content()["events"].(map[string]any)
		if n, ok := level(r.v, entries[e.typ()]); ok {
			return n
		}
	}
	if _, ok := e.stateKey(); ok {
		return r.scalar("state_default", 50)
	}
	return r.scalar("events_default", 0)
}

// powerOf is the power level of a user: m.room.power_levels schema, and of version 12 "Room creators have infinitely
// high power level".
func (r *room) powerOf(user string) power {
	create, pl := r.event("m.room.create", ""), r.event("m.room.power_levels", "")
	if r.v >= 12 && slices.Contains(creators(r.v, create), user) {
		return power{infinite: true}
	}
	if pl == nil {
		// "If the room contains no m.room.power_levels event, the room's creator has a power level of 100, and all other
		// users have a power level of 0."
		if slices.Contains(creators(r.v, create), user) {
			return power{level: 100}
		}
		return power{}
	}
	// "If a user_id is in the users list, then that user_id has the associated power level. Otherwise they have the
	// default level users_default. If users_default is not supplied, it is assumed to be 0."
	users, _ := pl.content()["users"].(map[string]any)
	if n, ok := level(r.v, users[user]); ok {
		return power{level: n}
	}
	return power{level: r.scalar("users_default", 0)}
}

// creators of the room: content.creator up to version 10, the sender in 11, the sender and additional_creators in 12.
func creators(v int, create *Event) []string {
	switch {
	case create == nil:
		return nil
	case v <= 10:
		if creator, ok := create.content()["creator"].(string); ok {
			return []string{creator}
		}
		return nil
	case v == 11:
		return []string{create.sender()}
	}
	all := []string{create.sender()}
	additional, _ := create.content()["additional_creators"].([]any)
	for _, entry := range additional {
		if creator, ok := entry.(string); ok {
			all = append(all, creator)
		}
	}
	return all
}

// powerLevels is "If type is m.room.power_levels": rule 10 of versions 3 to 5 and 12, rule 9 of 6 to 11.
func (r *room) powerLevels(e *Event) error {
	content := e.content()
	n := 1 // the rule within p
	fail := func(sub, format string, args ...any) error {
		return fmt.Errorf("%d.%d%s: %s", r.page().power, n, sub, fmt.Sprintf(format, args...))
	}
	if r.v >= 10 {
		// "If any of the properties users_default, … or invite in content are present and not an integer, reject."
		for _, name := range scalarLevels {
			if value, ok := content[name]; ok {
				if _, ok := level(r.v, value); !ok {
					return fail("", "%s is not an integer", name)
				}
			}
		}
		n++
		// "If either of the properties events or notifications in content are present and not an object with values that
		// are integers, reject."
		for _, name := range []string{"events", "notifications"} {
			if bad := r.badMap(content, name); bad != "" {
				return fail("", "%s", bad)
			}
		}
		n++
	}
	// "If the users property in content is not an object with keys that are valid user IDs with values that are integers
	// (or a string that is an integer), reject."
	if bad := r.badMap(content, "users"); bad != "" {
		return fail("", "%s", bad)
	}
	users, _ := content["users"].(map[string]any)
	for user := range users {
		if !validUserID(user) {
			return fail("", "users holds %q, which is no user ID", user)
		}
	}
	if r.v < 10 {
		if bad := r.malformedBefore10(content); bad != "" {
			return fail("", "%s", bad)
		}
	}
	n++
	if r.v >= 12 {
		// "If the users property in content contains the sender of the m.room.create event or any of the
		// additional_creators array (if present) from the content of the m.room.create event, reject."
		for _, creator := range creators(r.v, r.event("m.room.create", "")) {
			if _, ok := users[creator]; ok {
				return fail("", "users holds the creator %s", creator)
			}
		}
		n++
	}
	// "If there is no previous m.room.power_levels event in the room, allow."
	previous := r.event("m.room.power_levels", "")
	if previous == nil {
		return nil
	}
	n++
	return r.powerChanges(e, previous.content(), content, n)
}

// badMap tells what is wrong with a map of levels that is present: it is not an object, or a value is not an integer.
// Before version 10 an entry of events or notifications that is null counts as absent.
func (r *room) badMap(content map[string]any, name string) string {
	value, ok := content[name]
	nullIsAbsent := r.v < 10 && name != "users"
	if !ok {
		return ""
	}
	entries, ok := value.(map[string]any)
	if !ok {
		return name + " is not an object"
	}
	for key, entry := range entries {
		if entry == nil && nullIsAbsent {
			continue
		}
		if _, ok := level(r.v, entry); !ok {
			return fmt.Sprintf("the level of %q in %s is not an integer", key, name)
		}
	}
	return ""
}

// malformedBefore10 is the convention that malformed levels outside users refuse the event as those in users do.
func (r *room) malformedBefore10(content map[string]any) string {
	for _, name := range scalarLevels {
		if value := content[name]; value != nil {
			if _, ok := level(r.v, value); !ok {
				return name + " is not an integer"
			}
		}
	}
	if bad := r.badMap(content, "events"); bad != "" {
		return bad
	}
	if r.v >= 6 {
		return r.badMap(content, "notifications")
	}
	return ""
}

// powerChanges are the rules on levels that were added, changed or removed; first is the number of the first of them.
func (r *room) powerChanges(e *Event, before, after map[string]any, first int) error {
	sender := r.powerOf(e.sender())
	fail := func(rule, sub int, what string) error {
		return fmt.Errorf("%d.%d.%d: %s against the sender's power level", r.page().power, rule, sub, what)
	}
	// "For the properties users_default, … check if they were added, changed or removed. For each found alteration: 1. If
	// the current value is higher than the sender's current power level, reject. 2. If the new value is higher …"
	for _, name := range scalarLevels {
		current, had := level(r.v, before[name])
		next, has := level(r.v, after[name])
		if had == has && current == next {
			continue
		}
		if had && sender.below(current) {
			return fail(first, 1, name)
		}
		if has && sender.below(next) {
			return fail(first, 2, name)
		}
	}
	maps := []string{"events"}
	if r.v >= 6 {
		maps = append(maps, "notifications")
	}
	// "For each entry being changed in, or removed from, the events or notifications properties: 1. If the current value is
	// greater than the sender's current power level, reject."
	for _, name := range maps {
		was, is := levels(r.v, before, name), levels(r.v, after, name)
		for key, current := range was {
			if next, has := is[key]; (!has || next != current) && sender.below(current) {
				return fail(first+1, 1, name)
			}
		}
	}
	// "For each entry being added to, or changed in, the events or notifications properties: 1. If the new value is
	// greater than the sender's current power level, reject."
	for _, name := range maps {
		was, is := levels(r.v, before, name), levels(r.v, after, name)
		for key, next := range is {
			if current, had := was[key]; (!had || next != current) && sender.below(next) {
				return fail(first+2, 1, name)
			}
		}
	}
	was, is := levels(r.v, before, "users"), levels(r.v, after, "users")
	// "For each entry being changed in, or removed from, the users property, other than the sender's own entry: 1. If the
	// current value is greater than or equal to the sender's current power level, reject."
	for user, current := range was {
		next, has := is[user]
		if (!has || next != current) && user != e.sender() && !(power{level: current}).less(sender) {
			return fail(first+3, 1, "users")
		}
	}
	// "For each entry being added to, or changed in, the users property: 1. If the new value is greater …"
	for user, next := range is {
		if current, had := was[user]; (!had || next != current) && sender.below(next) {
			return fail(first+4, 1, "users")
		}
	}
	return nil // "Otherwise, allow."
}
