package auth

import (
	"errors"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// failing is a state that cannot be read at one tuple.
type failing struct {
	given
	at  eventgraph.StateTuple
	err error
}

func (f failing) Event(t eventgraph.StateTuple) (*eventgraph.Event, error) {
	if t == f.at {
		return nil, f.err
	}
	return f.given.Event(t)
}

// An error from the state is no verdict, whichever way it would have gone.
func TestUnreadableState(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	r := newRoom(t, "12", "").with(t, base...)
	for _, line := range []string{`m.room.message - @carol {}`, `m.room.topic '' @carol {}`, `m.room.member @carol @mod {"membership":"leave"}`} {
		e := r.event(t, line, nil)
		for _, tuple := range Selection("12", draftOf(e)) {
			if err := Check(e, failing{r.state, tuple, broken}); !errors.Is(err, broken) {
				t.Errorf("%s, unreadable %s: %v", line, tuple, err)
			}
		}
	}
	for _, tuple := range []eventgraph.StateTuple{tupleCreate, tuplePower} {
		if _, err := UserPower("@carol:a.example", failing{r.state, tuple, broken}); !errors.Is(err, broken) {
			t.Errorf("UserPower, unreadable %s: %v", tuple, err)
		}
		if _, err := PowerLevels(failing{r.state, tuple, broken}); !errors.Is(err, broken) {
			t.Errorf("PowerLevels, unreadable %s: %v", tuple, err)
		}
	}
}
