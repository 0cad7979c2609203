package clientapi

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"unicode/utf8"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
	"github.com/plexus-p2p/plexus/store"
)

// Send-to-device messages (CS API, Send-to-Device messaging; SS API, Send-to-device messaging).

// Bounds of one request or EDU.
const (
	maxToDeviceContent  = 64 << 10  // bytes of one message, as of an event
	maxToDeviceType     = 255       // bytes
	maxToDeviceMessages = 5000      // in one request: a room of 1000 people
	maxEDUMessages      = 100       // in one m.direct_to_device that we send
	maxEDUBytes         = 32 << 10  // of such: 16 s at 16 kbit/s
	maxReceivedMessages = 1000      // in one that we take in
	maxStrangers        = 1000      // from servers that share no room with us are put behind no more than so many: they push out nothing
	toDeviceAtOnce      = 256 << 10 // bytes of content written in one transaction of the store
	maxMessageID        = 128       // bytes: 32 codepoints
)

const allDevices = "*"

// toDeviceMessages are contents by user and device.
type toDeviceMessages map[eventgraph.UserID]map[store.DeviceID]json.RawMessage

// addressed is one message; its device may be allDevices.
type addressed struct {
	user    eventgraph.UserID
	device  store.DeviceID
	content json.RawMessage
}

// list puts the messages in an order that is the same each time; an error if one is no object or too large.
func (m toDeviceMessages) list() ([]addressed, error) {
	var all []addressed
	for user, devices := range m {
		for device, content := range devices {
			if !isObject(content) {
				return nil, badJSON("A message must be a JSON object.")
			}
			if len(content) > maxToDeviceContent {
				return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "A message is too large.")
			}
			all = append(all, addressed{user, device, content})
		}
	}
	slices.SortFunc(all, func(x, y addressed) int {
		return cmp.Or(cmp.Compare(x.user.Server(), y.user.Server()), cmp.Compare(x.user, y.user), cmp.Compare(x.device, y.device))
	})
	return all, nil
}

// batches cuts the list into runs of bounded number and bytes.
func batches(all []addressed, most, bytes int) [][]addressed {
	var out [][]addressed
	size := 0
	for _, m := range all {
		if n := len(out); n == 0 || len(out[n-1]) == most || size+len(m.content) > bytes {
			out, size = append(out, nil), 0
		}
		out[len(out)-1] = append(out[len(out)-1], m)
		size += len(m.content)
	}
	return out
}

// sendToDevice is PUT /sendToDevice/{eventType}/{txnId}.
func (a *API) sendToDevice(q *request) (any, error) {
	eventType := q.path("eventType")
	var body struct {
		Messages toDeviceMessages `json:"messages"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Messages == nil {
		return nil, missingParam("messages is missing.")
	}
	if len(eventType) > maxToDeviceType {
		return nil, invalidParam("The event type is too long.")
	}
	all, err := body.Messages.list()
	if err != nil {
		return nil, err
	}
	if len(all) > maxToDeviceMessages {
		return nil, fail(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", "Too many messages in one request.")
	}
	txn, err := transactionOf(q)
	if err != nil {
		return nil, err
	}
	var local []addressed
	remote := map[eventgraph.ServerName][]addressed{}
	for _, m := range all {
		if isDeep(m.content) { // it stands inside a signed request, if it is for another server, and here it is not to be otherwise
			return nil, badJSON("A message is nested too deep.")
		}
		if server := m.user.Server(); server == a.Server {
			local = append(local, m)
		} else if _, err := eventgraph.ParseServerName(string(server)); err == nil { // others can never be reached
			if _, err := canonicaljson.Canonicalize(m.content, canonicaljson.Strict); err != nil { // nor signed, and all behind it would wait
				return nil, badJSON("A message to another server must have a canonical form: " + err.Error())
			}
			remote[server] = append(remote[server], m)
		}
	}

	// Each part is written with a mark of its own, so that a request repeated after a crash goes on where it ended. The parts of
	// the same request are the same each time.
	part := 0
	once := func(write func(tx *store.Tx) error) error {
		endpoint := fmt.Sprintf("sendToDevice/%s/%d", eventType, part)
		part++
		_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
			if _, err := tx.ClientTxnResult(*txn, endpoint); !errors.Is(err, store.ErrNotFound) {
				return err // done already
			}
			if err := write(tx); err != nil {
				return err
			}
			return tx.PutClientTxn(*txn, endpoint, "")
		})
		return err
	}
	for _, batch := range batches(local, maxToDeviceMessages, toDeviceAtOnce) {
		err := once(func(tx *store.Tx) error { return a.deliver(tx, q.user, eventType, batch, store.MaxToDevice) })
		if err != nil {
			return nil, err
		}
	}
	servers := make([]eventgraph.ServerName, 0, len(remote))
	for server := range remote {
		servers = append(servers, server)
	}
	slices.Sort(servers)
	var full error // for a server that takes no more, which must not hold up the others
	for _, server := range servers {
		for _, batch := range batches(remote[server], maxEDUMessages, maxEDUBytes) {
			edu, err := directToDevice(q.user, eventType, batch)
			if err != nil {
				return nil, err
			}
			err = once(func(tx *store.Tx) error {
				_, err := tx.PutOutbound(&store.Outbound{Server: server, Kind: "m.direct_to_device", Body: edu})
				return err
			})
			if errors.Is(err, store.ErrOutboundFull) {
				full = fmt.Errorf("%s: %w", server, err)
			} else if err != nil {
				return nil, err
			}
		}
	}
	return nil, full // a repetition does only what was not done
}

// deliver queues messages for local devices. Devices that do not exist are passed over, and those for which more than most
// messages wait.
func (a *API) deliver(tx *store.Tx, sender eventgraph.UserID, eventType string, messages []addressed, most uint64) error {
	for _, m := range messages {
		devices := []store.DeviceID{m.device}
		if m.device == allDevices {
			devices = nil
			err := tx.Devices(m.user, func(d *store.Device) (bool, error) {
				devices = append(devices, d.ID)
				return true, nil
			})
			if err != nil {
				return err
			}
		}
		for _, device := range devices {
			if _, err := tx.Device(m.user, device); errors.Is(err, store.ErrNotFound) {
				continue
			} else if err != nil {
				return err
			}
			if waiting, err := tx.ToDeviceCount(m.user, device); err != nil {
				return err
			} else if waiting > most {
				continue
			}
			message := &store.ToDevice{Sender: sender, Type: eventType, Content: m.content, Origin: a.Peer}
			if _, err := tx.PutToDevice(m.user, device, message); err != nil {
				return err
			}
		}
	}
	return nil
}

// directToDeviceEDU is the content of m.direct_to_device.
type directToDeviceEDU struct {
	Sender    eventgraph.UserID `json:"sender"`
	Type      string            `json:"type"`
	MessageID string            `json:"message_id"`
	Messages  toDeviceMessages  `json:"messages"`
}

func directToDevice(sender eventgraph.UserID, eventType string, messages []addressed) (json.RawMessage, error) {
	edu := directToDeviceEDU{Sender: sender, Type: eventType, MessageID: rand.Text(), Messages: toDeviceMessages{}}
	for _, m := range messages {
		if edu.Messages[m.user] == nil {
			edu.Messages[m.user] = map[store.DeviceID]json.RawMessage{}
		}
		edu.Messages[m.user][m.device] = m.content
	}
	return json.Marshal(edu)
}

// receiveDirectToDevice takes in m.direct_to_device; when it returns nil the messages are durable.
func (a *API) receiveDirectToDevice(ctx context.Context, origin eventgraph.ServerName, content json.RawMessage) error {
	var edu directToDeviceEDU
	if json.Unmarshal(content, &edu) != nil || edu.Sender.Server() != origin || edu.Type == "" || len(edu.Type) > maxToDeviceType ||
		edu.MessageID == "" || len(edu.MessageID) > maxMessageID || !utf8.ValidString(edu.MessageID) {
		return errMalformedEDU
	}
	for user := range edu.Messages {
		if user.Server() != a.Server {
			delete(edu.Messages, user)
		}
	}
	all, err := edu.Messages.list()
	if err != nil || len(all) > maxReceivedMessages {
		return errMalformedEDU
	}
	memory, prefix, most := origin, "", uint64(store.MaxToDevice)
	if shares, err := a.sharesRoom(origin); err != nil {
		return err
	} else if !shares { // anybody can make any number of servers: all strangers have one memory together
		memory, prefix, most = "", string(origin)+" ", maxStrangers
	}
	for i, batch := range batches(all, maxReceivedMessages, toDeviceAtOnce) {
		_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
			// It may have come while rooms were shared, and be repeated now, or the other way round.
			id := fmt.Sprintf("%s %d", edu.MessageID, i)
			asFriend, err := tx.SawMessage(origin, id)
			if asFriend || err != nil {
				return err
			}
			asStranger, err := tx.SawMessage("", string(origin)+" "+id)
			if asStranger || err != nil {
				return err
			}
			if _, err := tx.SeeMessage(memory, prefix+id); err != nil {
				return err
			}
			return a.deliver(tx, edu.Sender, edu.Type, batch, most)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sharesRoom says whether a user of the server is joined to a room that is held here.
func (a *API) sharesRoom(server eventgraph.ServerName) (shares bool, err error) {
	err = a.Store.View(func(r *store.Reader) error {
		return r.Rooms(func(room *store.Room) (bool, error) {
			shares = a.Rooms.InRoom(room.ID, server)
			return !shares, nil
		})
	})
	return shares, err
}
