package pushrules

import (
	"strings"
	"unicode/utf8"
)

// matchGlob says whether the pattern (appendices, Glob-style matching: * is any characters, ? is one) matches the
// whole value, without regard to case.
func matchGlob(pattern, value string) bool {
	p, v := []rune(strings.ToLower(pattern)), []rune(strings.ToLower(value))
	star, mark := -1, 0 // the last *, and how much of v it has taken
	i, j := 0, 0
	for j < len(v) {
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

// matchWords says whether the pattern matches a part of the text that begins and ends at word boundaries, without regard
// to case.
func matchWords(pattern, text string) bool {
	pattern, text = strings.ToLower(pattern), strings.ToLower(text)
	if !strings.ContainsAny(pattern, "*?") {
		return containsWords(text, pattern)
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
	for _, c := range text {
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

// containsWords is matchWords for words without wildcards; both in lower case.
func containsWords(text, words string) bool {
	for from := 0; from <= len(text); {
		i := strings.Index(text[from:], words)
		if i < 0 {
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
