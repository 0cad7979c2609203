package auth

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
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

// TestSelectionVectors runs the vectors of the auth events selection.
func TestSelectionVectors(t *testing.T) {
	t.Parallel()
	var file struct {
		About   string
		Vectors []struct {
			Name, Reason string
			Event        vectorEvent
			Expect       []struct {
				From, To int
				Selects  []vectorTuple
			}
		}
	}
	readJSON(t, filepath.Join(vectorDir, "../auth_selection/selection.json"), &file)
	for _, version := range eventgraph.SupportedVersions() {
		n, _ := strconv.Atoi(string(version))
		for _, v := range file.Vectors {
			ran := false
			for _, want := range v.Expect {
				if n < want.From || want.To < n {
					continue
				}
				ran = true
				got := make(map[vectorTuple]int)
				draft := eventgraph.Draft{Type: v.Event.Type, StateKey: v.Event.StateKey, Sender: v.Event.Sender, Content: v.Event.Content}
				for _, tuple := range Selection(version, draft) {
					got[vectorTuple{tuple.Type, tuple.Key}]++
				}
				for _, tuple := range want.Selects {
					got[tuple]--
				}
				for tuple, n := range got {
					if n != 0 {
						t.Errorf("version %s, %s: %v is selected %+d times too often", version, v.Name, tuple, n)
					}
				}
			}
			if !ran {
				t.Errorf("version %s: no verdict on %s", version, v.Name)
			}
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
