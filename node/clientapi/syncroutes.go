package clientapi

// syncRoutes registers /sync, and its sliding form.
func (a *API) syncRoutes() {
	a.route("GET", "/_matrix/client/v3/sync", authed, a.sync)
	a.route("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", authed, a.slidingSync)
}
