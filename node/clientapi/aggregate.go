package clientapi

import (
	"encoding/json"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

// maxAggregated bounds the child events that are looked at for one parent, newest first.
const maxAggregated = 1000

// relations is a bundled aggregation: what is shown of an event's children with it (CS API, Aggregations of child events).
type relations struct {
	Replace   json.RawMessage `json:"m.replace,omitempty"`
	Thread    *threadSummary  `json:"m.thread,omitempty"`
	Reference *referenceChunk `json:"m.reference,omitempty"`
}

type threadSummary struct {
	Latest       json.RawMessage `json:"latest_event"`
	Count        int             `json:"count"`
	Participated bool            `json:"current_user_participated"`
}

type referenceChunk struct {
	Chunk []referenceEvent `json:"chunk"`
}

type referenceEvent struct {
	ID string `json:"event_id"`
}

// aggregated is what the viewer is shown of the event's children; nil if nothing.
func (a *API) aggregated(r *store.Reader, parent *store.StoredEvent, v *viewer) (*relations, error) {
	var thread threadSummary
	var latest, edit *store.StoredEvent
	var references []referenceEvent
	looked := 0
	err := r.Relations(parent.ID(), "", "", func(child *store.StoredEvent) (bool, error) {
		if looked++; looked > maxAggregated {
			return false, nil
		}
		relType := relTypeOf(child)
		if child.Verdict != store.Accepted || child.Type() == rooms.DummyEvent || child.RedactedBy != "" || relType == "" || child.RoomID() != parent.RoomID() || v.ignores(r, child.Sender()) {
			return true, nil
		}
		if see, err := a.Rooms.MaySeeUser(v.user, child); err != nil || !see {
			return err == nil, err
		}
		switch relType {
		case "m.thread":
			if latest == nil {
				latest = child
			}
			thread.Count++
			thread.Participated = thread.Participated || child.Sender() == v.user
		case "m.replace":
			if replaces(child, parent) && newerEdit(child, edit) {
				edit = child
			}
		case "m.reference":
			references = append(references, referenceEvent{string(child.ID())})
		}
		return true, nil
	})
	if err != nil || latest == nil && edit == nil && references == nil {
		return nil, err
	}
	var out relations
	if edit != nil && parent.RedactedBy == "" {
		if out.Replace, err = a.child(r, edit, v); err != nil {
			return nil, err
		}
	}
	if latest != nil {
		thread.Participated = thread.Participated || parent.Sender() == v.user
		if thread.Latest, err = a.child(r, latest, v); err != nil {
			return nil, err
		}
		out.Thread = &thread
	}
	if references != nil {
		out.Reference = &referenceChunk{references}
	}
	return &out, nil
}

// child writes an event inside an aggregation; its own children are shown if it is not inside another already.
func (a *API) child(r *store.Reader, e *store.StoredEvent, v *viewer) (json.RawMessage, error) {
	v.nested++
	defer func() { v.nested-- }()
	return a.clientEvent(r, e, v)
}

// relTypeOf is the rel_type of the event's m.relates_to; "" if it has none.
func relTypeOf(e *store.StoredEvent) string {
	relates, _ := canonicaljson.Get(e.Content(), "m.relates_to")
	relType, _ := canonicaljson.GetString(relates, "rel_type")
	return relType
}

// replaces says whether the edit is valid (CS API, Event replacements, Validity of replacement events); that it is in
// the same room has been checked.
func replaces(edit, original *store.StoredEvent) bool {
	_, isState := edit.StateKey()
	_, ofState := original.StateKey()
	_, hasNew := canonicaljson.Get(edit.Content(), "m.new_content")
	return !isState && !ofState && edit.Type() == original.Type() && edit.Sender() == original.Sender() &&
		relTypeOf(original) != "m.replace" && (hasNew || edit.Type() == "m.room.encrypted")
}

// newerEdit orders edits as the spec does (Server-side aggregation of m.replace relationships).
func newerEdit(e, than *store.StoredEvent) bool {
	if than == nil || e.OriginServerTS() != than.OriginServerTS() {
		return than == nil || e.OriginServerTS() > than.OriginServerTS()
	}
	return e.ID() > than.ID()
}
