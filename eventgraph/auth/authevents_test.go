package auth

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// An auth event that the caller did not give is the caller's mistake, and no verdict; in which order they are given does not matter.
func TestAuthEventsGiven(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		r := newRoom(t, v, "").with(t, base...)
		e := r.event(t, `m.room.message - @carol {}`, nil)
		given := r.authEvents(e)
		expect(t, CheckAuthEvents(e, given, nil), "ok")
		slices.Reverse(given)
		expect(t, CheckAuthEvents(e, given, nil), "ok")

		var refused *Refused
		if err := CheckAuthEvents(e, []*eventgraph.Event{r.create}, nil); err == nil || errors.As(err, &refused) {
			t.Errorf("version %s: %v, want an error that is no verdict", v, err)
		}
	}
}

// Selection takes content as a client sent it: not canonical, or no JSON at all.
func TestSelectionOfUnreadContent(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		content string
		want    int
	}{
		{` { "membership" : "join" , "a" : 1.5 }`, 3}, // power levels, own membership, join rules
		{`nonsense`, 2},
	} {
		user := "@a:b"
		got := Selection("12", eventgraph.Draft{Type: typeMember, Sender: "@a:b", StateKey: &user, Content: json.RawMessage(row.content)})
		if len(got) != row.want {
			t.Errorf("%s: %v, want %d tuples", row.content, got, row.want)
		}
	}
}
