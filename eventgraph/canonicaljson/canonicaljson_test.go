package canonicaljson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestAppendString(t *testing.T) {
	t.Parallel()
	if got := AppendString(nil, "a\xffb\xed\xa0\x80"); string(got) != "\"a\ufffdb\ufffd\ufffd\ufffd\"" {
		t.Errorf("invalid UTF-8 becomes %q", got)
	}
}

func TestIntegers(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"0", "1", "-1", "10", "9007199254740991", "-9007199254740991"} {
		if i, ok := Int([]byte(n)); !ok || fmt.Sprint(i) != n {
			t.Errorf("Int(%s) = %d, %v", n, i, ok)
		}
	}
	for _, n := range []string{"-0", "0.0", "1.0", "1e1", "1E0", "1e10", "-0.5", "9007199254740992", "-9007199254740992", "9223372036854775808", "100000000000000000000", "1e400"} {
		if i, ok := Int([]byte(n)); ok {
			t.Errorf("Int(%s) = %d", n, i)
		}
	}
	for n, want := range map[string]int64{"9223372036854775807": 1<<63 - 1, "-9223372036854775808": -1 << 63, "0": 0, "9007199254740992": 1 << 53} {
		if got, ok := Int64([]byte(n)); !ok || got != want {
			t.Errorf("Int64(%s) = %d, %v", n, got, ok)
		}
	}
	for _, n := range []string{"", "-", "-0", "01", "1.0", "1e3", `"1"`, "true", "9223372036854775808", "-9223372036854775809", "99999999999999999999", "18446744073709551616", "1 ", "+1"} {
		if got, ok := Int64([]byte(n)); ok {
			t.Errorf("Int64(%q) = %d", n, got)
		}
	}
}

func TestWithout(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"unsigned":{"age":1.5,"b":{"y":1,"x":-0}},"b":1,"a":{"unsigned":2}}`: `{"a":{"unsigned":2},"b":1}`,
		`{"unsigned":1}`:                                     `{}`,
		`{"z":{"b":1,"a":2},"unsigned":1}`:                   `{"z":{"a":2,"b":1}}`,
		`{"a":1,"unsigned":{"z":1,"a":1},"b":{"z":1,"a":1}}`: `{"a":1,"b":{"a":1,"z":1}}`,
		`{"\u0075nsigned":1,"x":2}`:                          `{"x":2}`,
		`[{"unsigned":1}]`:                                   `[{"unsigned":1}]`,
	} {
		if got, err := CanonicalizeWithout([]byte(in), Strict, "unsigned"); err != nil || string(got) != want {
			t.Errorf("%s: %s, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{`{"unsigned":}`, `{"unsigned":{"a":1,"a":1}}`, `{"unsigned":1,"a":1.5}`, `{"unsigned":1 "a":1}`, `{"unsigned":"\ud800"}`} {
		if got, err := CanonicalizeWithout([]byte(in), Strict, "unsigned"); err == nil {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestMarshal(t *testing.T) {
	t.Parallel()
	got, err := Marshal(map[string]any{"z": "<&>\u2028", "a": []int{1, -5}, "m": struct {
		B bool   `json:"b"`
		A string `json:"a"`
	}{true, "é"}})
	if want := `{"a":[1,-5],"m":{"a":"é","b":true},"z":"<&>` + "\u2028" + `"}`; err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	for _, v := range []any{1.5, int64(1) << 53, func() {}} {
		if got, err := Marshal(v); err == nil {
			t.Errorf("%v: %s", v, got)
		}
	}
}

func TestLook(t *testing.T) {
	t.Parallel()
	object := []byte(`{"\n":null,"a":"x\"]}\\","b":{"c":[1,{"d":"}"}],"e":-5},"f":[],"g":[1,"],",[2,[3]],{"x":","}],"h":{},"i":true}`)
	if c, err := Canonicalize(object, Strict); err != nil || !bytes.Equal(c, object) {
		t.Fatalf("the object is not canonical: %s, %v", c, err)
	}
	members, err := Split(object)
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, m := range members {
		keys = append(keys, m.Key)
		v, ok := Get(object, m.Key)
		if !ok || !bytes.Equal(v, m.Value) || !json.Valid(v) {
			t.Errorf("%q: Get gives %s, Split %s", m.Key, v, m.Value)
		}
	}
	if want := []string{"\n", "a", "b", "f", "g", "h", "i"}; !slices.Equal(keys, want) {
		t.Errorf("keys %q", keys)
	}
	if got := Join(slices.Clone(members)); !bytes.Equal(got, object) {
		t.Errorf("Join gives %s", got)
	}
	slices.Reverse(members)
	if got := Join(members); !bytes.Equal(got, object) {
		t.Errorf("Join of the reverse gives %s", got)
	}
	if got := Join(nil); string(got) != "{}" {
		t.Errorf("Join of nothing gives %s", got)
	}
	if s, ok := GetString(object, "a"); !ok || s != `x"]}\` {
		t.Errorf("a is %q, %v", s, ok)
	}
	for _, key := range []string{"b", "c", "A", "", "i"} {
		if s, ok := GetString(object, key); ok {
			t.Errorf("%q is the string %q", key, s)
		}
	}
	g, _ := Get(object, "g")
	elements, ok := Elements(g)
	if want := [][]byte{[]byte("1"), []byte(`"],"`), []byte("[2,[3]]"), []byte(`{"x":","}`)}; !ok || !reflect.DeepEqual(elements, want) {
		t.Errorf("elements %s, %v", elements, ok)
	}
	if f, _ := Get(object, "f"); true {
		if e, ok := Elements(f); !ok || len(e) != 0 {
			t.Errorf("elements of []: %s, %v", e, ok)
		}
	}
	for _, bad := range []string{"", "{}", "[", "]", "[1,]", "[,]", `"[]"`, "null"} {
		if e, ok := Elements([]byte(bad)); ok && bad != "{}" {
			t.Errorf("elements of %s: %s", bad, e)
		}
	}
	for _, bad := range []string{"", "[]", "{", "}", `"{}"`, "null", `{"a"}`, `{"a":}`, `{"a":1,}`, `{a:1}`, `{"a":1"b":2}`} {
		if m, err := Split([]byte(bad)); err == nil {
			t.Errorf("members of %s: %v", bad, m)
		}
		if v, ok := Get([]byte(bad), "zz"); ok {
			t.Errorf("zz of %s: %s", bad, v)
		}
	}
	if !IsObject([]byte("{}")) || IsObject([]byte("[]")) || IsObject(nil) || !IsNull([]byte("null")) || IsNull(nil) {
		t.Error("IsObject or IsNull")
	}
}

// TestDeepUnsorted: objects that all stand in the wrong order, one within another.
func TestDeepUnsorted(t *testing.T) {
	t.Parallel()
	in := strings.Repeat(`{"b":1,"a":`, MaxDepth) + `"` + strings.Repeat("x", 1<<20) + `"` + strings.Repeat("}", MaxDepth)
	got, err := Canonicalize([]byte(in), Strict)
	if err != nil || !bytes.HasPrefix(got, []byte(`{"a":{"a":`)) || !bytes.HasSuffix(got, []byte(`,"b":1},"b":1}`)) {
		t.Errorf("%.40s…, %v", got, err)
	}
	if again, err := Canonicalize(got, Strict); err != nil || !bytes.Equal(again, got) {
		t.Errorf("not a fixpoint: %v", err)
	}
}

// TestShuffled: whatever the order of members on the way in, the same bytes come out, as a second
// implementation over encoding/json makes them.
func TestShuffled(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 7))
	var build func(depth int) (in string, tree any)
	build = func(depth int) (string, any) {
		switch n := rng.IntN(6); {
		case n < 3 && depth < 5:
			m := map[string]any{}
			var members []string
			for range rng.IntN(6) {
				key := fmt.Sprint(rng.IntN(100)) + []string{"", "\"", "\\", "\n", "😀", "\uffff"}[rng.IntN(6)]
				if _, twice := m[key]; twice {
					continue
				}
				in, v := build(depth + 1)
				m[key] = v
				quoted, _ := json.Marshal(key)
				members = append(members, string(quoted)+" :\t"+in)
			}
			rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
			return "{" + strings.Join(members, ",\n") + "}", m
		case n == 3 && depth < 5:
			list := []any{}
			var elements []string
			for range rng.IntN(4) {
				in, v := build(depth + 1)
				list, elements = append(list, v), append(elements, in)
			}
			return "[" + strings.Join(elements, " , ") + "]", list
		default:
			i := rng.Int64N(1000)
			return fmt.Sprint(i), i
		}
	}
	for range 300 {
		in, tree := build(0)
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(tree); err != nil {
			t.Fatal(err)
		}
		got, err := Canonicalize([]byte(in), Strict)
		if err != nil || string(got)+"\n" != want.String() {
			t.Fatalf("%s: %s, %v, want %s", in, got, err, want.String())
		}
	}
}

// FuzzCanonicalize: what is accepted is JSON of the same meaning, and its canonical form is a fixpoint.
func FuzzCanonicalize(f *testing.F) {
	for _, s := range []string{
		`{"b":[1,-2,{"z":null,"a":true}],"a":"\u65e5\ud83d\ude00\n\u0001\/"}`, `{"a":1.50e+3,"b":-0}`, `[]`, ` "x" `, `9007199254740991`, `{"b":{"b":1,"a":2},"a":{"b":1,"a":2}}`,
		`{"\n":1,"\"":2,"!":3,"":4}`, `{"unsigned":{"a":1.5}}`, "\"\u2028<>&\x7f\"",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, lenient bool) {
		rules := Strict
		if lenient {
			rules = Lenient
		}
		out, err := Canonicalize(in, rules)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		again, err := Canonicalize(out, rules)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%q is not a fixpoint: %q, %v", out, again, err)
		}
		tree := decode(t, in)
		if !reflect.DeepEqual(tree, decode(t, out)) {
			t.Fatalf("%q means something else than %q", out, in)
		}
		if want := written(t, tree); want != string(out) {
			t.Fatalf("%q, want %q", out, want)
		}
		if other, err := Canonicalize(in, Lenient); err != nil || !bytes.Equal(other, out) {
			t.Fatalf("%q, and with fewer rules %q, %v", out, other, err)
		}
		if len(out) > len(in) {
			t.Fatalf("%q is longer than %q", out, in)
		}
		if members, err := Split(out); err == nil {
			if joined := Join(members); !bytes.Equal(joined, out) {
				t.Fatalf("%q splits and joins to %q", out, joined)
			}
		} else if out[0] == '{' {
			t.Fatalf("%q does not split: %v", out, err)
		}
		if _, ok := Elements(out); ok != (out[0] == '[') {
			t.Fatalf("elements of %q: %v", out, ok)
		}
		if s, ok := String(out); ok && !bytes.Equal(AppendString(nil, s), out) {
			t.Fatalf("%q is another string", out)
		}
		rest, err := CanonicalizeWithout(in, rules, "unsigned")
		if object, ok := tree.(map[string]any); ok {
			delete(object, "unsigned")
		}
		if want := written(t, tree); err != nil || string(rest) != want {
			t.Fatalf("without unsigned %q, %v, want %q", rest, err, want)
		}
	})
}

// written writes a value that encoding/json read, as the appendices define it.
func written(t *testing.T, v any) string {
	switch v := v.(type) {
	case map[string]any:
		var members []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			members = append(members, written(t, key)+":"+written(t, v[key]))
		}
		return "{" + strings.Join(members, ",") + "}"
	case []any:
		elements := make([]string, len(v))
		for i := range v {
			elements[i] = written(t, v[i])
		}
		return "[" + strings.Join(elements, ",") + "]"
	case string:
		out := `"`
		for _, r := range v {
			if short := strings.IndexRune("\b\t\n\f\r\"\\", r); short >= 0 {
				out += `\` + `btnfr"\`[short:short+1]
			} else if r < ' ' {
				out += fmt.Sprintf(`\u%04x`, r)
			} else {
				out += string(r)
			}
		}
		return out + `"`
	case json.Number:
		return v.String()
	default:
		return fmt.Sprint(map[any]string{nil: "null", true: "true", false: "false"}[v])
	}
}

func decode(t *testing.T, raw []byte) any {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("encoding/json refuses %q: %v", raw, err)
	}
	return v
}

// FuzzLook: looking into any bytes at all does not panic.
func FuzzLook(f *testing.F) {
	f.Add([]byte(`{"a":"x\"","b":[1,{"c":2}]}`))
	f.Add([]byte(`{"a":"\`))
	f.Add([]byte(`[[,"],`))
	f.Fuzz(func(t *testing.T, in []byte) {
		members, err := Split(in)
		for _, m := range members {
			if _, ok := Get(in, m.Key); !ok && err == nil {
				t.Fatalf("%q is split from %q and not found in it", m.Key, in)
			}
		}
		Elements(in)
		String(in)
		Int64(in)
		skip(in)
	})
}
