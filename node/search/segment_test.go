package search

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/plexus-p2p/plexus/store"
)

func TestWords(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Hello, World!":        "hello world",
		"Grüße aus ÖSTERREICH": "grüße aus österreich",
		"你好世界。再见":              "你好世界 再见",
		"a_b-c 3.14":           "a b c 3 14",
		"नमस्ते दुनिया":        "नमस्ते दुनिया",
		"... 🎉":                "",
	} {
		if got := strings.Join(Words(text), " "); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	for _, c := range []struct {
		word, term string
		want       bool
	}{
		{"hello", "hel", true}, {"hello", "hello", true}, {"hello", "ello", false}, {"hel", "hello", false},
		{"österreich", "öst", true}, {"österreich", "reich", false},
		{"你好世界", "世界", true}, {"你好世界", "你好", true}, {"你好世界", "好你", false}, {"世", "世界", false},
		{"สวัสดีครับ", "ครับ", true}, {"ສະບາຍດີ", "ດີ", true}, {"မင်္ဂလာပါ", "ပါ", true}, {"សួស្តី", "ស្តី", true}, {"नमस्ते", "स्ते", false}, {"გამარჯობა", "ჯობა", false},
	} {
		if Fits(c.word, c.term) != c.want {
			t.Errorf("%q fits %q: %v", c.term, c.word, !c.want)
		}
	}
}

// naive is what Candidates finds in texts, the newest first, by orders: by looking at all words of all.
func naive(orders []int64, texts []string, terms []string) (found []int64) {
	for i, text := range texts {
		words := Words(text)
		if !slices.ContainsFunc(terms, func(term string) bool {
			return !slices.ContainsFunc(words, func(w string) bool { return Fits(w, term) })
		}) && len(words) > 0 {
			found = append(found, orders[i])
		}
	}
	return found
}

// indexOf is the index of texts, the newest first.
func indexOf(orders []int64, texts []string) *segment {
	s := newSegment()
	for i, text := range texts {
		s.add(orders[i], text)
	}
	return s
}

// What Candidates finds is what looking at each event finds.
func TestCandidates(t *testing.T) {
	t.Parallel()
	word := rapid.OneOf(rapid.StringMatching(`[abc]{1,4}`), rapid.StringMatching(`[äöA-C1-3]{1,3}`), rapid.StringMatching(`[世界你好]{1,6}`), rapid.StringMatching(`[a]{120,300}`))
	text := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(word, 0, 8).Draw(t, "words"), " ") })
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(text, 0, 140).Draw(t, "texts")
		orders := make([]int64, len(texts))
		order := rapid.Int64Range(-1<<60, 1<<60).Draw(t, "newest")
		for i := range orders {
			orders[i] = order
			order -= rapid.SampledFrom([]int64{1, 2, 1 << 36}).Draw(t, "step")
		}
		s := indexOf(orders, texts)
		index := s.encode()
		if len(index) > s.size {
			t.Fatalf("an index of %d bytes was estimated at %d", len(index), s.size)
		}
		for range 5 {
			terms := Words(text.Filter(func(s string) bool { return len(Words(s)) > 0 }).Draw(t, "term"))
			terms = terms[:min(len(terms), rapid.IntRange(1, 3).Draw(t, "terms"))]
			got, err := Candidates(index, terms)
			if want := naive(orders, texts, terms); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%q: %v, %v, want %v", terms, got, err, want)
			}
		}
	})
}

// A word that is too long, or of an event that has too many, is found by whatever may be in what is not kept.
func TestCutWords(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxWord)
	chinese := strings.Repeat("你", maxWord)
	var many []string
	for i := range 40_000 {
		many = append(many, fmt.Sprintf("%x", i+0x1000))
	}
	texts := []string{"plain", long + "end", chinese + "世界", long, strings.Join(many, " ")}
	s := indexOf([]int64{5, 4, 3, 2, 1}, texts)
	index := s.encode()
	if len(index) > store.MaxSegment || s.size > store.MaxSegment || !s.full() {
		t.Errorf("the index has %d bytes, estimated %d", len(index), s.size)
	}
	for term, want := range map[string][]int64{
		"plain": {5, 1}, "x": {4, 2, 1}, long + "end": {4, 2, 1}, long + "other": {4, 2, 1}, "世界": {4, 3, 2, 1}, "你你": {4, 3, 2, 1},
		"1000": {1}, many[len(many)-1]: {1}, "y": {1},
	} {
		if got, err := Candidates(index, []string{term}); err != nil || !slices.Equal(got, want) {
			t.Errorf("%.20q: %v, %v, want %v", term, got, err, want)
		}
	}
	// The largest that one event can be is within the bound, whatever stood there before.
	s = newSegment()
	for i := 0; !s.full(); i++ {
		s.add(int64(-i)<<36, fmt.Sprintf("w%d %d", i, i*i))
	}
	s.add(-1<<60, strings.Join(many, " "))
	if n := len(s.encode()); n > store.MaxSegment {
		t.Errorf("%d bytes", n)
	}
}

// A damaged index is an error, or finds something else, and does no harm.
func FuzzCandidates(f *testing.F) {
	index := indexOf([]int64{3, 2, -1 << 40}, []string{"one two", "two three 你好世界", "four"}).encode()
	f.Add(index, "two")
	f.Add(index[:len(index)/2], "th")
	f.Add(indexOf(nil, nil).encode(), "x")
	f.Add([]byte{}, "x")
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, "x")
	f.Fuzz(func(t *testing.T, index []byte, term string) {
		if terms := Words(term); len(terms) > 0 {
			if found, err := Candidates(index, terms); err == nil && len(found) > len(index) {
				t.Errorf("%d events in %d bytes", len(found), len(index))
			}
		}
	})
}

// BenchmarkCandidates looks through a segment of a thousand messages of twelve words.
func BenchmarkCandidates(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	var orders []int64
	var texts []string
	for i := range store.SegmentRows {
		orders, texts = append(orders, int64(100_000-i)), append(texts, chat(r, 12))
	}
	index := indexOf(orders, texts).encode()
	b.ReportMetric(float64(len(index))/store.SegmentRows, "bytes/message")
	for b.Loop() {
		if _, err := Candidates(index, []string{"seldom", "w1"}); err != nil {
			b.Fatal(err)
		}
	}
}

// chat is a text of about n words, of which few are in every text and most in hardly any (Zipf), as in what people write.
func chat(r *rand.Rand, n int) string {
	zipf := rand.NewZipf(r, 1.1, 4, 50_000)
	words := make([]string, n)
	for i := range words {
		words[i] = fmt.Sprintf("w%d", zipf.Uint64())
	}
	return strings.Join(words, " ")
}
