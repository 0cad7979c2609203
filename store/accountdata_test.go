package store

import (
	"encoding/json"
	"testing"
)

// The sum tells one content from another and from none, and follows the snapshot.
func TestAccountDataSum(t *testing.T) {
	t.Parallel()
	s := open(t)
	sum := func(dataType string) (sum [32]byte) {
		t.Helper()
		mustView(t, s, func(r *Reader) (err error) {
			sum, err = r.AccountDataSum("@a:example.org", "", dataType)
			return err
		})
		return sum
	}
	put := func(content string) {
		t.Helper()
		mustUpdate(t, s, func(tx *Tx) error {
			_, err := tx.PutAccountData("@a:example.org", "", &AccountData{Type: "m.test", Content: json.RawMessage(content)})
			return err
		})
	}
	seen := map[[32]byte]string{sum("m.test"): "nothing"}
	for _, content := range []string{`{}`, `{"a":1}`, `{"a":2}`} {
		put(content)
		now := sum("m.test")
		if before, ok := seen[now]; ok {
			t.Errorf("%s has the sum of %s", content, before)
		}
		seen[now] = content
		if sum("m.test") != now || sum("m.other") != [32]byte{} {
			t.Errorf("%s has no lasting sum of its own", content)
		}
	}
}
