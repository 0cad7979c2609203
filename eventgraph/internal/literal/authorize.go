package literal

import (
	"fmt"
	"slices"
	"strings"
)

// room is what the rules see: the room version, a state of the room, and the events.
type room struct {
	v     int
	state State
	get   Get
}

// event is the event of the state under a key, or nil.
func (r *room) event(typ, stateKey string) *Event {
	id, ok := r.state[Key{typ, stateKey}]
	if !ok {
		return nil
	}
	return r.get(id)
}

// page gives the numbers of the rules on the version's page. A zero is a rule that the page lacks.
type page struct {
	authEvents, federate, aliases, member, joined, thirdParty, required, stateKey, power int

	// The rules within member.
	via, join, invite, leave, ban, knock, unknown int
}

func (r *room) page() page {
	var p page
	switch {
	case r.v <= 5:
		p = page{authEvents: 2, federate: 3, aliases: 4, member: 5, joined: 6, thirdParty: 7, required: 8, stateKey: 9, power: 10}
	case r.v <= 11:
		p = page{authEvents: 2, federate: 3, member: 4, joined: 5, thirdParty: 6, required: 7, stateKey: 8, power: 9}
	default:
		p = page{authEvents: 3, federate: 4, member: 5, joined: 6, thirdParty: 7, required: 8, stateKey: 9, power: 10}
	}
	switch {
	case r.v <= 6:
		p.join, p.invite, p.leave, p.ban, p.unknown = 2, 3, 4, 5, 6
	case r.v == 7:
		p.join, p.invite, p.leave, p.ban, p.knock, p.unknown = 2, 3, 4, 5, 6, 7
	default:
		p.via, p.join, p.invite, p.leave, p.ban, p.knock, p.unknown = 2, 3, 4, 5, 6, 7, 8
	}
	return p
}

// Authorize applies the authorization rules of the version's page to e, all but those on auth_events and (version 12)
// on the room ID, against the state. It returns nil if they allow e, or else an error whose text begins with the number
// of the rule on that page ("5.3.2: reason").
func Authorize(version string, e *Event, state State, get Get) error {
	r := &room{number(version), state, get}
	p := r.page()
	sender := e.sender()
	key, isState := e.stateKey()

	// Rule 1. If type is m.room.create.
	if e.typ() == "m.room.create" {
		return r.create(e)
	}

	// A state without the room's create event is that of no room. No page says so of the state before an event, only of
	// auth_events (2.4 and 2.5; version 12: rule 2); the convention is that these rules speak of both.
	create := r.event("m.room.create", "")
	if create == nil {
		return fmt.Errorf("%s: the state has no create event", r.noCreate("4"))
	}
	if !sameRoom(r.v, create, e) {
		return fmt.Errorf("%s: the create event is that of another room", r.noCreate("5"))
	}

	// Rule 3 (4). "If the content of the m.room.create event in the room state has the property m.federate set to false,
	// and the sender domain of the event does not match the sender domain of the create event, reject."
	if create.content()["m.federate"] == false {
		if !sameDomain(sender, create.sender()) {
			return fmt.Errorf("%d: the room does not federate", p.federate)
		}
	}

	// Rule 4 of versions 3 to 5. If type is m.room.aliases.
	if p.aliases != 0 && e.typ() == "m.room.aliases" {
		// 1. "If event has no state_key, reject."
		if !isState {
			return fmt.Errorf("%d.1: no state_key", p.aliases)
		}
		// 2. "If sender's domain doesn't match state_key, reject."
		if name, ok := domain(sender); !ok || name != key {
			return fmt.Errorf("%d.2: aliases of another domain", p.aliases)
		}
		// 3. "Otherwise, allow."
		return nil
	}

	// Rule 5 (4). If type is m.room.member.
	if e.typ() == "m.room.member" {
		return r.member(e)
	}

	// Rule 6 (5). "If the sender's current membership state is not join, reject."
	if r.membershipOf(sender) != "join" {
		return fmt.Errorf("%d: the sender is not joined", p.joined)
	}

	// Rule 7 (6). If type is m.room.third_party_invite: 1. "Allow if and only if sender's current power level is greater
	// than or equal to the invite level."
	if e.typ() == "m.room.third_party_invite" {
		if r.powerOf(sender).below(r.inviteLevel()) {
			return fmt.Errorf("%d.1: below the invite level", p.thirdParty)
		}
		return nil
	}

	// Rule 8 (7). "If the event type's required power level is greater than the sender's power level, reject."
	if r.powerOf(sender).below(r.requiredLevel(e)) {
		return fmt.Errorf("%d: below the required power level", p.required)
	}

	// Rule 9 (8). "If the event has a state_key that starts with an @ and does not match the sender, reject."
	if isState && strings.HasPrefix(key, "@") && key != sender {
		return fmt.Errorf("%d: state_key of another user", p.stateKey)
	}

	// Rule 10 (9). If type is m.room.power_levels.
	if e.typ() == "m.room.power_levels" {
		return r.powerLevels(e)
	}

	// Rule 11 (10). "Otherwise, allow."
	return nil
}

// noCreate is the number of the rule that wants the room's create event; sub is that within rule 2 before version 12.
func (r *room) noCreate(sub string) string {
	if r.v >= 12 {
		return "2"
	}
	return fmt.Sprintf("%d.%s", r.page().authEvents, sub)
}

// sameRoom tells whether e is of the room that the create event makes.
func sameRoom(v int, create, e *Event) bool {
	if v >= 12 {
		return e.text("room_id") == "!"+strings.TrimPrefix(create.ID, "$")
	}
	return e.text("room_id") == create.text("room_id")
}

// create is rule 1, If type is m.room.create.
func (r *room) create(e *Event) error {
	content := e.content()
	// 1. "If it has any prev_events, reject."
	if list, _ := e.JSON["prev_events"].([]any); len(list) > 0 {
		return fmt.Errorf("1.1: prev_events")
	}
	roomID, hasRoomID := e.JSON["room_id"]
	if r.v >= 12 {
		// 2. "If the event has a room_id, reject."
		if hasRoomID {
			return fmt.Errorf("1.2: room_id")
		}
	} else {
		// 2. "If the domain of the room_id does not match the domain of the sender, reject."
		if id, _ := roomID.(string); !sameDomain(id, e.sender()) {
			return fmt.Errorf("1.2: room_id and sender of different domains")
		}
	}
	// 3. "If content.room_version is present and is not a recognised version, reject." Recognised are 3 to 12.
	if value, ok := content["room_version"]; ok {
		recognised := []any{"3", "4", "5", "6", "7", "8", "9", "10", "11", "12"}
		if _, isString := value.(string); !isString || !slices.Contains(recognised, value) {
			return fmt.Errorf("1.3: room_version %v", value)
		}
	}
	// 4 of versions 3 to 10. "If content has no creator property, reject."
	if _, ok := content["creator"]; r.v <= 10 && !ok {
		return fmt.Errorf("1.4: no creator")
	}
	// 4 of version 12. "If additional_creators is present in content and is not an array of strings where each string
	// passes the same user ID validation applied to sender, reject."
	if value, ok := content["additional_creators"]; r.v >= 12 && ok {
		list, isArray := value.([]any)
		if !isArray {
			return fmt.Errorf("1.4: additional_creators is not an array")
		}
		for _, entry := range list {
			if creator, ok := entry.(string); !ok || !validUserID(creator) {
				return fmt.Errorf("1.4: additional creator %v", entry)
			}
		}
	}
	// 5 (4 in version 11). "Otherwise, allow."
	return nil
}

// sameDomain tells whether two identifiers have a domain, and the same.
func sameDomain(a, b string) bool {
	x, okX := domain(a)
	y, okY := domain(b)
	return okX && okY && x == y
}

// AuthorizeByAuthEvents applies the rules on auth_events (in version 12 that on the room ID too), and then Authorize
// against the state that the auth events make. The errors are those of Authorize. A create event has no auth events:
// rule 1 decides on it alone.
func AuthorizeByAuthEvents(version string, e *Event, get Get) error {
	r := &room{number(version), State{}, get}
	if e.typ() == "m.room.create" {
		return Authorize(version, e, State{}, get)
	}
	// Rule 2 of version 12. "If the event's room_id is not an event ID for an accepted (not rejected) m.room.create event,
	// with the sigil ! instead of $, reject."
	if r.v >= 12 {
		if create := createByRoomID(e, get); create == nil || create.Rejected {
			return fmt.Errorf("2: no accepted create event of that ID")
		}
	}
	if err := r.authEvents(version, e); err != nil {
		return err
	}
	for _, id := range e.ids("auth_events") {
		key, _ := get(id).key()
		r.state[key] = id
	}
	r.addCreate(e)
	return Authorize(version, e, r.state, get)
}

// authEvents is rule 2 (3), Considering the event's auth_events.
func (r *room) authEvents(version string, e *Event) error {
	rule := r.page().authEvents
	var entries []*Event
	for _, id := range e.ids("auth_events") {
		entry := r.get(id)
		if entry == nil {
			return fmt.Errorf("%d: there is no %s", rule, id)
		}
		entries = append(entries, entry)
	}
	// 1. "If there are duplicate entries for a given type and state_key pair, reject."
	seen := map[Key]bool{}
	for _, entry := range entries {
		if key, ok := entry.key(); ok {
			if seen[key] {
				return fmt.Errorf("%d.1: two entries for %v", rule, key)
			}
			seen[key] = true
		}
	}
	// 2. "If there are entries whose type and state_key don't match those specified by the auth events selection algorithm
	// described in the server specification, reject."
	selection := AuthSelection(version, e)
	for _, entry := range entries {
		if key, ok := entry.key(); !ok || !slices.Contains(selection, key) {
			return fmt.Errorf("%d.2: %s is needless", rule, entry.ID)
		}
	}
	// 3. "If there are entries which were themselves rejected under the checks performed on receipt of a PDU, reject."
	for _, entry := range entries {
		if entry.Rejected {
			return fmt.Errorf("%d.3: %s was rejected", rule, entry.ID)
		}
	}
	// 4, but in version 12. "If there is no m.room.create event among the entries, reject."
	if r.v <= 11 && !seen[Key{"m.room.create", ""}] {
		return fmt.Errorf("%d.4: no create event", rule)
	}
	// 5. "If any event in auth_events has a room_id which does not match that of the event being authorised, reject."
	for _, entry := range entries {
		if entry.text("room_id") != e.text("room_id") {
			return fmt.Errorf("%d.5: %s is of another room", rule, entry.ID)
		}
	}
	return nil
}

// createByRoomID is the create event that the room ID of version 12 names, or nil: "The room ID is the event ID of the
// event with sigil ! instead of $".
func createByRoomID(e *Event, get Get) *Event {
	if _, ok := e.JSON["room_id"]; !ok && e.typ() == "m.room.create" {
		return e
	}
	rest, ok := strings.CutPrefix(e.text("room_id"), "!")
	if !ok {
		return nil
	}
	if create := get("$" + rest); create != nil && create.typ() == "m.room.create" {
		return create
	}
	return nil
}

// addCreate adds what the rules see beside the state of the version: in version 12 the create event, found by e's room
// ID, as it is in no auth_events.
func (r *room) addCreate(e *Event) {
	if r.v >= 12 {
		if create := createByRoomID(e, r.get); create != nil {
			r.state[Key{"m.room.create", ""}] = create.ID
		}
	}
}

// AuthSelection are the keys of the events that auth_events should hold (SS API, Auth events selection), each once.
func AuthSelection(version string, e *Event) []Key {
	v := number(version)
	// "The auth_events for the m.room.create event in a room is empty."
	if e.typ() == "m.room.create" {
		return nil
	}
	var keys []Key
	add := func(typ, stateKey string) {
		if key := (Key{typ, stateKey}); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	// "Depending on the room version, the m.room.create event." Version 12: "m.room.create MUST NOT be selected."
	if v <= 11 {
		add("m.room.create", "")
	}
	// "The current m.room.power_levels event, if any." "The sender's current m.room.member event, if any."
	add("m.room.power_levels", "")
	add("m.room.member", e.sender())
	// "If type is m.room.member:"
	if e.typ() != "m.room.member" {
		return keys
	}
	// "The target's current m.room.member event, if any."
	if target, ok := e.stateKey(); ok {
		add("m.room.member", target)
	}
	// "If membership is join, invite or knock, the current m.room.join_rules event, if any."
	membership := e.membership()
	if membership == "join" || membership == "invite" || membership == "knock" {
		add("m.room.join_rules", "")
	}
	// "If membership is invite and content contains a third_party_invite property, the current m.room.third_party_invite
	// event with state_key matching content.third_party_invite.signed.token, if any."
	if membership == "invite" {
		invite, _ := e.content()["third_party_invite"].(map[string]any)
		signed, _ := invite["signed"].(map[string]any)
		if token, ok := signed["token"].(string); ok {
			add("m.room.third_party_invite", token)
		}
	}
	// "If membership is join, content.join_authorised_via_users_server is present, and the room version supports
	// restricted rooms, then the m.room.member event with state_key matching content.join_authorised_via_users_server."
	if via, ok := e.content()["join_authorised_via_users_server"].(string); ok && membership == "join" && v >= 8 {
		add("m.room.member", via)
	}
	return keys
}
