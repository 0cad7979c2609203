package clientapi

// roomRoutes registers what creates, reads, changes and leaves rooms.
func (a *API) roomRoutes() {}
