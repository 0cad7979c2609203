package rooms

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// CreateRequest makes a room. Drafts after the create event and the creator's join are sent in order in one run: power levels,
// preset state, initial_state, name, topic, invites of local users. Room is filled in, and Sender where it is empty.
type CreateRequest struct {
	Version     eventgraph.RoomVersion // "" = default
	Creator     eventgraph.UserID
	Content     json.RawMessage // of m.room.create; may carry additional_creators, type, predecessor
	JoinContent json.RawMessage // of the creator's m.room.member: displayname, avatar_url
	Then        []Draft
	// Alias, Published: recorded in the same commit.
	Alias     eventgraph.RoomAlias
	Published bool
	Also      func(*store.Tx, eventgraph.RoomID) error // what else is recorded in the same commit; its error undoes all. It may run again
}

// Create makes the whole room in one commit. *Refusal: M_UNSUPPORTED_ROOM_VERSION, M_ROOM_IN_USE (the alias), or what Send refuses.
func (r *Rooms) Create(ctx context.Context, c CreateRequest) (eventgraph.RoomID, error) {
	if c.Version == "" {
		c.Version = eventgraph.DefaultRoomVersion
	}
	traits, known := c.Version.Traits()
	if !known {
		return "", refuse("M_UNSUPPORTED_ROOM_VERSION", "room version %q is not supported", c.Version)
	}
	if c.Creator.Server() != r.key.Server {
		return "", refuse("M_FORBIDDEN", "%s is no user of this server", c.Creator)
	}
	for ts := r.SigningTime(0); ; ts++ {
		room, err := r.createAt(ctx, c, traits, ts)
		if !errors.Is(err, errRoomExists) {
			return room, err
		}
		// In room version 12 the ID is the create event's hash, and the user has made the same room in the same millisecond.
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
}

var errRoomExists = errors.New("a room of that ID exists")

func (r *Rooms) createAt(ctx context.Context, c CreateRequest, traits eventgraph.Traits, ts int64) (eventgraph.RoomID, error) {
	create, err := r.createEvent(c, traits, ts)
	if err != nil {
		return "", refusal(err)
	}
	room := create.RoomID()
	err = r.inTurn(ctx, room, func(run *run) error {
		if run.live.exists {
			return errRoomExists
		}
		err := run.create(c, create, traits)
		if err != nil { // the room is new: nobody else's work is in this run
			run.reset()
			run.live = live{}
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return room, nil
}

// createEvent makes the first event of a room, and with it the room's ID.
func (r *Rooms) createEvent(c CreateRequest, traits eventgraph.Traits, ts int64) (*eventgraph.Event, error) {
	content, err := withFields(c.Content, map[string]any{"room_version": c.Version})
	if err == nil && !traits.NoCreatorField {
		content, err = withFields(content, map[string]any{"creator": c.Creator})
	}
	if err != nil {
		return nil, refuse("M_BAD_JSON", "content of m.room.create: %s", err)
	}
	d := eventgraph.Draft{
		Type: "m.room.create", StateKey: new(string), Sender: c.Creator, Content: content,
		Depth: 1, OriginServerTS: ts,
	}
	if !traits.RoomIDFromCreate {
		d.RoomID = eventgraph.RoomID("!" + rand.Text() + ":" + string(r.key.Server))
	}
	return eventgraph.Build(c.Version, d, r.key)
}

// create puts the first events of a room through Accept, and what else belongs to its making into the same commit.
func (run *run) create(c CreateRequest, create *eventgraph.Event, traits eventgraph.Traits) error {
	run.live = live{exists: true, traits: traits, Room: store.Room{
		ID: run.rm.id, Version: c.Version, Create: create.ID(), NextOrder: 1, PrevOrder: -1,
	}}
	if err := run.accept(incoming{event: create, local: true}); err != nil {
		return err
	}
	content, err := withFields(c.JoinContent, map[string]any{"membership": "join"})
	if err != nil {
		return refuse("M_BAD_JSON", "content of m.room.member: %s", err)
	}
	creator := string(c.Creator)
	drafts := append([]Draft{{Type: "m.room.member", StateKey: &creator, Sender: c.Creator, Content: content}}, c.Then...)
	for _, d := range drafts {
		d.Room = run.rm.id
		if d.Sender == "" {
			d.Sender = c.Creator
		}
		if _, err := run.send(d); err != nil {
			return err
		}
	}
	run.put(&write{also: func(tx *store.Tx) error {
		if c.Alias != "" {
			switch _, err := tx.Alias(c.Alias); {
			case err == nil:
				return refuse("M_ROOM_IN_USE", "the alias %s is in use", c.Alias)
			case !errors.Is(err, store.ErrNotFound):
				return err
			}
			if err := tx.PutAlias(&store.Alias{Alias: c.Alias, Room: run.rm.id, Creator: c.Creator}); err != nil {
				return err
			}
		}
		if c.Published {
			if err := tx.SetPublished(run.rm.id, true); err != nil {
				return err
			}
		}
		if c.Also != nil {
			return c.Also(tx, run.rm.id)
		}
		return nil
	}})
	return nil
}

// withFields is a JSON object with fields set over those it has; nil is the empty object.
func withFields(object json.RawMessage, fields map[string]any) (json.RawMessage, error) {
	all := map[string]json.RawMessage{}
	if len(object) > 0 {
		if err := json.Unmarshal(object, &all); err != nil {
			return nil, err
		}
		if all == nil { // null
			all = map[string]json.RawMessage{}
		}
	}
	for name, value := range fields {
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		all[name] = raw
	}
	return json.Marshal(all)
}
