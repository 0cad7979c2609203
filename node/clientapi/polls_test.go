package clientapi

import (
	"context"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/store"
)

// Of more calls of a device than may wait the oldest is ended; other devices, and what has been answered, count for nothing.
func TestPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPolls()
		key := func(device string) deviceKey { return deviceKey{user: "@a:x", device: store.DeviceID(device)} }
		begin := func(device string) (context.Context, func()) {
			ctx, cancel := context.WithCancel(t.Context())
			t.Cleanup(cancel)
			return ctx, p.begin(key(device), cancel)
		}
		other, otherDone := begin("other")
		var calls []context.Context
		var done []func()
		for range pollsOfDevice {
			ctx, end := begin("phone")
			calls, done = append(calls, ctx), append(done, end)
		}
		time.Sleep(pollLeast)
		for range 2 {
			ctx, end := begin("phone")
			calls, done = append(calls, ctx), append(done, end)
		}
		synctest.Wait()
		for i, ctx := range calls {
			if ended := ctx.Err() != nil; ended != (i < 2) {
				t.Errorf("call %d has ended: %v", i, ended)
			}
		}
		done[2]()
		begin("phone")
		synctest.Wait()
		if calls[3].Err() != nil || other.Err() != nil {
			t.Error("a call was ended though there was a place")
		}
		otherDone()
		if len(p.of) != 1 {
			t.Errorf("%d devices are remembered", len(p.of))
		}
	})
}

// Windows of a client that are more than may wait, and call again as soon as they are answered, do not keep answering each other.
func TestPollsDoNotSpin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPolls()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		const windows = pollsOfDevice + 2
		var calls atomic.Int64
		var group sync.WaitGroup
		for range windows {
			group.Go(func() {
				for ctx.Err() == nil && calls.Add(1) < 10_000 {
					call, end := context.WithCancel(ctx)
					done := p.begin(deviceKey{user: "@a:x"}, end)
					<-call.Done()
					done()
					end()
				}
			})
		}
		group.Wait()
		if n, most := calls.Load(), int64(windows*(1+time.Minute/pollLeast)); n > most || n <= windows {
			t.Errorf("%d calls in a minute, of at most %d", n, most)
		}
	})
}

// A call that makes place for others is answered as one in whose time nothing happened.
func TestOldestPollIsAnswered(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.API.polls.least = 0
	alice := s.newClient("alice")
	since := s.send("GET", "/_matrix/client/v3/sync", alice.token, nil).text("next_batch")
	first := make(chan answer, pollsOfDevice+1)
	for range pollsOfDevice + 1 {
		go func() {
			first <- s.send("GET", "/_matrix/client/v3/sync?timeout=600000&since="+since, alice.token, nil)
		}()
	}
	if a := <-first; a.status != 200 || a.text("next_batch") == "" {
		t.Errorf("%d %s", a.status, a.raw)
	}
	alice.call(200, "PUT", "/v3/user/"+string(alice.user)+"/account_data/x", `{}`)
	for range pollsOfDevice {
		if a := <-first; a.status != 200 {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
}

// So is a call of /events, which wait beside those of /sync.
func TestOldestPeekIsAnswered(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, nil)
	s.API.polls.least = 0
	alice := s.newClient("alice")
	room := alice.room()
	from := alice.call(200, "GET", "/v3/events?timeout=0&room_id="+url.QueryEscape(string(room)), nil).text("end")
	first := make(chan answer, pollsOfDevice+1)
	for range pollsOfDevice + 1 {
		go func() {
			first <- s.send("GET", "/_matrix/client/v3/events?timeout=600000&from="+from+"&room_id="+url.QueryEscape(string(room)), alice.token, nil)
		}()
	}
	if a := <-first; a.status != 200 || a.text("end") != from {
		t.Errorf("%d %s", a.status, a.raw)
	}
	alice.say(room, "now")
	for range pollsOfDevice {
		if a := <-first; a.status != 200 {
			t.Errorf("%d %s", a.status, a.raw)
		}
	}
}
