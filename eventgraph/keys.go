package eventgraph

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// SigningKey signs for a server name under a key ID.
type SigningKey struct {
	Server  ServerName
	ID      KeyID
	Private ed25519.PrivateKey
}

// KeyRing finds the public key of a server's signature made at ts (ms). With strict, as rooms of version 5
// and up ask, the document must be valid at ts. It answers ErrKeyUnknown where no document is held that
// shows the key, ErrKeyNotValid where only one too old is: the event then waits until one is fetched. An error
// that wraps ErrSignature is final: the key is known not to count at that time.
type KeyRing interface {
	Key(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error)
}

// addSignature returns the object of signatures with k's over message added; nil is an empty one.
func addSignature(signatures []byte, k SigningKey, message []byte) ([]byte, error) {
	if len(k.Private) != ed25519.PrivateKeySize {
		return nil, errors.New("signing key has no private key")
	}
	return setSignature(signatures, k.Server, k.ID, encodeBase64(ed25519.Sign(k.Private, message)))
}

// setSignature returns the object of signatures with one set; nil is an empty one.
func setSignature(signatures []byte, server ServerName, id KeyID, encoded string) ([]byte, error) {
	var servers, keys []canonicaljson.Member
	if signatures != nil {
		var err error
		if servers, err = canonicaljson.Split(signatures); err != nil {
			return nil, fmt.Errorf("signatures: %w", err)
		}
	}
	if byKey, ok := canonicaljson.Get(signatures, string(server)); ok {
		var err error
		if keys, err = canonicaljson.Split(byKey); err != nil {
			return nil, fmt.Errorf("signatures of %.80q: %w", server, err)
		}
	}
	keys = setMember(keys, string(id), canonicaljson.AppendString(nil, encoded))
	servers = setMember(servers, string(server), canonicaljson.Join(keys))
	return canonicaljson.Join(servers), nil
}

// setMember replaces or adds a member.
func setMember(members []canonicaljson.Member, key string, value []byte) []canonicaljson.Member {
	for i := range members {
		if members[i].Key == key {
			members[i].Value = value
			return members
		}
	}
	return append(members, canonicaljson.Member{Key: key, Value: value})
}

// dropMembers returns members without those of these names, in a new slice.
func dropMembers(members []canonicaljson.Member, keys ...string) []canonicaljson.Member {
	kept := make([]canonicaljson.Member, 0, len(members))
	for _, m := range members {
		if !slices.Contains(keys, m.Key) {
			kept = append(kept, m)
		}
	}
	return kept
}

// SignJSON returns the canonical form of the object with a signature added (appendices, Signing JSON).
func SignJSON(object []byte, k SigningKey) ([]byte, error) {
	return signJSON(object, k, canonicaljson.Strict)
}

// SignLenient is SignJSON of an object that may hold events of room versions 3 to 5: their numbers may be any, and are kept as they
// are written ("servers should be capable of handling" them, appendices, Canonical JSON).
func SignLenient(object []byte, k SigningKey) ([]byte, error) {
	return signJSON(object, k, canonicaljson.Lenient)
}

func signJSON(object []byte, k SigningKey, rules canonicaljson.Rules) ([]byte, error) {
	members, err := splitSigned(object, rules)
	if err != nil {
		return nil, err
	}
	var signatures []byte
	for _, m := range members {
		if m.Key == "signatures" {
			signatures = m.Value
		}
	}
	message := canonicaljson.Join(dropMembers(members, "signatures", "unsigned"))
	if signatures, err = addSignature(signatures, k, message); err != nil {
		return nil, err
	}
	return canonicaljson.Join(setMember(members, "signatures", signatures)), nil
}

// VerifyJSON checks the signature of server under id on the object.
func VerifyJSON(object []byte, server ServerName, id KeyID, key ed25519.PublicKey) error {
	return verifyJSON(object, server, id, key, canonicaljson.Strict)
}

// VerifyLenient is VerifyJSON of what SignLenient has signed.
func VerifyLenient(object []byte, server ServerName, id KeyID, key ed25519.PublicKey) error {
	return verifyJSON(object, server, id, key, canonicaljson.Lenient)
}

func verifyJSON(object []byte, server ServerName, id KeyID, key ed25519.PublicKey, rules canonicaljson.Rules) error {
	members, err := splitSigned(object, rules)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrSignature, err)
	}
	return verifyMembers(members, server, id, key)
}

// verifyMembers is VerifyJSON of an object that was split.
func verifyMembers(members []canonicaljson.Member, server ServerName, id KeyID, key ed25519.PublicKey) error {
	var byKey []byte
	for _, m := range members {
		if m.Key == "signatures" {
			byKey, _ = canonicaljson.Get(m.Value, string(server))
		}
	}
	encoded, ok := canonicaljson.GetString(byKey, string(id))
	if !ok {
		return fmt.Errorf("%w: none of %s under %.80q", ErrSignature, server, id)
	}
	return verify(key, canonicaljson.Join(dropMembers(members, "signatures", "unsigned")), encoded)
}

func splitSigned(object []byte, rules canonicaljson.Rules) ([]canonicaljson.Member, error) {
	canonical, err := canonicaljson.Canonicalize(object, rules)
	if err != nil {
		return nil, err
	}
	return canonicaljson.Split(canonical)
}
