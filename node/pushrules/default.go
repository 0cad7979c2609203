package pushrules

import (
	"encoding/json"
	"slices"
)

// master is the rule that turns all notifications off. It stays before all others.
const master = ".m.rule.master"

// Default returns the server-default rules for a user (CS API v1.19, Predefined Rules), in their order.
func Default(user string) *Ruleset {
	always := []Condition{}
	eventType := func(t string) Condition { return eventMatch("type", t) }
	quiet := []Action{}
	sound := func(s string) Action { return tweak("sound", s) }
	return &Ruleset{
		Override: []Rule{
			{ID: master, Default: true, Enabled: false, Conditions: always, Actions: quiet},
			predefined(".m.rule.suppress_notices", quiet, eventMatch("content.msgtype", "m.notice")),
			predefined(".m.rule.invite_for_me", []Action{notify, sound("default")},
				eventType("m.room.member"), eventMatch("content.membership", "invite"), eventMatch("state_key", user)),
			predefined(".m.rule.member_event", quiet, eventType("m.room.member")),
			predefined(".m.rule.is_user_mention", []Action{notify, sound("default"), highlight},
				condition("event_property_contains", map[string]any{"key": `content.m\.mentions.user_ids`, "value": user})),
			predefined(".m.rule.is_room_mention", []Action{notify, highlight},
				condition("event_property_is", map[string]any{"key": `content.m\.mentions.room`, "value": true}),
				condition("sender_notification_permission", map[string]any{"key": "room"})),
			predefined(".m.rule.tombstone", []Action{notify, highlight}, eventType("m.room.tombstone"), eventMatch("state_key", "")),
			predefined(".m.rule.reaction", quiet, eventType("m.reaction")),
			predefined(".m.rule.room.server_acl", quiet, eventType("m.room.server_acl"), eventMatch("state_key", "")),
			predefined(".m.rule.suppress_edits", quiet,
				condition("event_property_is", map[string]any{"key": `content.m\.relates_to.rel_type`, "value": "m.replace"})),
		},
		Content: []Rule{},
		Room:    []Rule{},
		Sender:  []Rule{},
		Underride: []Rule{
			predefined(".m.rule.call", []Action{notify, sound("ring")}, eventType("m.call.invite")),
			predefined(".m.rule.encrypted_room_one_to_one", []Action{notify, sound("default")}, members("2"), eventType("m.room.encrypted")),
			predefined(".m.rule.room_one_to_one", []Action{notify, sound("default")}, members("2"), eventType("m.room.message")),
			predefined(".m.rule.message", []Action{notify}, eventType("m.room.message")),
			predefined(".m.rule.encrypted", []Action{notify}, eventType("m.room.encrypted")),
		},
	}
}

// Complete brings stored rules level with Default: predefined rules that are new come in at their place, those that are no more
// go, and what the user has set of the others (enabled, actions) and their own rules stay.
func (s *Ruleset) Complete(user string) {
	defaults := Default(user)
	for _, k := range []Kind{Override, Content, Room, Sender, Underride} {
		stored, fresh := s.of(k), *defaults.of(k)
		rules := []Rule{}
		if k == Override { // master comes before the user's own
			rules, fresh = append(rules, fresh[0]), fresh[1:]
		}
		for _, r := range *stored {
			if !r.Default {
				rules = append(rules, r)
			}
		}
		rules = append(rules, fresh...)
		for i, r := range rules {
			if !r.Default {
				continue
			}
			if old := slices.IndexFunc(*stored, func(old Rule) bool { return old.Default && old.ID == r.ID }); old >= 0 {
				rules[i].Enabled, rules[i].Actions = (*stored)[old].Enabled, (*stored)[old].Actions
			}
		}
		*stored = rules
	}
}

var (
	notify    = Action(`"notify"`)
	highlight = Action(`{"set_tweak":"highlight"}`)
)

func predefined(id string, actions []Action, conditions ...Condition) Rule {
	return Rule{ID: id, Default: true, Enabled: true, Conditions: conditions, Actions: actions}
}

func tweak(name, value string) Action {
	return Action(mustMarshal(map[string]string{"set_tweak": name, "value": value}))
}

func eventMatch(key, pattern string) Condition {
	return condition("event_match", map[string]any{"key": key, "pattern": pattern})
}

func members(is string) Condition {
	return condition("room_member_count", map[string]any{"is": is})
}

// condition makes a condition from its fields; kind is added to them.
func condition(kind string, fields map[string]any) Condition {
	fields["kind"] = kind
	var c Condition
	if err := c.UnmarshalJSON(mustMarshal(fields)); err != nil {
		panic("pushrules: predefined condition: " + err.Error())
	}
	return c
}

// mustMarshal is for values that always marshal.
func mustMarshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic("pushrules: " + err.Error())
	}
	return data
}
