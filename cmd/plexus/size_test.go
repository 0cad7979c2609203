package main

import "testing"

func TestSize(t *testing.T) {
	for text, want := range map[string]size{"1": 1, "50M": 50 << 20, "2G": 2 << 30, "10K": 10 << 10, "0": 0, "": 0, "M": 0, "-1": 0, "1MM": 0, "9999999999G": 0} {
		var got size
		err := got.Set(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
		if want > 0 && got.String() != text {
			t.Errorf("%q is shown as %q", text, got.String())
		}
	}
}
