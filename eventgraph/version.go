package eventgraph

import (
	"encoding/base64"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// RoomVersion is a room version's identifier, "3" to "12".
type RoomVersion string

// DefaultRoomVersion is the version of new rooms.
const DefaultRoomVersion RoomVersion = "12"

// Traits is what differs between room versions: one row of the table below.
type Traits struct {
	URLSafeEventIDs     bool // event IDs in URL-safe base64
	StrictKeyValidity   bool // a signing key must be valid at the event's time
	StrictJSON          bool // canonical JSON enforced
	NotificationLevels  bool // notifications levels checked by auth
	NoAliasAuth         bool // m.room.aliases loses its special rules
	Knock               bool
	Restricted          bool // the restricted join rule; redaction keeps allow
	RestrictedRedaction bool // redaction keeps join_authorised_via_users_server
	IntegerLevels       bool // power levels are integers, no strings
	KnockRestricted     bool
	RedactsInContent    bool // with the redaction rules of version 11
	NoCreatorField      bool // the creator is the create event's sender
	RoomIDFromCreate    bool // with create absent from auth_events
	PrivilegedCreators  bool
	StateResolutionV21  bool
}

// versionTable has the room versions in ascending order. 1 and 2 are not supported: their event IDs are what senders
// choose. Nobody changes it.
var versionTable = func() []versionRow {
	const x, o = true, false
	return []versionRow{
		//   URLSafeEventIDs
		//   |  StrictKeyValidity
		//   |  |  StrictJSON
		//   |  |  |  NotificationLevels
		//   |  |  |  |  NoAliasAuth
		//   |  |  |  |  |  Knock
		//   |  |  |  |  |  |  Restricted
		//   |  |  |  |  |  |  |  RestrictedRedaction
		//   |  |  |  |  |  |  |  |  IntegerLevels
		//   |  |  |  |  |  |  |  |  |  KnockRestricted
		//   |  |  |  |  |  |  |  |  |  |  RedactsInContent
		//   |  |  |  |  |  |  |  |  |  |  |  NoCreatorField
		//   |  |  |  |  |  |  |  |  |  |  |  |  RoomIDFromCreate
		//   |  |  |  |  |  |  |  |  |  |  |  |  |  PrivilegedCreators
		//   |  |  |  |  |  |  |  |  |  |  |  |  |  |  StateResolutionV21
		{"3", Traits{o, o, o, o, o, o, o, o, o, o, o, o, o, o, o}},
		{"4", Traits{x, o, o, o, o, o, o, o, o, o, o, o, o, o, o}},
		{"5", Traits{x, x, o, o, o, o, o, o, o, o, o, o, o, o, o}},
		{"6", Traits{x, x, x, x, x, o, o, o, o, o, o, o, o, o, o}},
		{"7", Traits{x, x, x, x, x, x, o, o, o, o, o, o, o, o, o}},
		{"8", Traits{x, x, x, x, x, x, x, o, o, o, o, o, o, o, o}},
		{"9", Traits{x, x, x, x, x, x, x, x, o, o, o, o, o, o, o}},
		{"10", Traits{x, x, x, x, x, x, x, x, x, x, o, o, o, o, o}},
		{"11", Traits{x, x, x, x, x, x, x, x, x, x, x, x, o, o, o}},
		{"12", Traits{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}},
	}
}()

type versionRow struct {
	version RoomVersion
	traits  Traits
}

// Traits returns the version's row; false for a version that is not supported.
func (v RoomVersion) Traits() (Traits, bool) {
	t := v.row()
	if t == nil {
		return Traits{}, false
	}
	return *t, true
}

// row is the version's place in the table, nil if it has none.
func (v RoomVersion) row() *Traits {
	for i := range versionTable {
		if versionTable[i].version == v {
			return &versionTable[i].traits
		}
	}
	return nil
}

// SupportedVersions in ascending order.
func SupportedVersions() []RoomVersion {
	all := make([]RoomVersion, len(versionTable))
	for i := range versionTable {
		all[i] = versionTable[i].version
	}
	return all
}

// jsonRules of the version's events.
func (t *Traits) jsonRules() canonicaljson.Rules {
	if t.StrictJSON {
		return canonicaljson.Strict
	}
	return canonicaljson.Lenient
}

// The encodings of event IDs, in which unused bits of the last character must be zero: or one hash had four spellings.
var (
	urlSafeIDs  = base64.RawURLEncoding.Strict()
	standardIDs = base64.RawStdEncoding.Strict()
)

// idEncoding of the version's event IDs.
func (t *Traits) idEncoding() *base64.Encoding {
	if t.URLSafeEventIDs {
		return urlSafeIDs
	}
	return standardIDs
}
