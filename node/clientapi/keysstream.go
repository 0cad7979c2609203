package clientapi

import (
	"bufio"
	"encoding/json"
	"maps"
	"net/http"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// maxKeptKeys bounds the cross-signing keys that are kept in memory while the devices before them are written. What is beyond it is read again.
const maxKeptKeys = 512 << 10

// streamKeys answers POST /keys/query user by user: who is in a room with users of a hostile server may be shown megabytes, which are never in memory
// together. Whose keys cannot be read is left out, and their server named in failures.
func (a *API) streamKeys(q *request, wanted map[eventgraph.UserID][]store.DeviceID, found []foundKeys, failures map[eventgraph.ServerName]any) (any, error) {
	keysOf := func(f foundKeys) *keysAnswer {
		one := newKeysAnswer()
		err := a.Store.View(func(r *store.Reader) error { return a.addFound(r, one, f, wanted[f.user], q.user) })
		if err != nil {
			a.Log.Error("a user's keys cannot be shown", "user", f.user, "error", err)
			failures[f.user.Server()] = showFailure(err)
			return newKeysAnswer()
		}
		return one
	}
	jsonHeader(q.w)
	q.w.WriteHeader(http.StatusOK)
	w := &objectWriter{w: bufio.NewWriter(q.w)} // its errors come again with Flush

	kept, size := newKeysAnswer(), 0
	var again []foundKeys // whose cross-signing keys are not kept
	w.begin(`{"device_keys":{`)
	for _, f := range found {
		if q.Context().Err() != nil {
			panic(http.ErrAbortHandler) // the client has gone
		}
		one := keysOf(f)
		for user, devices := range one.DeviceKeys {
			w.member(string(user), devices)
		}
		size += len(one.MasterKeys[f.user]) + len(one.SelfSigning[f.user]) + len(one.UserSigning[f.user])
		if size > maxKeptKeys {
			again = append(again, f)
			continue
		}
		maps.Copy(kept.MasterKeys, one.MasterKeys)
		maps.Copy(kept.SelfSigning, one.SelfSigning)
		maps.Copy(kept.UserSigning, one.UserSigning)
	}
	for _, part := range []struct {
		begin string
		keys  func(*keysAnswer) map[eventgraph.UserID]json.RawMessage
	}{
		{`},"master_keys":{`, func(k *keysAnswer) map[eventgraph.UserID]json.RawMessage { return k.MasterKeys }},
		{`},"self_signing_keys":{`, func(k *keysAnswer) map[eventgraph.UserID]json.RawMessage { return k.SelfSigning }},
		{`},"user_signing_keys":{`, func(k *keysAnswer) map[eventgraph.UserID]json.RawMessage { return k.UserSigning }},
	} {
		w.begin(part.begin)
		w.keys(part.keys(kept))
		for _, f := range again {
			w.keys(part.keys(keysOf(f)))
		}
	}
	w.begin(`},"failures":{`)
	for _, server := range slices.Sorted(maps.Keys(failures)) {
		w.member(string(server), failures[server])
	}
	w.begin("}}")
	w.w.Flush() // the client has gone if this fails
	return written{}, nil
}

// objectWriter writes the members of objects.
type objectWriter struct {
	w    *bufio.Writer
	more bool // a member of this object has been written
}

func (o *objectWriter) begin(s string) {
	o.w.WriteString(s)
	o.more = false
}

func (o *objectWriter) member(name string, value any) {
	raw, err := json.Marshal(value)
	if err != nil {
		return // keys are canonical JSON, the rest is ours
	}
	if o.more {
		o.w.WriteByte(',')
	}
	o.more = true
	o.w.Write(append(appendString(nil, name), ':'))
	o.w.Write(raw)
}

func (o *objectWriter) keys(of map[eventgraph.UserID]json.RawMessage) {
	for _, user := range slices.Sorted(maps.Keys(of)) {
		o.member(string(user), of[user])
	}
}
