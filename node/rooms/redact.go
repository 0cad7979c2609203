package rooms

import (
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
	"github.com/plexus-p2p/plexus/store"
)

// redactions applies what an accepted event redacts, and to it what has been waiting to redact it (room version 3, Handling
// redactions: once both are here, whichever came first). w is the event's own step of the commit.
//
// A redaction of another server that does not apply, or not yet, is not shown: it is logged like a soft-failed
// event, and as an event of the timeline when its target comes and it does apply.
func (run *run) redactions(s *store.StoredEvent, w *write) error {
	if s.Verdict == store.Accepted && s.Type() == "m.room.redaction" && s.Redacts() != "" {
		applies, err := run.applyRedaction(s, w)
		if err != nil {
			return err
		}
		if !applies && w.change == store.ChangeEvent && s.Sender().Server() != run.r.key.Server {
			w.change, s.RoomState = store.ChangeSoftFailed, eventgraph.Hash{}
		}
	}
	target := s.ID()
	waiting, err := run.read.WaitingRedactions(target)
	if err != nil {
		return err
	}
	waiting = append(waiting, run.waits[target]...)
	slices.Sort(waiting)
	for _, id := range slices.Compact(waiting) {
		redaction, err := run.stored(id)
		if err != nil {
			return err
		}
		applies, err := mayRedact(run.state(redaction.StateBefore), redaction.Event, s)
		if err != nil {
			return err
		}
		if applies {
			run.redact(s, id)
			s = run.events[target]
			if run.hidden(redaction) && run.carries(redaction) { // all after the first redact nothing
				shown := run.changeable(redaction)
				shown.RoomState = run.live.State
				run.put(&write{event: shown, change: store.ChangeEvent})
			}
		}
		run.put(&write{also: func(tx *store.Tx) error { return tx.DeleteWaitingRedaction(target, id) }})
	}
	return nil
}

// applyRedaction redacts the target of an accepted redaction if that is here and the redaction may; else it waits for it.
func (run *run) applyRedaction(s *store.StoredEvent, w *write) (bool, error) {
	target, err := run.stored(s.Redacts())
	if errors.Is(err, store.ErrNotFound) {
		w.redact = s.Redacts()
		run.waits[s.Redacts()] = append(run.waits[s.Redacts()], s.ID())
		return false, nil
	}
	if err != nil {
		return false, err
	}
	applies, err := mayRedact(run.state(s.StateBefore), s.Event, target)
	if applies {
		run.redact(target, s.ID())
	}
	return applies, err
}

// hidden says whether a redaction came into the timeline's reach but was not shown in it.
func (run *run) hidden(redaction *store.StoredEvent) bool {
	if redaction.Order <= 0 || redaction.Aside || redaction.Position != 0 {
		return false
	}
	return !slices.ContainsFunc(run.writes, func(w *write) bool {
		return w.change == store.ChangeEvent && w.event.ID() == redaction.ID()
	})
}

// redact stores the target in its redacted form, but with what the authorization rules look at: verdicts must not depend on whether the
// redaction or what rests on its target came first. The first redaction that applies stays the one named.
func (run *run) redact(target *store.StoredEvent, by eventgraph.EventID) {
	if target.RedactedBy != "" {
		return
	}
	t := run.changeable(target)
	t.RedactedBy = by
	reduce(t, t.Event)
	run.put(&write{event: t, change: store.ChangeRedaction})
}

// reduce makes s, which is redacted, hold what redaction leaves of e, a copy of its event.
func reduce(s *store.StoredEvent, e *eventgraph.Event) {
	s.Event = e
	s.Related = s.Relation().Kept()
	s.Event = e.RedactKeepingRules()
}

// mayRedact says whether an accepted redaction applies to its target: same room, and the same server or enough power in the
// state before the redaction.
func mayRedact(before auth.State, redaction *eventgraph.Event, target *store.StoredEvent) (bool, error) {
	if target.RoomID() != redaction.RoomID() || target.Verdict == store.Rejected {
		return false, nil
	}
	if target.Sender().Server() == redaction.Sender().Server() {
		return true, nil
	}
	return hasRedactLevel(before, redaction.Sender())
}

// hasRedactLevel says whether the user may redact by their power alone.
func hasRedactLevel(state auth.State, user eventgraph.UserID) (bool, error) {
	power, err := auth.UserPower(user, state)
	if err != nil || power.IsCreator {
		return power.IsCreator, err
	}
	levels, err := auth.PowerLevels(state)
	if err != nil {
		return false, err
	}
	return power.Level >= levels.Redact, nil
}

// changeable is a stored event to make changes to: itself if it is not written yet, else a copy. The caller puts it.
func (run *run) changeable(s *store.StoredEvent) *store.StoredEvent {
	if run.pending[s.ID()] {
		return s
	}
	changed := *s
	return &changed
}
