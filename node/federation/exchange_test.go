package federation

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/p2ptransport/memnet"
)

// trickle announces a message of so many bytes and writes one byte of it every so often, until the other side has had enough.
func trickle(ctx context.Context, s io.ReadWriteCloser, size uint32, every time.Duration) (lasted time.Duration) {
	defer context.AfterFunc(ctx, func() { reset(s) })()
	began := time.Now()
	_, err := s.Write(binary.BigEndian.AppendUint32(nil, size))
	for err == nil && pause(ctx, every, nil) {
		_, err = s.Write([]byte(" "))
	}
	return time.Since(began)
}

// answersSlowly makes the host answer the first message of each exchange so.
func (h *memHost) answersSlowly(protocol string) {
	h.streams.Handle(protocol, func(ctx context.Context, _ eventgraph.PeerID, s io.ReadWriteCloser) {
		defer s.Close()
		var any json.RawMessage
		if readMessage(s, maxFrame, &any) == nil {
			trickle(ctx, s, 900, 25*time.Second)
		}
	})
}

// slowMembers are hosts in a room of the first host's who do nothing but what they are told.
func slowMembers(t *testing.T, n *memnet.Network, room eventgraph.RoomID, resident *memHost, count int) (all []*memHost) {
	t.Helper()
	for i := range count {
		m := newMemHost(t, n, fmt.Sprint("slow member ", i))
		m.run(m.runPeers)
		m.meet(resident.host)
		resident.meet(m.host)
		m.answersSlowly(protocolHandover)
		m.answersSlowly(protocolCarry)
		m.join(room, m.user("mallory"), resident.host)
		all = append(all, m)
	}
	return all
}

// TestSlowContactsHoldUpNobody: contacts that give the answer in a handover or a carrying a byte at a time, more of them than go on at once, keep
// neither keys nor messages from the others.
func TestSlowContactsHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		hosts := newMemHosts(t, n, "a", "b", "c")
		a, b, c := hosts[0], hosts[1], hosts[2]
		room := togetherIn(a, b, c)
		slow := slowMembers(t, n, room, a, 2*handoversAtOnce)
		time.Sleep(time.Hour)
		a.hasKeys("alice", "new")
		time.Sleep(2 * time.Minute)
		if got := c.handed(a.user("alice")); got != "new" {
			t.Errorf("two minutes after the change c has the keys %q", got)
		}
		alone(n, b, append(slow, a, c)...)
		for i := range 3 {
			a.queue(b.server, a.encrypted(fmt.Sprint("message ", i)))
			time.Sleep(15 * time.Minute) // three are asked at one time, the slow ones, too
			if got := c.carries(b); got != i+1 {
				t.Errorf("a quarter of an hour after message %d c carries %d", i+1, got)
			}
		}
	})
}

// TestSlowServersLeaveSlots: servers that begin a handover or a carrying, more of them than are served at once, and go on a byte at a time, keep nobody
// else from being served, and are not served for long themselves.
func TestSlowServersLeaveSlots(t *testing.T) {
	for _, protocol := range []string{protocolHandover, protocolCarry} {
		t.Run(strings.Trim(protocol, "/1"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := memnet.New()
				hosts := newMemHosts(t, n, "a", "b", "c")
				a, b, c := hosts[0], hosts[1], hosts[2]
				room := togetherIn(a, b, c)
				slow := slowMembers(t, n, room, a, 2*handoversServed)
				alone(n, b, append(slow, a, c)...)
				time.Sleep(time.Minute)
				for _, m := range slow {
					m.run(func(ctx context.Context) error {
						for ctx.Err() == nil { // again and again
							s, err := m.Transport.OpenStream(ctx, a.peer, protocol)
							if err != nil {
								return err
							}
							if lasted := trickle(ctx, s, 100<<10, 9*time.Second); lasted > exchangeTime+time.Minute {
								t.Errorf("%v of a trickle", lasted)
							}
							s.Close()
						}
						return nil
					})
				}
				time.Sleep(time.Minute)
				c.hasKeys("alice", "new")
				c.queue(b.server, c.encrypted("to be carried"))
				time.Sleep(20 * time.Minute) // the others are asked to carry, too, three at a time
				if got := a.handed(c.user("alice")); got != "new" {
					t.Errorf("after twenty minutes a has the keys %q", got)
				}
				if got := a.carries(b); got != 1 {
					t.Errorf("after twenty minutes a carries %d", got)
				}
			})
		})
	}
}

// TestExchangesOverASlowLink: 16 kbit/s and 2 s are enough for keys and messages that take minutes there.
func TestExchangesOverASlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		hosts := newMemHosts(t, n, "a", "b", "c")
		a, b, c := hosts[0], hosts[1], hosts[2]
		togetherIn(a, b, c)
		time.Sleep(time.Minute)
		n.SetLink(p2ptransport.PeerID(a.peer), p2ptransport.PeerID(c.peer), memnet.Link{Delay: 2 * time.Second, Rate: 2000})
		alone(n, b, a, c)
		keys := strings.Repeat("k", 150<<10)
		a.hasKeys("alice", keys)
		for i := range 40 {
			a.queue(b.server, strings.TrimSuffix(a.encrypted(fmt.Sprint("message ", i)), "}")+fmt.Sprintf(`,"y":%q}`, strings.Repeat("y", 4<<10)))
		}
		time.Sleep(8 * time.Minute)
		if got := c.handed(a.user("alice")); got != keys {
			t.Errorf("c has %d bytes of keys", len(got))
		}
		if got := c.carries(b); got != 40 {
			t.Errorf("c carries %d of 40", got)
		}
	})
}

// TestSlots: who waits gets the slot of the slowest that has had its fair time, and no other's; who has lost one so comes after the others.
func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(3)
		held := map[string]*slot{}
		over := map[string]<-chan struct{}{}
		var order []string
		take := func(name string) {
			go func() {
				within, mine, err := s.take(t.Context(), t.Context(), eventgraph.ServerName(name))
				if err != nil {
					return
				}
				order = append(order, name)
				held[name], over[name] = mine, within.Done()
			}()
			synctest.Wait()
		}
		ended := func() (all []string) {
			for name, done := range over {
				select {
				case <-done:
					all = append(all, name)
				default:
				}
			}
			slices.Sort(all)
			return all
		}
		want := func(what string, names ...string) {
			t.Helper()
			synctest.Wait()
			if got := ended(); !slices.Equal(got, names) {
				t.Errorf("%s: %v have ended, want %v", what, got, names)
			}
		}
		for _, name := range []string{"quick", "slow", "slowest"} {
			take(name)
		}
		held["quick"].count(200 << 10)
		held["slow"].count(10)
		time.Sleep(2 * slotFair)
		want("nobody waits")
		take("next")
		want("one waits", "slowest")
		held["slowest"].release()
		want("it has its slot", "slowest")
		take("slowest")
		take("after it")
		want("two more wait; the quick one has its time, and so has the newest", "slow", "slowest")
		held["slow"].release()
		synctest.Wait()
		held["after it"].count(10)
		time.Sleep(slotFair + time.Second)
		want("the newest have had their time", "next", "slow", "slowest")
		held["next"].release()
		synctest.Wait()
		if want := []string{"quick", "slow", "slowest", "next", "after it", "slowest"}; !slices.Equal(order, want) {
			t.Errorf("served in the order %v, want %v", order, want)
		}
		time.Sleep(exchangeTime)
		want("all have had all their time", "after it", "next", "quick", "slow", "slowest")
		for _, mine := range held {
			mine.release()
		}
		if len(s.taken)+len(s.queue) > 0 {
			t.Errorf("%d are taken, %d wait", len(s.taken), len(s.queue))
		}
	})
}
