package clientapi

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// slidingExtensions are what else a client may ask for with its rooms. What is empty is left out, but for what its client insists on.
type slidingExtensions struct {
	ToDevice    *slidingToDevice    `json:"to_device,omitempty"`
	E2EE        *slidingE2EE        `json:"e2ee,omitempty"`
	AccountData *slidingAccountData `json:"account_data,omitempty"`
	Receipts    *slidingEphemeral   `json:"receipts,omitempty"`
	Typing      *slidingEphemeral   `json:"typing,omitempty"`
}

type slidingToDevice struct {
	NextBatch string            `json:"next_batch"`
	Events    []json.RawMessage `json:"events"`
}

type slidingE2EE struct {
	DeviceLists    *deviceLists   `json:"device_lists,omitempty"`
	OneTimeKeys    map[string]int `json:"device_one_time_keys_count"`
	UnusedFallback []string       `json:"device_unused_fallback_key_types"`
}

type slidingAccountData struct {
	Global []json.RawMessage                       `json:"global,omitempty"`
	Rooms  map[eventgraph.RoomID][]json.RawMessage `json:"rooms,omitempty"`
}

// slidingEphemeral has one event for each room.
type slidingEphemeral struct {
	Rooms map[eventgraph.RoomID]json.RawMessage `json:"rooms,omitempty"`
}

// deliveredToDevice is up to where the client says that it has got its to-device messages, by the since of that extension: a sync token of its
// device. One from an older life of the data directory is from the beginning.
func (a *API) deliveredToDevice(s *syncRequest, req *slidingRequest) (store.Position, error) {
	ext := &req.Extensions.ToDevice
	if !ext.Enabled || ext.Since == "" {
		return 0, nil
	}
	t, err := parseSyncToken(ext.Since)
	if err != nil {
		return 0, invalidParam("The since of to_device was not made by this server.")
	}
	if t.incarnation != a.Store.Incarnation() || t.pos > a.Store.Position() || t.device != deviceTag(s.user, s.device) {
		return 0, nil
	}
	return t.toDevice, nil
}

// extensions fills in what the client asks for beside rooms.
func (s *slidingRound) extensions(delivered store.Position) error {
	ext := &s.req.Extensions
	if ext.ToDevice.Enabled {
		if err := s.toDeviceExtension(delivered); err != nil {
			return err
		}
	}
	if ext.E2EE.Enabled {
		if err := s.e2eeExtension(); err != nil {
			return err
		}
	}
	if ext.AccountData.Enabled {
		if err := s.accountDataExtension(); err != nil {
			return err
		}
	}
	if ext.Receipts.Enabled {
		s.out.Extensions.Receipts = &slidingEphemeral{Rooms: map[eventgraph.RoomID]json.RawMessage{}}
		if err := s.eachRoom(&ext.Receipts, receiptsExtension, s.changedReceipts, s.receiptsExtension); err != nil {
			return err
		}
	}
	if ext.Typing.Enabled {
		s.out.Extensions.Typing = &slidingEphemeral{Rooms: map[eventgraph.RoomID]json.RawMessage{}}
		return s.eachRoom(&ext.Typing, typingExtension, s.changedTyping, s.typingExtension)
	}
	return nil
}

func (s *slidingRound) toDeviceExtension(delivered store.Position) error {
	limit := maxToDevice
	if asked := s.req.Extensions.ToDevice.Limit; asked != nil {
		limit = min(max(*asked, 1), maxToDevice)
	}
	list, reached, err := s.waiting(delivered, limit)
	if err != nil {
		return err
	}
	next := syncToken{
		incarnation: s.a.Store.Incarnation(), pos: s.changes.upTo, toDevice: reached, boot: s.a.boot, device: deviceTag(s.user, s.device),
	}
	s.out.Extensions.ToDevice = &slidingToDevice{next.String(), list.Events}
	s.told = s.told || len(list.Events) > 0
	return nil
}

// e2eeExtension tells whose keys changed since pos, in whatever rooms, and which keys of the device's own are left.
func (s *slidingRound) e2eeExtension() error {
	if s.since != nil {
		for _, room := range slices.Sorted(maps.Keys(s.changes.timeline)) {
			if err := s.company.takeIn(s.a, room, s.since.pos, s.changes.upTo, s.v); err != nil {
				return err
			}
		}
	}
	if err := s.deviceLists(); err != nil {
		return err
	}
	if err := s.keyCounts(); err != nil {
		return err
	}
	s.out.Extensions.E2EE = &slidingE2EE{s.answer.DeviceLists, s.answer.OneTimeKeys, s.answer.UnusedFallback}
	s.told = s.told || s.answer.DeviceLists != nil || s.changes.keyCounts
	return nil
}

// eachRoom calls tell for the rooms that the extension is about: anew for those that the client has not had it of, and those
// of which changed says so.
func (s *slidingRound) eachRoom(e *roomExtension, which extensionSet, changed func(eventgraph.RoomID) bool, tell func(m *matched, anew bool) error) error {
	for _, id := range slices.Sorted(maps.Keys(s.found)) {
		if err := s.ended(); err != nil {
			return err
		}
		m, sent := s.found[id], s.conn.rooms[id]
		if !e.covers(id, m) {
			continue
		}
		anew := s.had&which == 0 || !sent.Live || sent.Stage != m.room.stage
		if !anew && !changed(id) {
			continue
		}
		if err := tell(m, anew); err != nil {
			return err
		}
	}
	return nil
}

// accountDataExtension tells global account data and that of rooms: all that the client has not had, or what changed.
func (s *slidingRound) accountDataExtension() error {
	out := &slidingAccountData{Rooms: map[eventgraph.RoomID][]json.RawMessage{}}
	s.out.Extensions.AccountData = out
	if err := s.globalAccountData(s.had&accountDataExtension == 0); err != nil {
		return err
	}
	if s.answer.AccountData != nil {
		out.Global, s.told = s.answer.AccountData.Events, true
	}
	changed := func(room eventgraph.RoomID) bool { return len(s.changes.accountData[room]) > 0 }
	return s.eachRoom(&s.req.Extensions.AccountData, accountDataExtension, changed, func(m *matched, anew bool) error {
		list := emptyList()
		if err := s.roomAccountData(m.room.id, anew, &list); err != nil {
			return err
		}
		if len(list.Events) > 0 {
			out.Rooms[m.room.id], s.told = list.Events, true
		}
		return nil
	})
}

func (s *slidingRound) changedReceipts(room eventgraph.RoomID) bool {
	return len(s.changes.receipts[room]) > 0
}

// receiptsExtension tells a room's receipts: what changed or, to a client that has none, the user's own and those at events that it is shown.
func (s *slidingRound) receiptsExtension(m *matched, anew bool) error {
	room := m.room.id
	if !isJoined(m.room.member) {
		return nil
	}
	shown := map[eventgraph.EventID]bool{}
	if tl := s.shown[room]; tl != nil {
		for _, e := range tl.events {
			shown[e.ID()] = true
		}
	}
	receipts, err := s.receipts(room, anew, func(p *store.Receipt) bool { return p.User == s.user || shown[p.Event] })
	if err != nil || len(receipts) == 0 {
		return err
	}
	content, err := json.Marshal(receipts)
	s.out.Extensions.Receipts.Rooms[room], s.told = typeAndContent("m.receipt", content), true
	return err
}

// changedTyping: after a restart nobody types, whatever the client was told.
func (s *slidingRound) changedTyping(room eventgraph.RoomID) bool {
	return s.restarted || s.typing[room]
}

func (s *slidingRound) typingExtension(m *matched, anew bool) error {
	if !isJoined(m.room.member) {
		return nil
	}
	if s.restarted {
		s.typing[m.room.id] = true
	}
	typing, err := s.typingIn(m.room.id, anew)
	for _, event := range typing {
		s.out.Extensions.Typing.Rooms[m.room.id], s.told = event, true
	}
	return err
}
