package eventgraph

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

const (
	// maxKeyDocument bounds it in bytes, for documents are fetched before anything is known of their server. An old
	// key takes some 150, the certificate up to maxCertificate.
	maxKeyDocument = 96 << 10
	// maxVerifyKeys bounds the verifications that one document costs.
	maxVerifyKeys = 16
	// maxOldKeys: they stay for ever, one for each device ever replaced.
	maxOldKeys = 200

	// certificateField is where a key document carries the certificate.
	certificateField = "plexus.certificate"
)

// KeyDocument is the answer of /_matrix/key/v2/server (SS API, Publishing Keys). It comes from SignKeyDocument or
// ParseKeyDocument, and is not to be changed.
type KeyDocument struct {
	ServerName    ServerName
	ValidUntilTS  int64
	VerifyKeys    map[KeyID]ed25519.PublicKey
	OldVerifyKeys map[KeyID]OldVerifyKey
	Certificate   *Certificate // nil where identity and device key are one
	Raw           []byte       // canonical, with signatures

	identity ed25519.PublicKey // in ServerName
}

// OldVerifyKey counts for signatures made up to ExpiredTS, in ms.
type OldVerifyKey struct {
	Key       ed25519.PublicKey
	ExpiredTS int64
}

// SignKeyDocument makes the document of server, signed by each of keys; they become verify_keys.
func SignKeyDocument(server ServerName, keys []SigningKey, old map[KeyID]OldVerifyKey, cert *Certificate, validUntilTS int64) (*KeyDocument, error) {
	type verifyKey struct {
		Key string `json:"key"`
	}
	type oldKey struct {
		Key       string `json:"key"`
		ExpiredTS int64  `json:"expired_ts"`
	}
	verifyKeys := map[KeyID]verifyKey{}
	for _, k := range keys {
		if len(k.Private) != ed25519.PrivateKeySize {
			return nil, errors.New("sign key document: signing key has no private key")
		}
		if _, twice := verifyKeys[k.ID]; twice {
			return nil, fmt.Errorf("sign key document: two keys under %s", k.ID)
		}
		verifyKeys[k.ID] = verifyKey{encodeBase64(k.Private.Public().(ed25519.PublicKey))}
	}
	oldKeys := map[KeyID]oldKey{}
	for id, k := range old {
		oldKeys[id] = oldKey{encodeBase64(k.Key), k.ExpiredTS}
	}
	doc := map[string]any{
		"server_name":     server,
		"verify_keys":     verifyKeys,
		"old_verify_keys": oldKeys,
		"valid_until_ts":  validUntilTS,
	}
	if cert != nil {
		members, err := canonicaljson.Split(cert.Raw)
		if err != nil {
			return nil, fmt.Errorf("sign key document: certificate: %w", err)
		}
		nested := map[string]rawValue{}
		for _, m := range members {
			nested[m.Key] = m.Value
		}
		doc[certificateField] = nested
	}
	raw, err := canonicaljson.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("sign key document: %w", err)
	}
	for _, k := range keys {
		k.Server = server
		if raw, err = SignJSON(raw, k); err != nil {
			return nil, fmt.Errorf("sign key document: %w", err)
		}
	}
	return ParseKeyDocument(raw)
}

// ParseKeyDocument checks form, bounds, and that every verify key signed it and is either the
// identity key or certified. It needs nothing but the bytes: the server name is the root of trust.
// Signatures of other servers (notaries) are kept and not looked at.
func ParseKeyDocument(raw []byte) (*KeyDocument, error) {
	d, err := parseKeyDocument(raw)
	if err != nil {
		return nil, fmt.Errorf("key document: %w", err)
	}
	return d, nil
}

func parseKeyDocument(raw []byte) (*KeyDocument, error) {
	if len(raw) > maxKeyDocument {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(raw), maxKeyDocument)
	}
	canonical, err := canonicaljson.CanonicalizeWithout(raw, canonicaljson.Strict, "unsigned")
	if err != nil {
		return nil, err
	}
	members, err := canonicaljson.Split(canonical)
	if err != nil {
		return nil, err
	}
	d := &KeyDocument{Raw: canonical, VerifyKeys: map[KeyID]ed25519.PublicKey{}, OldVerifyKeys: map[KeyID]OldVerifyKey{}}
	f := fields{in: canonical}
	d.ServerName = f.serverName()
	d.identity = d.ServerName.PublicKey()
	d.ValidUntilTS = f.count("valid_until_ts", true)
	verifyKeys := f.object("verify_keys", true)
	oldKeys := f.object("old_verify_keys", false)
	if f.err != nil {
		return nil, f.err
	}
	if len(verifyKeys) > maxVerifyKeys || len(oldKeys) > maxOldKeys {
		return nil, fmt.Errorf("%w: %d verify_keys and %d old_verify_keys, the limits are %d and %d",
			ErrTooLarge, len(verifyKeys), len(oldKeys), maxVerifyKeys, maxOldKeys)
	}
	if cert, ok := canonicaljson.Get(canonical, certificateField); ok {
		if d.Certificate, err = ParseCertificate(cert); err != nil {
			return nil, err
		}
		if d.Certificate.ServerName != d.ServerName {
			return nil, fmt.Errorf("%w: the certificate is of another server name", ErrFormat)
		}
	}
	for _, m := range verifyKeys {
		id, key, err := parseVerifyKey(m)
		if err != nil {
			return nil, err
		}
		if id == "" {
			continue
		}
		if !d.ours(key) {
			return nil, fmt.Errorf("%w: verify key %s is neither the identity key nor certified", ErrSignature, id)
		}
		if err := verifyMembers(members, d.ServerName, id, key); err != nil {
			return nil, err
		}
		d.VerifyKeys[id] = key
	}
	if len(d.VerifyKeys) == 0 {
		return nil, fmt.Errorf("%w: no ed25519 key in verify_keys", ErrSignature)
	}
	for _, m := range oldKeys {
		id, key, err := parseVerifyKey(m)
		if err != nil {
			return nil, err
		}
		if id == "" {
			continue
		}
		if _, twice := d.VerifyKeys[id]; twice {
			return nil, fmt.Errorf("%w: key %s is both current and old", ErrFormat, id)
		}
		f := fields{in: m.Value}
		expired := f.count("expired_ts", true)
		if f.err != nil {
			return nil, f.err
		}
		// An old key that nobody certified never counted. The document may name it all the same.
		if d.ours(key) {
			d.OldVerifyKeys[id] = OldVerifyKey{key, expired}
		}
	}
	return d, nil
}

// parseVerifyKey returns "" as ID where the key is of an algorithm that we do not know.
func parseVerifyKey(m canonicaljson.Member) (KeyID, ed25519.PublicKey, error) {
	if !strings.HasPrefix(m.Key, "ed25519:") {
		return "", nil, nil
	}
	id, err := ParseKeyID(m.Key)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %v", ErrFormat, err)
	}
	encoded, _ := canonicaljson.GetString(m.Value, "key")
	key, err := decodeBase64(encoded)
	if err != nil || !validPoint(key) {
		return "", nil, fmt.Errorf("%w: %s is not an ed25519 key", ErrFormat, id)
	}
	return id, key, nil
}

// ours says whether the key may ever have signed for the server name: the identity key, or one certified.
func (d *KeyDocument) ours(key ed25519.PublicKey) bool {
	if key.Equal(d.identity) {
		return true
	}
	return d.Certificate != nil && d.Certificate.deviceOf(key) != nil
}

// Under returns the document as it counts under another certificate of the same server name: a newer
// one, or what two contradicting ones have in common. Raw stays.
func (d *KeyDocument) Under(c *Certificate) *KeyDocument {
	other := *d
	other.Certificate = c
	return &other
}

// KeyFor returns the key of id that is good for a signature made at ts (ms). With strict, as rooms of
// version 5 and up ask, the document must be valid at ts; a document too old yields ErrKeyNotValid.
// A key that the document does not show yields ErrKeyUnknown; one that had expired or been revoked by ts, or was
// certified only later, an error that wraps ErrSignature and is final. That a receiver believes valid_until_ts at
// most 7 days ahead (room version 5, Signing key validity period) is for the caller to see to, who has a clock.
func (d *KeyDocument) KeyFor(id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	key, current := d.VerifyKeys[id], true
	if old, ok := d.OldVerifyKeys[id]; ok && key == nil {
		if ts > old.ExpiredTS {
			return nil, fmt.Errorf("%w: key %s of %s had expired", ErrSignature, id, d.ServerName)
		}
		key, current = old.Key, false
	}
	if key == nil {
		key = d.keyNamedByItself(id)
	}
	if key == nil {
		return nil, fmt.Errorf("key %s of %s: %w", id, d.ServerName, ErrKeyUnknown)
	}
	// The identity key counts for its name by itself; a device key while it is certified.
	if !key.Equal(d.identity) {
		if d.Certificate == nil {
			return nil, fmt.Errorf("key %s of %s: %w", id, d.ServerName, ErrKeyUnknown)
		}
		if dev := d.Certificate.deviceOf(key); dev == nil || !dev.countsAt(ts) {
			return nil, fmt.Errorf("%w: key %s of %s is not certified for that time", ErrSignature, id, d.ServerName)
		}
	}
	if strict && current && ts > d.ValidUntilTS {
		return nil, fmt.Errorf("key %s of %s: %w", id, d.ServerName, ErrKeyNotValid)
	}
	return key, nil
}

// keyNamedByItself finds a key that verify_keys does not list, by the key ID that the key itself makes: the
// identity key while its file lies elsewhere, or a certified device that did not write this document.
func (d *KeyDocument) keyNamedByItself(id KeyID) ed25519.PublicKey {
	if NewPeerID(d.identity).KeyID() == id {
		return d.identity
	}
	if d.Certificate != nil {
		for _, dev := range d.Certificate.Devices {
			if dev.KeyID == id {
				// As in the peer ID, ParseCertificate saw to that; to read it from there costs a third of a verification.
				if key, err := decodeBase64(dev.Key); err == nil && len(key) == ed25519.PublicKeySize {
					return key
				}
			}
		}
	}
	return nil
}

// Speaks says whether the peer may speak for the document's server name at ts: it is a device
// certified then, or its key is the identity key itself. The document must be valid at ts.
func (d *KeyDocument) Speaks(p PeerID, ts int64) bool {
	if ts > d.ValidUntilTS {
		return false
	}
	if NewPeerID(d.identity) == p {
		return true
	}
	if d.Certificate == nil {
		return false
	}
	_, ok := d.Certificate.Device(p, ts)
	return ok
}

// rawValue puts bytes that are JSON into a value that is marshalled.
type rawValue []byte

func (r rawValue) MarshalJSON() ([]byte, error) { return r, nil }
