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

// redactMembers returns the members of an event that redaction keeps, in a new slice.
func (t *Traits) redactMembers(eventType string, members []canonicaljson.Member) ([]canonicaljson.Member, error) {
	kept := make([]canonicaljson.Member, 0, len(members))
	for _, m := range members {
		if !t.keepsMember(m.Key) {
			continue
		}
		if m.Key == "content" {
			content, err := t.redactContent(eventType, m.Value)
			if err != nil {
				return nil, err
			}
			m.Value = content
		}
		kept = append(kept, m)
	}
	return kept, nil
}

func (t *Traits) redactContent(eventType string, content []byte) ([]byte, error) {
	keys, all := t.keepsContent(eventType)
	if all {
		return content, nil
	}
	if len(keys) == 0 {
		return []byte("{}"), nil
	}
	members, err := canonicaljson.Split(content)
	if err != nil {
		return nil, err
	}
	kept := members[:0]
	for _, m := range members {
		if !slices.Contains(keys, m.Key) {
			continue
		}
		if m.Key == "third_party_invite" {
			// Room version 11 keeps the "signed" key of this object, and so the object itself.
			if !canonicaljson.IsObject(m.Value) {
				continue
			}
			var inner []canonicaljson.Member
			if signed, ok := canonicaljson.Get(m.Value, "signed"); ok {
				inner = append(inner, canonicaljson.Member{Key: "signed", Value: signed})
			}
			m.Value = canonicaljson.Join(inner)
		}
		kept = append(kept, m)
	}
	return canonicaljson.Join(kept), nil
}
