package eventgraph

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// maxSignaturesPerServer bounds the verifications that one server's signatures on one event can cost. A
// server signs with one key per device that has touched the event.
const maxSignaturesPerServer = 8

// RequiredSigners: the sender's server (unless a third-party invite), and the server of
// join_authorised_via_users_server in a restricted join.
func (e *Event) RequiredSigners() []ServerName {
	signers, _ := e.requiredSigners()
	return signers
}

// requiredSigners is false where a signature is required that nobody can give.
func (e *Event) requiredSigners() ([]ServerName, bool) {
	if e.tuple.Type != "m.room.member" {
		return []ServerName{e.sender.Server()}, true
	}
	var signers []ServerName
	// SS API, Validating hashes and signatures: an invite by a third party is sent by whichever server
	// learns of it; the authorization rules check the identity server's signature within.
	if _, thirdParty := canonicaljson.Get(e.content, "third_party_invite"); !thirdParty || e.member != "invite" {
		signers = append(signers, e.sender.Server())
	}
	// Room version 8, authorization rules, 4.2: whatever the membership.
	if v, ok := canonicaljson.Get(e.content, "join_authorised_via_users_server"); ok && e.version.row().Restricted {
		user, err := ParseUserID(text(v))
		if err != nil {
			return signers, false
		}
		if s := user.Server(); !slices.Contains(signers, s) {
			signers = append(signers, s)
		}
	}
	return signers, true
}

// VerifySignatures checks the signatures of RequiredSigners over the redacted form. ErrSignature is
// final for this copy (signatures are not part of the ID: another copy may carry the right ones); ErrKeyUnknown and ErrKeyNotValid mean that a key document must be fetched.
// Signatures under keys that ring does not know, or that had expired, are skipped; of the others all
// must be right, and one is needed from each signer (SS API, Validating hashes and signatures).
func (e *Event) VerifySignatures(ring KeyRing) error {
	signers, ok := e.requiredSigners()
	if !ok {
		return fmt.Errorf("%w: join_authorised_via_users_server is not a user ID", ErrSignature)
	}
	if len(signers) == 0 {
		return nil
	}
	t := e.version.row()
	var space [usualBytes]byte
	message := e.redacted(space[:0], false)
	signatures := e.signatures()
	for _, server := range signers {
		byKey, _ := canonicaljson.Get(signatures, string(server))
		if err := e.verifyServer(t, server, byKey, message, ring); err != nil {
			return fmt.Errorf("%s: %w", server, err)
		}
	}
	return nil
}

func (e *Event) verifyServer(t *Traits, server ServerName, byKey, message []byte, ring KeyRing) error {
	var verified bool
	var skipped error
	ids := keyIDs(byKey)
	if len(ids) > maxSignaturesPerServer {
		return fmt.Errorf("%w: %d signatures, the limit is %d", ErrSignature, len(ids), maxSignaturesPerServer)
	}
	for _, id := range ids {
		key, err := ring.Key(server, id, e.ts, t.StrictKeyValidity)
		switch {
		case err == nil:
		case errors.Is(err, ErrSignature): // known to have expired
			continue
		case errors.Is(err, ErrKeyUnknown), errors.Is(err, ErrKeyNotValid):
			skipped = err
			continue
		default:
			return err
		}
		encoded, _ := canonicaljson.GetString(byKey, string(id))
		if err := verify(key, message, encoded); err != nil {
			return err
		}
		verified = true
	}
	switch {
	case verified:
		return nil
	case skipped != nil:
		return skipped
	}
	return fmt.Errorf("%w: no signature under a key that counts at that time", ErrSignature)
}

func verify(key ed25519.PublicKey, message []byte, encoded string) error {
	sig, err := decodeBase64(encoded)
	if err != nil || len(sig) != ed25519.SignatureSize || len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("%w: not an ed25519 signature", ErrSignature)
	}
	if !ed25519.Verify(key, message, sig) {
		return fmt.Errorf("%w: does not fit", ErrSignature)
	}
	return nil
}

// SignedBy lists the key IDs under which server has signed, whether rightly or not. A policy server's is not among them.
func (e *Event) SignedBy(server ServerName) []KeyID {
	byKey, _ := canonicaljson.Get(e.signatures(), string(server))
	return keyIDs(byKey)
}

// Signatures is the object of signatures, canonical.
func (e *Event) Signatures() json.RawMessage { return e.signatures() }

func (e *Event) signatures() []byte {
	signatures, _ := canonicaljson.Get(e.raw, "signatures")
	return signatures
}

// keyIDs of an object of signatures; those of other algorithms are left out (appendices, Checking for a Signature, step 2), and a policy
// server's, which no key document shows (SS API, Validating hashes and signatures on received events).
func keyIDs(byKey []byte) []KeyID {
	members, _ := canonicaljson.Split(byKey)
	var ids []KeyID
	for _, m := range members {
		if id, err := ParseKeyID(m.Key); err == nil && id != PolicyKeyID {
			ids = append(ids, id)
		}
	}
	return ids
}

// WithSignature returns the event with our signature added; the ID stays.
func (e *Event) WithSignature(k SigningKey) (*Event, error) {
	if len(k.Private) != ed25519.PrivateKeySize {
		return nil, errors.New("signing key has no private key")
	}
	return e.withSignature(k.Server, k.ID, encodeBase64(ed25519.Sign(k.Private, e.redacted(nil, false))))
}

// withSignature returns the event with a signature added.
func (e *Event) withSignature(server ServerName, id KeyID, encoded string) (*Event, error) {
	signatures, err := setSignature(e.signatures(), server, id, encoded)
	if err != nil {
		return nil, err
	}
	members, err := canonicaljson.Split(e.raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	signed, err := e.withRaw(canonicaljson.Join(setMember(members, "signatures", signatures)))
	if err != nil {
		return nil, err
	}
	if len(signed.raw) > maxEvent {
		return nil, fmt.Errorf("%w: %d bytes with the signature of %s", ErrTooLarge, len(signed.raw), server)
	}
	return signed, nil
}
