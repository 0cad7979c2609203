package canonicaljson

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestVectors: ../testdata/vectors/canonicaljson.json; README.md there says what it holds.
func TestVectors(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile(filepath.Join("..", "testdata", "vectors", "canonicaljson.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name, Rule, Expect, Reason string
			Versions                   []string
			Input                      struct {
				Text, Hex string
				Parts     [][2]any // text, and how often
			}
			Result struct{ Canonical string }
		}
	}
	if err := json.Unmarshal(raw, &file); err != nil || len(file.Vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(file.Vectors), err)
	}
	for _, c := range file.Vectors {
		in := []byte(c.Input.Text)
		if c.Input.Hex != "" {
			if in, err = hex.DecodeString(c.Input.Hex); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range c.Input.Parts {
			in = append(in, strings.Repeat(p[0].(string), int(p[1].(float64)))...)
		}
		for _, v := range c.Versions {
			rules := Strict
			if n, err := strconv.Atoi(v); err != nil {
				t.Fatal(err)
			} else if n < 6 {
				rules = Lenient
			}
			got, err := Canonicalize(in, rules)
			switch {
			case (err == nil) != (c.Expect == "accept"), err != nil && !errors.Is(err, ErrSyntax):
				t.Errorf("%s, version %s: %.80s, %v, want %s: %s", c.Name, v, got, err, c.Expect, c.Reason)
			case err == nil && c.Input.Parts == nil && string(got) != c.Result.Canonical:
				t.Errorf("%s, version %s: %s, want %s", c.Name, v, got, c.Result.Canonical)
			}
			s, ok := String(got)
			if !ok {
				continue
			}
			var decoded string
			if err := json.Unmarshal(got, &decoded); err != nil || s != decoded {
				t.Errorf("%s: String gives %q, encoding/json %q (%v)", got, s, decoded, err)
			}
			if again := AppendString(nil, s); string(again) != string(got) {
				t.Errorf("AppendString(%q) = %s, want %s", s, again, got)
			}
		}
	}
}
