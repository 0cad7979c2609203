package clientapi

import (
	"encoding/json"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// strippedTypes are the state events that stripped state should contain (CS API, Stripped state).
var strippedTypes = []string{
	"m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules", "m.room.canonical_alias",
	"m.room.encryption",
}

// maxStripped bounds the stripped state of a room that another server tells us of.
const maxStripped = 50

// strippedState is a list of stripped state events; sender is who sent the user's member event.
type strippedState struct {
	events []json.RawMessage
	sender eventgraph.UserID
}

// strippedFields are all that stripped state may have.
type strippedFields struct {
	Content  json.RawMessage   `json:"content"`
	Sender   eventgraph.UserID `json:"sender"`
	StateKey *string           `json:"state_key"`
	Type     string            `json:"type"`
}

func (f *strippedFields) valid() bool {
	var content map[string]json.RawMessage
	return f.Type != "" && f.StateKey != nil && f.Sender != "" && json.Unmarshal(f.Content, &content) == nil
}

// addForeign prunes what another server gave as stripped state, and drops what is no state event (CS API, Stripped state:
// servers cannot pass through what they receive over federation).
func (s *strippedState) addForeign(list []byte) {
	var events []json.RawMessage
	if json.Unmarshal(list, &events) != nil {
		return
	}
	for _, raw := range events[:min(len(events), maxStripped)] {
		s.add(raw)
	}
}

// addMember adds the user's own member event and remembers its sender.
func (s *strippedState) addMember(pdu []byte, user eventgraph.UserID) {
	var f strippedFields
	if json.Unmarshal(pdu, &f) == nil && f.valid() && f.Type == "m.room.member" && *f.StateKey == string(user) {
		s.sender = f.Sender
		s.add(pdu)
	}
}

// outsideEnd is the event by which an invite to a room that we are not in, or a knock on it, has ended, and its sender; nil if none is held.
func outsideEnd(m *store.Member, now int64) (json.RawMessage, eventgraph.UserID) {
	var f strippedFields
	var sent struct {
		TS int64 `json:"origin_server_ts"`
	}
	if json.Unmarshal(m.Invite, &f) != nil || json.Unmarshal(m.Invite, &sent) != nil || !f.valid() {
		return nil, ""
	}
	raw, err := json.Marshal(struct {
		strippedFields
		ID       eventgraph.EventID `json:"event_id"`
		TS       int64              `json:"origin_server_ts"`
		Unsigned map[string]int64   `json:"unsigned"`
	}{f, m.Event, sent.TS, map[string]int64{"age": now - sent.TS}})
	if err != nil {
		return nil, ""
	}
	return raw, f.Sender
}

func (s *strippedState) add(raw json.RawMessage) {
	var f strippedFields
	if json.Unmarshal(raw, &f) != nil || !f.valid() {
		return
	}
	if pruned, err := json.Marshal(&f); err == nil {
		s.events = append(s.events, pruned)
	}
}
