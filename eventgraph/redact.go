package eventgraph

import (
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// keepsMember says whether redaction keeps a top-level member of an event (room versions, Redactions).
func (t *Traits) keepsMember(key string) bool {
	switch key {
	case "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures",
		"depth", "prev_events", "auth_events", "origin_server_ts":
		return true
	case "prev_state", "origin", "membership":
		return !t.RedactsInContent
	}
	return false
}

// keepsContent lists the members of content that redaction keeps in events of that type; all where it keeps everything.
func (t *Traits) keepsContent(eventType string) (keys []string, all bool) {
	switch eventType {
	case "m.room.member":
		keys = []string{"membership"}
		if t.RestrictedRedaction {
			keys = append(keys, "join_authorised_via_users_server")
		}
		if t.RedactsInContent {
			keys = append(keys, "third_party_invite") // of which only "signed" stays
		}
	case "m.room.create":
		if t.RedactsInContent {
			return nil, true
		}
		keys = []string{"creator"}
	case "m.room.join_rules":
		keys = []string{"join_rule"}
		if t.Restricted {
			keys = append(keys, "allow")
		}
	case "m.room.power_levels":
		keys = []string{"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}
		if t.RedactsInContent {
			keys = append(keys, "invite")
		}
	case "m.room.aliases":
		if !t.NoAliasAuth {
			keys = []string{"aliases"}
		}
	case "m.room.history_visibility":
		keys = []string{"history_visibility"}
	case "m.room.redaction":
		if t.RedactsInContent {
			keys = []string{"redacts"}
		}
	}
	return keys, false
}

// appendRedacted appends the redacted form of an event of that type with those members. Without signatures it is what
// signatures cover, and the reference hash too (SS API, Calculating the reference hash; Signing events).
func (t *Traits) appendRedacted(dst []byte, eventType string, members []canonicaljson.Field, signatures bool) ([]byte, error) {
	dst = append(dst, '{')
	for _, m := range members {
		switch name := string(m.Name); {
		case !t.keepsMember(name), name == "signatures" && !signatures:
			continue
		case name == "content":
			dst = append(dst, `"content":`...)
			var err error
			if dst, err = t.appendRedactedContent(dst, eventType, m.Value); err != nil {
				return nil, err
			}
		default:
			dst = append(dst, m.Text...)
		}
		dst = append(dst, ',')
	}
	return closeObject(dst), nil
}

func (t *Traits) appendRedactedContent(dst []byte, eventType string, content []byte) ([]byte, error) {
	keys, all := t.keepsContent(eventType)
	switch {
	case all:
		return append(dst, content...), nil
	case len(keys) == 0:
		return append(dst, "{}"...), nil
	}
	var usual [usualMembers]canonicaljson.Field
	members, err := canonicaljson.Fields(usual[:0], content)
	if err != nil {
		return nil, err
	}
	dst = append(dst, '{')
	for _, m := range members {
		switch name := string(m.Name); {
		case !slices.Contains(keys, name):
			continue
		case name == "third_party_invite":
			// Room version 11 keeps the "signed" key of this object, and so the object itself.
			if !canonicaljson.IsObject(m.Value) {
				continue
			}
			dst = append(dst, `"third_party_invite":{`...)
			if signed, ok := canonicaljson.Get(m.Value, "signed"); ok {
				dst = append(dst, `"signed":`...)
				dst = append(dst, signed...)
			}
			dst = append(dst, '}')
		default:
			dst = append(dst, m.Text...)
		}
		dst = append(dst, ',')
	}
	return closeObject(dst), nil
}

// closeObject ends an object each of whose members has a comma after it.
func closeObject(dst []byte) []byte {
	if dst[len(dst)-1] == ',' {
		dst = dst[:len(dst)-1]
	}
	return append(dst, '}')
}
