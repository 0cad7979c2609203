package eventgraph

import "crypto/ed25519"

// SigningKey signs for a server name under a key ID.
type SigningKey struct {
	Server  ServerName
	ID      KeyID
	Private ed25519.PrivateKey
}

// SignJSON returns the canonical form of the object with a signature added (appendices, Signing JSON).
func SignJSON(object []byte, k SigningKey) ([]byte, error) { panic("eventgraph: skeleton") }

// VerifyJSON checks the signature of server under id on the object.
func VerifyJSON(object []byte, server ServerName, id KeyID, key ed25519.PublicKey) error {
	panic("eventgraph: skeleton")
}

// CertifiedDevice is one device of a certificate. Times in ms; RevokedTS 0 means not revoked.
type CertifiedDevice struct {
	PeerID    PeerID `json:"peer_id"`
	KeyID     KeyID  `json:"key_id"`
	Key       string `json:"key"`     // unpadded base64
	BoxKey    string `json:"box_key"` // unpadded base64, X25519
	FromTS    int64  `json:"from_ts"`
	RevokedTS int64  `json:"revoked_ts,omitempty"`
}

// Certificate is the identity key's statement which devices speak for its server name (design.md §1).
type Certificate struct {
	ServerName ServerName
	Seq        int64
	Devices    []CertifiedDevice
	Raw        []byte // canonical, with signature
}

func SignCertificate(identity SigningKey, seq int64, devices []CertifiedDevice) (*Certificate, error) {
	panic("eventgraph: skeleton")
}

// ParseCertificate checks form, bounds and the identity key's signature.
func ParseCertificate(raw []byte) (*Certificate, error) { panic("eventgraph: skeleton") }

// Device returns the device certified for the peer at ts.
func (c *Certificate) Device(p PeerID, ts int64) (CertifiedDevice, bool) {
	panic("eventgraph: skeleton")
}

// KeyDocument is the answer of /_matrix/key/v2/server (SS API, Publishing Keys).
type KeyDocument struct {
	ServerName    ServerName
	ValidUntilTS  int64
	VerifyKeys    map[KeyID]ed25519.PublicKey
	OldVerifyKeys map[KeyID]OldVerifyKey
	Certificate   *Certificate // nil where identity and device key are one
	Raw           []byte       // canonical, with signatures
}

type OldVerifyKey struct {
	Key       ed25519.PublicKey
	ExpiredTS int64
}

// SignKeyDocument makes the document of server, signed by each of keys; they become verify_keys.
func SignKeyDocument(server ServerName, keys []SigningKey, old map[KeyID]OldVerifyKey, cert *Certificate, validUntilTS int64) (*KeyDocument, error) {
	panic("eventgraph: skeleton")
}

// ParseKeyDocument checks form, bounds, and that every verify key signed it and is either the
// identity key or certified. It needs nothing but the bytes: the server name is the root of trust.
func ParseKeyDocument(raw []byte) (*KeyDocument, error) { panic("eventgraph: skeleton") }

// KeyFor returns the key of id that is good for a signature made at ts (ms). With strict, as rooms of
// version 5 and up ask, the document must be valid at ts; a document too old yields ErrKeyNotValid.
func (d *KeyDocument) KeyFor(id KeyID, ts int64, strict bool) (ed25519.PublicKey, error) {
	panic("eventgraph: skeleton")
}

// Speaks says whether the peer may speak for the document's server name at ts: it is a device
// certified then, or its key is the identity key itself.
func (d *KeyDocument) Speaks(p PeerID, ts int64) bool { panic("eventgraph: skeleton") }

// KeyRing finds the public key of a server's signature. It answers ErrKeyUnknown where no document, or
// only one too old, is held: the event then waits until one is fetched.
type KeyRing interface {
	Key(server ServerName, id KeyID, ts int64, strict bool) (ed25519.PublicKey, error)
}
