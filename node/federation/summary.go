package federation

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sort"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Two servers that meet compare what they hold of the rooms that both are in, without naming a room. Each room is an item: an ID, which is an
// HMAC of the room's, and a print of what is held of it. The key is a secret of this meeting to which both have added, so neither chooses what
// an ID will be, none means anything at another meeting, and only who knows a room's ID can tell that an item is that room.
//
// A range is all items whose ID begins with the same hexadecimal digits, and its print is the XOR of the prints in it. The asker
// shows the print of all its items; where prints differ it asks for those of the sixteen ranges within, and so on down to ranges of few items,
// which are listed:
//
//	asker  ranges [""] and its print   giver  same: it ends here, with 1,000 rooms as with one
//	asker  ranges [""] and its print   giver  16 prints, of "0" … "f"
//	asker  ranges ["3","a"]            giver  the items in "3", the items in "a"
//	asker  rooms, the items that differ: what is held of each    giver  the same, and whether it lacks something of the asker's
//
// What is held of a room is its forward extremities. Soft failure depends on the order of arrival, so those of two servers may
// differ for ever though both know all of them: when that has been seen, both values together become the item's (agreements), and such
// a room is the same to both until one side changes.

const (
	// itemSize is the bytes of an ID and of a print. With a new secret at each meeting a collision hides one room once.
	itemSize = 8
	// rangeFan is how many ranges are in a range, one for each digit.
	rangeFan = 16
	// leafItems is from how many items a range is split, not listed.
	leafItems = 40
	// maxDigits is how deep a range is split; IDs are evenly spread, so this is reached by no number of rooms.
	maxDigits = 8
	// summaryBytes is the size after which a giver ends an answer; the other ranges are asked for again.
	summaryBytes = 16 << 10
	// maxRanges is how many ranges one message asks about.
	maxRanges = 512
	// maxSummaryTurns bounds the questions about ranges at one meeting: enough for 20,000 rooms that all differ.
	maxSummaryTurns = 64
	// maxDiffering bounds the rooms of which is said at one meeting what is held of them. The order is another each time, so
	// none is left out for ever.
	maxDiffering = 1000
	// roomsAtOnce is of how many rooms one message says it, with maxTips extremities each at most: as many as a room has.
	roomsAtOnce = 20
	maxTips     = 200
	// nonceSize is the bytes that each side adds to the secret.
	nonceSize = 16
)

// meetCompare asks about ranges, named by the digits with which their IDs begin. Print is the asker's of all items, if the range is "".
type meetCompare struct {
	Print  []byte   `json:"print,omitempty"`
	Ranges []string `json:"ranges"`
}

// meetCompared answers for the first so many of the ranges asked about; the others did not fit.
type meetCompared struct {
	Ranges []meetRange `json:"ranges"`
}

// meetRange is Same, or Split, the prints of the rangeFan ranges within one after the other, or Items, IDs and prints in the order of
// the IDs.
type meetRange struct {
	Same  bool   `json:"same,omitempty"`
	Split []byte `json:"split,omitempty"`
	Items []byte `json:"items,omitempty"`
}

// meetRoom says what is held of a room. In a question ID names it; the answer is in the order of the question, and without
// a Value of a room that is not shared.
type meetRoom struct {
	ID    []byte               `json:"id,omitempty"`
	Value []byte               `json:"value,omitempty"`
	Have  []eventgraph.EventID `json:"have,omitempty"`  // extremities that the other may see
	Lacks bool                 `json:"lacks,omitempty"` // in an answer: not all that the asker has are known
}

// itemID and print are an item's; the digits of an ID are those of its hexadecimal form.
type (
	itemID      [itemSize]byte
	fingerprint [itemSize]byte
)

func (p *fingerprint) add(q fingerprint) {
	for i := range p {
		p[i] ^= q[i]
	}
}

// held is a value for what is held of a room: a hash of its forward extremities.
type held [16]byte

func heldOf(forward []eventgraph.EventID) held {
	h := sha256.New()
	for _, id := range slices.Sorted(slices.Values(forward)) {
		h.Write([]byte(id))
		h.Write([]byte{0})
	}
	return held(h.Sum(nil)[:16])
}

// both is the value of a room of which two values were found to be as good as equal; whose is which makes no difference.
func both(a, b held) held {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	h := sha256.New()
	h.Write(a[:])
	h.Write(b[:])
	return held(h.Sum(nil)[:16])
}

// meetingSecret is made of what both sides have added.
func meetingSecret(asker, giver []byte) []byte {
	h := sha256.New()
	h.Write([]byte("plexus meeting"))
	h.Write(asker)
	h.Write(giver)
	return h.Sum(nil)
}

// sharedRoom is a room that the other server is in, as is known here. Silent: the other side has said that it does not share it, and nothing has
// changed since, so it is in no range.
type sharedRoom struct {
	id     eventgraph.RoomID
	own    held
	shown  held // what the print is of: own, or with the other's
	silent bool
	large  bool // more than gossipAbove servers are in it
}

// summary is the shared rooms as items. It does not change.
type summary struct {
	rooms map[itemID]*sharedRoom
	items []summaryItem // without the silent rooms, by digits
	held  held          // what we hold of all but the large ones, whatever the secret
}

type summaryItem struct {
	id     itemID
	digits string
	print  fingerprint
}

func newSummary(secret []byte, rooms []*sharedRoom) *summary {
	s := &summary{rooms: make(map[itemID]*sharedRoom, len(rooms))}
	mac := hmac.New(sha256.New, secret)
	sum := func(kind byte, a, b []byte) (out [itemSize]byte) {
		mac.Reset()
		mac.Write([]byte{kind})
		mac.Write(a)
		mac.Write(b)
		var all [sha256.Size]byte
		copy(out[:], mac.Sum(all[:0]))
		return out
	}
	for _, r := range rooms {
		item := summaryItem{id: sum('r', []byte(r.id), nil)}
		item.digits = hex.EncodeToString(item.id[:])
		item.print = sum('p', item.id[:], r.shown[:])
		s.rooms[item.id] = r
		for i := range s.held {
			if !r.large {
				s.held[i] ^= r.own[i]
			}
		}
		if !r.silent {
			s.items = append(s.items, item)
		}
	}
	slices.SortFunc(s.items, func(a, b summaryItem) int { return cmp.Compare(a.digits, b.digits) })
	return s
}

// in lists the items of a range.
func (s *summary) in(digits string) []summaryItem {
	from := sort.Search(len(s.items), func(i int) bool { return s.items[i].digits >= digits })
	n := sort.Search(len(s.items)-from, func(i int) bool { return !strings.HasPrefix(s.items[from+i].digits, digits) })
	return s.items[from : from+n]
}

// of finds a room's item; false if it has none.
func (s *summary) of(id itemID) (summaryItem, bool) {
	if found := s.in(hex.EncodeToString(id[:])); len(found) == 1 {
		return found[0], true
	}
	return summaryItem{}, false
}

func (s *summary) print(digits string) (p fingerprint) {
	for _, item := range s.in(digits) {
		p.add(item.print)
	}
	return p
}

const hexDigits = "0123456789abcdef"

// answer is the giver's part: it tells of the ranges asked about, in their order, as far as summaryBytes go.
func (s *summary) answer(q *meetCompare) *meetCompared {
	a := &meetCompared{Ranges: []meetRange{}}
	for size := 0; len(a.Ranges) < len(q.Ranges) && size < summaryBytes; {
		digits := q.Ranges[len(a.Ranges)]
		var r meetRange
		items := s.in(digits)
		if p := s.print(digits); digits == "" && bytes.Equal(q.Print, p[:]) {
			r.Same = true
		} else if len(items) > leafItems && len(digits) < maxDigits {
			for i := range hexDigits {
				p := s.print(digits + hexDigits[i:i+1])
				r.Split = append(r.Split, p[:]...)
			}
		} else {
			for _, item := range items[:min(len(items), leafItems)] {
				r.Items = append(append(r.Items, item.id[:]...), item.print[:]...)
			}
		}
		size += len(r.Split) + len(r.Items) + 1
		a.Ranges = append(a.Ranges, r)
	}
	return a
}

// search is the asker's part: which items differ. Ranges in which we know no room are not asked about, so what it costs is bounded by our rooms, whatever
// the giver claims.
type search struct {
	own       *summary
	digits    []string // of all our rooms, the silent ones too, sorted
	open      []string // ranges to be asked about
	differing []itemID
	turns     int
}

func newSearch(s *summary) *search {
	q := &search{own: s, open: []string{""}}
	for id := range s.rooms {
		q.digits = append(q.digits, hex.EncodeToString(id[:]))
	}
	slices.Sort(q.digits)
	return q
}

// next is the next question; nil if there is none.
func (q *search) next() *meetCompare {
	if len(q.open) == 0 || q.turns == maxSummaryTurns || len(q.differing) >= maxDiffering {
		return nil
	}
	q.turns++
	m := &meetCompare{Ranges: q.open[:min(len(q.open), maxRanges)]}
	if q.open[0] == "" {
		p := q.own.print("")
		m.Print = p[:]
	}
	return m
}

// take works on the answer to what next asked; false if it is none.
func (q *search) take(a *meetCompared) bool {
	if a == nil || len(a.Ranges) == 0 || len(a.Ranges) > min(len(q.open), maxRanges) {
		return false
	}
	for i, r := range a.Ranges {
		digits := q.open[i]
		switch {
		case r.Same && digits == "":
		case len(r.Split) == rangeFan*itemSize && len(digits) < maxDigits:
			for d := range hexDigits {
				within := digits + hexDigits[d:d+1]
				if p := q.own.print(within); p != fingerprint(r.Split[d*itemSize:]) && q.knows(within) {
					q.open = append(q.open, within)
				}
			}
		case !r.Same && len(r.Split) == 0 && len(r.Items)%(2*itemSize) == 0 && len(r.Items) <= 2*itemSize*leafItems:
			q.takeItems(digits, r.Items)
		default:
			return false
		}
	}
	q.open = q.open[len(a.Ranges):]
	return true
}

// knows says whether one of our rooms, silent or not, is in the range.
func (q *search) knows(digits string) bool {
	i := sort.SearchStrings(q.digits, digits)
	return i < len(q.digits) && strings.HasPrefix(q.digits[i], digits)
}

// found lists the items that differ, each once, in an order that is another at each meeting.
func (q *search) found() []itemID {
	slices.SortFunc(q.differing, func(a, b itemID) int { return bytes.Compare(a[:], b[:]) })
	q.differing = slices.Compact(q.differing)
	return q.differing[:min(len(q.differing), maxDiffering)]
}

// takeItems notes which of our items of a range the giver has not, or with another print, and which of the silent rooms it has after all.
func (q *search) takeItems(digits string, raw []byte) {
	theirs := make(map[itemID]fingerprint, len(raw)/(2*itemSize))
	for ; len(raw) > 0; raw = raw[2*itemSize:] {
		id := itemID(raw)
		theirs[id] = fingerprint(raw[itemSize:])
		if r := q.own.rooms[id]; r != nil && r.silent && strings.HasPrefix(hex.EncodeToString(id[:]), digits) {
			q.differing = append(q.differing, id)
		}
	}
	for _, item := range q.own.in(digits) {
		if p, ok := theirs[item.id]; !ok || p != item.print {
			q.differing = append(q.differing, item.id)
		}
	}
}
