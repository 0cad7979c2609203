package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// ErrCertificate: the document carries a certificate older than one held (design.md §1).
var ErrCertificate = errors.New("the certificate has a lower seq than one held")

const (
	// maxKeyDocuments are held of one server: those that show keys which no newer one shows.
	maxKeyDocuments = 8
	// maxCertificates with one seq and different content are held. Each further one could only take devices away, and
	// two already show the compromise.
	maxCertificates = 4
)

// keyDocRecord is what is held of one server.
type keyDocRecord struct {
	Documents    [][]byte `json:"documents"`              // by seq of the certificate, then valid_until_ts, highest first
	Certificates [][]byte `json:"certificates,omitempty"` // the contents seen under the highest seq; more than one is a compromise
}

// heldKeys is the record parsed.
type heldKeys struct {
	documents    []*eventgraph.KeyDocument
	certificates []*eventgraph.Certificate
}

func decodeHeldKeys(v []byte) (*heldKeys, error) {
	var d keyDocRecord
	if err := json.Unmarshal(v, &d); err != nil {
		return nil, err
	}
	h := &heldKeys{}
	for _, raw := range d.Documents {
		doc, err := eventgraph.ParseKeyDocument(raw)
		if err != nil {
			return nil, err
		}
		h.documents = append(h.documents, doc)
	}
	for _, raw := range d.Certificates {
		cert, err := eventgraph.ParseCertificate(raw)
		if err != nil {
			return nil, err
		}
		h.certificates = append(h.certificates, cert)
	}
	if len(h.documents) == 0 {
		return nil, errors.New("no document in the record")
	}
	return h, nil
}

func (r *Reader) heldKeys(server eventgraph.ServerName) (*heldKeys, error) {
	var h *heldKeys
	err := r.read(key(tableKeyDoc).str(string(server)), func(v []byte) (err error) {
		h, err = decodeHeldKeys(v)
		return err
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("key document of %s in the store: %w", server, err)
	}
	return h, err
}

// seqOf is 0 for a document without a certificate.
func seqOf(d *eventgraph.KeyDocument) int64 {
	if d.Certificate == nil {
		return 0
	}
	return d.Certificate.Seq
}

// effective is the newest document as it counts: under the certificate with the highest seq, or what several with that
// seq have in common, and with the keys that only older documents show as old keys.
func (h *heldKeys) effective() *eventgraph.KeyDocument {
	d := h.documents[0]
	if len(h.certificates) > 0 {
		c := h.certificates[0]
		for _, other := range h.certificates[1:] {
			c = c.Common(other)
		}
		d = d.Under(c)
	}
	if len(h.documents) == 1 {
		return d
	}
	merged := *d
	merged.OldVerifyKeys = maps.Clone(d.OldVerifyKeys)
	for _, older := range h.documents[1:] {
		for id, k := range older.OldVerifyKeys {
			if !shows(&merged, id) {
				merged.OldVerifyKeys[id] = k
			}
		}
		for id, k := range older.VerifyKeys {
			if !shows(&merged, id) {
				merged.OldVerifyKeys[id] = eventgraph.OldVerifyKey{Key: k, ExpiredTS: older.ValidUntilTS}
			}
		}
	}
	return &merged
}

// shows says whether the document names the key.
func shows(d *eventgraph.KeyDocument, id eventgraph.KeyID) bool {
	_, current := d.VerifyKeys[id]
	_, old := d.OldVerifyKeys[id]
	return current || old
}

// KeyDocument is the newest document held of a server, as it counts; ErrNotFound. Where two certificates contradict each
// other under one seq, its Certificate has only the devices in both. Keys that only older documents show are among its
// old_verify_keys. Raw is the newest document as its server made it.
func (r *Reader) KeyDocument(server eventgraph.ServerName) (*eventgraph.KeyDocument, error) {
	record, err := r.get(key(tableKeyDoc).str(string(server)))
	if err != nil {
		return nil, err
	}
	return r.s.keyDocs.document(server, record)
}

// maxKeyDocs bounds the key documents kept parsed; one takes a few KiB.
const maxKeyDocs = 256

// keyDocCache keeps parsed documents with the record that each was parsed from: to parse one means to check its
// signatures, and a document is asked for with every signature of an event. The zero value is ready.
type keyDocCache struct {
	mu     sync.Mutex
	parsed map[eventgraph.ServerName]parsedKeyDoc
}

type parsedKeyDoc struct {
	record []byte
	doc    *eventgraph.KeyDocument
}

// document is the document of that record, which the cache may keep. Documents are shared: nobody changes them.
func (c *keyDocCache) document(server eventgraph.ServerName, record []byte) (*eventgraph.KeyDocument, error) {
	c.mu.Lock()
	known, ok := c.parsed[server]
	c.mu.Unlock()
	if ok && bytes.Equal(known.record, record) {
		return known.doc, nil
	}
	h, err := decodeHeldKeys(record)
	if err != nil {
		return nil, fmt.Errorf("key document of %s in the store: %w", server, err)
	}
	doc := h.effective()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parsed == nil {
		c.parsed = map[eventgraph.ServerName]parsedKeyDoc{}
	}
	if len(c.parsed) >= maxKeyDocs {
		for other := range c.parsed { // any: it is a cache
			delete(c.parsed, other)
			break
		}
	}
	c.parsed[server] = parsedKeyDoc{record, doc}
	return doc, nil
}

// Certificates lists the contents seen under the highest seq of the server's certificate. More than one means that
// somebody else holds the identity key: that is to be shown to the person. ErrNotFound if no document is held.
func (r *Reader) Certificates(server eventgraph.ServerName) ([]*eventgraph.Certificate, error) {
	h, err := r.heldKeys(server)
	if err != nil {
		return nil, err
	}
	return h.certificates, nil
}

// Contradicted calls f for each server of which Certificates lists more than one.
func (r *Reader) Contradicted(f func(eventgraph.ServerName) (bool, error)) error {
	return r.scan(key(tableKeyDoc), nil, false, func(k, v []byte) (bool, error) {
		var record keyDocRecord
		if err := json.Unmarshal(v, &record); err != nil {
			return false, fmt.Errorf("key document of %s in the store: %w", parts(k).str(), err)
		}
		if len(record.Certificates) < 2 {
			return true, nil
		}
		return f(eventgraph.ServerName(parts(k).str()))
	})
}

// KeyDocuments calls f for each server's document, as KeyDocument gives it: who may speak for whom is rebuilt from it
// at start.
func (r *Reader) KeyDocuments(f func(*eventgraph.KeyDocument) (bool, error)) error {
	return r.scan(key(tableKeyDoc), nil, false, func(k, v []byte) (bool, error) {
		h, err := decodeHeldKeys(v)
		if err != nil {
			return false, fmt.Errorf("key document of %s in the store: %w", parts(k).str(), err)
		}
		return f(h.effective())
	})
}

// PutKeyDocument keeps the document beside others that show keys which it does not show. One whose certificate has a
// lower seq than one held, or that has none where one is held, is ErrCertificate. Two contents under one seq are both
// kept, without an error: see KeyDocument and Certificates. The document must come from ParseKeyDocument.
func (tx *Tx) PutKeyDocument(d *eventgraph.KeyDocument) error {
	h, err := tx.heldKeys(d.ServerName)
	if errors.Is(err, ErrNotFound) {
		h, err = &heldKeys{}, nil
	}
	if err != nil {
		return err
	}
	held := int64(0)
	if len(h.certificates) > 0 {
		held = h.certificates[0].Seq
	}
	switch seq := seqOf(d); {
	case seq < held || len(h.certificates) > 0 && d.Certificate == nil:
		return fmt.Errorf("%w: %d, held is %d", ErrCertificate, seq, held)
	case d.Certificate == nil:
	case seq > held || len(h.certificates) == 0:
		h.certificates = []*eventgraph.Certificate{d.Certificate}
	case len(h.certificates) < maxCertificates && !slices.ContainsFunc(h.certificates, func(c *eventgraph.Certificate) bool {
		return slices.Equal(c.Devices, d.Certificate.Devices)
	}):
		h.certificates = append(h.certificates, d.Certificate)
	}
	h.add(d)
	record := keyDocRecord{}
	for _, d := range h.documents {
		record.Documents = append(record.Documents, d.Raw)
	}
	for _, c := range h.certificates {
		record.Certificates = append(record.Certificates, c.Raw)
	}
	return tx.putJSON(key(tableKeyDoc).str(string(d.ServerName)), record)
}

// add puts the document in its place and drops those that show nothing which newer ones do not.
func (h *heldKeys) add(d *eventgraph.KeyDocument) {
	all := append([]*eventgraph.KeyDocument{d}, h.documents...)
	slices.SortStableFunc(all, func(a, b *eventgraph.KeyDocument) int {
		return -cmp.Or(cmp.Compare(seqOf(a), seqOf(b)), cmp.Compare(a.ValidUntilTS, b.ValidUntilTS))
	})
	shown := map[eventgraph.KeyID]bool{}
	h.documents = nil
	for _, d := range all {
		before := len(shown)
		for id := range d.VerifyKeys {
			shown[id] = true
		}
		for id := range d.OldVerifyKeys {
			shown[id] = true
		}
		if len(h.documents) == 0 || len(shown) > before && len(h.documents) < maxKeyDocuments {
			h.documents = append(h.documents, d)
		}
	}
}
