// Package literal is a second implementation of Matrix event authorization, state resolution, redaction and event IDs
// for room versions 3 to 12, written from the text of the specification alone.
//
// It is for tests only: no package of the product imports it. Its worth is that it shares nothing with the
// implementation that it is compared with: it imports the standard library alone, keeps events as decoded JSON, and
// reads as the specification reads, with full auth chains as sets and no index. The comments give the number of the
// rule or step on the room version's page (content/rooms/vN.md of the specification).
//
// Two things are left to the caller, as they need keys that are not part of a room's events: the signature by the
// sender's server, and whether that by the server of join_authorised_via_users_server is valid, which must be there. The format checks of a PDU are left to
// the caller too: a field of the wrong type reads as absent unless a rule speaks of it.
//
// Where the pages leave something open, a reading had to be chosen, and it is that of the other implementation, so that the comparison
// says nothing of it: a state without a create event allows nothing; without join rules a room is closed; malformed levels outside users
// refuse power levels before version 10 too, but null there counts as absent; the first of several auth events at one key counts.
//
// Room versions other than 3 to 12 panic.
package literal
