package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// What is scheduled is listed by its time, over all users and for one; what is finalised is no longer due, and older than a week or beyond
// MaxFinalisedDelayed it goes.
func TestDelayedEvents(t *testing.T) {
	t.Parallel()
	s := open(t)
	const alice, bob = eventgraph.UserID("@a:x"), eventgraph.UserID("@b:x")
	put := func(user eventgraph.UserID, id string, scheduled, delay, finalised int64) {
		mustUpdate(t, s, func(tx *Tx) error {
			return tx.PutDelayedEvent(&DelayedEvent{ID: id, User: user, Content: []byte(`{}`), ScheduledTS: scheduled, DelayMS: delay, FinalisedTS: finalised})
		})
	}
	due := func() (ids []string) {
		t.Helper()
		if err := s.View(func(r *Reader) error {
			return r.DelayedDue(func(ts int64, user eventgraph.UserID, id string) (bool, error) {
				ids = append(ids, fmt.Sprint(user, " ", id, " ", ts))
				return true, nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		return ids
	}
	of := func(user eventgraph.UserID) (scheduled, finalised []string) {
		t.Helper()
		if err := s.View(func(r *Reader) error {
			a, b, err := r.DelayedEvents(user)
			for _, d := range a {
				scheduled = append(scheduled, d.ID)
			}
			for _, d := range b {
				finalised = append(finalised, d.ID)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return scheduled, finalised
	}

	put(alice, "late", 10, 100, 0)
	put(bob, "middle", 20, 50, 0)
	put(alice, "early", 30, 5, 0)
	if got, want := due(), []string{"@a:x early 35", "@b:x middle 70", "@a:x late 110"}; !slices.Equal(got, want) {
		t.Errorf("due %q, want %q", got, want)
	}
	if got, _ := of(alice); !slices.Equal(got, []string{"early", "late"}) {
		t.Errorf("alice's: %q", got)
	}
	put(alice, "early", 200, 5, 0) // restarted
	put(alice, "late", 10, 100, 150)
	if got, want := due(), []string{"@b:x middle 70", "@a:x early 205"}; !slices.Equal(got, want) {
		t.Errorf("due after a restart and an end: %q, want %q", got, want)
	}

	for i := range MaxFinalisedDelayed {
		put(alice, fmt.Sprintf("f%03d", i), 0, 1, int64(1000+i))
	}
	scheduled, finalised := of(alice)
	if len(finalised) != MaxFinalisedDelayed || slices.Contains(finalised, "late") || finalised[0] != "f099" || len(scheduled) != 1 {
		t.Errorf("scheduled %q, finalised %q", scheduled, finalised)
	}
	put(alice, "next week", 0, 1, 1050+finalisedDelayedKept)
	if _, finalised := of(alice); len(finalised) != 51 || finalised[50] != "f050" {
		t.Errorf("after a week: %q", finalised)
	}

	mustUpdate(t, s, func(tx *Tx) error { return tx.DropDelayedEvents(alice) })
	if got := due(); !slices.Equal(got, []string{"@b:x middle 70"}) {
		t.Errorf("due after alice has gone: %q", got)
	}
	if err := s.View(func(r *Reader) error { _, err := r.DelayedEvent(alice, "next week"); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("an event of one who has gone: %v", err)
	}
}
