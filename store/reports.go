package store

import (
	"encoding/json"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Bounds on reports, which users file: beyond them the oldest goes, of the same user first. A person reads them one by one.
const (
	MaxReports       = 1000
	MaxReportsOfUser = 100
)

// Report is a local user's complaint about a user, a room or an event (CS API, Reporting content).
type Report struct {
	ID       uint64            `json:"id"` // in the order in which they came
	TS       int64             `json:"ts"` // ms
	Reporter eventgraph.UserID `json:"reporter"`

	// What is reported: User; or Room, and if Event is set that event in it.
	User  eventgraph.UserID  `json:"user_id,omitempty"`
	Room  eventgraph.RoomID  `json:"room_id,omitempty"`
	Event eventgraph.EventID `json:"event_id,omitempty"`

	Reason string `json:"reason,omitempty"`
}

var keyReportCount = key(tableMeta).str("reports") // u64: the ID of the newest there has ever been

func reportKey(id uint64) dbKey { return key(tableReport).u64(id) }

// Reports calls f for each report, oldest first.
func (r *Reader) Reports(f func(*Report) (bool, error)) error {
	return r.scan(key(tableReport), nil, false, func(_, v []byte) (bool, error) {
		var report Report
		if err := json.Unmarshal(v, &report); err != nil {
			return false, err
		}
		return f(&report)
	})
}

// PutReport stores a report, and gives it its ID. It takes the place of one by the same user about the same.
func (tx *Tx) PutReport(report *Report) error {
	all, own := 0, 0
	var drop, oldest, oldestOwn uint64
	err := tx.Reports(func(other *Report) (bool, error) {
		if all++; all == 1 {
			oldest = other.ID
		}
		if other.Reporter != report.Reporter {
			return true, nil
		}
		if own++; own == 1 {
			oldestOwn = other.ID
		}
		if other.User == report.User && other.Room == report.Room && other.Event == report.Event {
			drop = other.ID
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	switch {
	case drop != 0:
	case own >= MaxReportsOfUser:
		drop = oldestOwn
	case all >= MaxReports:
		drop = oldest
	}
	if drop != 0 {
		if err := tx.delete(reportKey(drop)); err != nil {
			return err
		}
	}
	last, err := tx.getNumber(keyReportCount)
	if err != nil {
		return err
	}
	report.ID = last + 1
	if err := tx.putNumber(keyReportCount, report.ID); err != nil {
		return err
	}
	return tx.putJSON(reportKey(report.ID), report)
}

// DeleteReport removes a report; ErrNotFound.
func (tx *Tx) DeleteReport(id uint64) error {
	k := reportKey(id)
	held, err := tx.has(k)
	if err != nil {
		return err
	}
	if !held {
		return ErrNotFound
	}
	return tx.delete(k)
}
