package canonicaljson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// TestSpecExamples: appendices, Canonical JSON, Examples. The last one there, {"a":-0,"b":1e10}, is not among
// them: room versions from 6 on refuse it, and those before keep the literals.
func TestSpecExamples(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{}`: `{}`,
		`{
    "one": 1,
    "two": "Two"
}`: `{"one":1,"two":"Two"}`,
		`{
    "b": "2",
    "a": "1"
}`: `{"a":"1","b":"2"}`,
		`{"b":"2","a":"1"}`: `{"a":"1","b":"2"}`,
		`{
    "auth": {
        "success": true,
        "mxid": "@john.doe:example.com",
        "profile": {
            "display_name": "John Doe",
            "three_pids": [
                {
                    "medium": "email",
                    "address": "john.doe@example.org"
                },
                {
                    "medium": "msisdn",
                    "address": "123456789"
                }
            ]
        }
    }
}`: `{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`,
		`{"a": "日本語"}`:        `{"a":"日本語"}`,
		`{"本": 2, "日": 1}`:    `{"日":1,"本":2}`,
		`{"a": "\u65E5"}`:     `{"a":"日"}`,
		`{"a": null}`:         `{"a":null}`,
		` [ 1 , true,false ]`: `[1,true,false]`,
	} {
		for _, rules := range []Rules{Strict, Lenient} {
			got, err := Canonicalize([]byte(in), rules)
			if err != nil || string(got) != want {
				t.Errorf("%s: %s, %v, want %s", in, got, err, want)
			}
		}
	}
}

func TestStrings(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`"\b\t\n\f\r\"\\\/"`: `"\b\t\n\f\r\"\\/"`,
		`"\u0008\u0009\u000A\u000c\u000D\u0022\u005C\u002F"`: `"\b\t\n\f\r\"\\/"`,
		`"\u0000\u0007\u000B\u000e\u001F\u007f"`:             `"\u0000\u0007\u000b\u000e\u001f` + "\x7f" + `"`,
		`"\u2028\u2029\u003c&>"`:                             "\"\u2028\u2029<&>\"",
		`"\ud83d\ude00😀"`:                                    `"😀😀"`,
		`"\uD83D\uDE00\uffff\ufffd"`:                         "\"😀\uffff\ufffd\"",
		"\"\xef\xbf\xbd\"":                                   "\"\ufffd\"",
	} {
		got, err := Canonicalize([]byte(in), Strict)
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v, want %s", in, got, err, want)
			continue
		}
		s, ok := String(got)
		var decoded string
		if err := json.Unmarshal(got, &decoded); err != nil || !ok || s != decoded {
			t.Errorf("%s: String gives %q, encoding/json %q (%v)", got, s, decoded, err)
		}
		if again := AppendString(nil, s); !bytes.Equal(again, got) {
			t.Errorf("AppendString(%q) = %s, want %s", s, again, got)
		}
	}
	if got := AppendString(nil, "a\xffb\xed\xa0\x80"); string(got) != "\"a\ufffdb\ufffd\ufffd\ufffd\"" {
		t.Errorf("invalid UTF-8 becomes %q", got)
	}
}

// TestKeyOrder: by code point, not by UTF-16 unit, and by what an escape stands for.
func TestKeyOrder(t *testing.T) {
	t.Parallel()
	in := `{"😀":1,"\uffff":2,"é":3,"\\":4,"z":5,"\"":6,"\n":7,"":8,"aa":9,"a":10,"A":11,"\u0001":12,"]":13,"\u007f":14}`
	want := `{"":8,"\u0001":12,"\n":7,"\"":6,"A":11,"\\":4,"]":13,"a":10,"aa":9,"z":5,"` + "\x7f" + `":14,"é":3,"` + "\uffff" + `":2,"😀":1}`
	got, err := Canonicalize([]byte(in), Strict)
	if err != nil || string(got) != want {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", " ", "{", "}", "[", "]", `"`, "nul", "nulL", "True", "tru", "falsy", "undefined", "NaN", "Infinity", "'a'", "{}{}", "[] []", "1 2", "1,", "\x00", "\ufeff{}",
		"[1,]", "[,1]", "[1 2]", "[1", "[1,", `{"a"}`, `{"a":}`, `{"a":1,}`, `{,"a":1}`, `{a:1}`, `{1:1}`, `{"a":1 "b":2}`, `{"a" 1}`, `{"a":1`, `{"a":1]`, `[1}`, `{"a":1,"b"`,
		"01", "-", "+1", "-01", "00", ".5", "5.", "1e", "1e+", "1.e1", "0x1", "1_000", "--1",
		`"\x"`, `"\u12"`, `"\u12g4"`, `"\`, `"\u`, "\"\x01\"", "\"\n\"", "\"\x1f\"", `"abc`, "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe6\x97\"",
		`"\ud800"`, `"\udc00"`, `"\ud800x"`, `"\ud800\u0041"`, `"\ud800\ud800"`, `"\udc00\ud800"`, `"\ud83d\`, `"\ud83d\u`, `{"\ud800":1}`,
		`{"a":1,"a":1}`, `{"a":1,"b":2,"a":3}`, `{"b":1,"a":2,"b":3}`, `{"a":1,"\u0061":2}`, `[{"x":{"a":1,"a":1}}]`, `{"\n":1,"\u000a":2}`,
		strings.Repeat("[", maxDepth+2) + strings.Repeat("]", maxDepth+2), strings.Repeat("[", 1_000_000), strings.Repeat(`{"a":`, 1_000_000),
		"// x\n1", "/**/1", "1 // x",
	} {
		for _, rules := range []Rules{Strict, Lenient} {
			if got, err := Canonicalize([]byte(in), rules); err == nil || !errors.Is(err, ErrSyntax) {
				t.Errorf("%.60q: %s, %v", in, got, err)
			}
		}
	}
	if _, err := Canonicalize([]byte(strings.Repeat("[", maxDepth+1)+strings.Repeat("]", maxDepth+1)), Strict); err != nil {
		t.Errorf("%d levels: %v", maxDepth, err)
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"0", "1", "-1", "10", "9007199254740991", "-9007199254740991"} {
		if got, err := Canonicalize([]byte(n), Strict); err != nil || string(got) != n {
			t.Errorf("%s: %s, %v", n, got, err)
		}
		if i, ok := Int([]byte(n)); !ok || fmt.Sprint(i) != n {
			t.Errorf("Int(%s) = %d, %v", n, i, ok)
		}
	}
	for _, n := range []string{"-0", "0.0", "1.0", "1e1", "1E0", "1e10", "-0.5", "9007199254740992", "-9007199254740992", "9223372036854775808", "100000000000000000000", "1e400"} {
		if got, err := Canonicalize([]byte(n), Strict); err == nil {
			t.Errorf("strict: %s: %s", n, got)
		}
		if got, err := Canonicalize([]byte(`{"b":`+n+`,"a":1}`), Lenient); err != nil || string(got) != `{"a":1,"b":`+n+`}` {
			t.Errorf("lenient: %s: %s, %v", n, got, err)
		}
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
	in := strings.Repeat(`{"b":1,"a":`, maxDepth) + `"` + strings.Repeat("x", 1<<20) + `"` + strings.Repeat("}", maxDepth)
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
		if a, b := decode(t, in), decode(t, out); !reflect.DeepEqual(a, b) {
			t.Fatalf("%q means something else than %q", out, in)
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
		CanonicalizeWithout(in, rules, "unsigned")
	})
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
