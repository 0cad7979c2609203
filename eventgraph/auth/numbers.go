package auth

import (
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// numbers are the rules' places on the page of a room version.
type numbers struct {
	noCreate, otherRoom string // no accepted create event of this room
	duplicate, unneeded string // on auth_events
	rejected, room      string
	federate, aliases   string
	joined, thirdParty  string
	required, ownKey    string
	member              string
	authorised          string // the rest of the member rules: with the number of the member rule before them
	join, invite, leave string
	ban, knock, unknown string
	joinElse            string
	levelNotInteger     string // the power level rules
	mapNotInteger       string
	usersMalformed      string
	usersCreators       string
	scalars             string
	entriesNow          string
	entriesNew          string
	usersNow, usersNew  string
}

// numbering has the numbers of each room version. Nobody changes it.
var numbering = func() map[eventgraph.RoomVersion]*numbers {
	of := make(map[eventgraph.RoomVersion]*numbers)
	for _, v := range eventgraph.SupportedVersions() {
		t, _ := v.Traits()
		n := numbersOf(t)
		of[v] = &n
	}
	return of
}()

func numbersOf(t eventgraph.Traits) numbers {
	at := func(n int) string { return strconv.Itoa(n) }

	// Version 6 lost the rule on m.room.aliases, version 12 gained one on the room ID: so the member rule is
	// 5, 4 and 5 again.
	member := 5
	if t.NoAliasAuth && !t.RoomIDFromCreate {
		member = 4
	}
	n := numbers{
		noCreate: "2.4", otherRoom: "2.5",
		duplicate: "2.1", unneeded: "2.2", rejected: "2.3", room: "2.5",
		federate: "3", aliases: "4",
		member: at(member), joined: at(member + 1), thirdParty: at(member + 2), required: at(member + 3), ownKey: at(member + 4),
	}
	if t.RoomIDFromCreate {
		n.noCreate, n.otherRoom = "2", "2"
		n.duplicate, n.unneeded, n.rejected, n.room = "3.1", "3.2", "3.3", "3.5"
		n.federate = "4"
	}

	// Version 8 put the rule on join_authorised_via_users_server before the memberships.
	m := func(i int) string { return n.member + "." + at(i) }
	first := 2
	if t.Restricted {
		n.authorised = m(2)
		first = 3
	}
	n.join, n.invite, n.leave, n.ban = m(first), m(first+1), m(first+2), m(first+3)
	n.unknown = m(first + 4)
	if t.Knock {
		n.knock, n.unknown = m(first+4), m(first+5)
	}
	n.joinElse = n.join + ".6"
	if t.Restricted {
		n.joinElse = n.join + ".7"
	}

	// Version 10 put two rules on integers before that on users, version 12 one on creators after it.
	p := func(i int) string { return at(member+5) + "." + at(i) }
	n.levelNotInteger, n.mapNotInteger, n.usersMalformed = p(1), p(1), p(1)
	altered := 3
	if t.IntegerLevels {
		n.mapNotInteger, n.usersMalformed = p(2), p(3)
		altered = 5
	}
	if t.PrivilegedCreators {
		n.usersCreators = p(4)
		altered = 6
	}
	n.scalars, n.entriesNow, n.entriesNew, n.usersNow, n.usersNew = p(altered), p(altered+1), p(altered+2), p(altered+3), p(altered+4)
	return n
}
