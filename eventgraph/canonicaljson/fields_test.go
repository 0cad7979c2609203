package canonicaljson

import (
	"bytes"
	"testing"
)

// FuzzFields: Fields shows what Split shows, in place; AppendElements and AppendText what Elements and String do.
func FuzzFields(f *testing.F) {
	for _, s := range []string{`{}`, `{"":0,"\n":null,"a":"x\"]}\\","b":{"c":[1,{"d":"}"}]}}`, `{"a"}`, `{"a":}`, `{"a":1,}`, `[1,"a\n"]`, `"\\"`, `{"a":1"b":2}`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		members, err := Split(in)
		dst := make([]Field, 1, 2)
		fields, fieldsErr := Fields(dst, in)
		if (err == nil) != (fieldsErr == nil) || len(fields)-1 != len(members) {
			t.Fatalf("%q: %d fields, %v; %d members, %v", in, len(fields)-1, fieldsErr, len(members), err)
		}
		for i, m := range members {
			field := &fields[i+1]
			if string(field.Name()) != m.Key || !bytes.Equal(field.Value(), m.Value) || !bytes.HasSuffix(field.Text, append([]byte(":"), m.Value...)) {
				t.Fatalf("%q: field %q %q %q, member %q %q", in, field.Text, field.Name(), field.Value(), m.Key, m.Value)
			}
		}
		elements, ok := Elements(in)
		appended, appendedOK := AppendElements(make([][]byte, 1, 2), in)
		if ok != appendedOK || ok && len(appended)-1 != len(elements) {
			t.Fatalf("%q: elements %q, %v, appended %q, %v", in, elements, ok, appended, appendedOK)
		}
		s, ok := String(in)
		if got, gotOK := AppendText([]byte("x"), in); ok != gotOK || ok && string(got) != "x"+s {
			t.Fatalf("%q: string %q, %v, appended %q, %v", in, s, ok, got, gotOK)
		}
	})
}

// TestDroppedMember: wherever it stands and however often, it goes with one comma.
func TestDroppedMember(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"unsigned":1}`:                                            `{}`,
		` { "unsigned" : 1 } `:                                      `{}`,
		`{"unsigned":1,"unsigned":2}`:                               `{}`,
		`{"a":1,"unsigned":2}`:                                      `{"a":1}`,
		`{"a":1 , "unsigned" : 2 , "unsigned":{} }`:                 `{"a":1}`,
		`{"unsigned":2,"a":1}`:                                      `{"a":1}`,
		`{ "unsigned":2 , "a":1 , "unsigned":3,"b":2}`:              `{"a":1,"b":2}`,
		`{"unsigned":{"b":1,"a":2},"b":1,"a":2}`:                    `{"a":2,"b":1}`,
		`{"b":{"d":1,"c":1},"unsi\u0067ned":{"b":1.5,"a":2},"a":2}`: `{"a":2,"b":{"c":1,"d":1}}`,
		`{"\n":1,"unsigned":"\/","z":{"unsigned":1}}`:               `{"\n":1,"z":{"unsigned":1}}`,
	} {
		got, err := CanonicalizeWithout([]byte(in), Strict, "unsigned")
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v, want %s", in, got, err, want)
		}
	}
}
