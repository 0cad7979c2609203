package literal

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
)

// membershipOf is the membership that the state holds for a user, "" if none.
func (r *room) membershipOf(user string) string {
	if e := r.event("m.room.member", user); e != nil {
		return e.membership()
	}
	return ""
}

// joinRule is the join rule that the state holds. The pages say nothing of a state without one; the convention here is that
// such a room is closed: "invite".
func (r *room) joinRule() string {
	e := r.event("m.room.join_rules", "")
	if e == nil {
		return "invite"
	}
	rule, _ := e.content()["join_rule"].(string)
	return rule
}

// member is "If type is m.room.member": rule 5 of versions 3 to 5 and 12, rule 4 of 6 to 11.
func (r *room) member(e *Event) error {
	p := r.page()
	// 1. "If there is no state_key property, or no membership property in content, reject."
	target, ok := e.stateKey()
	if !ok {
		return fmt.Errorf("%d.1: no state_key", p.member)
	}
	if _, ok := e.content()["membership"]; !ok {
		return fmt.Errorf("%d.1: no membership", p.member)
	}
	// 2 from version 8 on. "If content has a join_authorised_via_users_server property: 1. If the event is not validly
	// signed by the homeserver of the user ID denoted by the key, reject." Where it denotes no user ID no server can have
	// signed. Here a signature must be there; whether it is valid is the caller's to check.
	if via, ok := e.content()["join_authorised_via_users_server"]; ok && p.via != 0 {
		user, _ := via.(string)
		server, _ := domain(user)
		signatures, _ := e.JSON["signatures"].(map[string]any)
		if of, _ := signatures[server].(map[string]any); !validUserID(user) || len(of) == 0 {
			return fmt.Errorf("%d.%d.1: no signature by the server of join_authorised_via_users_server", p.member, p.via)
		}
	}
	switch membership := e.membership(); {
	case membership == "join":
		return r.join(e, target)
	case membership == "invite":
		return r.invite(e, target)
	case membership == "leave":
		return r.leave(e, target)
	case membership == "ban":
		return r.ban(e, target)
	case membership == "knock" && p.knock != 0:
		return r.knock(e, target)
	}
	// "Otherwise, the membership is unknown. Reject."
	return fmt.Errorf("%d.%d: unknown membership", p.member, p.unknown)
}

func (r *room) join(e *Event, target string) error {
	p := r.page()
	sender := e.sender()
	fail := func(sub, reason string) error {
		return fmt.Errorf("%d.%d.%s: %s", p.member, p.join, sub, reason)
	}
	// 1. "If the only previous event is an m.room.create and the state_key is the creator (version 11 and 12: the sender
	// of the m.room.create), allow." A room has one create event; others, rejected or of another room, are not meant.
	if previous := e.ids("prev_events"); len(previous) == 1 {
		if create := r.get(previous[0]); create != nil && create.typ() == "m.room.create" && create.ID == r.state[Key{"m.room.create", ""}] &&
			target == r.creatorFor(create) {
			return nil
		}
	}
	// 2. "If the sender does not match state_key, reject."
	if sender != target {
		return fail("2", "the sender joins another user")
	}
	// 3. "If the sender is banned, reject."
	membership := r.membershipOf(sender)
	if membership == "ban" {
		return fail("3", "the sender is banned")
	}
	invited := membership == "invite" || membership == "join"
	rule := r.joinRule()
	// 4. "If the join_rule is invite (from version 7 on: or knock) then allow if membership state is invite or join."
	if rule == "invite" || rule == "knock" && r.v >= 7 {
		if invited {
			return nil
		}
	}
	last := "6"
	if r.v >= 8 {
		last = "7"
		// 5. "If the join_rule is restricted (from version 10 on: or knock_restricted):"
		if rule == "restricted" || rule == "knock_restricted" && r.v >= 10 {
			// 1. "If membership state is join or invite, allow."
			if invited {
				return nil
			}
			// 2. "If the join_authorised_via_users_server key in content is not a user with sufficient permission to invite
			// other users or is not a joined member of the room, reject."
			via, ok := e.content()["join_authorised_via_users_server"].(string)
			if !ok || r.membershipOf(via) != "join" || r.powerOf(via).below(r.inviteLevel()) {
				return fail("5.2", "join_authorised_via_users_server may not invite")
			}
			// 3. "Otherwise, allow."
			return nil
		}
	}
	// 5 (6). "If the join_rule is public, allow."
	if rule == "public" {
		return nil
	}
	// 6 (7). "Otherwise, reject."
	return fail(last, "the join rule does not allow it")
}

// creatorFor is the user that rule 1 on joins means. Versions 3 to 10 say "the creator", which is that of the room;
// 11 and 12 say "the sender of the m.room.create", which is the previous event.
func (r *room) creatorFor(previous *Event) string {
	if r.v >= 11 {
		return previous.sender()
	}
	for _, creator := range creators(r.v, r.event("m.room.create", "")) {
		return creator
	}
	return ""
}

func (r *room) invite(e *Event, target string) error {
	p := r.page()
	sender := e.sender()
	fail := func(sub, reason string) error {
		return fmt.Errorf("%d.%d.%s: %s", p.member, p.invite, sub, reason)
	}
	// 1. "If content has a third_party_invite property:"
	if value, ok := e.content()["third_party_invite"]; ok {
		if sub, reason := r.thirdPartyInvite(e, target, value); sub != "" {
			return fail("1."+sub, reason)
		}
		return nil
	}
	// 2. "If the sender's current membership state is not join, reject."
	if r.membershipOf(sender) != "join" {
		return fail("2", "the sender is not joined")
	}
	// 3. "If target user's current membership state is join or ban, reject."
	if m := r.membershipOf(target); m == "join" || m == "ban" {
		return fail("3", "the target is joined or banned")
	}
	// 4. "If the sender's power level is greater than or equal to the invite level, allow."
	if !r.powerOf(sender).below(r.inviteLevel()) {
		return nil
	}
	// 5. "Otherwise, reject."
	return fail("5", "below the invite level")
}

// thirdPartyInvite are the rules within rule 1 on invites. It returns the number of the one that rejects, "" if allowed.
func (r *room) thirdPartyInvite(e *Event, target string, value any) (sub, reason string) {
	// 1. "If target user is banned, reject."
	if r.membershipOf(target) == "ban" {
		return "1", "the target is banned"
	}
	// 2. "If content.third_party_invite does not have a signed property, reject."
	invite, _ := value.(map[string]any)
	if _, ok := invite["signed"]; !ok {
		return "2", "no signed property"
	}
	// 3. "If signed does not have mxid and token properties, reject."
	signed, _ := invite["signed"].(map[string]any)
	mxid, hasMXID := signed["mxid"]
	token, hasToken := signed["token"]
	if !hasMXID || !hasToken {
		return "3", "no mxid or token"
	}
	// 4. "If mxid does not match state_key, reject."
	if mxid != target {
		return "4", "mxid is not the target"
	}
	// 5. "If there is no m.room.third_party_invite event in the current room state with state_key matching token, reject."
	stateKey, isString := token.(string)
	third := r.event("m.room.third_party_invite", stateKey)
	if !isString || third == nil {
		return "5", "no third-party invite with the token"
	}
	// 6. "If sender does not match sender of the m.room.third_party_invite, reject."
	if e.sender() != third.sender() {
		return "6", "the third-party invite has another sender"
	}
	// 7. "If any signature in signed matches any public key in the m.room.third_party_invite event, allow."
	if anySignature(signed, publicKeys(third)) {
		return "", ""
	}
	// 8. "Otherwise, reject."
	return "8", "no signature by a public key"
}

// publicKeys "are in content of m.room.third_party_invite as: 1. A single public key in the public_key property. 2. A
// list of public keys in the public_keys property." The entries of the list are objects with a public_key, as the schema
// of the event says. "The key is encoded using Unpadded Base64, using the standard or URL-safe alphabets."
func publicKeys(third *Event) []ed25519.PublicKey {
	encoded := []any{third.content()["public_key"]}
	list, _ := third.content()["public_keys"].([]any)
	for _, entry := range list {
		object, _ := entry.(map[string]any)
		encoded = append(encoded, object["public_key"])
	}
	var keys []ed25519.PublicKey
	for _, value := range encoded {
		text, _ := value.(string)
		text = strings.NewReplacer("-", "+", "_", "/").Replace(text)
		if key, ok := decodeBase64(text); ok && len(key) == ed25519.PublicKeySize {
			keys = append(keys, key)
		}
	}
	return keys
}

// anySignature checks the signatures of an object as the appendices, Checking for a Signature, say: by every entity, by
// every key of the algorithm ed25519.
func anySignature(signed map[string]any, keys []ed25519.PublicKey) bool {
	message := canonical(without(signed, "signatures", "unsigned"))
	entities, _ := signed["signatures"].(map[string]any)
	for _, value := range entities {
		signatures, _ := value.(map[string]any)
		for identifier, encoded := range signatures {
			if !strings.HasPrefix(identifier, "ed25519:") {
				continue
			}
			text, _ := encoded.(string)
			signature, ok := decodeBase64(text)
			if !ok || len(signature) != ed25519.SignatureSize {
				continue
			}
			for _, key := range keys {
				if ed25519.Verify(key, message, signature) {
					return true
				}
			}
		}
	}
	return false
}

// decodeBase64 decodes base64 "with or without padding characters" (appendices, Unpadded Base64).
func decodeBase64(text string) ([]byte, bool) {
	data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
	return data, err == nil
}

func (r *room) leave(e *Event, target string) error {
	p := r.page()
	sender := e.sender()
	fail := func(sub, reason string) error {
		return fmt.Errorf("%d.%d.%s: %s", p.member, p.leave, sub, reason)
	}
	targets := r.membershipOf(target)
	// 1. "If the sender matches state_key, allow if and only if that user's current membership state is invite, join (from
	// version 7 on: or knock)."
	if sender == target {
		if targets == "invite" || targets == "join" || targets == "knock" && r.v >= 7 {
			return nil
		}
		return fail("1", "the sender has nothing to leave")
	}
	// 2. "If the sender's current membership state is not join, reject."
	if r.membershipOf(sender) != "join" {
		return fail("2", "the sender is not joined")
	}
	// 3. "If the target user's current membership state is ban, and the sender's power level is less than the ban level,
	// reject."
	if targets == "ban" && r.powerOf(sender).below(r.banLevel()) {
		return fail("3", "below the ban level")
	}
	// 4. "If the sender's power level is greater than or equal to the kick level, and the target user's power level is less
	// than the sender's power level, allow."
	if !r.powerOf(sender).below(r.kickLevel()) && r.powerOf(target).less(r.powerOf(sender)) {
		return nil
	}
	// 5. "Otherwise, reject."
	return fail("5", "below the kick level or not above the target")
}

func (r *room) ban(e *Event, target string) error {
	p := r.page()
	sender := e.sender()
	// 1. "If the sender's current membership state is not join, reject."
	if r.membershipOf(sender) != "join" {
		return fmt.Errorf("%d.%d.1: the sender is not joined", p.member, p.ban)
	}
	// 2. "If the sender's power level is greater than or equal to the ban level, and the target user's power level is less
	// than the sender's power level, allow."
	if !r.powerOf(sender).below(r.banLevel()) && r.powerOf(target).less(r.powerOf(sender)) {
		return nil
	}
	// 3. "Otherwise, reject."
	return fmt.Errorf("%d.%d.3: below the ban level or not above the target", p.member, p.ban)
}

func (r *room) knock(e *Event, target string) error {
	p := r.page()
	fail := func(sub, reason string) error {
		return fmt.Errorf("%d.%d.%s: %s", p.member, p.knock, sub, reason)
	}
	// 1. "If the join_rule is anything other than knock (from version 10 on: or knock_restricted), reject."
	if rule := r.joinRule(); rule != "knock" && (rule != "knock_restricted" || r.v < 10) {
		return fail("1", "the join rule does not allow it")
	}
	// 2. "If sender does not match state_key, reject."
	if e.sender() != target {
		return fail("2", "the sender knocks for another user")
	}
	// 3. "If the sender's current membership is not ban, invite, or join, allow."
	if m := r.membershipOf(e.sender()); m != "ban" && m != "invite" && m != "join" {
		return nil
	}
	// 4. "Otherwise, reject."
	return fail("4", "the sender is banned, invited or joined")
}
