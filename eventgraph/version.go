package eventgraph

import (
	"encoding/base64"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// RoomVersion is a room version's identifier, "3" to "12".
type RoomVersion string

// DefaultRoomVersion is the version of new rooms.
const DefaultRoomVersion RoomVersion = "12"

// Traits is what differs between room versions, as the specification's page of each says; the table of all of them stands in
// version.go. Each trait holds from the version on that brought it.
type Traits struct {
	URLSafeEventIDs     bool // version 4: event IDs in URL-safe base64
	StrictKeyValidity   bool // version 5: a signing key must be valid at the event's time
	StrictJSON          bool // version 6: canonical JSON enforced
	NotificationLevels  bool // version 6: notifications levels checked by auth
	NoAliasAuth         bool // version 6: m.room.aliases loses its special rules
	Knock               bool // version 7: membership and join rule knock
	Restricted          bool // version 8: the restricted join rule; redaction keeps allow
	RestrictedRedaction bool // version 9: redaction keeps join_authorised_via_users_server
	IntegerLevels       bool // version 10: power levels are integers, no strings
	KnockRestricted     bool // version 10: the join rule knock_restricted
	RedactsInContent    bool // version 11: with its redaction rules
	NoCreatorField      bool // version 11: the creator is the create event's sender
	RoomIDFromCreate    bool // version 12: with create absent from auth_events
	PrivilegedCreators  bool // version 12: creators, additional_creators among them, have infinite power
	StateResolutionV21  bool // version 12: state resolution 2.1, before it 2
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
