package clientapi

// syncRoutes registers /sync.
func (a *API) syncRoutes() {
	a.route("GET", "/_matrix/client/v3/sync", authed, a.sync)
}
