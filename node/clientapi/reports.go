package clientapi

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Reports (CS API, Reporting content) are kept for whoever runs the node, who reads them by "plexus reports". They are told to
// nobody else: other servers have no endpoint for them.

// maxReason bounds the text of a report, in bytes.
const maxReason = 4000

// reportRoutes registers the endpoints of reports.
func (a *API) reportRoutes() {
	const v3 = "/_matrix/client/v3"
	a.route("POST", v3+"/rooms/{roomId}/report", authed, a.reportRoom)
	a.route("POST", v3+"/rooms/{roomId}/report/{eventId}", authed, a.reportEvent)
	a.route("POST", v3+"/users/{userId}/report", authed, a.reportUser)
	// MSC4151, for clients from before v1.13.
	a.route("POST", "/_matrix/client/unstable/org.matrix.msc4151/rooms/{roomId}/report", authed, a.reportRoom)
}

// reportReason reads the body of a report. Only that of an event may lack a reason.
func reportReason(q *request, needed bool) (string, error) {
	var body struct {
		Reason *string `json:"reason"`
	}
	if err := q.decode(&body); err != nil {
		return "", err
	}
	switch {
	case body.Reason == nil && needed:
		return "", missingParam("reason is missing; it may be empty.")
	case body.Reason == nil:
		return "", nil
	case len(*body.Reason) > maxReason:
		return "", invalidParam(fmt.Sprintf("A reason has at most %d bytes.", maxReason))
	}
	return *body.Reason, nil
}

// reportRoom is POST /rooms/{roomId}/report. A room is known that is held here, or to which the caller was invited.
func (a *API) reportRoom(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	reason, err := reportReason(q, true)
	if err != nil {
		return nil, err
	}
	err = a.Store.View(func(r *store.Reader) error {
		_, err := r.Room(room)
		if errors.Is(err, store.ErrNotFound) {
			_, err = r.Member(room, q.user)
		}
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, notFound("The room was not found.")
	}
	if err != nil {
		return nil, err
	}
	return nil, a.report(q, store.Report{Room: room, Reason: reason})
}

// reportEvent is POST /rooms/{roomId}/report/{eventId}, for those joined to the room.
func (a *API) reportEvent(q *request) (any, error) {
	room, err := roomOf(q)
	if err != nil {
		return nil, err
	}
	reason, err := reportReason(q, false)
	if err != nil {
		return nil, err
	}
	id := eventgraph.EventID(q.path("eventId"))
	err = a.Store.View(func(r *store.Reader) error {
		m, err := memberOf(r, room, q.user)
		if err != nil {
			return err
		}
		if !isJoined(m) {
			return notFound("The event was not found or you are not joined to the room.")
		}
		_, err = a.visibleEvent(r, room, q.user, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return nil, a.report(q, store.Report{Room: room, Event: id, Reason: reason})
}

// reportUser is POST /users/{userId}/report. Of users of other servers it is not known who exists.
func (a *API) reportUser(q *request) (any, error) {
	user, err := eventgraph.ParseUserID(q.path("userId"))
	if err != nil {
		return nil, invalidParam("That is not a user ID.")
	}
	reason, err := reportReason(q, true)
	if err != nil {
		return nil, err
	}
	if a.isLocal(user) {
		if _, err := a.account(user); errors.Is(err, store.ErrNotFound) {
			return nil, notFound("The user was not found.")
		} else if err != nil {
			return nil, err
		}
	}
	return nil, a.report(q, store.Report{User: user, Reason: reason})
}

// report stores the caller's report.
func (a *API) report(q *request, report store.Report) error {
	if a.RateLimits {
		if err := a.limits.report(q.user); err != nil {
			return err
		}
	}
	report.TS, report.Reporter = a.Now().UnixMilli(), q.user
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error { return tx.PutReport(&report) })
	if err == nil {
		a.Log.Info("a user has reported something: see \"plexus reports\"", "report", report.ID)
	}
	return err
}

// ReportStatus is a report as "plexus reports" shows it.
type ReportStatus struct {
	store.Report
	Sender  eventgraph.UserID `json:"sender,omitempty"`  // of the event, if that is still here
	Content string            `json:"content,omitempty"` // the first maxReason bytes of its content, as JSON
}

// Reports lists the reports, oldest first.
func (a *API) Reports() ([]ReportStatus, error) {
	list := []ReportStatus{}
	err := a.Store.View(func(r *store.Reader) error {
		return r.Reports(func(report *store.Report) (bool, error) {
			status := ReportStatus{Report: *report}
			if report.Event != "" {
				e, err := r.Event(report.Event)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return false, err
				}
				if err == nil {
					content := e.Shown().Content()
					status.Sender, status.Content = e.Sender(), strings.ToValidUTF8(string(content[:min(len(content), maxReason)]), "")
				}
			}
			list = append(list, status)
			return true, nil
		})
	})
	return list, err
}

// DeleteReport removes a report; store.ErrNotFound.
func (a *API) DeleteReport(ctx context.Context, id uint64) error {
	_, err := a.Store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteReport(id) })
	return err
}
