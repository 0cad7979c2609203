package clientapi

// roomRoutes registers what creates, reads, changes and leaves rooms.
func (a *API) roomRoutes() {
	const v3 = "/_matrix/client/v3"
	const room = v3 + "/rooms/{roomId}"

	a.route("POST", v3+"/createRoom", authed, a.createRoom)

	a.route("POST", room+"/upgrade", authed, a.upgradeRoom)
	a.route("POST", room+"/join", authed, a.joinRoom)
	a.route("POST", v3+"/join/{roomIdOrAlias}", authed, a.joinByIDOrAlias)
	a.route("POST", v3+"/knock/{roomIdOrAlias}", authed, a.knock)
	a.route("POST", room+"/leave", authed, a.leaveRoom)
	a.route("POST", room+"/forget", authed, a.forgetRoom)
	a.route("POST", room+"/invite", authed, a.invite)
	a.route("POST", room+"/kick", authed, a.kick)
	a.route("POST", room+"/ban", authed, a.ban)
	a.route("POST", room+"/unban", authed, a.unban)
	a.route("GET", v3+"/joined_rooms", authed, a.joinedRooms)
	a.route("GET", "/_matrix/client/v1/mutual_rooms", authed, a.mutualRooms)
	a.route("GET", "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", authed, a.mutualRooms)

	a.route("PUT", room+"/send/{eventType}/{txnId}", authed, a.sendEvent)
	a.route("PUT", room+"/redact/{eventId}/{txnId}", authed, a.redactEvent)
	a.route("PUT", room+"/state/{eventType}/{stateKey}", authed, a.putState)
	// An empty state key, with and without the slash before it.
	a.route("PUT", room+"/state/{eventType}", authed, a.putState)
	a.route("PUT", room+"/state/{eventType}/", authed, a.putState)

	a.route("GET", room+"/state", authed, a.getState)
	a.route("GET", room+"/state/{eventType}/{stateKey}", authed, a.getStateEvent)
	a.route("GET", room+"/state/{eventType}", authed, a.getStateEvent)
	a.route("GET", room+"/state/{eventType}/", authed, a.getStateEvent)
	a.route("GET", room+"/members", authed, a.getMembers)
	a.route("GET", room+"/joined_members", authed, a.getJoinedMembers)

	a.route("GET", room+"/messages", authed, a.getMessages)
	a.route("GET", room+"/initialSync", authed, a.roomInitialSync)
	a.route("GET", v3+"/events", authed, a.peekEvents)
	a.route("GET", room+"/context/{eventId}", authed, a.getContext)
	a.route("GET", room+"/event/{eventId}", authed, a.getEvent)
	a.route("GET", "/_matrix/client/v1/rooms/{roomId}/timestamp_to_event", authed, a.timestampToEvent)

	a.route("GET", room+"/aliases", authed, a.getAliases)
	a.route("GET", v3+"/directory/room/{roomAlias}", public, a.getAlias)
	a.route("PUT", v3+"/directory/room/{roomAlias}", authed, a.putAlias)
	a.route("DELETE", v3+"/directory/room/{roomAlias}", authed, a.deleteAlias)
	a.route("GET", v3+"/directory/list/room/{roomId}", public, a.getVisibility)
	a.route("PUT", v3+"/directory/list/room/{roomId}", authed, a.putVisibility)
	a.route("POST", v3+"/search", authed, a.search)
	a.route("GET", v3+"/publicRooms", programs, a.publicRooms)
	a.route("POST", v3+"/publicRooms", authed, a.publicRooms)
	a.route("GET", "/_matrix/client/v1/rooms/{roomId}/hierarchy", authed, a.getHierarchy)
	a.route("GET", "/_matrix/client/v1/room_summary/{roomIdOrAlias}", programs, a.getRoomSummary)
	// MSC3266, of which nheko knows the first path only.
	a.route("GET", "/_matrix/client/unstable/im.nheko.summary/rooms/{roomIdOrAlias}/summary", programs, a.getRoomSummary)
	a.route("GET", "/_matrix/client/unstable/im.nheko.summary/summary/{roomIdOrAlias}", programs, a.getRoomSummary)

	a.route("PUT", room+"/typing/{userId}", authed, a.putTyping)
	a.route("POST", room+"/receipt/{receiptType}/{eventId}", authed, a.postReceipt)
	a.route("POST", room+"/read_markers", authed, a.postReadMarkers)
}
