package pushrules

import (
	"strings"
	"unicode/utf8"
)

// What rules may cost. A user's own rules may be a thousand of each kind, an event's texts 64 KiB, and a pattern with wildcards costs their product.
const (
	// maxWork is the steps that the rules of one user may take for one event, some milliseconds: a hundred patterns of ten characters on a message
	// of 4 KiB. Rules that do not fit match nothing. Of it keptWork is for the rules that the specification has: what a user's own leave.
	maxWork  = 4 << 20
	keptWork = 1 << 20
	// usualWork is what is not counted of a Budget, and maxExtra what is in it: one request evaluates up to a thousand events of each room.
	usualWork = 64 << 10
	maxExtra  = 256 << 20
	// maxText is the bytes of a text that patterns are matched with: of a longer one its beginning, as if it were the whole. The specification has no
	// such bound; a person writes none of that length.
	maxText = 16 << 10
	// maxTexts are kept of an event in the form that patterns are matched with.
	maxTexts = 8
)

// Budget is what a user's own rules may cost beyond the usual in several evaluations together. The zero value is a full one; it is not for
// concurrent use.
type Budget struct{ spent int }

// work counts the steps of one evaluation. One is about a comparison of two characters.
type work struct {
	left  int
	floor int // what is to be left
}

// take counts n steps; false if there are not so many.
func (w *work) take(n int) bool {
	if w.left-n < w.floor {
		return false
	}
	w.left -= n
	return true
}

// text is a text to match patterns with, without regard to case.
type text struct {
	lower string
	runes []rune // of lower, made for wildcards
}

func newText(s string) *text {
	if len(s) > maxText {
		end := maxText
		for end > maxText-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end]
	}
	return &text{lower: strings.ToLower(s)}
}

func (t *text) characters() []rune {
	if t.runes == nil {
		t.runes = []rune(t.lower)
	}
	return t.runes
}

// glob says whether the pattern (appendices, Glob-style matching: * is any characters, ? is one) matches the whole value, without regard
// to case.
func (w *work) glob(pattern string, value *text) bool {
	if !w.take(len(pattern)) {
		return false
	}
	pattern = strings.ToLower(pattern)
	if !strings.ContainsAny(pattern, "*?") {
		return pattern == value.lower
	}
	if value.runes == nil && !w.take(len(value.lower)) {
		return false
	}
	p, v := []rune(pattern), value.characters()
	star, mark := -1, 0 // the last *, and how much of v it has taken
	i, j := 0, 0
	for j < len(v) {
		if !w.take(1) {
			return false
		}
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == v[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// words says whether the pattern matches a part of the text that begins and ends at word boundaries, without regard to case.
func (w *work) words(pattern string, t *text) bool {
	if !w.take(len(pattern)) {
		return false
	}
	pattern = strings.ToLower(pattern)
	if !strings.ContainsAny(pattern, "*?") {
		return w.plainWords(t.lower, pattern)
	}
	// All ways in which the pattern may match are followed at once: at[i] says that p[:i] matches a part that ends here.
	p := []rune(pattern)
	at, next := make([]bool, len(p)+1), make([]bool, len(p)+1)
	pass := func() { // * may match nothing
		for i, c := range p {
			if c == '*' && at[i] {
				at[i+1] = true
			}
		}
	}
	before := rune(' ')
	for _, c := range t.lower {
		if !w.take(2 * len(p)) {
			return false
		}
		if boundary(before, c) {
			at[0] = true
			pass()
			if at[len(p)] {
				return true
			}
		}
		clear(next)
		for i, want := range p {
			if at[i] {
				switch want {
				case '*':
					next[i] = true
				case '?', c:
					next[i+1] = true
				}
			}
		}
		at, next = next, at
		pass()
		before = c
	}
	if boundary(before, ' ') {
		at[0] = true
		pass()
	}
	return at[len(p)]
}

// plainWords is words for those without wildcards; both in lower case. Characters that are skipped cost an eighth of a step.
func (w *work) plainWords(text, words string) bool {
	for from := 0; from <= len(text); {
		i := strings.Index(text[from:], words)
		if i < 0 {
			w.take((len(text) - from) / 8)
			return false
		}
		if !w.take(i/8 + len(words)/8 + 4) {
			return false
		}
		start, end := from+i, from+i+len(words)
		if boundaryAt(text, start) && boundaryAt(text, end) {
			return true
		}
		_, size := utf8.DecodeRuneInString(text[start:])
		from = start + max(size, 1)
	}
	return false
}

func boundaryAt(text string, i int) bool {
	if i == 0 || i == len(text) {
		return true
	}
	before, _ := utf8.DecodeLastRuneInString(text[:i])
	after, _ := utf8.DecodeRuneInString(text[i:])
	return boundary(before, after)
}

// boundary says whether words may begin or end between two characters: one of them is none of [A-Za-z0-9_].
func boundary(before, after rune) bool { return !wordChar(before) || !wordChar(after) }

func wordChar(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}
