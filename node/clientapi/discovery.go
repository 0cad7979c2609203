package clientapi

import "net/http"

// discoveryRoutes registers what a client asks before or without logging in.
func (a *API) discoveryRoutes() {}

func (a *API) page(w http.ResponseWriter, r *http.Request) {}
