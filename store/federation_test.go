package store

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// device is an entry for a device key, and that key.
func device(seed byte, from int64) (eventgraph.CertifiedDevice, eventgraph.SigningKey) {
	k := identity(seed)
	peer := eventgraph.NewPeerID(k.Private.Public().(ed25519.PublicKey))
	return eventgraph.CertifiedDevice{
		PeerID: peer, KeyID: k.ID, Key: b64(k.Private.Public().(ed25519.PublicKey)), BoxKey: b64(make([]byte, 32)), FromTS: from,
	}, k
}

func b64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

func keyDocument(t testing.TB, keys []eventgraph.SigningKey, validUntil, seq int64, devices ...eventgraph.CertifiedDevice) *eventgraph.KeyDocument {
	t.Helper()
	id := identity(1)
	var cert *eventgraph.Certificate
	var err error
	if seq > 0 {
		if cert, err = eventgraph.SignCertificate(id, seq, devices); err != nil {
			t.Fatal(err)
		}
	}
	d, err := eventgraph.SignKeyDocument(id.Server, keys, nil, cert, validUntil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestKeyDocuments(t *testing.T) {
	t.Parallel()
	id := identity(1)
	devA, keyA := device(2, 100)
	devB, keyB := device(3, 100)
	devC, _ := device(4, 100)
	signers := func(k ...eventgraph.SigningKey) []eventgraph.SigningKey { return k }
	s := open(t)
	put := func(d *eventgraph.KeyDocument) error {
		_, err := s.Update(context.Background(), func(tx *Tx) error { return tx.PutKeyDocument(d) })
		return err
	}
	held := func() *eventgraph.KeyDocument {
		t.Helper()
		var d *eventgraph.KeyDocument
		mustView(t, s, func(r *Reader) (err error) { d, err = r.KeyDocument(id.Server); return err })
		return d
	}
	certificates := func() (n int) {
		t.Helper()
		mustView(t, s, func(r *Reader) error {
			c, err := r.Certificates(id.Server)
			n = len(c)
			return err
		})
		return n
	}
	// expect says which devices sign at a time, by "A", "B", "C" in want.
	expect := func(when, want string, ts int64) {
		t.Helper()
		got := ""
		for name, dev := range map[string]eventgraph.CertifiedDevice{"A": devA, "B": devB, "C": devC} {
			if _, err := held().KeyFor(dev.KeyID, ts, true); err == nil {
				got += name
			}
		}
		if got = string(slices.Sorted(slices.Values([]byte(got)))); got != want {
			t.Errorf("%s: %q sign at %d, want %q", when, got, ts, want)
		}
	}

	if err := s.View(func(r *Reader) error { _, err := r.KeyDocument(id.Server); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("nothing held: %v", err)
	}
	steps := []struct {
		what  string
		d     *eventgraph.KeyDocument
		err   error
		seq   int64
		until int64
		certs int
		sign  string
	}{
		{"without certificate", keyDocument(t, signers(id), 1000, 0), nil, 0, 1000, 0, ""},
		{"first certificate", keyDocument(t, signers(keyA), 900, 1, devA, devB), nil, 1, 900, 1, "AB"},
		{"without certificate again", keyDocument(t, signers(id), 5000, 0), ErrCertificate, 1, 900, 1, "AB"},
		{"renewed", keyDocument(t, signers(keyA), 2000, 1, devA, devB), nil, 1, 2000, 1, "AB"},
		{"older copy", keyDocument(t, signers(keyA), 1500, 1, devA, devB), nil, 1, 2000, 1, "AB"},
		{"of the other device", keyDocument(t, signers(keyB), 1800, 1, devA, devB), nil, 1, 2000, 1, "AB"},
		{"another content under one seq", keyDocument(t, signers(keyA), 2100, 1, devA, devC), nil, 1, 2100, 2, "A"},
		{"the first content again", keyDocument(t, signers(keyA), 2200, 1, devA, devB), nil, 1, 2200, 2, "A"},
		{"higher seq ends it", keyDocument(t, signers(keyB), 2300, 2, devB, devC), nil, 2, 2300, 1, "BC"},
		{"lower seq", keyDocument(t, signers(keyA), 9000, 1, devA, devB), ErrCertificate, 2, 2300, 1, "BC"},
	}
	for _, step := range steps {
		if err := put(step.d); !errors.Is(err, step.err) {
			t.Fatalf("%s: %v, want %v", step.what, err, step.err)
		}
		d := held()
		if d.ValidUntilTS != step.until || step.seq > 0 && d.Certificate.Seq != step.seq || certificates() != step.certs {
			t.Errorf("%s: valid until %d, %d certificates, %+v", step.what, d.ValidUntilTS, certificates(), d.Certificate)
		}
		expect(step.what, step.sign, 800)
		n := 0
		mustView(t, s, func(r *Reader) error {
			return r.KeyDocuments(func(d *eventgraph.KeyDocument) (bool, error) {
				n++
				return true, nil
			})
		})
		if n != 1 {
			t.Errorf("%s: %d servers", step.what, n)
		}
	}
}

// TestOldKeysStay: a server that renames its key and forgets the old one is judged by the document that showed it.
func TestOldKeysStay(t *testing.T) {
	t.Parallel()
	id := identity(1)
	first, second := id, id
	first.ID, second.ID = "ed25519:first", "ed25519:second"
	s := open(t)
	for _, d := range []*eventgraph.KeyDocument{
		keyDocument(t, []eventgraph.SigningKey{second}, 2000, 0),
		keyDocument(t, []eventgraph.SigningKey{first}, 1000, 0),
	} {
		mustUpdate(t, s, func(tx *Tx) error { return tx.PutKeyDocument(d) })
	}
	mustView(t, s, func(r *Reader) error {
		d, err := r.KeyDocument(id.Server)
		if err != nil {
			return err
		}
		for _, c := range []struct {
			id eventgraph.KeyID
			ts int64
			ok bool
		}{
			{first.ID, 900, true}, {first.ID, 1100, false}, {second.ID, 1900, true}, {second.ID, 2100, false},
		} {
			if _, err := d.KeyFor(c.id, c.ts, true); (err == nil) != c.ok {
				t.Errorf("key %s at %d: %v", c.id, c.ts, err)
			}
		}
		return nil
	})
}

func TestInbox(t *testing.T) {
	t.Parallel()
	s := open(t)
	item := func(room, id string) *InboxItem {
		return &InboxItem{ID: eventgraph.EventID(id), Room: eventgraph.RoomID(room), Origin: "o", PDU: []byte(`{"id": "` + id + `\u003c"}`), Since: 7}
	}
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutInbox(item("!b", "$3")), tx.PutInbox(item("!a", "$2")), tx.PutInbox(item("!a", "$1")), tx.PutInbox(item("!a", "$2")))
	})
	list := func(room eventgraph.RoomID) string {
		t.Helper()
		var ids []string
		mustView(t, s, func(r *Reader) error {
			return r.Inbox(room, func(i *InboxItem) (bool, error) {
				if want := item(string(i.Room), string(i.ID)); string(i.PDU) != string(want.PDU) || i.Origin != "o" || i.Since != 7 {
					t.Errorf("item %+v, want %+v", i, want)
				}
				ids = append(ids, string(i.ID))
				return true, nil
			})
		})
		return strings.Join(ids, " ")
	}
	rooms := func(most int) (all []eventgraph.RoomID) {
		mustView(t, s, func(r *Reader) error {
			return r.InboxRooms(func(room eventgraph.RoomID) (bool, error) { all = append(all, room); return len(all) < most, nil })
		})
		return all
	}
	if all, one := rooms(9), rooms(1); !slices.Equal(all, []eventgraph.RoomID{"!a", "!b"}) || len(one) != 1 {
		t.Errorf("rooms of the inbox: %q; the first: %q", all, one)
	}
	if a, all := list("!a"), list(""); a != "$2 $1" || all != "$2 $1 $3" {
		t.Errorf("inbox of !a: %s; of all rooms: %s", a, all)
	}
	mustUpdate(t, s, func(tx *Tx) error { return errors.Join(tx.DeleteInbox("!a", "$2"), tx.DeleteInbox("!a", "$9")) })
	if all := list(""); all != "$1 $3" {
		t.Errorf("after a deletion: %s", all)
	}
	mustView(t, s, func(r *Reader) error {
		c, err := r.inboxCount()
		if c.Items != 2 || c.Bytes != int64(2*len(item("", "$1").PDU)) {
			t.Errorf("count %+v", c)
		}
		return err
	})
	// Full by bytes.
	mustUpdate(t, s, func(tx *Tx) error { return tx.putJSON(keyInboxCount, inboxCount{Items: 2, Bytes: InboxMaxBytes - 5}) })
	_, err := s.Update(context.Background(), func(tx *Tx) error { return tx.PutInbox(item("!a", "$4")) })
	if !errors.Is(err, ErrInboxFull) {
		t.Errorf("full inbox: %v", err)
	}
}

func TestSeenTransactionsAreBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	const n = maxSeenTransactions + 10
	for i := range n {
		mustUpdate(t, s, func(tx *Tx) error {
			return tx.PutSeenTransaction("origin", fmt.Sprint("txn", i), []byte(fmt.Sprint("answer", i)))
		})
	}
	mustView(t, s, func(r *Reader) error {
		for i := range n {
			answer, seen, err := r.SeenTransaction("origin", fmt.Sprint("txn", i))
			if want := i >= 10; err != nil || seen != want || seen && string(answer) != fmt.Sprint("answer", i) {
				t.Errorf("transaction %d: %q, seen %v, %v", i, answer, seen, err)
			}
		}
		_, seen, err := r.SeenTransaction("other", "txn20")
		if seen {
			t.Error("another origin's transaction counts as seen")
		}
		return err
	})
}

func TestDestinationsAndOutbound(t *testing.T) {
	t.Parallel()
	s := open(t)
	want := &Destination{
		Server: "s1", Sent: 12,
		InFlight: &Transaction{ID: "t1", Body: []byte(`{"pdus": [] }`), UpTo: 20, Queue: []uint64{3, 9}},
	}
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutDestination(want), tx.PutDestination(&Destination{Server: "s0", Peer: "p", Sent: 1}))
	})
	mustView(t, s, func(r *Reader) error {
		got, err := r.Destination("s1")
		if err != nil {
			return err
		}
		if got.Sent != 12 || got.InFlight.ID != "t1" || string(got.InFlight.Body) != string(want.InFlight.Body) ||
			got.InFlight.UpTo != 20 || !slices.Equal(got.InFlight.Queue, want.InFlight.Queue) {
			t.Errorf("destination %+v %+v", got, got.InFlight)
		}
		if _, err := r.Destination("s0"); !errors.Is(err, ErrNotFound) {
			t.Errorf("server s0 as a whole: %v", err)
		}
		if d, err := r.PeerDestination("s0", "p"); err != nil || d.Sent != 1 {
			t.Errorf("peer of s0: %+v, %v", d, err)
		}
		return err
	})
	_, err := s.Update(context.Background(), func(tx *Tx) error {
		return tx.PutDestination(&Destination{Server: "s1", InFlight: &Transaction{Body: make([]byte, MaxTransactionBody+1)}})
	})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large a transaction: %v", err)
	}

	var seqs []uint64
	for i := range 3 {
		o := &Outbound{Server: "s1", Kind: "invite", Body: []byte(fmt.Sprint(`{"n": `, i, `}`))}
		p := mustUpdate(t, s, func(tx *Tx) error { _, err := tx.PutOutbound(o); return err })
		if Position(o.Seq) != p {
			t.Errorf("seq %d, position %d", o.Seq, p)
		}
		seqs = append(seqs, o.Seq)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteOutbound("s1", seqs[1]) })
	mustView(t, s, func(r *Reader) error {
		var got []uint64
		err := r.Outbound("s1", 0, func(o *Outbound) (bool, error) {
			if o.Kind != "invite" || o.Server != "s1" || !strings.HasPrefix(string(o.Body), `{"n": `) {
				t.Errorf("outbound %+v", o)
			}
			got = append(got, o.Seq)
			return true, nil
		})
		if !slices.Equal(got, []uint64{seqs[0], seqs[2]}) {
			t.Errorf("outbound %v of %v", got, seqs)
		}
		return errors.Join(err, r.Outbound("s1", seqs[2], func(o *Outbound) (bool, error) {
			t.Errorf("outbound after the last: %+v", o)
			return true, nil
		}))
	})
}

// TestOutboundIsBounded: at the bound nothing more is accepted, and nothing that was goes.
func TestOutboundIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t)
	body := []byte(`"` + strings.Repeat("x", 500<<10) + `"`)
	put := func(server eventgraph.ServerName) error {
		_, err := s.Update(context.Background(), func(tx *Tx) error {
			_, err := tx.PutOutbound(&Outbound{Server: server, Kind: "k", Body: body})
			return err
		})
		return err
	}
	queued := func() (seqs []uint64) {
		mustView(t, s, func(r *Reader) error {
			return r.Outbound("s1", 0, func(o *Outbound) (bool, error) { seqs = append(seqs, o.Seq); return true, nil })
		})
		return seqs
	}
	fits := MaxOutboundBytes / (len(body) + outboundFrame)
	for i := range fits {
		if err := put("s1"); err != nil {
			t.Fatalf("item %d of %d: %v", i, fits, err)
		}
	}
	if err := put("s1"); !errors.Is(err, ErrOutboundFull) {
		t.Fatalf("beyond the bound: %v", err)
	}
	if err := put("s2"); err != nil {
		t.Errorf("for another server: %v", err)
	}
	seqs := queued()
	if len(seqs) != fits || seqs[0] != 1 {
		t.Fatalf("%d of %d items are queued, the first %d", len(seqs), fits, seqs[0])
	}
	mustUpdate(t, s, func(tx *Tx) error {
		return errors.Join(tx.DeleteOutbound("s1", seqs[7]), tx.DeleteOutbound("s1", seqs[7]))
	})
	if err := put("s1"); err != nil {
		t.Errorf("with room for one more: %v", err)
	}
	if err := put("s1"); !errors.Is(err, ErrOutboundFull) {
		t.Errorf("with no room: %v", err)
	}

	// All servers together have a bound; what is taken from the queue counts no more.
	mustUpdate(t, s, func(tx *Tx) error { return tx.putNumber(outboundBytesKey(""), MaxAllOutboundBytes) })
	if err := put("s3"); !errors.Is(err, ErrOutboundFull) {
		t.Errorf("beyond the bound of all: %v", err)
	}
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteOutbound("s1", seqs[8]) })
	if err := put("s3"); err != nil {
		t.Errorf("with room for one of all: %v", err)
	}
}
