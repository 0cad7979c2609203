package canonicaljson

import (
	"bytes"
	"fmt"
	"slices"
	"unicode/utf8"
)

// Member is one member of an object.
type Member struct {
	Key   string
	Value []byte // canonical
}

// Split returns the members of a canonical object in its order. The values are slices of object, whose
// inside is not checked again. Any other input yields an error or nonsense, but no panic.
func Split(object []byte) ([]Member, error) {
	members := make([]Member, 0, 16)
	err := each(object, func(key, value []byte) bool {
		members = append(members, Member{string(unescape(key)), value})
		return true
	})
	return members, err
}

// Field is one member of an object where it stands there. What it returns are slices of that object, except for a name with
// escapes.
type Field struct {
	Text    []byte // name and value as written: "name":value
	key     int32  // of which this is the name with its quotes
	escaped bool   // whether that has escapes
}

// Name is decoded.
func (f *Field) Name() []byte {
	name := f.Text[1 : f.key-1]
	if f.escaped {
		return unescape(name)
	}
	return name
}

// Value is canonical.
func (f *Field) Value() []byte { return f.Text[f.key+1:] }

// Fields is Split without copies: it appends to dst, which may lie on the caller's stack.
func Fields(dst []Field, object []byte) ([]Field, error) {
	if len(object) < 2 || object[0] != '{' || object[len(object)-1] != '}' {
		return dst, errNoObject
	}
	for rest := object[1 : len(object)-1]; len(rest) > 0; {
		key, end := skipMember(rest)
		if end == 0 {
			return dst, errNoObject
		}
		dst = append(dst, Field{rest[:end:end], int32(key), bytes.IndexByte(rest[:key], '\\') >= 0})
		rest = rest[min(end+1, len(rest)):]
	}
	return dst, nil
}

// Get returns the value of a member of a canonical object; false if there is none, or no object.
func Get(object []byte, key string) (value []byte, ok bool) {
	each(object, func(k, v []byte) bool {
		if string(k) == key || bytes.IndexByte(k, '\\') >= 0 && string(unescape(k)) == key {
			value, ok = v, true
		}
		return !ok
	})
	return value, ok
}

// GetString is Get of a string; false also if the member is something else.
func GetString(object []byte, key string) (string, bool) {
	v, _ := Get(object, key)
	return String(v)
}

// Elements returns the elements of a canonical array, slices of it; false if it is none.
func Elements(array []byte) ([][]byte, bool) { return AppendElements(nil, array) }

// AppendElements is Elements that appends to dst, which may lie on the caller's stack.
func AppendElements(dst [][]byte, array []byte) ([][]byte, bool) {
	if len(array) < 2 || array[0] != '[' || array[len(array)-1] != ']' {
		return nil, false
	}
	for rest := array[1 : len(array)-1]; len(rest) > 0; {
		n := skip(rest)
		if n == 0 || n < len(rest) && rest[n] != ',' || n+1 == len(rest) {
			return nil, false
		}
		dst = append(dst, rest[:n])
		rest = rest[min(n+1, len(rest)):]
	}
	return dst, true
}

// String decodes a canonical string; false if value is none.
func String(value []byte) (string, bool) {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return "", false
	}
	return string(unescape(value[1 : len(value)-1])), true
}

// AppendText is String that appends to dst.
func AppendText(dst, value []byte) ([]byte, bool) {
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return dst, false
	}
	return append(dst, unescape(value[1:len(value)-1])...), true
}

// Int decodes an integer of canonical JSON; false if value is none, or out of its range.
func Int(value []byte) (int64, bool) {
	n, ok := Int64(value)
	return n, ok && -MaxInt <= n && n <= MaxInt
}

// Int64 decodes an integer of 64 bits without fraction or exponent, as room versions before 6 may have.
func Int64(value []byte) (int64, bool) {
	digits, negative := value, false
	if len(digits) > 0 && digits[0] == '-' {
		digits, negative = digits[1:], true
	}
	if len(digits) == 0 || len(digits) > 19 || digits[0] == '0' && (len(digits) > 1 || negative) {
		return 0, false
	}
	var n uint64 // 19 digits fit
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	switch {
	case negative && n <= 1<<63:
		return -int64(n), true
	case !negative && n < 1<<63:
		return int64(n), true
	}
	return 0, false
}

// IsObject and IsNull tell what a canonical value is by its first byte.
func IsObject(value []byte) bool { return len(value) > 0 && value[0] == '{' }
func IsNull(value []byte) bool   { return len(value) > 0 && value[0] == 'n' }

// Join writes an object of canonical values. It sorts members in place; names must differ.
func Join(members []Member) []byte {
	if !slices.IsSortedFunc(members, compareMembers) {
		slices.SortFunc(members, compareMembers)
	}
	size := 2
	for _, m := range members {
		size += len(m.Key) + len(m.Value) + 4
	}
	out := append(make([]byte, 0, size), '{')
	for i, m := range members {
		if i > 0 {
			out = append(out, ',')
		}
		out = AppendString(out, m.Key)
		out = append(out, ':')
		out = append(out, m.Value...)
	}
	return append(out, '}')
}

func compareMembers(a, b Member) int {
	switch {
	case a.Key < b.Key:
		return -1
	case a.Key > b.Key:
		return 1
	}
	return 0
}

// AppendString appends s as a canonical string. Invalid UTF-8 becomes U+FFFD.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if n > 1 {
			i += n
			continue
		}
		dst = append(dst, s[start:i]...)
		dst = appendRune(dst, r)
		i += n
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

const hexDigits = "0123456789abcdef"

// appendRune appends one character of a string in its only canonical spelling.
func appendRune(dst []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(dst, '\\', byte(r))
	case '\b':
		return append(dst, '\\', 'b')
	case '\f':
		return append(dst, '\\', 'f')
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	if r < 0x20 {
		return append(dst, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
	}
	return utf8.AppendRune(dst, r)
}

// unescape decodes the inside of a canonical string; without escapes it is that inside itself.
func unescape(s []byte) []byte {
	i := bytes.IndexByte(s, '\\')
	if i < 0 {
		return s
	}
	out := append(make([]byte, 0, len(s)), s[:i]...)
	for ; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			out = append(out, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			if r, ok := hex4(s[i+1:]); ok {
				out = utf8.AppendRune(out, r)
				i += 4
			}
		default:
			out = append(out, s[i])
		}
	}
	return out
}

// errNoObject is made once: looking for a member that is not there is no rare thing.
var errNoObject = fmt.Errorf("%w: no canonical object", ErrSyntax)

// each calls f with the members of a canonical object, the key without quotes but still escaped,
// until f says false.
func each(object []byte, f func(key, value []byte) bool) error {
	if len(object) < 2 || object[0] != '{' || object[len(object)-1] != '}' {
		return errNoObject
	}
	for rest := object[1 : len(object)-1]; len(rest) > 0; {
		key, end := skipMember(rest)
		if end == 0 {
			return errNoObject
		}
		if !f(rest[1:key-1], rest[key+1:end:end]) {
			return nil
		}
		rest = rest[min(end+1, len(rest)):]
	}
	return nil
}

// skipMember returns the length of the name, with its quotes, and that of the whole member at the start of b, which a
// comma or nothing follows; 0 as end if there is none.
func skipMember(b []byte) (key, end int) {
	if b[0] != '"' {
		return 0, 0
	}
	key = skipString(b)
	if key < 2 || key >= len(b) || b[key] != ':' {
		return 0, 0
	}
	n := skip(b[key+1:])
	end = key + 1 + n
	if n == 0 || end < len(b) && b[end] != ',' || end+1 == len(b) {
		return 0, 0
	}
	return key, end
}

// Depth is how many objects and arrays stand in each other in a JSON text, at most: none in 1, one in {"a":1}. None of at most
// MaxDepth is too deep for Canonicalize. Of what is no JSON it is a number that means nothing.
func Depth(text []byte) int {
	depth, deepest := 0, 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			n := skipString(text[i:])
			if n == 0 {
				return deepest
			}
			i += n - 1
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		}
	}
	return deepest
}

// skip returns the length of the value at the start of b, 0 if none ends there.
func skip(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			n := skipString(b[i:])
			if n == 0 {
				return 0
			}
			i += n - 1
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			switch {
			case depth == 0:
				return i + 1
			case depth < 0:
				return i
			}
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
	if depth > 0 {
		return 0
	}
	return len(b)
}

// skipString returns the length of the string at the start of b, quotes included; 0 if it does not end.
func skipString(b []byte) int {
	for i := 1; i < len(b); {
		j := bytes.IndexByte(b[i:], '"')
		if j < 0 {
			return 0
		}
		end := i + j
		escapes := 0
		for end-escapes-1 > 0 && b[end-escapes-1] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return end + 1
		}
		i = end + 1
	}
	return 0
}
