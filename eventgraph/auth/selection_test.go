package auth

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// TestSelectionVectors: ../testdata/vectors/auth_selection.json; README.md there says what it holds.
func TestSelectionVectors(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("..", "testdata", "vectors", "auth_selection.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name, Rule, Expect, Reason string
			Versions                   []eventgraph.RoomVersion
			Input                      struct {
				Event struct {
					Type     string
					Sender   eventgraph.UserID
					StateKey *string `json:"state_key"`
					Content  json.RawMessage
				}
				Tuple [2]string
			}
			Result struct{ Selected [][2]string }
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil || len(file.Vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(file.Vectors), err)
	}
	for _, c := range file.Vectors {
		for _, v := range c.Versions {
			e := c.Input.Event
			var got [][2]string
			for _, tuple := range Selection(v, eventgraph.Draft{Type: e.Type, Sender: e.Sender, StateKey: e.StateKey, Content: e.Content}) {
				got = append(got, [2]string{tuple.Type, tuple.Key})
			}
			slices.SortFunc(got, func(a, b [2]string) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
			if !slices.Equal(got, c.Result.Selected) {
				t.Errorf("%s, %s, version %s: selected %v, want %v", c.Rule, c.Name, v, got, c.Result.Selected)
			}
			if slices.Contains(got, c.Input.Tuple) != (c.Expect == "accept") {
				t.Errorf("%s, %s, version %s: want %s of %v: %s", c.Rule, c.Name, v, c.Expect, c.Input.Tuple, c.Reason)
			}
		}
	}
}
