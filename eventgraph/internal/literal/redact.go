package literal

import "slices"

// Redact returns what the redaction algorithm of the version's page leaves of an event. The event is not changed;
// values below the first two levels are shared.
func Redact(version string, event map[string]any) map[string]any {
	v := number(version)
	// "The server must strip off any keys not in the following list."
	names := []string{"event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth",
		"prev_events", "auth_events", "origin_server_ts"}
	if v <= 10 {
		// v11: "The top-level origin, membership, and prev_state properties are no longer protected."
		names = append(names, "prev_state", "origin", "membership")
	}
	redacted := keep(event, names)
	if _, ok := event["content"]; ok {
		typ, _ := event["type"].(string)
		content, _ := event["content"].(map[string]any)
		redacted["content"] = redactContent(v, typ, content)
	}
	return redacted
}

// redactContent: "The content object must also be stripped of all keys, unless it is one of the following event types."
func redactContent(v int, typ string, content map[string]any) map[string]any {
	var names []string
	switch typ {
	case "m.room.member":
		names = []string{"membership"}
		if v >= 9 {
			names = append(names, "join_authorised_via_users_server")
		}
		kept := keep(content, names)
		if invite, ok := content["third_party_invite"].(map[string]any); ok && v >= 11 {
			// "Additionally, it allows the signed key of the third_party_invite key", which "is no longer redacted, but
			// will only contain the signed key after redaction".
			kept["third_party_invite"] = keep(invite, []string{"signed"})
		}
		return kept
	case "m.room.create":
		if v >= 11 {
			return without(content) // "allows all keys"
		}
		names = []string{"creator"}
	case "m.room.join_rules":
		names = []string{"join_rule"}
		if v >= 8 {
			names = append(names, "allow")
		}
	case "m.room.power_levels":
		names = []string{"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}
		if v >= 11 {
			names = append(names, "invite")
		}
	case "m.room.aliases":
		if v <= 5 {
			names = []string{"aliases"}
		}
	case "m.room.history_visibility":
		names = []string{"history_visibility"}
	case "m.room.redaction":
		if v >= 11 {
			names = []string{"redacts"}
		}
	}
	return keep(content, names)
}

// keep is a copy of object with the names alone.
func keep(object map[string]any, names []string) map[string]any {
	kept := map[string]any{}
	for name, value := range object {
		if slices.Contains(names, name) {
			kept[name] = value
		}
	}
	return kept
}
