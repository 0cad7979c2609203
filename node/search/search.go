// Package search is what a search looks at: the texts of events and the words in them; and the index that tells a search which events it need
// not look at. The index is of segments (store.Segment), of a stretch of a room each. An Indexer makes them, behind everything else.
//
// The index knows nothing of who may see what, and answers nothing by itself: it names events that may fit. Whoever searches looks at
// each of them as if there were no index, and finds the same.
package search

import (
	"encoding/json"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Said is the text of an event that can be searched for, and the key of content in which it stands (CS API, POST /search); "" if there is none.
func Said(e *eventgraph.Event) (key, text string) {
	switch e.Type() {
	case "m.room.message":
		key = "body"
	case "m.room.name":
		key = "name"
	case "m.room.topic":
		key = "topic"
	default:
		return "", ""
	}
	var content map[string]json.RawMessage
	if json.Unmarshal(e.Content(), &content) != nil || json.Unmarshal(content[key], &text) != nil {
		return "", ""
	}
	return key, text
}

// Words splits text into runs of letters and digits, in lower case.
func Words(text string) []string {
	return strings.FieldsFunc(strings.ToLower(text), func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsNumber(c) && !unicode.IsMark(c) })
}

// Fits says whether a word of a text is what a word of a search's term stands for: it begins with it. Scripts that put no spaces between words
// have it anywhere.
func Fits(word, term string) bool {
	return strings.HasPrefix(word, term) || anywhere(term) && strings.Contains(word, term)
}

// anywhere says whether the term is of a script that puts no spaces between words: from U+2000 on there are few others, before that these four.
func anywhere(term string) bool {
	switch {
	case term[0] >= 0xE2: // U+2000, in UTF-8
		return true
	case term[0] < 0xE0: // U+0800
		return false
	}
	c, _ := utf8.DecodeRuneInString(term)
	return unicode.In(c, unicode.Thai, unicode.Lao, unicode.Myanmar, unicode.Khmer)
}
