package clientapi

// keyRoutes registers end-to-end keys and to-device messages.
func (a *API) keyRoutes() {}
