package clientapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// fatServer's users have device lists that are larger than may be kept.
type fatServer struct{ *unreachable }

func (f *fatServer) IsConnected(eventgraph.ServerName) bool { return true }

func (f *fatServer) UserDevices(_ context.Context, user eventgraph.UserID) (json.RawMessage, error) {
	var devices []string
	for i := range 6 {
		devices = append(devices, fmt.Sprintf(`{"device_id":"D%d","keys":{"algorithms":[],"device_id":"D%d","keys":{},"signatures":{},"user_id":%q,"x":"%s"}}`, i, i, user, strings.Repeat("x", 31<<10)))
	}
	return json.RawMessage(fmt.Sprintf(`{"user_id":%q,"stream_id":1,"devices":[%s]}`, user, strings.Join(devices, ","))), nil
}

const fatUsers = 8

// TestFatLists: however much a server says of its users' devices, an answer to /keys/query takes little memory, and a list little room.
func TestFatLists(t *testing.T) { // not parallel: it measures
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	room := alice.room()
	s.SetRemote(&fatServer{s.remote})
	wanted := []string{}
	for i := range fatUsers {
		user := eventgraph.UserID(fmt.Sprintf("@u%d:remote", i))
		s.remoteMember(room, user)
		wanted = append(wanted, fmt.Sprintf(`%q:[]`, user))
	}
	query := func() (n int64) {
		req, _ := http.NewRequest("POST", s.url+"/_matrix/client/v3/keys/query", strings.NewReader(`{"device_keys":{`+strings.Join(wanted, ",")+`}}`))
		req.Header.Set("Authorization", "Bearer "+alice.token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer resp.Body.Close()
		n, _ = io.Copy(io.Discard, resp.Body)
		return n
	}
	if n := query(); n < fatUsers*60<<10 || n > fatUsers*store.MaxRemoteDeviceList {
		t.Errorf("the first answer has %d bytes", n)
	}
	peak := peakHeap(func() {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { query() })
		}
		wg.Wait()
	})
	t.Logf("8 answers at once take %d MiB", peak>>20)
	if peak > 24<<20 && !raceDetector {
		t.Errorf("8 answers at once take %d MiB", peak>>20)
	}
}

// peakHeap is how much more of the heap is in use at some time while f runs than before it.
func peakHeap(f func()) uint64 {
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	done, peak := make(chan struct{}), make(chan uint64)
	go func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		top := before.HeapInuse
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapInuse)
			select {
			case <-done:
				peak <- top
				return
			case <-tick.C:
			}
		}
	}()
	f()
	close(done)
	return <-peak - before.HeapInuse
}

// TestManyHonestDevices: of a user with more devices than are kept, those that are signed by the user are; and a hundred are few enough.
func TestManyHonestDevices(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	alice := s.newClient("alice")
	const rita, rob = eventgraph.UserID("@rita:remote"), eventgraph.UserID("@rob:remote")
	room := alice.room()
	s.remoteMember(room, rita)
	s.remoteMember(room, rob)
	listOf := func(user eventgraph.UserID, n int) *store.DeviceList {
		master, self := newKeyPair(user, "", 2), newKeyPair(user, "", 3)
		list := &store.DeviceList{User: user, StreamID: 5, Master: master.crossSigning(t, "master", nil), SelfSigning: self.crossSigning(t, "self_signing", &master)}
		for i := range n {
			id := store.DeviceID(fmt.Sprintf("DEVICE%04d", i))
			keys := newKeyPair(user, id, byte(i)).deviceKeys(t)
			if i%2 == 0 || n < 150 {
				var object map[string]any
				if err := json.Unmarshal(keys, &object); err != nil {
					t.Fatal(err)
				}
				keys = self.sign(t, object)
			}
			list.Devices = append(list.Devices, store.ListedDevice{ID: id, DisplayName: "Element on a telephone of Rita's", Keys: keys})
		}
		return list
	}
	s.SetRemote(&keyServer{unreachable: s.remote, devices: listOf(rita, 100)})
	if got := alice.queryKeys(rita).DeviceKeys[rita]; len(got) != 100 {
		t.Errorf("%d of 100 devices are shown", len(got))
	}
	raw, _ := json.Marshal(s.cached(t, rita))
	t.Logf("100 devices with their signatures take %d bytes", len(raw))
	s.SetRemote(&keyServer{unreachable: s.remote, devices: listOf(rob, 300)})
	got := alice.queryKeys(rob).DeviceKeys[rob]
	for i := 0; i < 100; i += 2 {
		if id := store.DeviceID(fmt.Sprintf("DEVICE%04d", i)); got[id] == nil {
			t.Errorf("the signed device %s is not shown", id)
		}
	}
	t.Logf("%d of 300 devices, half of them signed, are shown", len(got))
	if s.cached(t, rob).Stale {
		t.Error("the list is not kept")
	}
}
