package store

import (
	"fmt"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Beyond a user's bound that user's oldest report goes, beyond that of all the oldest of all.
func TestReportBounds(t *testing.T) {
	t.Parallel()
	s := open(t)
	put := func(reporter string, i int) {
		t.Helper()
		mustUpdate(t, s, func(tx *Tx) error {
			return tx.PutReport(&Report{Reporter: eventgraph.UserID(reporter), User: eventgraph.UserID(fmt.Sprintf("@u%d:x", i))})
		})
	}
	held := func() (ids []uint64) {
		t.Helper()
		err := s.View(func(r *Reader) error {
			return r.Reports(func(report *Report) (bool, error) { ids = append(ids, report.ID); return true, nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	put("@a:x", 0) // 1
	put("@b:x", 0) // 2
	for i := range MaxReportsOfUser {
		put("@a:x", i+1)
	}
	if ids := held(); len(ids) != MaxReportsOfUser+1 || ids[0] != 2 {
		t.Errorf("%d reports, the first is %d", len(ids), ids[0])
	}
	put("@b:x", 0)
	if ids := held(); slices.Contains(ids, 2) || len(ids) != MaxReportsOfUser+1 {
		t.Error("the same was reported twice by one user")
	}
	mustUpdate(t, s, func(tx *Tx) error {
		for i := range MaxReports - MaxReportsOfUser - 1 {
			report := &Report{Reporter: eventgraph.UserID(fmt.Sprintf("@c%d:x", i/MaxReportsOfUser)), User: eventgraph.UserID(fmt.Sprintf("@u%d:x", i))}
			if err := tx.PutReport(report); err != nil {
				return err
			}
		}
		return nil
	})
	if n := len(held()); n != MaxReports {
		t.Fatalf("%d reports", n)
	}
	first := held()[0]
	put("@d:x", 0)
	if ids := held(); len(ids) != MaxReports || slices.Contains(ids, first) {
		t.Errorf("%d reports", len(ids))
	}
}
