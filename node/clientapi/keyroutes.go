package clientapi

// keyRoutes registers end-to-end keys, their backups and to-device messages.
func (a *API) keyRoutes() {
	const v3 = "/_matrix/client/v3"
	a.route("POST", v3+"/keys/upload", authed, a.uploadKeys)
	a.route("POST", v3+"/keys/upload/{deviceId}", authed, a.uploadKeys) // clients of r0
	a.route("POST", v3+"/keys/query", authed, a.queryKeys)
	a.route("POST", v3+"/keys/claim", authed, a.claimKeys)
	a.route("GET", v3+"/keys/changes", authed, a.keyChanges)
	a.route("POST", v3+"/keys/changes", authed, a.keyChanges) // mautrix-go
	a.route("POST", v3+"/keys/device_signing/upload", authed, a.uploadCrossSigning)
	a.route("POST", v3+"/keys/signatures/upload", authed, a.uploadSignatures)
	a.route("PUT", v3+"/sendToDevice/{eventType}/{txnId}", authed, a.sendToDevice)
	a.keyBackupRoutes()
	a.dehydratedRoutes()
}
