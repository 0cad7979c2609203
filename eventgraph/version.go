package eventgraph

// RoomVersion is a room version's identifier, "3" to "12".
type RoomVersion string

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

// Traits returns the version's row; false for a version that is not supported.
func (v RoomVersion) Traits() (Traits, bool) { panic("eventgraph: skeleton") }

// SupportedVersions in ascending order.
func SupportedVersions() []RoomVersion { panic("eventgraph: skeleton") }
