package eventgraph

import (
	"encoding/base64"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// RoomVersion is a room version's identifier, "3" to "12".
type RoomVersion string

// DefaultRoomVersion is the version of new rooms.
const DefaultRoomVersion RoomVersion = "12"

// Traits is what differs between room versions: one row of the table.
type Traits struct {
	URLSafeEventIDs     bool // 4: event IDs in URL-safe base64
	StrictKeyValidity   bool // 5
	StrictJSON          bool // 6: canonical JSON enforced
	NotificationLevels  bool // 6: notifications levels checked by auth
	NoAliasAuth         bool // 6: m.room.aliases loses its special rules
	Knock               bool // 7
	Restricted          bool // 8
	RestrictedRedaction bool // 9: redaction keeps join_authorised_via_users_server
	IntegerLevels       bool // 10
	KnockRestricted     bool // 10
	RedactsInContent    bool // 11, with the redaction rules of 11
	NoCreatorField      bool // 11: the creator is the create event's sender
	RoomIDFromCreate    bool // 12: with create absent from auth_events
	PrivilegedCreators  bool // 12
	StateResolutionV21  bool // 12
}

const (
	oldestVersion = 3 // 1 and 2 have event IDs that senders choose
	newestVersion = 12
)

// Traits returns the version's row; false for a version that is not supported.
func (v RoomVersion) Traits() (Traits, bool) {
	n, err := strconv.Atoi(string(v))
	if err != nil || n < oldestVersion || n > newestVersion || strconv.Itoa(n) != string(v) {
		return Traits{}, false
	}
	return Traits{
		URLSafeEventIDs:     n >= 4,
		StrictKeyValidity:   n >= 5,
		StrictJSON:          n >= 6,
		NotificationLevels:  n >= 6,
		NoAliasAuth:         n >= 6,
		Knock:               n >= 7,
		Restricted:          n >= 8,
		RestrictedRedaction: n >= 9,
		IntegerLevels:       n >= 10,
		KnockRestricted:     n >= 10,
		RedactsInContent:    n >= 11,
		NoCreatorField:      n >= 11,
		RoomIDFromCreate:    n >= 12,
		PrivilegedCreators:  n >= 12,
		StateResolutionV21:  n >= 12,
	}, true
}

// SupportedVersions in ascending order.
func SupportedVersions() []RoomVersion {
	var all []RoomVersion
	for n := oldestVersion; n <= newestVersion; n++ {
		all = append(all, RoomVersion(strconv.Itoa(n)))
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

// idEncoding of the version's event IDs.
func (t *Traits) idEncoding() *base64.Encoding {
	if t.URLSafeEventIDs {
		return base64.RawURLEncoding
	}
	return base64.RawStdEncoding
}
