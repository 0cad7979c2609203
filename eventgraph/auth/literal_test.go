package auth

import (
	"strconv"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/internal/literal"
)

// TestVectorsLiterally runs the vectors through the second implementation of the rules: same verdict, same rule.
func TestVectorsLiterally(t *testing.T) {
	t.Parallel()
	pages := readPages(t)
	for file, f := range readVectors(t) {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			built := make(builtEvents)
			for _, v := range f.Vectors {
				for _, want := range v.Expect {
					for n := want.From; n <= want.To; n++ {
						t.Run(v.Name+"/"+strconv.Itoa(n), func(t *testing.T) {
							runLiterally(t, newVectorRoom(t, n, &f, &v, built), &v, &want, pageOf(pages, n))
						})
					}
				}
			}
		})
	}
}

func runLiterally(t *testing.T, w *vectorRoom, v *vector, want *expectation, p *page) {
	e, given := w.event(t, &v.Event)
	version := string(w.version)
	known := make(map[string]*literal.Event)
	add := func(e *eventgraph.Event) *literal.Event {
		t.Helper()
		l, err := literal.Parse(string(e.ID()), e.Raw())
		if err != nil {
			t.Fatal(err)
		}
		if id := literal.EventID(version, l.JSON); id != l.ID {
			t.Errorf("%s has the ID %s, and literally %s", e.Type(), l.ID, id)
		}
		l.Rejected = w.isRejected(e.ID())
		known[l.ID] = l
		return l
	}
	for _, a := range w.byName {
		add(a)
	}
	for _, a := range given {
		add(a)
	}
	state := make(literal.State)
	for tuple, s := range w.state {
		state[literal.Key{Type: tuple.Type, StateKey: tuple.Key}] = add(s).ID
	}
	get := func(id string) *literal.Event { return known[id] }
	l := add(e)

	verdict := ""
	if want.Verdict == "refuse" {
		_, rule := p.find(want.Rule)
		verdict = rule.Number
	}
	// Whether a signature is valid is for others to find out.
	if v.Event.ForgedBy != nil && want.Rule == "member.authorised.unsigned" {
		return
	}
	says := func(how string, err error) {
		t.Helper()
		number := ""
		if err != nil {
			number, _, _ = strings.Cut(err.Error(), ":")
		}
		if number != verdict {
			t.Errorf("%s, literally: %v; want rule %q", how, err, verdict)
		}
	}
	says("by auth events", literal.AuthorizeByAuthEvents(version, l, get))
	if v.aboutAuthEvents() {
		return
	}
	says("by state", literal.Authorize(version, l, state, get))
}
