package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// member is rule 5.
func (c *check) member() *Refused {
	// 5.1
	stateKey, isState := c.e.StateKey()
	if !isState {
		return refuse(c.n.member+".1", "m.room.member without state_key")
	}
	if _, has := canonicaljson.Get(c.content, "membership"); !has {
		return refuse(c.n.member+".1", "m.room.member without membership")
	}
	target := eventgraph.UserID(stateKey)

	// 5.2: that the signature is there; whether it is right is VerifySignatures' question.
	if raw, has := canonicaljson.Get(c.content, "join_authorised_via_users_server"); has && c.traits.Restricted {
		user, _ := canonicaljson.String(raw)
		if len(c.e.SignedBy(eventgraph.UserID(user).Server())) == 0 {
			return refuse(c.n.authorised+".1", "not signed by the server of join_authorised_via_users_server")
		}
	}

	switch c.e.Membership() {
	case "join":
		return c.joining(target)
	case "invite":
		return c.inviting(target)
	case "leave":
		return c.leaving(target)
	case "ban":
		return c.banning(target)
	case "knock":
		if c.traits.Knock {
			return c.knocking(target)
		}
	}
	// 5.8
	return refuse(c.n.unknown, "unknown membership")
}

// joining is rule 5.3.
func (c *check) joining(target eventgraph.UserID) *Refused {
	// 5.3.1
	if prev := c.e.PrevEvents(); len(prev) == 1 && prev[0] == c.create.ID() && target == createFactsOf(c.create).creator {
		return nil
	}
	// 5.3.2
	if c.e.Sender() != target {
		return refuse(c.n.join+".2", "a join sent by somebody else")
	}
	// 5.3.3
	current := c.membership(target)
	if current == "ban" {
		return refuse(c.n.join+".3", "the sender is banned")
	}

	switch rule := c.joinRule(); {
	// 5.3.4
	case rule == "invite" || rule == "knock" && c.traits.Knock:
		if current == "invite" || current == "join" {
			return nil
		}
	// 5.3.5
	case rule == "restricted" && c.traits.Restricted, rule == "knock_restricted" && c.traits.KnockRestricted:
		// 5.3.5.1
		if current == "invite" || current == "join" {
			return nil
		}
		// 5.3.5.2
		user, _ := canonicaljson.GetString(c.content, "join_authorised_via_users_server")
		via := eventgraph.UserID(user)
		if c.membership(via) != "join" {
			return refuse(c.n.join+".5.2", "join_authorised_via_users_server is not a joined member")
		}
		if !c.power(via).AtLeast(c.powerLevels().Invite) {
			return refuse(c.n.join+".5.2", "join_authorised_via_users_server may not invite")
		}
		return nil // 5.3.5.3
	// 5.3.6
	case rule == "public":
		return nil
	}
	// 5.3.7
	return refuse(c.n.joinElse, "the join rule does not let the sender in")
}

// joinRule is the room's join rule. A room without one is closed, "invite": no page says what holds there.
func (c *check) joinRule() string {
	e := c.read(tupleJoinRules)
	if e == nil {
		return "invite"
	}
	return joinFactsOf(e).rule
}

// inviting is rule 5.4.
func (c *check) inviting(target eventgraph.UserID) *Refused {
	current := c.membership(target)
	// 5.4.1
	if raw, has := canonicaljson.Get(c.content, "third_party_invite"); has {
		return c.thirdPartyInvite(target, current, raw)
	}
	// 5.4.2
	if c.membership(c.e.Sender()) != "join" {
		return refuse(c.n.invite+".2", "the sender is not joined")
	}
	// 5.4.3
	if current == "join" || current == "ban" {
		return refuse(c.n.invite+".3", "the target user's membership is "+current)
	}
	// 5.4.4
	if c.power(c.e.Sender()).AtLeast(c.powerLevels().Invite) {
		return nil
	}
	// 5.4.5
	return refuse(c.n.invite+".5", "the sender's power level is below the invite level")
}

// thirdPartyInvite is rule 5.4.1. The sender need not be joined.
func (c *check) thirdPartyInvite(target eventgraph.UserID, current string, raw []byte) *Refused {
	rule := c.n.invite + ".1"
	// 5.4.1.1
	if current == "ban" {
		return refuse(rule+".1", "the target user is banned")
	}
	// 5.4.1.2
	signed, has := canonicaljson.Get(raw, "signed")
	if !has {
		return refuse(rule+".2", "third_party_invite without signed")
	}
	// 5.4.1.3
	mxid, hasMXID := canonicaljson.GetString(signed, "mxid")
	token, hasToken := canonicaljson.GetString(signed, "token")
	if !hasMXID || !hasToken {
		return refuse(rule+".3", "signed without mxid or token")
	}
	// 5.4.1.4
	if mxid != string(target) {
		return refuse(rule+".4", "mxid is not the target user")
	}
	// 5.4.1.5
	invite := c.read(eventgraph.StateTuple{Type: typeThirdParty, Key: token})
	if invite == nil {
		return refuse(rule+".5", "no m.room.third_party_invite with that token")
	}
	// 5.4.1.6
	if invite.Sender() != c.e.Sender() {
		return refuse(rule+".6", "the sender is not that of the m.room.third_party_invite")
	}
	// 5.4.1.7
	if signedByAny(signed, inviteKeys(invite)) {
		return nil
	}
	// 5.4.1.8
	return refuse(rule+".8", "no signature by a key of the m.room.third_party_invite")
}

// maxInviteVerifications bounds the work that one third-party invite can ask for, signatures times keys. Identity
// servers sign once and name two keys; an event of 64 KiB has room for some hundred thousand pairs.
const maxInviteVerifications = 256

// signedByAny tries every signature with every key, in the order of the event, which is the same everywhere. Signed are the bytes
// that the event has, so in room versions 3 to 5 numbers as they were written; VerifyJSON takes no such JSON.
func signedByAny(signed []byte, keys []ed25519.PublicKey) bool {
	members, err := canonicaljson.Split(signed)
	if err != nil {
		return false
	}
	signatures, _ := canonicaljson.Get(signed, "signatures")
	message := canonicaljson.Join(slices.DeleteFunc(members, func(m canonicaljson.Member) bool {
		return m.Key == "signatures" || m.Key == "unsigned"
	}))
	servers, _ := canonicaljson.Split(signatures)
	tries := 0
	for _, server := range servers {
		ids, _ := canonicaljson.Split(server.Value)
		for _, id := range ids {
			if !strings.HasPrefix(id.Key, "ed25519:") {
				continue
			}
			encoded, _ := canonicaljson.String(id.Value)
			signature, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "="))
			if err != nil || len(signature) != ed25519.SignatureSize {
				continue
			}
			for _, key := range keys {
				if tries++; tries > maxInviteVerifications {
					return false
				}
				if ed25519.Verify(key, message, signature) {
					return true
				}
			}
		}
	}
	return false
}

// inviteKeys are the public keys in an m.room.third_party_invite (5.4.1.7.1 and 5.4.1.7.2), in unpadded base64 of either
// alphabet (CS API, m.room.third_party_invite).
func inviteKeys(invite *eventgraph.Event) []ed25519.PublicKey {
	single, _ := canonicaljson.GetString(invite.Content(), "public_key")
	written := []string{single}
	list, _ := canonicaljson.Get(invite.Content(), "public_keys")
	entries, _ := canonicaljson.Elements(list)
	for _, entry := range entries {
		s, _ := canonicaljson.GetString(entry, "public_key")
		written = append(written, s)
	}

	var keys []ed25519.PublicKey
	seen := make(map[string]bool)
	for _, s := range written {
		key, err := base64.RawStdEncoding.DecodeString(standardBase64.Replace(strings.TrimRight(s, "=")))
		if err != nil || len(key) != ed25519.PublicKeySize || seen[string(key)] {
			continue
		}
		seen[string(key)] = true
		if keys = append(keys, key); len(keys) == maxInviteVerifications {
			break // no more of them will be tried
		}
	}
	return keys
}

var standardBase64 = strings.NewReplacer("-", "+", "_", "/")

// leaving is rule 5.5.
func (c *check) leaving(target eventgraph.UserID) *Refused {
	current := c.membership(target)
	// 5.5.1
	if c.e.Sender() == target {
		if current == "invite" || current == "join" || current == "knock" && c.traits.Knock {
			return nil
		}
		return refuse(c.n.leave+".1", "the sender has nothing to leave: membership "+current)
	}
	// 5.5.2
	if c.membership(c.e.Sender()) != "join" {
		return refuse(c.n.leave+".2", "the sender is not joined")
	}
	// 5.5.3
	sender, levels := c.power(c.e.Sender()), c.powerLevels()
	if current == "ban" && !sender.AtLeast(levels.Ban) {
		return refuse(c.n.leave+".3", "the sender's power level is below the ban level")
	}
	// 5.5.4
	if sender.AtLeast(levels.Kick) && sender.Above(c.power(target)) {
		return nil
	}
	// 5.5.5
	return refuse(c.n.leave+".5", "the sender's power level is below the kick level, or not above the target user's")
}

// banning is rule 5.6.
func (c *check) banning(target eventgraph.UserID) *Refused {
	// 5.6.1
	if c.membership(c.e.Sender()) != "join" {
		return refuse(c.n.ban+".1", "the sender is not joined")
	}
	// 5.6.2
	sender := c.power(c.e.Sender())
	if sender.AtLeast(c.powerLevels().Ban) && sender.Above(c.power(target)) {
		return nil
	}
	// 5.6.3
	return refuse(c.n.ban+".3", "the sender's power level is below the ban level, or not above the target user's")
}

// knocking is rule 5.7.
func (c *check) knocking(target eventgraph.UserID) *Refused {
	// 5.7.1
	if rule := c.joinRule(); rule != "knock" && !(rule == "knock_restricted" && c.traits.KnockRestricted) {
		return refuse(c.n.knock+".1", "the join rule does not allow knocking")
	}
	// 5.7.2
	if c.e.Sender() != target {
		return refuse(c.n.knock+".2", "a knock sent by somebody else")
	}
	// 5.7.3 and 5.7.4
	if current := c.membership(target); current == "ban" || current == "invite" || current == "join" {
		return refuse(c.n.knock+".4", "the sender's membership is "+current)
	}
	return nil
}
