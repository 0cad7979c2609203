package eventgraph

import "crypto/ed25519"

// ServerName is the name of a homeserver: its identity key as a libp2p CIDv1 in base36
// ("k51qzi5uqu5d…", 62 characters), optionally followed by a DNS zone ("k51….example.org").
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

func NewServerName(identity ed25519.PublicKey) ServerName { panic("eventgraph: skeleton") }

// ParseServerName accepts only the one spelling that encodes back to itself.
func ParseServerName(s string) (ServerName, error) { panic("eventgraph: skeleton") }

// PublicKey is the identity key in the name's first label; nil if the name was never parsed and is not valid.
func (n ServerName) PublicKey() ed25519.PublicKey { panic("eventgraph: skeleton") }

// Tail is the part to show to people: the last 8 characters of the key's label.
func (n ServerName) Tail() string { panic("eventgraph: skeleton") }

func NewPeerID(device ed25519.PublicKey) PeerID { panic("eventgraph: skeleton") }
func ParsePeerID(s string) (PeerID, error)      { panic("eventgraph: skeleton") }
func (p PeerID) PublicKey() ed25519.PublicKey   { panic("eventgraph: skeleton") }
func (p PeerID) KeyID() KeyID                   { return KeyID("ed25519:" + string(p)) }

// ParseUserID checks the grammar (historical localparts allowed) and the length, 255 bytes.
// The server part is any valid Matrix server name by the spec's grammar; whether it is a key is
// ParseServerName's question.
func ParseUserID(s string) (UserID, error)       { panic("eventgraph: skeleton") }
func (u UserID) Localpart() string               { panic("eventgraph: skeleton") }
func (u UserID) Server() ServerName              { panic("eventgraph: skeleton") }
func ParseRoomID(s string) (RoomID, error)       { panic("eventgraph: skeleton") }
func ParseRoomAlias(s string) (RoomAlias, error) { panic("eventgraph: skeleton") }
func (a RoomAlias) Localpart() string            { panic("eventgraph: skeleton") }
func (a RoomAlias) Server() ServerName           { panic("eventgraph: skeleton") }
func ParseEventID(s string) (EventID, error)     { panic("eventgraph: skeleton") }
