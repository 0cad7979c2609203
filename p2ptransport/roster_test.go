package p2ptransport

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
)

// TestRosterSlowWatcher: a watcher that was busy hears the difference, and that a peer went and came back.
func TestRosterSlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Roster
		r.Add("a", 1, "addr a", false)
		r.Add("b", 2, "addr b", false)
		var heard []string
		resume := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Watch(ctx, func(e PeerEvent) {
				heard = append(heard, fmt.Sprint(e.Peer, e.Connected, e.Addr))
				if len(heard) == 2 {
					<-resume
				}
			})
		}()
		synctest.Wait()
		r.Remove("a", 1)
		r.Add("a", 3, "addr a2", false)
		r.Add("b", 4, "relay", true)
		r.Remove("b", 2) // still connected
		r.Add("c", 5, "addr c", false)
		r.Add("d", 6, "addr d", false)
		r.Remove("d", 6) // never heard of
		close(resume)
		synctest.Wait()
		r.Remove("b", 4)
		synctest.Wait()
		cancel()
		<-done
		want := "[atrueaddr a btrueaddr b afalse btruerelay atrueaddr a2 ctrueaddr c bfalse]"
		if got := fmt.Sprint(heard); got != want {
			t.Errorf("heard %s\nwant  %s", got, want)
		}
	})
}

func TestRosterBest(t *testing.T) {
	var r Roster
	r.Add("a", 1, "relayed", true)
	if p := r.Peers(); !p[0].Relay || p[0].Addr != "relayed" {
		t.Errorf("%+v", p)
	}
	if n := r.Add("a", 2, "direct", false); n != 2 {
		t.Errorf("%d connections", n)
	}
	if n := r.Add("a", 2, "direct", false); n != 2 {
		t.Errorf("%d connections after adding one twice", n)
	}
	if p := r.Peers(); p[0].Relay || p[0].Addr != "direct" {
		t.Errorf("%+v", p)
	}
	if n := r.Remove("a", 3); n != 2 {
		t.Errorf("%d connections after removing an unknown one", n)
	}
}

// TestRosterLink: a peer that is reached otherwise is told again, one that only has more connections is not.
func TestRosterLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Roster
		var heard []PeerEvent
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Watch(ctx, func(e PeerEvent) { heard = append(heard, e) })
		}()
		for _, step := range []func(){
			func() { r.Add("a", 1, "relay", true) },
			func() { r.Add("a", 2, "other relay", true) },
			func() { r.Add("a", 3, "direct", false) },
			func() { r.Add("a", 4, "direct too", false) },
			func() { r.Remove("a", 3) },
			func() { r.Remove("a", 4) },
			func() { r.Remove("a", 1) },
			func() { r.Remove("a", 2) },
		} {
			step()
			synctest.Wait()
		}
		cancel()
		<-done
		want := []PeerEvent{
			{"a", true, "relay", true}, {"a", true, "direct", false}, {"a", true, "relay", true}, {Peer: "a"},
		}
		if !slices.Equal(heard, want) {
			t.Errorf("heard %+v\nwant  %+v", heard, want)
		}
	})
}
