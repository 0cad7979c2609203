package main

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseLine(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]line{
		":nick!u@h PRIVMSG #c :hello : there":  {"nick", "PRIVMSG", []string{"#c", "hello : there"}},
		"PING :irc.example.org":                {"", "PING", []string{"irc.example.org"}},
		":irc.example.org 353 me = #c :@a +b ": {"", "353", []string{"me", "=", "#c", "@a +b "}},
		"@time=x :n!u@h join  #c":              {"n", "JOIN", []string{"#c"}},
		":n!u@h QUIT":                          {"n", "QUIT", nil},
		"":                                     {},
	} {
		if got := parseLine(s); got.nick != want.nick || got.command != want.command || !slices.Equal(got.params, want.params) {
			t.Errorf("%q: %+v, want %+v", s, got, want)
		}
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"plain ü": "plain ü", "\x02bold\x0f and \x0304,12red\x03": "bold and red", "\x0312345": "345", "\x033,x": ",x",
		"a\x1b[31mb\x00\x7f": "a[31mb", "\xff": "\uFFFD",
	} {
		if got := clean(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

// Lines fit, whatever the server puts before them, are cut between runes, and lose nothing but spaces.
func TestSplit(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("wörter und ", 100) + "\n\n" + strings.Repeat("🙂", 300) + "\r\nend"
	lines := split(text, "#channel", "\x01ACTION * alice ", "\x01")
	var all string
	for _, l := range lines {
		if n := maxPrefix + len("PRIVMSG #channel :"+l+"\r\n"); n > maxLine {
			t.Errorf("a line of %d bytes", n)
		}
		if !utf8.ValidString(l) {
			t.Errorf("cut inside a rune: %q", l)
		}
		body, ok := strings.CutPrefix(strings.TrimSuffix(l, "\x01"), "\x01ACTION * alice ")
		if !ok {
			t.Errorf("%q", l)
		}
		all += body
	}
	if strip := strings.NewReplacer(" ", "", "\r", "", "\n", ""); strip.Replace(all) != strip.Replace(text) {
		t.Error("something was lost")
	}
}
