package eventgraph

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/mr-tron/base58"
	"github.com/multiformats/go-base36"
)

// ServerName is the name of a homeserver. In the IDs of an event it is any that the grammar of the specification allows; what
// ParseServerName accepts are those of plexus: the identity key as a libp2p CIDv1 in base36 ("k51qzi5uqu5d…", 62 characters),
// optionally followed by a DNS zone ("k51….example.org").
type ServerName string

// PeerID is libp2p's name of a device key, in base58 ("12D3KooW…").
type PeerID string

// UserID is "@localpart:server".
type UserID string

// RoomID is "!opaque:server", or from room version 12 "!" and the create event's hash.
type RoomID string

// EventID is "$" and the unpadded base64 of the event's reference hash (room versions 3 and up).
type EventID string

// RoomAlias is "#localpart:server".
type RoomAlias string

// KeyID is "ed25519:" and the base58 peer ID of that key (names of other servers' keys may differ).
type KeyID string

const (
	// maxID bounds user IDs, room IDs, aliases and event IDs, in bytes (appendices, Common Identifier Format).
	maxID = 255
	// maxServerName: "the length of the complete server name should not exceed 230 characters" (appendices).
	maxServerName = 230
	// maxKeyID bounds key IDs, for which the spec has no limit; ours have 60 bytes.
	maxKeyID = 128
	// keyLabelLen is the length of every server name's first label: 40 bytes in base36, and "k" before.
	keyLabelLen = 62
)

var (
	// peerIDPrefix is an identity multihash of 36 bytes, which are a protobuf-encoded public key: type
	// Ed25519, 32 bytes (libp2p specs, Peer Ids).
	peerIDPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}
	// cidPrefix makes a CIDv1 with codec libp2p-key of such a multihash.
	cidPrefix = []byte{0x01, 0x72}
)

// NewServerName names the server of that identity key.
func NewServerName(identity ed25519.PublicKey) ServerName {
	if len(identity) != ed25519.PublicKeySize {
		panic("eventgraph: identity key of wrong length")
	}
	return ServerName("k" + base36.EncodeToStringLc(bytes.Join([][]byte{cidPrefix, peerIDPrefix, identity}, nil)))
}

// ParseServerName accepts only the one spelling that encodes back to itself.
func ParseServerName(s string) (ServerName, error) {
	label, zone, hasZone := strings.Cut(s, ".")
	if len(s) > maxServerName {
		return "", fmt.Errorf("server name of %d bytes, the limit is %d", len(s), maxServerName)
	}
	if decodeKeyLabel(label) == nil {
		return "", fmt.Errorf("server name %.80q is not an ed25519 key in base36", s)
	}
	if hasZone {
		for l := range strings.SplitSeq(zone, ".") {
			if !isZoneLabel(l) {
				return "", fmt.Errorf("server name %.80q: bad label in its zone", s)
			}
		}
	}
	return ServerName(s), nil
}

// isZoneLabel: a label of a DNS name, in lower case since there must be one spelling.
func isZoneLabel(l string) bool {
	if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
		return false
	}
	for _, c := range []byte(l) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// decodeKeyLabel returns the key in the first label of a server name, nil if it is not its only spelling.
func decodeKeyLabel(label string) ed25519.PublicKey {
	if len(label) != keyLabelLen || label[0] != 'k' {
		return nil
	}
	raw, err := base36.DecodeString(label[1:])
	if err != nil {
		return nil
	}
	key, ok := bytes.CutPrefix(raw, append(cidPrefix[:2:2], peerIDPrefix...))
	if !ok || !validPoint(key) || string(NewServerName(key)) != label {
		return nil
	}
	return key
}

// PublicKey is the identity key in the name's first label; nil if the name was never parsed and is not valid.
func (n ServerName) PublicKey() ed25519.PublicKey {
	label, _, _ := strings.Cut(string(n), ".")
	return decodeKeyLabel(label)
}

// Tail is the part to show to people: the last 8 characters of the key's label.
func (n ServerName) Tail() string {
	label, _, _ := strings.Cut(string(n), ".")
	return label[max(0, len(label)-8):]
}

// NewPeerID names the node of that device key.
func NewPeerID(device ed25519.PublicKey) PeerID {
	if len(device) != ed25519.PublicKeySize {
		panic("eventgraph: device key of wrong length")
	}
	return PeerID(base58.Encode(append(peerIDPrefix[:6:6], device...)))
}

// ParsePeerID accepts only the base58 spelling that encodes back to itself, of an ed25519 key.
func ParsePeerID(s string) (PeerID, error) {
	if p := PeerID(s); p.PublicKey() != nil {
		return p, nil
	}
	return "", fmt.Errorf("peer ID %.80q is not an ed25519 key in base58", s)
}

// PublicKey is the device key; nil if the peer ID was never parsed and is not valid.
func (p PeerID) PublicKey() ed25519.PublicKey {
	if len(p) > maxKeyID {
		return nil
	}
	raw, err := base58.Decode(string(p))
	if err != nil {
		return nil
	}
	key, ok := bytes.CutPrefix(raw, peerIDPrefix)
	if !ok || !validPoint(key) || NewPeerID(key) != p {
		return nil
	}
	return key
}

// KeyID under which the device key signs.
func (p PeerID) KeyID() KeyID { return KeyID("ed25519:" + string(p)) }

// ParseKeyID accepts key IDs of ed25519 keys: the spec's characters, and at most 128 bytes.
func ParseKeyID(s string) (KeyID, error) {
	name, ok := strings.CutPrefix(s, "ed25519:")
	if !ok || name == "" || len(s) > maxKeyID {
		return "", fmt.Errorf("key ID %.80q is not of an ed25519 key", s)
	}
	for _, c := range []byte(name) {
		if !isAlphanumeric(c) && c != '_' {
			return "", fmt.Errorf("key ID %.80q has characters beyond a-z, A-Z, 0-9 and _", s)
		}
	}
	return KeyID(s), nil
}

// ParseUserID checks the grammar (historical localparts allowed) and the length, 255 bytes.
// The server part is any valid Matrix server name by the spec's grammar; whether it is a key is
// ParseServerName's question.
func ParseUserID(s string) (UserID, error) {
	if err := checkID(s, '@'); err != nil {
		return "", fmt.Errorf("user ID %.80q: %w", s, err)
	}
	return UserID(s), nil
}

func (u UserID) Localpart() string  { return localpart(string(u)) }
func (u UserID) Server() ServerName { return domain(string(u)) }

// ParseRoomID accepts "!opaque:server" and, as room versions from 12 have them, "!" and a hash.
func ParseRoomID(s string) (RoomID, error) {
	if isHashID(s, '!', urlSafeIDs) {
		return RoomID(s), nil
	}
	if err := checkID(s, '!'); err != nil {
		return "", fmt.Errorf("room ID %.80q: %w", s, err)
	}
	return RoomID(s), nil
}

// ParseRoomAlias checks the grammar and the length, 255 bytes.
func ParseRoomAlias(s string) (RoomAlias, error) {
	if err := checkID(s, '#'); err != nil {
		return "", fmt.Errorf("room alias %.80q: %w", s, err)
	}
	return RoomAlias(s), nil
}

func (a RoomAlias) Localpart() string  { return localpart(string(a)) }
func (a RoomAlias) Server() ServerName { return domain(string(a)) }

// ParseEventID checks the sigil, the characters and the length, 255 bytes. Events refer to others more
// strictly, by the form of their room version; but who merely asks for an event may ask for any.
func ParseEventID(s string) (EventID, error) {
	if len(s) < 2 || s[0] != '$' || len(s) > maxID || !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return "", fmt.Errorf("event ID %.80q is malformed", s)
	}
	return EventID(s), nil
}

// checkID checks sigil, localpart, colon and server name (appendices, Common Identifier Format).
func checkID(s string, sigil byte) error {
	switch {
	case len(s) > maxID:
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(s), maxID)
	case s == "" || s[0] != sigil:
		return fmt.Errorf("does not begin with %c", sigil)
	}
	local, server, ok := strings.Cut(s[1:], ":")
	switch {
	case !ok:
		return fmt.Errorf("has no server name")
	case !utf8.ValidString(local) || strings.IndexByte(local, 0) >= 0:
		return fmt.Errorf("has forbidden characters")
	case !isMatrixServerName(server):
		return fmt.Errorf("has a malformed server name")
	}
	return nil
}

func localpart(id string) string {
	local, _, _ := strings.Cut(id, ":")
	return local[min(1, len(local)):]
}

func domain(id string) ServerName {
	_, server, _ := strings.Cut(id, ":")
	return ServerName(server)
}

// isMatrixServerName follows the grammar of the appendices, Server Name, which is wider than ParseServerName:
// user IDs of servers that can never be met occur in events and must not break them.
func isMatrixServerName(s string) bool {
	host, port := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return false
		}
		host = s[1:end]
		switch rest := s[end+1:]; {
		case rest == "":
		case rest[0] == ':' && len(rest) > 1:
			port = rest[1:]
		default:
			return false
		}
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() || a.Zone() != "" {
			return false
		}
	} else {
		if i := strings.IndexByte(s, ':'); i >= 0 {
			host, port = s[:i], s[i+1:]
			if port == "" {
				return false
			}
		}
		if host == "" {
			return false
		}
		for _, c := range []byte(host) {
			if !isAlphanumeric(c) && c != '-' && c != '.' {
				return false
			}
		}
	}
	for _, c := range []byte(port) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(port) <= 5
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// isHashID says whether s is the sigil and the one spelling of 32 bytes in that encoding, which is strict.
func isHashID(s string, sigil byte, enc *base64.Encoding) bool {
	if len(s) != 44 || s[0] != sigil {
		return false
	}
	var h [32]byte
	n, err := enc.Decode(h[:], []byte(s[1:]))
	return err == nil && n == len(h)
}
