package clientapi

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/federation"
	"github.com/plexus-p2p/plexus/store"
)

func encodeKey(public ed25519.PublicKey) string { return base64.RawStdEncoding.EncodeToString(public) }

// keyPair signs as a user, under "ed25519:" and a device ID or the public key itself.
type keyPair struct {
	user    eventgraph.UserID
	name    string
	private ed25519.PrivateKey
}

func newKeyPair(user eventgraph.UserID, device store.DeviceID, seed byte) keyPair {
	k := keyPair{user: user, name: string(device), private: ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))}
	if device == "" {
		k.name = k.public()
	}
	return k
}

func (k keyPair) public() string { return encodeKey(k.private.Public().(ed25519.PublicKey)) }

// sign returns the object with this key's signature added.
func (k keyPair) sign(t testing.TB, object any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := eventgraph.SignJSON(raw, eventgraph.SigningKey{
		Server: eventgraph.ServerName(k.user), ID: eventgraph.KeyID("ed25519:" + k.name), Private: k.private})
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (k keyPair) deviceKeys(t testing.TB) json.RawMessage {
	return k.sign(t, map[string]any{
		"user_id": k.user, "device_id": k.name, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys": map[string]string{"ed25519:" + k.name: k.public(), "curve25519:" + k.name: "AAAA"},
	})
}

func (k keyPair) crossSigning(t testing.TB, usage string, by *keyPair) json.RawMessage {
	object := map[string]any{"user_id": k.user, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + k.name: k.name}}
	if by != nil {
		return by.sign(t, object)
	}
	raw, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (k keyPair) oneTimeKeys(t testing.TB, from, n int) map[string]any {
	keys := map[string]any{}
	for i := from; i < from+n; i++ {
		keys[fmt.Sprintf("signed_curve25519:K%03d", i)] = k.sign(t, map[string]string{"key": fmt.Sprintf("key%d", i)})
	}
	return keys
}

// withKeys uploads device keys and n one-time keys for the client.
func (c client) withKeys(seed byte, n int) keyPair {
	c.s.t.Helper()
	k := newKeyPair(c.user, c.device, seed)
	c.call(200, "POST", "/v3/keys/upload", map[string]any{"device_keys": k.deviceKeys(c.s.t), "one_time_keys": k.oneTimeKeys(c.s.t, 0, n)})
	return k
}

func (c client) queryKeys(users ...eventgraph.UserID) *keysAnswer {
	c.s.t.Helper()
	wanted := map[eventgraph.UserID][]string{}
	for _, user := range users {
		wanted[user] = []string{}
	}
	a := c.call(200, "POST", "/v3/keys/query", map[string]any{"device_keys": wanted})
	var keys keysAnswer
	if err := json.Unmarshal([]byte(a.raw), &keys); err != nil {
		c.s.t.Fatal(err)
	}
	return &keys
}

func TestUploadKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	bobSince := bob.sync("").NextBatch
	k := newKeyPair(alice.user, alice.device, 1)
	other := newKeyPair(alice.user, "OTHER", 2)
	upload := func(want int, body map[string]any) answer {
		t.Helper()
		return alice.call(want, "POST", "/v3/keys/upload", body)
	}
	upload(400, map[string]any{"one_time_keys": k.oneTimeKeys(t, 0, 1)}) // whose?
	upload(400, map[string]any{"device_keys": other.deviceKeys(t)})
	forged := keyPair{alice.user, string(alice.device), other.private}
	bad := forged.sign(t, map[string]any{"user_id": alice.user, "device_id": alice.device, "algorithms": []string{},
		"keys": map[string]string{"ed25519:" + k.name: k.public()}})
	if a := upload(400, map[string]any{"device_keys": bad}); a.code() != "M_INVALID_SIGNATURE" {
		t.Error(a.raw)
	}
	if a := upload(400, map[string]any{"device_keys": map[string]any{"user_id": alice.user, "device_id": alice.device}}); a.code() != "M_BAD_JSON" {
		t.Error(a.raw)
	}
	if got := bob.queryKeys(alice.user).DeviceKeys[alice.user]; len(got) != 0 {
		t.Errorf("refused keys are shown: %s", got)
	}

	counts := upload(200, map[string]any{"device_keys": k.deviceKeys(t), "one_time_keys": k.oneTimeKeys(t, 0, 3),
		"fallback_keys": map[string]any{"signed_curve25519:F": k.sign(t, map[string]any{"key": "f", "fallback": true})}})
	if n := counts.body["one_time_key_counts"].(map[string]any)["signed_curve25519"]; n != 3.0 {
		t.Errorf("counts: %s", counts.raw)
	}
	upload(200, map[string]any{"one_time_keys": k.oneTimeKeys(t, 0, 3)}) // the answer was lost
	upload(400, map[string]any{"one_time_keys": map[string]any{"signed_curve25519:K000": k.sign(t, map[string]string{"key": "another"})}})
	upload(400, map[string]any{"one_time_keys": map[string]any{"signed_curve25519:K9": other.sign(t, map[string]string{"key": "x"})}})

	body := alice.sync("")
	if body.OneTimeKeys["signed_curve25519"] != 3 || !slices.Equal(body.UnusedFallback, []string{"signed_curve25519"}) {
		t.Errorf("sync: %v %v", body.OneTimeKeys, body.UnusedFallback)
	}
	told := bob.sync(bobSince)
	if !slices.Equal(told.DeviceLists.Changed, []eventgraph.UserID{alice.user}) {
		t.Errorf("bob is told of %v", told.DeviceLists)
	}
	got := bob.queryKeys(alice.user).DeviceKeys[alice.user][alice.device]
	public := k.private.Public().(ed25519.PublicKey)
	if err := eventgraph.VerifyJSON(got, eventgraph.ServerName(alice.user), eventgraph.KeyID("ed25519:"+k.name), public); err != nil {
		t.Errorf("keys as served: %v", err)
	}
	changes := bob.call(200, "GET", "/v3/keys/changes?from="+bobSince+"&to="+told.NextBatch, nil)
	if !slices.Contains(changes.body["changed"].([]any), any(string(alice.user))) {
		t.Errorf("keys/changes: %s", changes.raw)
	}
	// Signing out a device is a change too.
	alice.call(200, "POST", "/v3/logout", nil)
	if told := bob.sync(told.NextBatch); !slices.Contains(told.DeviceLists.Changed, alice.user) {
		t.Error("bob is not told of the logout")
	}
}

func (c client) claim(user eventgraph.UserID, device store.DeviceID) string {
	c.s.t.Helper()
	a := c.call(200, "POST", "/v3/keys/claim", map[string]any{
		"one_time_keys": map[string]any{string(user): map[string]any{string(device): "signed_curve25519"}}})
	var body struct {
		OneTimeKeys claimed `json:"one_time_keys"`
	}
	if err := json.Unmarshal([]byte(a.raw), &body); err != nil {
		c.s.t.Fatal(err)
	}
	for id := range body.OneTimeKeys[user][device] {
		return id
	}
	return ""
}

func TestOneTimeKeysAreClaimedOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	const keys = 20
	k := alice.withKeys(1, keys)
	alice.call(200, "POST", "/v3/keys/upload", map[string]any{"fallback_keys": map[string]any{
		"signed_curve25519:F": k.sign(t, map[string]any{"key": "f", "fallback": true})}})
	since := alice.sync("").NextBatch

	var mu sync.Mutex
	var wg sync.WaitGroup
	got := map[string]int{}
	for range keys + 4 {
		wg.Go(func() {
			id := bob.claim(alice.user, alice.device)
			mu.Lock()
			defer mu.Unlock()
			got[id]++
		})
	}
	wg.Wait()
	for id, n := range got {
		if id == "signed_curve25519:F" {
			if n != 4 {
				t.Errorf("the fallback key was given %d times", n)
			}
		} else if n != 1 {
			t.Errorf("%q was given %d times", id, n)
		}
	}
	if len(got) != keys+1 {
		t.Errorf("%d different keys, want %d", len(got), keys+1)
	}
	body := alice.sync(since)
	if body.OneTimeKeys["signed_curve25519"] != 0 || len(body.UnusedFallback) != 0 {
		t.Errorf("left: %v %v", body.OneTimeKeys, body.UnusedFallback)
	}
	if bob.claim(alice.user, "NOSUCH") != "" {
		t.Error("a key of a device that is not")
	}
}

func TestOneTimeKeysGoOutInTheOrderOfTheirUpload(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	k := alice.withKeys(1, 0)
	for _, i := range []int{9, 5, 7} {
		alice.call(200, "POST", "/v3/keys/upload", map[string]any{"one_time_keys": k.oneTimeKeys(t, i, 1)})
	}
	for _, want := range []int{9, 5, 7} {
		if got := alice.claim(alice.user, alice.device); got != fmt.Sprintf("signed_curve25519:K%03d", want) {
			t.Errorf("got %s, want %d", got, want)
		}
	}
}

func TestCrossSigning(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	room := alice.room()
	bob.join(room)
	device := alice.withKeys(1, 0)
	master, self, user := newKeyPair(alice.user, "", 2), newKeyPair(alice.user, "", 3), newKeyPair(alice.user, "", 4)
	const upload = "/v3/keys/device_signing/upload"
	alice.call(400, "POST", upload, map[string]any{"self_signing_key": self.crossSigning(t, "self_signing", &master)}) // no master key
	if a := alice.call(400, "POST", upload, map[string]any{"master_key": master.crossSigning(t, "master", nil),
		"self_signing_key": self.crossSigning(t, "self_signing", &user)}); a.code() != "M_INVALID_SIGNATURE" {
		t.Error(a.raw)
	}
	keys := map[string]any{
		"master_key":       master.crossSigning(t, "master", nil),
		"self_signing_key": self.crossSigning(t, "self_signing", &master),
		"user_signing_key": user.crossSigning(t, "user_signing", &master),
	}
	since := bob.sync("").NextBatch
	alice.call(200, "POST", upload, keys)
	alice.call(200, "POST", upload, keys) // the same again asks for nothing
	if !slices.Contains(bob.sync(since).DeviceLists.Changed, alice.user) {
		t.Error("bob is not told")
	}
	newMaster := newKeyPair(alice.user, "", 5)
	replace := map[string]any{"master_key": newMaster.crossSigning(t, "master", nil)}
	alice.call(401, "POST", upload, replace)
	if got := bob.queryKeys(alice.user); store.CrossSigningPublicKey(got.MasterKeys[alice.user]) != master.name ||
		got.SelfSigning[alice.user] == nil || got.UserSigning[alice.user] != nil {
		t.Errorf("bob sees %+v", got)
	}
	if alice.queryKeys(alice.user).UserSigning[alice.user] == nil {
		t.Error("alice does not see her user-signing key")
	}

	// Signatures: her device by her self-signing key, her master key by her device, bob's master key by her user-signing key.
	bobMaster := newKeyPair(bob.user, "", 6)
	bob.call(200, "POST", upload, map[string]any{"master_key": bobMaster.crossSigning(t, "master", nil)})
	sign := func(by keyPair, object json.RawMessage) json.RawMessage { return by.sign(t, object) }
	signatures := map[string]any{
		string(alice.user): map[string]any{
			string(alice.device): sign(self, device.deviceKeys(t)),
			master.name:          sign(device, master.crossSigning(t, "master", nil)),
		},
		string(bob.user): map[string]any{
			bobMaster.name: sign(user, bobMaster.crossSigning(t, "master", nil)),
			"nosuch":       sign(user, bobMaster.crossSigning(t, "master", nil)),
		},
	}
	a := alice.call(200, "POST", "/v3/keys/signatures/upload", signatures)
	failures := a.body["failures"].(map[string]any)
	if len(failures) != 1 || len(failures[string(bob.user)].(map[string]any)) != 1 {
		t.Errorf("failures: %s", a.raw)
	}
	a = alice.call(200, "POST", "/v3/keys/signatures/upload", map[string]any{string(alice.user): map[string]any{
		string(alice.device): sign(user, device.deviceKeys(t))}}) // not what a user-signing key is for
	if len(a.body["failures"].(map[string]any)) != 1 {
		t.Errorf("wrong key: %s", a.raw)
	}
	signedBy := func(object json.RawMessage, by keyPair) bool {
		public := by.private.Public().(ed25519.PublicKey)
		return eventgraph.VerifyJSON(object, eventgraph.ServerName(by.user), eventgraph.KeyID("ed25519:"+by.name), public) == nil
	}
	seen := bob.queryKeys(alice.user, bob.user)
	if !signedBy(seen.DeviceKeys[alice.user][alice.device], self) || !signedBy(seen.DeviceKeys[alice.user][alice.device], device) {
		t.Errorf("device: %s", seen.DeviceKeys[alice.user][alice.device])
	}
	if !signedBy(seen.MasterKeys[alice.user], device) {
		t.Errorf("master key: %s", seen.MasterKeys[alice.user])
	}
	if signedBy(seen.MasterKeys[bob.user], user) {
		t.Error("bob sees whom alice has verified")
	}
	if !signedBy(alice.queryKeys(bob.user).MasterKeys[bob.user], user) {
		t.Error("alice does not see her own signature")
	}
}

func TestToDeviceIsGivenUntilAcknowledged(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	second := s.logIn("alice", "SECOND")
	send := func(txn, device, body string) {
		t.Helper()
		bob.call(200, "PUT", "/v3/sendToDevice/m.test/"+txn, map[string]any{"messages": map[string]any{
			string(alice.user): map[string]any{device: map[string]any{"body": body}}}})
	}
	start := alice.sync("").NextBatch
	send("1", "*", "one")
	send("1", "*", "one again")
	send("2", string(alice.device), "two")
	send("3", "NOSUCH", "nobody")
	bodies := func(b syncBody) (out []string) {
		for _, e := range b.ToDevice.Events {
			out = append(out, e.Content["body"].(string))
			if e.Sender != bob.user || e.Type != "m.test" {
				t.Errorf("%+v", e)
			}
		}
		return out
	}
	first := alice.sync(start)
	wantList(t, "first", bodies(first), "one", "two")
	wantList(t, "the answer was lost", bodies(alice.sync(start)), "one", "two")
	wantList(t, "a new start", bodies(alice.sync("")), "one", "two")
	wantList(t, "another device's token", bodies(second.sync(first.NextBatch)), "one")
	wantList(t, "another device's token acknowledges nothing", bodies(second.sync(start)), "one")
	wantList(t, "acknowledged", bodies(alice.sync(first.NextBatch)))
	wantList(t, "deleted", bodies(alice.sync(start)))

	// More than fit into one answer come in order, each once.
	for i := range maxToDevice + 20 {
		send(fmt.Sprint("m", i), string(alice.device), fmt.Sprint(i))
	}
	one := alice.sync(first.NextBatch)
	two := alice.sync(one.NextBatch)
	all := append(bodies(one), bodies(two)...)
	if len(one.ToDevice.Events) != maxToDevice || len(all) != maxToDevice+20 {
		t.Fatalf("%d, then %d", len(one.ToDevice.Events), len(two.ToDevice.Events))
	}
	for i, body := range all {
		if body != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, body)
		}
	}
	wantList(t, "all taken", bodies(alice.sync(two.NextBatch)))
}

// keyServer is a Remote that answers for one remote user.
type keyServer struct {
	*unreachable
	mu      sync.Mutex
	away    bool
	devices *store.DeviceList
	asked   int
}

func (k *keyServer) UserDevices(_ context.Context, user eventgraph.UserID) (json.RawMessage, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.away || user != k.devices.User {
		return nil, federation.ErrUnreachable
	}
	k.asked++
	return json.Marshal(k.devices)
}

func (k *keyServer) ClaimKeys(_ context.Context, _ eventgraph.ServerName, body json.RawMessage) (json.RawMessage, error) {
	return json.RawMessage(`{"one_time_keys":{"@rita:remote":{"R1":{"signed_curve25519:X":{"key":"x","signatures":{}}},"R9":{"signed_curve25519:Y":{}}}}}`), nil
}

// remoteMember joins a user of another server by force, as federation would have it.
func (s *testServer) remoteMember(room eventgraph.RoomID, user eventgraph.UserID) {
	s.t.Helper()
	s.update(func(tx *store.Tx) error {
		return tx.PutMember(&store.Member{Room: room, User: user, Membership: "join"})
	})
}

func TestRemoteDeviceLists(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	const rita = eventgraph.UserID("@rita:remote")
	s.remoteMember(room, rita)
	r1, r2 := newKeyPair(rita, "R1", 1), newKeyPair(rita, "R2", 2)
	remote := &keyServer{unreachable: s.remote, devices: &store.DeviceList{User: rita, StreamID: 5,
		Devices: []store.ListedDevice{{ID: "R1", Keys: r1.deviceKeys(t)}, {ID: "EVIL", Keys: r1.deviceKeys(t)}}}}
	s.SetRemote(remote)
	shown := func() (ids []string) {
		t.Helper()
		for id := range alice.queryKeys(rita).DeviceKeys[rita] {
			ids = append(ids, string(id))
		}
		slices.Sort(ids)
		return ids
	}
	asked := func(want int) {
		t.Helper()
		if remote.asked != want {
			t.Errorf("the server was asked %d times, want %d", remote.asked, want)
		}
	}
	update := func(stream, prev int64, k keyPair, more string) {
		t.Helper()
		edu := fmt.Sprintf(`{"user_id":%q,"device_id":%q,"stream_id":%d,"prev_id":[%d],"keys":%s%s}`, rita, k.name, stream, prev, k.deviceKeys(t), more)
		if err := s.ReceiveEDU(context.Background(), "remote", "m.device_list_update", json.RawMessage(edu)); err != nil {
			t.Fatal(err)
		}
	}
	wantList(t, "asked for", shown(), "R1")
	wantList(t, "cached", shown(), "R1")
	asked(1)

	since := alice.sync("").NextBatch
	update(6, 5, r2, "")
	if told := alice.sync(since).DeviceLists.Changed; !slices.Contains(told, rita) {
		t.Errorf("told of %v", told)
	}
	wantList(t, "an update that follows", shown(), "R1", "R2")
	asked(1)
	update(7, 6, r1, `,"deleted":true`)
	wantList(t, "a deletion", shown(), "R2")
	update(6, 5, r1, "")
	wantList(t, "an old update repeated", shown(), "R2")

	remote.away = true
	update(9, 8, r1, "") // 8 never came
	answer := alice.queryKeys(rita)
	if answer.Failures["remote"] == nil || answer.DeviceKeys[rita]["R2"] == nil {
		t.Errorf("a stale list while the server is away: %+v", answer)
	}
	remote.away, remote.devices.StreamID = false, 9
	wantList(t, "fetched again", shown(), "R1")
	asked(2)
	update(10, 9, r2, "")
	wantList(t, "and on", shown(), "R1", "R2")
	asked(2)

	// She leaves and comes back: meanwhile her server told us nothing.
	s.update(func(tx *store.Tx) error {
		pos, err := tx.LogRemoteDevices("@someone:else")
		if err != nil {
			return err
		}
		return tx.PutMember(&store.Member{Room: room, User: rita, Membership: "join", Position: pos})
	})
	wantList(t, "fetched after an absence", shown(), "R1")
	asked(3)

	claims := alice.call(200, "POST", "/v3/keys/claim", map[string]any{"one_time_keys": map[string]any{
		string(rita): map[string]any{"R1": "signed_curve25519"}}})
	if got := claims.body["one_time_keys"].(map[string]any)[string(rita)].(map[string]any); len(got) != 1 {
		t.Errorf("claimed: %s", claims.raw)
	}
	const stranger = eventgraph.UserID("@x:elsewhere")
	if alice.queryKeys(stranger).Failures["elsewhere"] == nil {
		t.Error("a server out of reach is no failure")
	}
}

// TestToDeviceForAServerLongAway: what is for a server for which too much waits is not accepted, and holds up nobody else.
func TestToDeviceForAServerLongAway(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	server := func(seed byte) eventgraph.ServerName {
		return eventgraph.NewServerName(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32)).Public().(ed25519.PublicKey))
	}
	away, other := server(8), server(9)
	if away > other { // the parts are written in order of names
		away, other = other, away
	}
	size := 500 << 10
	var first uint64
	for n := 0; ; n++ {
		_, err := s.Store.Update(t.Context(), func(tx *store.Tx) error {
			o := &store.Outbound{Server: away, Kind: "m.direct_to_device", Body: []byte(`{"x":"` + strings.Repeat("x", size) + `"}`)}
			_, err := tx.PutOutbound(o)
			if n == 0 {
				first = o.Seq
			}
			return err
		})
		if errors.Is(err, store.ErrOutboundFull) {
			if size /= 2; size < 100 {
				break
			}
		} else if err != nil {
			t.Fatal(err)
		}
	}
	queued := func(server eventgraph.ServerName) (n int) {
		err := s.Store.View(func(r *store.Reader) error {
			return r.Outbound(server, 0, func(*store.Outbound) (bool, error) { n++; return true, nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	full := queued(away)
	put := func(status int) answer {
		return alice.call(status, "PUT", "/v3/sendToDevice/m.test/1", map[string]any{"messages": map[string]any{
			"@x:" + string(away): map[string]any{"D": map[string]any{"k": strings.Repeat("y", 1000)}}, "@x:" + string(other): map[string]any{"D": map[string]any{}},
		}})
	}
	if a := put(429); a.code() != "M_LIMIT_EXCEEDED" || a.body["retry_after_ms"] == nil {
		t.Errorf("refused with %s", a.raw)
	}
	if queued(away) != full || queued(other) != 1 {
		t.Errorf("%d wait for the server that is away, %d did; %d for the other", queued(away), full, queued(other))
	}
	s.update(func(tx *store.Tx) error { return tx.DeleteOutbound(away, first) })
	put(200)
	if queued(away) != full || queued(other) != 1 {
		t.Errorf("after a repetition %d wait for the server that is away, of %d, and %d for the other", queued(away), full, queued(other))
	}
}

func TestToDeviceAcrossServers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	remote := eventgraph.NewServerName(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)).Public().(ed25519.PublicKey))
	users := map[string]any{"@x:no-server-of-this-network": map[string]any{"D": map[string]any{}}}
	for i := range 150 {
		users[fmt.Sprintf("@u%d:%s", i, remote)] = map[string]any{"D": map[string]any{"n": i}}
	}
	for range 2 { // the second is a repetition
		alice.call(200, "PUT", "/v3/sendToDevice/m.test/1", map[string]any{"messages": users})
	}
	var edus []directToDeviceEDU
	err := s.Store.View(func(r *store.Reader) error {
		return r.Outbound(remote, 0, func(o *store.Outbound) (bool, error) {
			var edu directToDeviceEDU
			err := json.Unmarshal(o.Body, &edu)
			edus = append(edus, edu)
			return true, err
		})
	})
	if err == nil {
		err = s.Store.View(func(r *store.Reader) error {
			return r.Outbound("no-server-of-this-network", 0, func(*store.Outbound) (bool, error) {
				t.Error("a message is queued for what is no server name")
				return false, nil
			})
		})
	}
	if err != nil || len(edus) != 2 || len(edus[0].Messages)+len(edus[1].Messages) != 150 || len(edus[0].Messages) > maxEDUMessages {
		t.Fatalf("%d EDUs, %v", len(edus), err)
	}
	if edus[0].MessageID == edus[1].MessageID || len(edus[0].MessageID) > 32 || edus[0].Sender != alice.user {
		t.Errorf("%+v", edus[0])
	}

	since := alice.sync("").NextBatch
	edu := fmt.Sprintf(`{"sender":"@rita:remote","type":"m.test","message_id":"m1","messages":{%q:{"*":{"x":1}},"@no:where":{"*":{}}}}`, alice.user)
	for range 2 {
		if err := s.ReceiveEDU(context.Background(), "remote", "m.direct_to_device", json.RawMessage(edu)); err != nil {
			t.Fatal(err)
		}
	}
	if got := alice.sync(since).ToDevice.Events; len(got) != 1 || got[0].Sender != "@rita:remote" {
		t.Errorf("received %+v", got)
	}
	forged := []byte(`{"sender":"@rita:other","type":"m.test","message_id":"m2","messages":{}}`)
	if err := s.ReceiveEDU(context.Background(), "remote", "m.direct_to_device", forged); err != nil {
		t.Errorf("a forged EDU must be dropped, not repeated: %v", err)
	}
}

func TestDeviceListsForOtherServers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	k := alice.withKeys(1, 1)
	raw, err := s.Devices(context.Background(), alice.user)
	if err != nil {
		t.Fatal(err)
	}
	var list store.DeviceList
	if err := json.Unmarshal(raw, &list); err != nil || len(list.Devices) != 1 || list.Devices[0].ID != alice.device || list.StreamID == 0 {
		t.Errorf("%s, %v", raw, err)
	}
	if _, err := s.Devices(context.Background(), "@nobody:"+eventgraph.UserID(s.Server)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nobody's devices: %v", err)
	}
	from := s.Store.Position()
	alice.call(200, "PUT", "/v3/devices/"+url.PathEscape(string(alice.device)), map[string]any{"display_name": "phone"})
	alice.call(200, "POST", "/v3/logout", nil)
	var edus []string
	err = s.Store.View(func(r *store.Reader) error {
		return r.Changes(from, s.Store.Position(), func(_ store.Position, c store.Change) (bool, error) {
			if c.Kind != store.ChangeDeviceList {
				return true, nil
			}
			kind, content, err := r.DeviceListEDU(c)
			edus = append(edus, fmt.Sprint(kind, string(content)))
			return true, err
		})
	})
	want := []string{
		fmt.Sprintf(`m.device_list_update{"user_id":%q,"device_id":%q,"stream_id":%d,"prev_id":[%d],"deleted":true}`, alice.user, k.name, list.StreamID+1, list.StreamID),
		fmt.Sprintf(`m.device_list_update{"user_id":%q,"device_id":%q,"stream_id":%d,"prev_id":[%d],"deleted":true}`, alice.user, k.name, list.StreamID+2, list.StreamID+1),
	}
	if err != nil {
		t.Fatal(err)
	}
	wantList(t, "EDUs", edus, want...)
}

func TestNewIncarnationDropsOneTimeKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice, bob := s.newClient("alice"), s.newClient("bob")
	alice.withKeys(1, 5)
	now := time.UnixMilli(1_900_000_000_000)
	for range 2 { // once per incarnation
		if err := s.Store.DropOneTimeKeys(context.Background(), now); err != nil {
			t.Fatal(err)
		}
	}
	if bob.claim(alice.user, alice.device) != "" {
		t.Error("a one-time key outlived its incarnation")
	}
	if n := alice.sync("").OneTimeKeys["signed_curve25519"]; n != 0 {
		t.Errorf("%d keys are counted", n)
	}
	var list *store.DeviceList
	err := s.Store.View(func(r *store.Reader) (err error) {
		list, err = r.DeviceList(alice.user)
		return err
	})
	if err != nil || list.StreamID <= uint64(now.UnixMilli()) || list.StreamID > uint64(now.UnixMilli())+2 {
		t.Errorf("stream ID %d, %v", list.StreamID, err)
	}
}
