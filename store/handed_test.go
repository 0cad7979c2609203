package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestHandedKeys(t *testing.T) {
	t.Parallel()
	s := open(t)
	const user, other = eventgraph.UserID("@u:far"), eventgraph.UserID("@o:elsewhere")
	bundle := func(user eventgraph.UserID, digest byte, n int) *HandedKeys {
		return &HandedKeys{User: user, Digest: []byte{digest}, TS: 5, Signed: json.RawMessage(`{"bundle":{"x":"` + strings.Repeat("x", n) + `"}}`)}
	}
	changes := func() (n int) {
		s.View(func(r *Reader) error {
			return r.Changes(0, s.Position(), func(_ Position, c Change) (bool, error) {
				if c.Kind == ChangeDeviceList && c.User == user {
					n++
				}
				return true, nil
			})
		})
		return n
	}
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutHandedKeys(bundle(user, 1, 1)), tx.PutHandedKeys(bundle(other, 1, 1)))
	})
	if changes() != 1 {
		t.Error("keys of somebody not cached are told as changed")
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutHandedKeys(bundle(user, 1, 1)) })
	if changes() != 1 {
		t.Error("the same keys are told as changed")
	}
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutRemoteDevices(&RemoteDevices{User: user}), tx.PutHandedKeys(bundle(user, 2, 2)))
	})
	if changes() != 1 {
		t.Error("keys that are followed otherwise are told as changed")
	}
	// An update that came by no other way: the cache does not have it.
	mustUpdate(t, s, func(tx *Tx) error {
		err := tx.PutRemoteDevices(&RemoteDevices{User: user, StreamID: 6, Seen: 7})
		for i, stream := range []int{6, 7} {
			b := bundle(user, byte(3+i), 1)
			b.Signed = json.RawMessage(fmt.Sprintf(`{"bundle":{"stream_id":%d}}`, stream))
			err = errors.Join(err, tx.PutHandedKeys(b))
		}
		return err
	})
	if changes() != 1 {
		t.Error("keys that the cache has are told as changed")
	}
	for i, want := range []int{2, 3} { // the second while the cache is known to be old
		mustUpdate(t, s, func(tx *Tx) error {
			b := bundle(user, byte(5+i), 1)
			b.Signed = json.RawMessage(fmt.Sprintf(`{"bundle":{"stream_id":%d}}`, 8+i))
			return tx.PutHandedKeys(b)
		})
		s.View(func(r *Reader) error {
			if cached, err := r.RemoteDevices(user); err != nil || !cached.Stale || cached.StreamID != 6 || cached.Seen != int64(8+i) || changes() != want {
				t.Errorf("%+v, %v, told %d times", cached, err, changes())
			}
			return nil
		})
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutHandedKeys(bundle(user, 2, 2)) })
	s.View(func(r *Reader) error {
		h, err := r.HandedKeys(user)
		if err != nil || string(h.Bundle) != `{"x":"xx"}` || h.TS != 5 || h.Digest[0] != 2 {
			t.Errorf("%+v, %v", h, err)
		}
		return nil
	})

	// Bounds: of a server, and a failure changes nothing.
	full := error(nil)
	for i := 0; full == nil; i++ {
		if i > 10 {
			t.Fatal("without a bound")
		}
		mustUpdate(t, s, func(tx *Tx) error {
			full = tx.PutHandedKeys(bundle(eventgraph.UserID(fmt.Sprintf("@u%d:far", i)), 1, 600<<10))
			if errors.Is(full, ErrHandedFull) {
				return tx.PutHandedKeys(bundle("@small:far", 1, 100))
			}
			return full
		})
		if full != nil && i < 5 {
			t.Errorf("full after %d", i)
		}
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.PutHandedSum("far", []byte("sum")) })
	var servers []eventgraph.ServerName
	var users []eventgraph.UserID
	s.View(func(r *Reader) error {
		err := r.HandedServers(func(s eventgraph.ServerName) (bool, error) { servers = append(servers, s); return true, nil })
		return errors.Join(err, r.HandedBy("far", func(h *HandedKeys) (bool, error) { users = append(users, h.User); return true, nil }))
	})
	slices.Sort(servers)
	if servers = slices.Compact(servers); !slices.Equal(servers, []eventgraph.ServerName{"elsewhere", "far"}) {
		t.Errorf("servers: %v", servers)
	}
	mustUpdate(t, s, func(tx *Tx) error {
		for _, user := range append(users, other) {
			if err := tx.DeleteHandedKeys(user); err != nil {
				return err
			}
		}
		return errors.Join(tx.PutHandedSum("far", nil), tx.DeleteHandedKeys(user))
	})
	s.View(func(r *Reader) error {
		sum, err := r.HandedSum("far")
		err = errors.Join(err, r.HandedServers(func(s eventgraph.ServerName) (bool, error) { t.Errorf("something is left of %s", s); return true, nil }))
		if all, _ := r.getNumber(key(tableMeta).str(metaHanded).str("")); err != nil || sum != nil || all != 0 {
			t.Errorf("left: sum %x, %d bytes, %v", sum, all, err)
		}
		return nil
	})
}

func TestCarriedIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	message := func(origin eventgraph.ServerName, ts int64, n int) *Carried {
		return &Carried{Destination: "b", Origin: origin, TS: ts, MessageID: "m", Received: 7, Signed: json.RawMessage(`"` + strings.Repeat("x", n) + `"`)}
	}
	kept := func() (all []*Carried) {
		t.Helper()
		err := s.View(func(r *Reader) error {
			return r.Carried("b", func(c *Carried) (bool, error) { all = append(all, c); return true, nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	// In the order of signing, each once.
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutCarried(message("a", 2, 10)), tx.PutCarried(message("a", 1, 10)), tx.PutCarried(message("a", 2, 10)))
	})
	if all := kept(); len(all) != 2 || all[0].TS != 1 || all[1].MessageID != "m" || all[1].Received != 7 || all[1].Origin != "a" {
		t.Fatalf("%+v", all)
	}
	// No origin has more than its part, and all together no more than theirs.
	fill := func(origin eventgraph.ServerName) (bytes int) {
		for i := range 20 {
			var full error
			mustUpdate(t, s, func(tx *Tx) error {
				if full = tx.PutCarried(message(origin, int64(10+i), 500<<10)); errors.Is(full, ErrCarriedFull) {
					return nil
				}
				return full
			})
			if full != nil {
				break
			}
			bytes += 500 << 10
		}
		return bytes
	}
	if n := fill("one"); n > MaxCarriedBytes || n < MaxCarriedBytes*8/10 {
		t.Errorf("%d bytes of one origin", n)
	}
	total := key(tableMeta).str(metaCarried).str("")
	others := uint64(MaxAllCarriedBytes - MaxCarriedBytes - 1<<20)
	change := func(f func(n uint64) uint64) {
		mustUpdate(t, s, func(tx *Tx) error {
			n, err := tx.getNumber(total)
			return errors.Join(err, tx.putNumber(total, f(n)))
		})
	}
	change(func(n uint64) uint64 { return n + others })
	if n := fill("two"); n > 2<<20 {
		t.Errorf("%d bytes of another, where there was room for one MiB", n)
	}
	change(func(n uint64) uint64 { return n - others })
	for _, c := range kept() {
		mustUpdate(t, s, func(tx *Tx) error { return errors.Join(tx.DeleteCarried(c), tx.DeleteCarried(c)) })
	}
	s.View(func(r *Reader) error {
		if all, err := r.getNumber(key(tableMeta).str(metaCarried).str("")); all != 0 || err != nil || len(kept()) > 0 {
			t.Errorf("%d bytes are left, %v", all, err)
		}
		return nil
	})
}

func TestCarriersOfOutbound(t *testing.T) {
	t.Parallel()
	s := open(t)
	o := &Outbound{Server: "b", Kind: "m.direct_to_device", Body: []byte(`{"x":1}`)}
	mustUpdate(t, s, func(tx *Tx) error { _, err := tx.PutOutbound(o); return err })
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.AddCarrier("b", o.Seq, "c"), tx.AddCarrier("b", o.Seq, "d"), tx.AddCarrier("b", o.Seq, "c"), tx.AddCarrier("b", o.Seq+9, "c"))
	})
	s.View(func(r *Reader) error {
		n := 0
		err := r.Outbound("b", 0, func(got *Outbound) (bool, error) {
			if n++; got.Kind != o.Kind || string(got.Body) != string(o.Body) || !slices.Equal(got.Carriers, []eventgraph.ServerName{"c", "d"}) {
				t.Errorf("%+v", got)
			}
			return true, nil
		})
		var servers []eventgraph.ServerName
		err = errors.Join(err, r.OutboundServers(func(s eventgraph.ServerName) (bool, error) { servers = append(servers, s); return true, nil }))
		if err != nil || n != 1 || !slices.Equal(servers, []eventgraph.ServerName{"b"}) {
			t.Errorf("%d items, servers %v, %v", n, servers, err)
		}
		return nil
	})
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteOutbound("b", o.Seq) })
	s.View(func(r *Reader) error {
		return r.OutboundServers(func(s eventgraph.ServerName) (bool, error) { t.Errorf("still for %s", s); return true, nil })
	})
}
