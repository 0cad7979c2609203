package eventgraph

import (
	"crypto/ed25519"
	"fmt"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// A room may name a policy server, which says of each event whether it is wanted there by signing it (SS API, Policy Servers). No
// authorization rule and no state resolution looks at that signature: who lacks it is soft-failed.

// PolicyKeyID is under what every policy server signs, whatever its key (SS API, Validating Policy Server signatures).
const PolicyKeyID KeyID = "ed25519:policy_server"

// PolicyType is the type of the state event that names a room's policy server; its state key is empty.
const PolicyType = "m.room.policy"

// PolicyServer is the policy server that a room names. Whether the room uses it depends on who is joined, too.
type PolicyServer struct {
	Name ServerName        // as the event has it: any string
	Key  ed25519.PublicKey // nil: what the event gives is no ed25519 key, and no signature fits
}

// PolicyServer is what an m.room.policy event with an empty state key says; false if it is none, or not valid: then the room uses no
// policy server. Valid is what has a string "via", and a string "ed25519" in an object "public_keys" (SS API, Determining if a Policy Server
// is enabled in a room).
func (e *Event) PolicyServer() (PolicyServer, bool) {
	if e.NeedsPolicySignature() {
		return PolicyServer{}, false
	}
	via, named := canonicaljson.GetString(e.content, "via")
	keys, _ := canonicaljson.Get(e.content, "public_keys")
	encoded, given := canonicaljson.GetString(keys, "ed25519")
	if !named || !given {
		return PolicyServer{}, false
	}
	p := PolicyServer{Name: ServerName(via)}
	if key, err := decodeBase64(encoded); err == nil && validPoint(key) {
		p.Key = key
	}
	return p, true
}

// NeedsPolicySignature says whether the policy server of a room that uses one must have signed such an event: all but the one that
// names it, so that a room can always be rid of it.
func (e *Event) NeedsPolicySignature() bool {
	return e.tuple != StateTuple{Type: PolicyType} || !e.isState
}

// VerifyPolicySignature checks the policy server's signature, over the redacted form as all signatures on events. ErrSignature: there is
// none, or it does not fit the key that the room names now.
func (e *Event) VerifyPolicySignature(p PolicyServer) error {
	byKey, _ := canonicaljson.Get(e.signatures(), string(p.Name))
	encoded, ok := canonicaljson.GetString(byKey, string(PolicyKeyID))
	if !ok {
		return fmt.Errorf("%w: none of the policy server", ErrSignature)
	}
	var space [usualBytes]byte
	return verify(p.Key, e.redacted(space[:0], false), encoded)
}

// WithPolicySignature returns the event with the policy server's signature in the place of any it had; the ID, and all other signatures, stay.
// answer is the object that POST /_matrix/policy/v1/sign answered. ErrSignature: it holds no signature that fits; ErrTooLarge: the event has no
// room for it.
func (e *Event) WithPolicySignature(p PolicyServer, answer []byte) (*Event, error) {
	canonical, err := canonicaljson.Canonicalize(answer, canonicaljson.Lenient)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrSignature, err)
	}
	byKey, _ := canonicaljson.Get(canonical, string(p.Name))
	encoded, ok := canonicaljson.GetString(byKey, string(PolicyKeyID))
	if !ok {
		return nil, fmt.Errorf("%w: none of the policy server in its answer", ErrSignature)
	}
	if err := verify(p.Key, e.redacted(nil, false), encoded); err != nil {
		return nil, err
	}
	return e.withSignature(p.Name, PolicyKeyID, encoded)
}
