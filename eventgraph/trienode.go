package eventgraph

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
)

// A trie node's bytes are
//
//	1 byte            nodeFormat
//	1 byte            two bits for each slot, the first slot's lowest: 0 empty, 1 an entry, 2 a child
//	for each slot in use, in order:
//	  an entry        uvarint height, type, state key, ID
//	  a child         uvarint greatest height below it, its hash
//
//	a type            uvarint number in usualTypes; of another: uvarint otherType + length, text
//	a state key       uvarint 2 * length, text; of one that ends in a server name's key label: uvarint 2 * length before the
//	                  label + 1, text before the label, label (34 bytes, appendLabel)
//	an ID             idURLSafe or idStandard and the 32 bytes of its hash; or idText, uvarint length and text
//
// Whatever can be written in a shorter way is written so, and decode takes nothing else: a node has one spelling.
const (
	nodeFormat  = 1
	nodeHeader  = 2
	otherType   = 32
	idText      = 0
	idURLSafe   = 1
	idStandard  = 2
	maxNodeText = 1 << 16 // no event has a longer type, state key or ID
)

// usualTypes are the state events of the spec (CS API, room events of its modules). Numbers are never given anew: nodes on disk have them.
var usualTypes = [...]string{
	"m.room.member",
	"m.room.create",
	"m.room.power_levels",
	"m.room.join_rules",
	"m.room.history_visibility",
	"m.room.guest_access",
	"m.room.name",
	"m.room.topic",
	"m.room.avatar",
	"m.room.canonical_alias",
	"m.room.encryption",
	"m.room.pinned_events",
	"m.room.server_acl",
	"m.room.third_party_invite",
	"m.room.tombstone",
	"m.space.child",
	"m.space.parent",
}

// ErrTrieNode: the bytes that a NodeReader gave are not the node asked for.
var ErrTrieNode = errors.New("damaged trie node")

func (n *node) encode() []byte {
	size := nodeHeader
	for i := range n.slots {
		size += binary.MaxVarintLen32 + len(n.slots[i].entry) + len(Hash{})
	}
	raw := append(make([]byte, 0, size), nodeFormat, 0)
	for i := range n.slots {
		s := &n.slots[i]
		raw[1] |= byte(s.kind) << (2 * i)
		switch s.kind {
		case slotEntry:
			raw = append(binary.AppendUvarint(raw, uint64(s.height)), s.entry...)
		case slotChild:
			raw = append(binary.AppendUvarint(raw, uint64(s.height)), s.hash[:]...)
		}
	}
	return raw
}

// appendTuple appends type and state key. No tuple's bytes begin another's.
func appendTuple(b []byte, k StateTuple) []byte {
	if i := slices.Index(usualTypes[:], k.Type); i >= 0 {
		b = append(b, byte(i))
	} else {
		b = binary.AppendUvarint(b, otherType+uint64(len(k.Type)))
		b = append(b, k.Type...)
	}
	head, label := cutLabel(k.Key)
	if label == "" {
		return append(binary.AppendUvarint(b, uint64(len(k.Key))<<1), k.Key...)
	}
	b = append(binary.AppendUvarint(b, uint64(len(head))<<1|1), head...)
	return appendLabel(b, label)
}

// The key label of a server name (NewServerName) begins with characters that no key changes; 50 digits of base 36 follow. Each 12 of
// them are written as 8 bytes, the last 2 as they are. So any such text can be written, whether a key or not.
const (
	labelStart  = "k51qzi5uqu5d"
	labelGroup  = 12 // digits, below 2^63
	labelGroups = 4
	labelRest   = keyLabelLen - len(labelStart) - labelGroups*labelGroup
	packedLabel = labelGroups*8 + labelRest
	labelDigits = "0123456789abcdefghijklmnopqrstuvwxyz"
)

// cutLabel cuts off the key label at the end of a state key; label is "" if there is none.
func cutLabel(key string) (head, label string) {
	i := len(key) - keyLabelLen
	if i < 0 || !strings.HasPrefix(key[i:], labelStart) {
		return key, ""
	}
	for _, c := range []byte(key[i:]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return key, ""
		}
	}
	return key[:i], key[i:]
}

func appendLabel(b []byte, label string) []byte {
	digits := label[len(labelStart):]
	for range labelGroups {
		var group uint64
		for _, c := range []byte(digits[:labelGroup]) {
			if c >= 'a' {
				c -= 'a' - 10 - '0'
			}
			group = group*36 + uint64(c-'0')
		}
		b = binary.BigEndian.AppendUint64(b, group)
		digits = digits[labelGroup:]
	}
	return append(b, digits...)
}

// unpackLabel is the reverse of appendLabel; false if the bytes are not of it.
func unpackLabel(b []byte) (label [keyLabelLen]byte, ok bool) {
	at := copy(label[:], labelStart)
	for range labelGroups {
		group := binary.BigEndian.Uint64(b)
		for i := at + labelGroup - 1; i >= at; i-- {
			label[i] = labelDigits[group%36]
			group /= 36
		}
		if group > 0 {
			return label, false
		}
		at, b = at+labelGroup, b[8:]
	}
	for ; at < keyLabelLen; at, b = at+1, b[1:] {
		if strings.IndexByte(labelDigits, b[0]) < 0 {
			return label, false
		}
		label[at] = b[0]
	}
	return label, true
}

func appendID(b []byte, id EventID) []byte {
	kind, enc := idKind(string(id))
	b = append(b, kind)
	if kind == idText {
		return append(binary.AppendUvarint(b, uint64(len(id))), id...)
	}
	b, err := enc.AppendDecode(b, []byte(id[1:]))
	if err != nil {
		panic("eventgraph: " + string(id) + " was base64 a moment ago")
	}
	return b
}

func idKind(id string) (byte, *base64.Encoding) {
	switch {
	case isHashID(id, '$', urlSafeIDs):
		return idURLSafe, urlSafeIDs
	case isHashID(id, '$', standardIDs):
		return idStandard, standardIDs
	}
	return idText, nil
}

// hashID is the ID with that hash.
func hashID(hash []byte, enc *base64.Encoding) EventID {
	var id [44]byte
	id[0] = '$'
	enc.Encode(id[1:], hash)
	return EventID(id[:])
}

// decode fills in an empty node. It takes only what encode writes. The node keeps raw.
func (n *node) decode(raw []byte) error {
	if len(raw) < nodeHeader || raw[0] != nodeFormat || raw[1] == 0 {
		return ErrTrieNode
	}
	r := nodeBytes{rest: raw[nodeHeader:]}
	for i := range n.slots {
		s := &n.slots[i]
		switch s.kind = slotKind(raw[1] >> (2 * i) & 3); s.kind {
		case slotEmpty:
		case slotEntry:
			s.height = r.height()
			s.entry = r.entry()
		case slotChild:
			s.height = r.height()
			copy(s.hash[:], r.take(len(s.hash)))
		default:
			r.fail()
		}
	}
	if r.failed || len(r.rest) > 0 {
		return ErrTrieNode
	}
	return nil
}

// nodeBytes reads from the front of rest. Failed says that there was something that encode does not write; then rest is empty.
type nodeBytes struct {
	rest   []byte
	failed bool
}

func (r *nodeBytes) fail() { r.rest, r.failed = nil, true }

func (r *nodeBytes) take(n int) []byte {
	if n > len(r.rest) {
		r.fail()
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *nodeBytes) uvarint(most uint64) uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > most || size > 1 && r.rest[size-1] == 0 {
		r.fail()
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

func (r *nodeBytes) height() uint32 { return uint32(r.uvarint(math.MaxUint32)) }

// eventType reads a type; if it is one of usualTypes, its text is that.
func (r *nodeBytes) eventType() (text []byte, usual string) {
	n := r.uvarint(otherType + maxNodeText)
	switch {
	case n < uint64(len(usualTypes)):
		return nil, usualTypes[n]
	case n >= otherType:
		return r.take(int(n - otherType)), ""
	}
	r.fail()
	return nil, ""
}

// stateKey reads a state key: text, and the packed label that follows it or nil.
func (r *nodeBytes) stateKey() (text, label []byte) {
	n := r.uvarint(2*maxNodeText + 1)
	text = r.take(int(n >> 1))
	if n&1 == 1 {
		label = r.take(packedLabel)
	}
	return text, label
}

// id reads an ID: its kind, and hash or text.
func (r *nodeBytes) id() (kind byte, b []byte) {
	if k := r.take(1); k != nil {
		kind = k[0]
	}
	if kind == idText {
		return kind, r.take(int(r.uvarint(maxNodeText)))
	}
	return kind, r.take(32)
}

// entry reads an entry from the type on and checks that it is what appendTuple and appendID write.
func (r *nodeBytes) entry() []byte {
	all := r.rest
	typ, usual := r.eventType()
	text, label := r.stateKey()
	kind, id := r.id()
	if r.failed {
		return nil
	}
	ok := usual != "" || !slices.Contains(usualTypes[:], string(typ))
	if label != nil {
		_, valid := unpackLabel(label)
		ok = ok && valid && len(text)+keyLabelLen <= maxNodeText
	} else if len(text) >= keyLabelLen {
		_, unpacked := cutLabel(string(text))
		ok = ok && unpacked == ""
	}
	switch kind {
	case idURLSafe:
	case idStandard:
		ok = ok && strings.ContainsAny(string(hashID(id, base64.RawStdEncoding)), "+/") // else it is URL-safe too
	case idText:
		k, _ := idKind(string(id))
		ok = ok && k == idText
	default:
		ok = false
	}
	if !ok {
		r.fail()
		return nil
	}
	size := len(all) - len(r.rest)
	return all[:size:size]
}

// tupleOf is the part of an entry that appendTuple wrote.
func tupleOf(entry []byte) []byte {
	r := nodeBytes{rest: entry}
	r.eventType()
	r.stateKey()
	return entry[:len(entry)-len(r.rest)]
}

// decodeEntry reads an entry of a node that decode has checked.
func decodeEntry(entry []byte) (StateTuple, EventID) {
	r := nodeBytes{rest: entry}
	typ, usual := r.eventType()
	k := StateTuple{Type: usual}
	if usual == "" {
		k.Type = string(typ)
	}
	text, packed := r.stateKey()
	if packed == nil {
		k.Key = string(text)
	} else {
		label, _ := unpackLabel(packed)
		k.Key = string(text) + string(label[:])
	}
	return k, decodeID(r.rest)
}

// decodeID reads the ID at the end of an entry that decode has checked.
func decodeID(b []byte) EventID {
	r := nodeBytes{rest: b}
	switch kind, id := r.id(); kind {
	case idURLSafe:
		return hashID(id, base64.RawURLEncoding)
	case idStandard:
		return hashID(id, base64.RawStdEncoding)
	default:
		return EventID(id)
	}
}
