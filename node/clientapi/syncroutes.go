package clientapi

// syncRoutes registers /sync.
func (a *API) syncRoutes() {}
