package clientapi

// accountRoutes registers what concerns accounts, devices and the data that users keep.
func (a *API) accountRoutes() {}
