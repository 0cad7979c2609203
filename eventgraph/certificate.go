package eventgraph

import (
	"crypto/ed25519"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

const (
	// maxCertificate bounds it in bytes; a device takes some 350.
	maxCertificate = 48 << 10
	// maxDevices a certificate lists, those revoked with them.
	maxDevices = 100
)

// CertifiedDevice is one device of a certificate. Times in ms; RevokedTS 0 means not revoked.
type CertifiedDevice struct {
	PeerID    PeerID `json:"peer_id"`
	KeyID     KeyID  `json:"key_id"`
	Key       string `json:"key"`     // unpadded base64
	BoxKey    string `json:"box_key"` // unpadded base64, X25519
	FromTS    int64  `json:"from_ts"`
	RevokedTS int64  `json:"revoked_ts,omitempty"`
}

// countsAt: from from_ts to before revoked_ts.
func (d *CertifiedDevice) countsAt(ts int64) bool {
	return d.FromTS <= ts && (d.RevokedTS == 0 || ts < d.RevokedTS)
}

// Certificate is the identity key's statement which devices speak for its server name:
//
//	{"server_name": …, "seq": …, "devices": [{"peer_id", "key_id", "key", "box_key", "from_ts", "revoked_ts"?}, …]}
//
// signed by the identity key as Matrix JSON under server_name (appendices, Signing JSON). Of several the highest seq counts. It
// travels in the server's key document as the field plexus.certificate. This is plexus' own, not the Matrix specification's.
type Certificate struct {
	ServerName ServerName
	Seq        int64
	Devices    []CertifiedDevice
	Raw        []byte // canonical, with signature
}

// SignCertificate makes the certificate of identity.Server; identity must be its identity key. Seq must
// be larger than that of any certificate signed before.
func SignCertificate(identity SigningKey, seq int64, devices []CertifiedDevice) (*Certificate, error) {
	if devices == nil {
		devices = []CertifiedDevice{}
	}
	unsigned, err := canonicaljson.Marshal(struct {
		ServerName ServerName        `json:"server_name"`
		Seq        int64             `json:"seq"`
		Devices    []CertifiedDevice `json:"devices"`
	}{identity.Server, seq, devices})
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	raw, err := SignJSON(unsigned, identity)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return ParseCertificate(raw)
}

// ParseCertificate checks form, bounds and the identity key's signature.
func ParseCertificate(raw []byte) (*Certificate, error) {
	c, err := parseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return c, nil
}

func parseCertificate(raw []byte) (*Certificate, error) {
	if len(raw) > maxCertificate {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(raw), maxCertificate)
	}
	canonical, err := canonicaljson.CanonicalizeWithout(raw, canonicaljson.Strict, "unsigned")
	if err != nil {
		return nil, err
	}
	members, err := canonicaljson.Split(canonical)
	if err != nil {
		return nil, err
	}
	c := &Certificate{Raw: canonical}
	f := fields{in: canonical}
	c.ServerName = f.serverName()
	c.Seq = f.count("seq", true)
	devices := f.array("devices")
	if f.err != nil {
		return nil, f.err
	}
	if len(devices) > maxDevices {
		return nil, fmt.Errorf("%w: %d devices, the limit is %d", ErrTooLarge, len(devices), maxDevices)
	}
	for _, el := range devices {
		d, err := parseDevice(el)
		if err != nil {
			return nil, err
		}
		if c.device(d.PeerID) != nil {
			return nil, fmt.Errorf("%w: device %s stands twice", ErrFormat, d.PeerID)
		}
		c.Devices = append(c.Devices, d)
	}
	// Signed by the identity key, whatever it calls that key.
	identity := c.ServerName.PublicKey()
	signatures, _ := canonicaljson.Get(canonical, "signatures")
	byKey, _ := canonicaljson.Get(signatures, string(c.ServerName))
	ids := keyIDs(byKey)
	if len(ids) > maxVerifyKeys {
		return nil, fmt.Errorf("%w: %d signatures, the limit is %d", ErrTooLarge, len(ids), maxVerifyKeys)
	}
	for _, id := range ids {
		if verifyMembers(members, c.ServerName, id, identity) == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: not signed by the identity key", ErrSignature)
}

func parseDevice(raw []byte) (CertifiedDevice, error) {
	f := fields{in: raw}
	d := CertifiedDevice{
		PeerID: PeerID(f.string("peer_id")),
		KeyID:  KeyID(f.string("key_id")),
		Key:    f.string("key"),
		BoxKey: f.string("box_key"),
		FromTS: f.count("from_ts", true),
	}
	d.RevokedTS = f.count("revoked_ts", false)
	if f.err != nil {
		return d, f.err
	}
	public := d.PeerID.PublicKey()
	switch {
	case public == nil:
		return d, fmt.Errorf("%w: peer_id %.80q is not an ed25519 key", ErrFormat, d.PeerID)
	case d.KeyID != d.PeerID.KeyID():
		return d, fmt.Errorf("%w: key_id %.80q is not that of peer %s", ErrFormat, d.KeyID, d.PeerID)
	case d.Key != encodeBase64(public):
		return d, fmt.Errorf("%w: key is not that of peer %s", ErrFormat, d.PeerID)
	}
	if box, err := decodeBase64(d.BoxKey); err != nil || len(box) != 32 || encodeBase64(box) != d.BoxKey {
		return d, fmt.Errorf("%w: box_key of %s is not 32 bytes in base64", ErrFormat, d.PeerID)
	}
	return d, nil
}

// device finds the peer's entry, whatever the time; nil if there is none.
func (c *Certificate) device(p PeerID) *CertifiedDevice {
	for i := range c.Devices {
		if c.Devices[i].PeerID == p {
			return &c.Devices[i]
		}
	}
	return nil
}

// deviceOf finds the entry of that key, whatever the time; nil if there is none.
func (c *Certificate) deviceOf(key ed25519.PublicKey) *CertifiedDevice {
	encoded := encodeBase64(key)
	for i := range c.Devices {
		if c.Devices[i].Key == encoded {
			return &c.Devices[i]
		}
	}
	return nil
}

// Device returns the device certified for the peer at ts.
func (c *Certificate) Device(p PeerID, ts int64) (CertifiedDevice, bool) {
	d := c.device(p)
	if d == nil || !d.countsAt(ts) {
		return CertifiedDevice{}, false
	}
	return *d, true
}

// Common returns c with only those devices that stand the same in other too: what counts of two
// certificates with one seq and different content, until one with a higher seq comes. Raw is c's.
func (c *Certificate) Common(other *Certificate) *Certificate {
	both := *c
	both.Devices = nil
	for _, d := range c.Devices {
		if slices.Contains(other.Devices, d) {
			both.Devices = append(both.Devices, d)
		}
	}
	return &both
}

// fields reads members of a canonical object and keeps the first error.
type fields struct {
	in  []byte
	err error
}

func (f *fields) fail(key, want string) {
	if f.err == nil {
		f.err = fmt.Errorf("%w: %s is not %s", ErrFormat, key, want)
	}
}

func (f *fields) string(key string) string {
	s, ok := canonicaljson.GetString(f.in, key)
	if !ok {
		f.fail(key, "a string")
	}
	return s
}

func (f *fields) serverName() ServerName {
	n, err := ParseServerName(f.string("server_name"))
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("%w: %v", ErrFormat, err)
	}
	return n
}

// count reads an integer from 0 on: a time in ms, or a sequence number. One that is not required may be
// absent, and must not be 0 then, which would be another spelling of that.
func (f *fields) count(key string, required bool) int64 {
	v, ok := canonicaljson.Get(f.in, key)
	if !ok && !required {
		return 0
	}
	n, ok := canonicaljson.Int(v)
	if !ok || n < 0 || n == 0 && !required {
		f.fail(key, "a count or a time")
	}
	return n
}

func (f *fields) array(key string) [][]byte {
	v, _ := canonicaljson.Get(f.in, key)
	elements, ok := canonicaljson.Elements(v)
	if !ok {
		f.fail(key, "an array")
	}
	return elements
}

func (f *fields) object(key string, required bool) []canonicaljson.Member {
	v, ok := canonicaljson.Get(f.in, key)
	if !ok && !required {
		return nil
	}
	members, err := canonicaljson.Split(v)
	if err != nil {
		f.fail(key, "an object")
	}
	return members
}
