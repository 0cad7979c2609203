package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
)

func TestOneTimeKeysAreBounded(t *testing.T) {
	s := open(t)
	put := func(algorithm string, from, n int) error {
		_, err := s.Update(t.Context(), func(tx *Tx) error {
			var keys []OneTimeKey
			for i := from; i < from+n; i++ {
				keys = append(keys, OneTimeKey{algorithm, fmt.Sprint(i), json.RawMessage(`"k"`)})
			}
			return tx.PutOneTimeKeys(alice, phone, keys)
		})
		return err
	}
	if err := put("a", 0, MaxOneTimeKeys); err != nil {
		t.Fatal(err)
	}
	if err := put("a", 0, MaxOneTimeKeys); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := put("a", MaxOneTimeKeys, 1); !errors.Is(err, ErrTooManyKeys) {
		t.Errorf("one too many: %v", err)
	}
	for i := range MaxKeyAlgorithms - 1 {
		if err := put(fmt.Sprint("b", i), 0, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("c", 0, 1); !errors.Is(err, ErrTooManyKeys) {
		t.Errorf("an algorithm too many: %v", err)
	}
	mustView(t, s, func(r *Reader) error {
		counts, err := r.KeyCounts(alice, phone)
		if err != nil || counts.OneTime["a"] != MaxOneTimeKeys || len(counts.OneTime) != MaxKeyAlgorithms {
			t.Errorf("counts %v, %v", counts, err)
		}
		return nil
	})
}

func TestChangedDeviceKeysLoseSignatures(t *testing.T) {
	s := open(t)
	keys := func(k string) json.RawMessage { return json.RawMessage(fmt.Sprintf(`{"keys":{"ed25519:D":%q}}`, k)) }
	signed := func() string {
		t.Helper()
		var got json.RawMessage
		mustView(t, s, func(r *Reader) (err error) {
			got, err = r.SignedDeviceKeys(alice, phone, "@viewer:here")
			return err
		})
		return string(got)
	}
	mustUpdate(t, s, func(tx *Tx) error {
		if _, err := tx.PutDeviceKeys(alice, phone, keys("one")); err != nil {
			return err
		}
		_, err := tx.PutKeySignatures(alice, alice, string(phone), map[string]string{"ed25519:SSK": "sig"})
		return err
	})
	const with = `{"keys":{"ed25519:D":"one"},"signatures":{"@alice:here":{"ed25519:SSK":"sig"}}}`
	if got := signed(); got != with {
		t.Errorf("signed: %s", got)
	}
	mustUpdate(t, s, func(tx *Tx) error { _, err := tx.PutDeviceKeys(alice, phone, keys("one")); return err })
	if got := signed(); got != with {
		t.Errorf("uploaded again: %s", got)
	}
	mustUpdate(t, s, func(tx *Tx) error { _, err := tx.PutDeviceKeys(alice, phone, keys("two")); return err })
	if got := signed(); got != string(keys("two")) {
		t.Errorf("signatures of other keys are shown: %s", got)
	}
}

func TestStreamIDsFollowOnEachOther(t *testing.T) {
	s := open(t)
	from := s.Position()
	mustUpdate(t, s, func(tx *Tx) error {
		for range 3 {
			if _, err := tx.PutDeviceKeys(alice, phone, json.RawMessage(`{}`)); err != nil {
				return err
			}
		}
		_, err := tx.PutKeySignatures(alice, "@bob:here", "key", map[string]string{"ed25519:USK": "sig"})
		return err
	})
	mustUpdate(t, s, func(tx *Tx) error { return tx.DeleteDeviceKeys(alice, phone) })
	want := []string{
		`m.device_list_update {"user_id":"@alice:here","device_id":"D","stream_id":1,"prev_id":[],"deleted":true}`,
		`m.device_list_update {"user_id":"@alice:here","device_id":"D","stream_id":2,"prev_id":[1],"deleted":true}`,
		`m.device_list_update {"user_id":"@alice:here","device_id":"D","stream_id":3,"prev_id":[2],"deleted":true}`,
		` `, // whom alice has verified is nobody's business
		`m.device_list_update {"user_id":"@alice:here","device_id":"D","stream_id":4,"prev_id":[3],"deleted":true}`,
	}
	i := 0
	mustView(t, s, func(r *Reader) error {
		return r.Changes(from, s.Position(), func(_ Position, c Change) (bool, error) {
			if c.Kind != ChangeDeviceList {
				return true, nil
			}
			kind, content, err := r.DeviceListEDU(c)
			if got := kind + " " + string(content); i >= len(want) || got != want[i] {
				t.Errorf("EDU %d: %s", i, got)
			}
			i++
			return true, err
		})
	})
	if i != len(want) {
		t.Errorf("%d changes, want %d", i, len(want))
	}
}
