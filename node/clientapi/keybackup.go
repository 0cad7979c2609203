package clientapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Backups of room keys (CS API, Server-side key backups).

// Bounds of one request; those of all that a user keeps are the store's.
const (
	maxBackupAuth    = 64 << 10 // bytes of auth_data: a key and a signature of each device
	maxSessionID     = 255      // bytes; of megolm they have 43
	maxRoomID        = 255      // bytes (appendices, Common Identifier Format)
	maxSessionData   = 64 << 10 // bytes; of megolm some 500
	backupKeysAtOnce = 500      // keys of one transaction of the store, and of one piece of an answer,
	backupBytes      = 256 << 10
)

func (a *API) keyBackupRoutes() {
	const at = "/_matrix/client/v3/room_keys"
	a.route("POST", at+"/version", authed, a.postKeyBackup)
	a.route("GET", at+"/version", authed, a.getLatestKeyBackup)
	a.route("GET", at+"/version/{version}", authed, a.getKeyBackup)
	a.route("PUT", at+"/version/{version}", authed, a.putKeyBackup)
	a.route("DELETE", at+"/version/{version}", authed, a.deleteKeyBackup)
	a.route("PUT", at+"/keys", authed, a.putAllBackupKeys)
	a.route("GET", at+"/keys", authed, a.getAllBackupKeys)
	a.route("DELETE", at+"/keys", authed, a.deleteAllBackupKeys)
	a.route("PUT", at+"/keys/{roomId}", authed, a.putRoomBackupKeys)
	a.route("GET", at+"/keys/{roomId}", authed, a.getRoomBackupKeys)
	a.route("DELETE", at+"/keys/{roomId}", authed, a.deleteRoomBackupKeys)
	a.route("PUT", at+"/keys/{roomId}/{sessionId}", authed, a.putBackupKey)
	a.route("GET", at+"/keys/{roomId}/{sessionId}", authed, a.getBackupKey)
	a.route("DELETE", at+"/keys/{roomId}/{sessionId}", authed, a.deleteBackupKey)
}

// errNoBackup: clients take only M_NOT_FOUND for an account without a backup.
var errNoBackup = notFound("There is no such backup of room keys.")

// orNoBackup names what store.ErrNotFound was about.
func orNoBackup(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return errNoBackup
	}
	return err
}

// backupVersion reads a version as we give them out: a decimal number. Any other was never given.
func backupVersion(s string) (uint64, error) {
	version, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(version, 10) != s {
		return 0, errNoBackup
	}
	return version, nil
}

// keysVersion is the version that the query of a /room_keys/keys request names.
func keysVersion(q *request) (uint64, error) {
	version := q.URL.Query().Get("version")
	if version == "" {
		return 0, missingParam("version is missing.")
	}
	return backupVersion(version)
}

// backupETag changes with each change of the backup's keys. A store that was rolled back gives out none that it has given before.
func (a *API) backupETag(b *store.KeyBackup) string {
	incarnation := a.Store.Incarnation()
	return fmt.Sprintf("%d_%x", b.Changes, incarnation[:4])
}

// keysChanged is the answer to a request that has changed a backup's keys.
func (a *API) keysChanged(b *store.KeyBackup) any {
	return map[string]any{"etag": a.backupETag(b), "count": b.Count}
}

func (a *API) showKeyBackup(b *store.KeyBackup) any {
	return map[string]any{
		"version": strconv.FormatUint(b.Version, 10), "algorithm": b.Algorithm, "auth_data": b.AuthData,
		"count": b.Count, "etag": a.backupETag(b),
	}
}

// backupInfo is what clients say of a backup.
type backupInfo struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Version   *string         `json:"version"`
}

func (q *request) backupInfo() (*backupInfo, error) {
	var body backupInfo
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	switch {
	case body.Algorithm == "" || body.AuthData == nil:
		return nil, missingParam("algorithm and auth_data are needed.")
	case !isObject(body.AuthData):
		return nil, badJSON("auth_data must be a JSON object.")
	case len(body.Algorithm) > maxSessionID:
		return nil, invalidParam("algorithm is too long.")
	case len(body.AuthData) > maxBackupAuth:
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "auth_data is too large.")
	}
	return &body, nil
}

// postKeyBackup is POST /room_keys/version: a new version, which is the current one from then on.
func (a *API) postKeyBackup(q *request) (any, error) {
	body, err := q.backupInfo()
	if err != nil {
		return nil, err
	}
	var version uint64
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) (err error) {
		version, err = tx.AddKeyBackup(q.user, body.Algorithm, body.AuthData)
		return err
	})
	if err != nil {
		return nil, err
	}
	a.sweepKeyBackups(q.Context(), q.user)
	return map[string]string{"version": strconv.FormatUint(version, 10)}, nil
}

// sweepKeyBackups removes what is left of deleted backups, and says whether that is all. What it cannot remove is hidden already, and goes
// the next time.
func (a *API) sweepKeyBackups(ctx context.Context, user eventgraph.UserID) bool {
	for more := true; more; {
		_, err := a.Store.Update(ctx, func(tx *store.Tx) (err error) {
			more, err = tx.SweepKeyBackups(user)
			return err
		})
		if err != nil {
			a.Log.Warn("not all of a deleted backup of room keys is removed", "error", err)
			return false
		}
	}
	return true
}

// getLatestKeyBackup is GET /room_keys/version.
func (a *API) getLatestKeyBackup(q *request) (answer any, err error) {
	err = a.Store.View(func(r *store.Reader) error {
		b, err := r.LatestKeyBackup(q.user)
		if err == nil {
			answer = a.showKeyBackup(b)
		}
		return orNoBackup(err)
	})
	return answer, err
}

// getKeyBackup is GET /room_keys/version/{version}.
func (a *API) getKeyBackup(q *request) (answer any, err error) {
	version, err := backupVersion(q.path("version"))
	if err != nil {
		return nil, err
	}
	err = a.Store.View(func(r *store.Reader) error {
		b, err := r.KeyBackup(q.user, version)
		if err == nil {
			answer = a.showKeyBackup(b)
		}
		return orNoBackup(err)
	})
	return answer, err
}

// putKeyBackup is PUT /room_keys/version/{version}: only auth_data can be changed.
func (a *API) putKeyBackup(q *request) (any, error) {
	version, err := backupVersion(q.path("version"))
	if err != nil {
		return nil, err
	}
	body, err := q.backupInfo()
	if err != nil {
		return nil, err
	}
	if body.Version != nil && *body.Version != q.path("version") {
		return nil, invalidParam("The version in the body is not that of the path.")
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		b, err := tx.KeyBackup(q.user, version)
		if err != nil {
			return orNoBackup(err)
		}
		if b.Algorithm != body.Algorithm {
			return invalidParam("The algorithm of a backup cannot be changed.")
		}
		b.AuthData = body.AuthData
		return tx.PutKeyBackup(q.user, b)
	})
	return nil, err
}

// deleteKeyBackup is DELETE /room_keys/version/{version}. One that was deleted before is no error.
func (a *API) deleteKeyBackup(q *request) (any, error) {
	version, err := backupVersion(q.path("version"))
	if err != nil {
		return nil, err
	}
	_, err = a.Store.Update(q.Context(), func(tx *store.Tx) error {
		err := tx.DropKeyBackup(q.user, version)
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		made, err := tx.KeyBackupVersions(q.user)
		if err == nil && (version == 0 || version > made) {
			err = errNoBackup
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	a.sweepKeyBackups(q.Context(), q.user)
	return nil, nil
}

// backupKeyJSON is the spec's KeyBackupData as clients send it: all of it is required.
type backupKeyJSON struct {
	FirstMessageIndex *int64          `json:"first_message_index"`
	ForwardedCount    *int64          `json:"forwarded_count"`
	IsVerified        *bool           `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

func (k *backupKeyJSON) check(room eventgraph.RoomID, session string) (store.BackupKey, error) {
	switch {
	case !strings.HasPrefix(string(room), "!") || len(room) > maxRoomID:
		return store.BackupKey{}, invalidParam("That is no room ID.")
	case session == "" || len(session) > maxSessionID:
		return store.BackupKey{}, invalidParam("A session ID has 1 to 255 bytes.")
	case k.FirstMessageIndex == nil || k.ForwardedCount == nil || k.IsVerified == nil || k.SessionData == nil:
		return store.BackupKey{}, missingParam("A key needs first_message_index, forwarded_count, is_verified and session_data.")
	case *k.FirstMessageIndex < 0 || *k.ForwardedCount < 0:
		return store.BackupKey{}, invalidParam("first_message_index and forwarded_count are not below 0.")
	case !isObject(k.SessionData):
		return store.BackupKey{}, badJSON("session_data must be a JSON object.")
	case len(k.SessionData) > maxSessionData:
		return store.BackupKey{}, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "session_data is too large.")
	}
	return store.BackupKey{
		Room: room, Session: session, FirstMessageIndex: *k.FirstMessageIndex, ForwardedCount: *k.ForwardedCount,
		IsVerified: *k.IsVerified, SessionData: k.SessionData,
	}, nil
}

// roomBackupJSON is the spec's RoomKeyBackup.
type roomBackupJSON struct {
	Sessions map[string]backupKeyJSON `json:"sessions"`
}

func (b roomBackupJSON) keys(room eventgraph.RoomID) ([]store.BackupKey, error) {
	if b.Sessions == nil {
		return nil, missingParam("sessions is missing.")
	}
	keys := make([]store.BackupKey, 0, len(b.Sessions))
	for session, sent := range b.Sessions {
		k, err := sent.check(room, session)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// putAllBackupKeys is PUT /room_keys/keys.
func (a *API) putAllBackupKeys(q *request) (any, error) {
	var body struct {
		Rooms map[eventgraph.RoomID]roomBackupJSON `json:"rooms"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Rooms == nil {
		return nil, missingParam("rooms is missing.")
	}
	var all []store.BackupKey
	for room, backup := range body.Rooms {
		keys, err := backup.keys(room)
		if err != nil {
			return nil, err
		}
		all = append(all, keys...)
	}
	return a.putBackupKeys(q, all)
}

// putRoomBackupKeys is PUT /room_keys/keys/{roomId}.
func (a *API) putRoomBackupKeys(q *request) (any, error) {
	var body roomBackupJSON
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	keys, err := body.keys(eventgraph.RoomID(q.path("roomId")))
	if err != nil {
		return nil, err
	}
	return a.putBackupKeys(q, keys)
}

// putBackupKey is PUT /room_keys/keys/{roomId}/{sessionId}.
func (a *API) putBackupKey(q *request) (any, error) {
	var body backupKeyJSON
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	k, err := body.check(eventgraph.RoomID(q.path("roomId")), q.path("sessionId"))
	if err != nil {
		return nil, err
	}
	return a.putBackupKeys(q, []store.BackupKey{k})
}

// putBackupKeys writes the keys to the version that the query names, which must be the current one. Many take several transactions: a
// client repeats what was not answered, and the same key twice changes nothing.
func (a *API) putBackupKeys(q *request, keys []store.BackupKey) (any, error) {
	named := q.URL.Query().Get("version")
	if named == "" {
		return nil, missingParam("version is missing.")
	}
	var after *store.KeyBackup
	for begin := true; begin || len(keys) > 0; begin = false {
		n, size := 0, 0
		for n < len(keys) && n < backupKeysAtOnce && size < backupBytes {
			size += len(keys[n].SessionData)
			n++
		}
		_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
			current, err := tx.LatestKeyBackup(q.user)
			if err != nil {
				return orNoBackup(err)
			}
			if version := strconv.FormatUint(current.Version, 10); version != named {
				return &matrixError{Status: http.StatusForbidden, Code: "M_WRONG_ROOM_KEYS_VERSION", Message: "That is not the current backup.",
					Extra: map[string]any{"current_version": version}}
			}
			after, err = tx.PutBackupKeys(q.user, current.Version, keys[:n])
			return err
		})
		if errors.Is(err, store.ErrBackupFull) {
			return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "The backup holds as much as it may.")
		}
		if err != nil {
			return nil, err
		}
		keys = keys[n:]
	}
	return a.keysChanged(after), nil
}

// getBackupKey is GET /room_keys/keys/{roomId}/{sessionId}.
func (a *API) getBackupKey(q *request) (any, error) {
	version, err := keysVersion(q)
	if err != nil {
		return nil, err
	}
	var data json.RawMessage
	err = a.Store.View(func(r *store.Reader) error {
		if _, err := r.KeyBackup(q.user, version); err != nil {
			return orNoBackup(err)
		}
		data, err = r.BackupKey(q.user, version, eventgraph.RoomID(q.path("roomId")), q.path("sessionId"))
		if errors.Is(err, store.ErrNotFound) {
			return notFound("There is no key of that session in the backup.")
		}
		return err
	})
	return data, err
}

// getRoomBackupKeys is GET /room_keys/keys/{roomId}.
func (a *API) getRoomBackupKeys(q *request) (any, error) {
	return a.streamBackup(q, eventgraph.RoomID(q.path("roomId")))
}

// getAllBackupKeys is GET /room_keys/keys.
func (a *API) getAllBackupKeys(q *request) (any, error) { return a.streamBackup(q, "") }

// streamBackup answers with the keys of one room ("" = all), piece by piece: a backup may hold far more than should lie in memory, and while
// the client reads, no snapshot of the store is held. After the first byte an error can only break the answer off.
func (a *API) streamBackup(q *request, room eventgraph.RoomID) (any, error) {
	version, err := keysVersion(q)
	if err != nil {
		return nil, err
	}
	var (
		w           *bufio.Writer
		lastRoom    eventgraph.RoomID
		lastSession string
		piece       bytes.Buffer
	)
	for begin, more := true, true; more; begin = false {
		more = false
		piece.Reset()
		count := 0
		err := a.Store.View(func(r *store.Reader) error {
			if _, err := r.KeyBackup(q.user, version); err != nil {
				return orNoBackup(err)
			}
			return r.BackupKeys(q.user, version, room, lastRoom, lastSession, func(of eventgraph.RoomID, session string, data json.RawMessage) (bool, error) {
				if count == backupKeysAtOnce || piece.Len() >= backupBytes {
					more = true
					return false, nil
				}
				count++
				switch {
				case of == lastRoom:
					piece.WriteByte(',')
				case room == "" && lastRoom != "":
					piece.WriteString("}},")
				}
				if room == "" && of != lastRoom {
					piece.Write(append(appendString(nil, string(of)), `:{"sessions":{`...))
				}
				piece.Write(append(appendString(nil, session), ':'))
				piece.Write(data)
				lastRoom, lastSession = of, session
				return true, nil
			})
		})
		switch {
		case err != nil && begin:
			return nil, err
		case err != nil, q.Context().Err() != nil: // deleted meanwhile, broken, or the client has gone
			panic(http.ErrAbortHandler)
		case begin:
			jsonHeader(q.w)
			q.w.WriteHeader(http.StatusOK)
			w = bufio.NewWriter(q.w)
			if room == "" {
				w.WriteString(`{"rooms":{`) // its errors come again with Flush
			} else {
				w.WriteString(`{"sessions":{`)
			}
		}
		w.Write(piece.Bytes())
	}
	if room == "" && lastRoom != "" {
		w.WriteString("}}")
	}
	w.WriteString("}}")
	w.Flush() // the client has gone if this fails
	return written{}, nil
}

// deleteAllBackupKeys is DELETE /room_keys/keys.
func (a *API) deleteAllBackupKeys(q *request) (any, error) { return a.deleteBackupKeys(q, "", "") }

// deleteRoomBackupKeys is DELETE /room_keys/keys/{roomId}.
func (a *API) deleteRoomBackupKeys(q *request) (any, error) {
	return a.deleteBackupKeys(q, eventgraph.RoomID(q.path("roomId")), "")
}

// deleteBackupKey is DELETE /room_keys/keys/{roomId}/{sessionId}.
func (a *API) deleteBackupKey(q *request) (any, error) {
	return a.deleteBackupKeys(q, eventgraph.RoomID(q.path("roomId")), q.path("sessionId"))
}

// deleteBackupKeys removes the keys of one room ("" = all), of one session ("" = all of the room). That there are none is no error.
func (a *API) deleteBackupKeys(q *request, room eventgraph.RoomID, session string) (any, error) {
	version, err := keysVersion(q)
	if err != nil {
		return nil, err
	}
	var after *store.KeyBackup
	for more := true; more; {
		_, err := a.Store.Update(q.Context(), func(tx *store.Tx) (err error) {
			after, more, err = tx.DeleteBackupKeys(q.user, version, room, session)
			return orNoBackup(err)
		})
		if err != nil {
			return nil, err
		}
	}
	return a.keysChanged(after), nil
}
