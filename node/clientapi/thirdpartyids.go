package clientapi

import "net/http"

// E-mail addresses and phone numbers (CS API, Account administrative contact information). A server on a device has no way to
// write to them, so none can be added: m.3pid_changes says so, and who tries is told in the spec's words.

func (a *API) thirdPartyIDRoutes() {
	const account = "/_matrix/client/v3/account"
	a.route("GET", account+"/3pid", authed, a.thirdPartyIDs)
	a.route("POST", account+"/3pid", authed, refuse(errNoThirdParty))
	for _, change := range []string{"/add", "/bind", "/delete", "/unbind"} {
		a.route("POST", account+"/3pid"+change, authed, refuse(errNoThirdParty))
	}
	for _, medium := range []string{"/email", "/msisdn"} {
		a.route("POST", account+"/3pid"+medium+"/requestToken", public, refuse(errMedium))
		a.route("POST", "/_matrix/client/v3/register"+medium+"/requestToken", public, refuse(errMedium))
		a.route("POST", account+"/password"+medium+"/requestToken", public, refuse(errNotBound))
	}
}

var (
	errNoThirdParty = forbidden("No e-mail address or phone number can be tied to an account here.")
	errMedium       = fail(http.StatusForbidden, "M_THREEPID_DENIED", "This server sends no e-mails and no text messages.")
	errNotBound     = fail(http.StatusBadRequest, "M_THREEPID_NOT_FOUND", "No account here has that address: a password cannot be reset by it.")
)

// refuse answers with the error whatever is asked, if it is JSON.
func refuse(err error) handler {
	return func(q *request) (any, error) {
		if _, err := q.body(); err != nil {
			return nil, err
		}
		return nil, err
	}
}

// thirdPartyIDs is GET /account/3pid.
func (a *API) thirdPartyIDs(*request) (any, error) {
	return map[string]any{"threepids": []any{}}, nil
}
