package clientapi

import (
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of what is remembered of member events sent to clients that load them lazily. Forgetting makes an answer
// redundant, never wrong.
const (
	lazyDevices = 50     // devices that sync with this node; people have a few
	lazyMembers = 20_000 // per device
)

// sentMembers remembers which member events each device has been sent (CS API, Lazy-loading room members: redundant
// membership events). It is for concurrent use.
type sentMembers struct {
	mu      sync.Mutex
	devices *lru.Cache[deviceKey, map[sentMember]sentIn]
}

// deviceKey names a device of any local user; with a connection of sliding sync, whose member events are not /sync's.
type deviceKey struct {
	user   eventgraph.UserID
	device store.DeviceID
	conn   string // "c" and its conn_id; "" is /sync
}

type sentMember struct {
	room eventgraph.RoomID
	user eventgraph.UserID
}

// sentIn: the device has the event if it comes with a token at or after next, which it got with the event.
type sentIn struct {
	event eventgraph.EventID
	next  store.Position
}

func newSentMembers() *sentMembers {
	devices, _ := lru.New[deviceKey, map[sentMember]sentIn](lazyDevices) // fails only on a size below 1
	return &sentMembers{devices: devices}
}

// has says whether the device that comes with a token for since has this event for the member.
func (s *sentMembers) has(device deviceKey, since store.Position, m sentMember, event eventgraph.EventID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent, _ := s.devices.Get(device)
	in, ok := sent[m]
	return ok && in.event == event && since >= in.next
}

// add notes the member events of a response whose next_batch stands for next.
func (s *sentMembers) add(device deviceKey, next store.Position, events []*store.StoredEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent, ok := s.devices.Get(device)
	for _, e := range events {
		key, _ := e.StateKey()
		if e.Type() != "m.room.member" {
			continue
		}
		if !ok || len(sent) >= lazyMembers {
			sent, ok = map[sentMember]sentIn{}, true
			s.devices.Add(device, sent)
		}
		m := sentMember{e.RoomID(), eventgraph.UserID(key)}
		if was := sent[m]; was.event != e.ID() {
			sent[m] = sentIn{e.ID(), next}
		}
	}
}

// forget is for a device that begins anew.
func (s *sentMembers) forget(device deviceKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices.Remove(device)
}
