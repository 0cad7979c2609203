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
		switch name := string(m.Name()); {
		case !t.keepsMember(name), name == "signatures" && !signatures:
			continue
		case name == "content":
			dst = append(dst, `"content":`...)
			var err error
			if dst, err = t.appendRedactedContent(dst, eventType, m.Value()); err != nil {
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
		switch name := string(m.Name()); {
		case !slices.Contains(keys, name):
			continue
		case name == "third_party_invite":
			// Room version 11 keeps the "signed" key of this object, and so the object itself.
			if !canonicaljson.IsObject(m.Value()) {
				continue
			}
			dst = append(dst, `"third_party_invite":{`...)
			if signed, ok := canonicaljson.Get(m.Value(), "signed"); ok {
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

// RedactKeepingRules is Redact, but leaves in content what the authorization rules look at beyond that: the redaction rules of no
// room version keep all of it. Who stores a redacted event stores this form, or it would be chance, whether the redaction came first or
// what rests on the event, that decides on the latter. It has the same ID and signatures, and Redact makes the same of it as of
// the whole event.
func (e *Event) RedactKeepingRules() *Event {
	extra := rulesLookAt(e.tuple.Type)
	keys, all := e.version.row().keepsContent(e.tuple.Type)
	redacted := e.Redact()
	if all || len(extra) == 0 {
		return redacted
	}
	var content []canonicaljson.Member
	members, _ := canonicaljson.Split(e.content) // every Event was made from bytes that split
	for _, m := range members {
		switch {
		case m.Key == "third_party_invite":
			if !canonicaljson.IsObject(m.Value) {
				continue
			}
			var signed []canonicaljson.Member
			if value, ok := canonicaljson.Get(m.Value, "signed"); ok {
				signed = []canonicaljson.Member{{Key: "signed", Value: value}}
			}
			m.Value = canonicaljson.Join(signed) // the object stays, as redaction from room version 11 on leaves it
		case !slices.Contains(keys, m.Key) && !slices.Contains(extra, m.Key):
			continue
		}
		content = append(content, m)
	}
	members, _ = canonicaljson.Split(redacted.raw)
	r, err := redacted.withRaw(canonicaljson.Join(setMember(members, "content", canonicaljson.Join(content))))
	if err != nil {
		panic("eventgraph: redaction of " + string(e.id) + " dropped a required field")
	}
	return r
}

// RedactionLosesRules says whether Redact drops from the event what the authorization rules look at. Who holds only the redacted form of such
// an event may come to another verdict on what rests on it than who holds the whole.
func (e *Event) RedactionLosesRules() bool {
	extra := rulesLookAt(e.tuple.Type)
	if len(extra) == 0 {
		return false
	}
	keys, all := e.version.row().keepsContent(e.tuple.Type)
	return !all && slices.ContainsFunc(extra, func(key string) bool {
		_, there := canonicaljson.Get(e.content, key)
		return there && !slices.Contains(keys, key)
	})
}

// rulesLookAt lists members of content at which the authorization rules of some room version look, and that its redaction may drop.
func rulesLookAt(eventType string) []string {
	switch eventType {
	case "m.room.create":
		return []string{"m.federate", "room_version"}
	case "m.room.member":
		return []string{"join_authorised_via_users_server", "third_party_invite"}
	case "m.room.power_levels":
		return []string{"invite", "notifications"}
	case "m.room.third_party_invite":
		return []string{"public_key", "public_keys"}
	}
	return nil
}

// closeObject ends an object each of whose members has a comma after it.
func closeObject(dst []byte) []byte {
	if dst[len(dst)-1] == ',' {
		dst = dst[:len(dst)-1]
	}
	return append(dst, '}')
}
