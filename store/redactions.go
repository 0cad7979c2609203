package store

import "github.com/plexus-p2p/plexus/eventgraph"

// Redactions whose target is not here yet wait under its ID (room version 3, Handling redactions: both must be
// here before the redaction applies).

// PutWaitingRedaction records that redaction waits for target.
func (tx *Tx) PutWaitingRedaction(target, redaction eventgraph.EventID) error {
	return tx.put(key(tableRedaction).str(string(target)).str(string(redaction)), nil)
}

// DeleteWaitingRedaction ends the wait of redaction for target.
func (tx *Tx) DeleteWaitingRedaction(target, redaction eventgraph.EventID) error {
	return tx.delete(key(tableRedaction).str(string(target)).str(string(redaction)))
}

// WaitingRedactions lists the redactions that wait for target.
func (r *Reader) WaitingRedactions(target eventgraph.EventID) ([]eventgraph.EventID, error) {
	var ids []eventgraph.EventID
	err := r.scan(key(tableRedaction).str(string(target)), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		ids = append(ids, eventgraph.EventID(p.str()))
		return len(ids) < maxWaitingRedactions, nil
	})
	return ids, err
}

// maxWaitingRedactions bounds how many redactions of one event are looked at when it comes.
const maxWaitingRedactions = 100
