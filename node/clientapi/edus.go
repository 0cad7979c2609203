package clientapi

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// errMalformedEDU: the EDU is dropped; its origin would only repeat it.
var errMalformedEDU = errors.New("malformed EDU")

// ReceiveEDU takes in what other servers send for local users (federation.Local). It returns nil when the EDU is durable or
// worthless, and an error only where the origin should send it again.
func (a *API) ReceiveEDU(ctx context.Context, origin eventgraph.ServerName, eduType string, content json.RawMessage) error {
	var err error
	switch eduType {
	case "m.direct_to_device":
		err = a.receiveDirectToDevice(ctx, origin, content)
	case "m.device_list_update":
		err = a.deviceListUpdate(ctx, content)
	case "m.signing_key_update":
		err = a.signingKeyUpdate(ctx, content)
	case "m.receipt":
		err = a.receiveReceipts(ctx, content)
	}
	if errors.Is(err, errMalformedEDU) {
		a.Log.Warn("a malformed EDU was dropped", "origin", origin.Tail(), "type", eduType)
		return nil
	}
	return err
}

// maxReceipts bounds the receipts of one EDU that are looked at.
const maxReceipts = 1000

// receiveReceipts takes in m.receipt; rooms, users and server ACLs have been checked.
func (a *API) receiveReceipts(ctx context.Context, content json.RawMessage) error {
	var rooms map[eventgraph.RoomID]map[string]map[eventgraph.UserID]struct {
		Events []eventgraph.EventID `json:"event_ids"`
		Data   receiptData          `json:"data"`
	}
	if json.Unmarshal(content, &rooms) != nil {
		return errMalformedEDU
	}
	var receipts []*store.Receipt
	for room, types := range rooms {
		for user, r := range types["m.read"] { // the only type that travels
			if len(r.Events) != 1 || len(receipts) == maxReceipts || len(r.Data.Thread) > maxThreadID {
				continue
			}
			if _, err := eventgraph.ParseEventID(string(r.Events[0])); err != nil {
				continue
			}
			receipts = append(receipts, &store.Receipt{
				Room: room, User: user, Type: "m.read", Event: r.Events[0], Thread: r.Data.Thread, TS: r.Data.TS,
			})
		}
	}
	if len(receipts) == 0 {
		return nil
	}
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error {
		for _, p := range receipts {
			if forwards, err := movesForwards(&tx.Reader, p); err != nil {
				return err
			} else if !forwards {
				continue
			}
			if _, err := tx.PutReceipt(p); err != nil && !errors.Is(err, store.ErrTooManyReceipts) {
				return err
			}
		}
		return nil
	})
	return err
}

// movesForwards says whether the receipt is news: its event is not known to stand before that of the one held. An event not
// held here yet is taken for newer.
func movesForwards(r *store.Reader, p *store.Receipt) (bool, error) {
	held, err := r.Receipt(p.Room, p.User, p.Type, p.Thread)
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if held.Event == p.Event {
		return false, nil
	}
	before, err := r.OrderOf(held.Event)
	if err != nil {
		return false, err
	}
	now, err := r.OrderOf(p.Event)
	return now == 0 || before == 0 || now > before, err
}
