package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A table is the first byte of a key. The layout, with str = escaped and terminated string, u64 and
// i64 = 8 bytes in an order that sorts as the number does, hash = the bytes of an eventgraph.Hash, ID = an event ID in short form:
//
//	table           rest of the key                       value
//	tableMeta       str name                              see open.go, federation.go
//	                "inbox time"                          u64 InboxTime, ms
//	                "outbound", str server                u64 bytes queued for the server; "": for all servers
//	                "handed keys", "carried", str server  u64 bytes held of the server's; "": of all servers'
//	tableCommit     u64 commit number modulo commitRing   commitRecord, binary
//	tableChange     u64 position                          Change, binary (changes.go)
//	tableRoomChange str room, u64 position                event ID
//	tableTrie       hash                                  trie node (eventgraph/trienode.go)
//	tableEvent      str event ID                          event record, binary (events.go)
//	tableOrder      str room, i64 order                   verdict byte (and purgedMark), event ID
//	tableEdge       str parent event ID, str child        empty
//	tableCitedBy    ID of an auth event, ID of an event   empty: the latter is of state, or in the auth chain of one that is
//	tableRelation   str parent event ID, i64 order,       str rel_type, str type
//	                str event ID
//	tableThread     str room, i64 order of a reply        event ID of the thread's root
//	tableSegment    str room, i64 the highest order in it i64 the lowest, u64 events, index of node/search (segments.go); numbers as varints
//	tableClientTxn  str user, str device, u64 created ms, result
//	                str endpoint, str txn ID
//	tableRedaction  str target ID, str redaction ID       empty: waits for its target (redactions.go)
//	tableRoom       str room                              Room, JSON
//	tableMember     str room, str user                    Member, JSON
//	tableUserRoom   str user, str room                    empty
//	tableAlias      str alias                             Alias, JSON
//	tableRoomAlias  str room, str alias                   empty
//	tablePublished  str room                              empty
//	tableJoin       str room                              Join, JSON
//	tableStaged     str room, ID                          flags, PDU (joins.go)
//	tableKeyDoc     str server                            keyDocRecord, JSON
//	tableInbox      str room, u64 arrival                 InboxItem, JSON
//	tableInboxID    str room, str event ID                u64 arrival, u64 size
//	tableSeenTxn    str origin, str txn ID                u64 arrival, answer
//	tableSeenOrder  str origin, u64 arrival               txn ID
//	tableDest       str server, str peer ID ("" = server) Destination, JSON
//	tableOutbound   str server, u64 seq                   Outbound, JSON
//	tableMeeting    str server, str peer ID               token
//	tableAddress    str peer ID                           PeerAddresses, JSON
//	tableInviteToken 32 bytes, hash of the token          InviteToken, JSON
//	tableBlocked    str server                            u64 since when, ms
//	tableHandedKeys str server, str user                  HandedKeys, JSON
//	tableHandedSum  str server                            the sum of the last hand-over that came whole
//	tableCarried    str destination, str origin,          Carried, JSON
//	                u64 signed ms, str message ID
//	tableService    str application service               destRecord, JSON, and the body of the transaction in flight
//	tableNetworkRoom str application service, str network, empty: it stands in the service's directory
//	                str room
//	tableNetworkCount str application service             u64 rooms in its directories
//	tableServiceUsers str application service             u64 users that it has made
//
//	tableAccount    str user                              Account, JSON
//	tableSession    32 bytes, hash of the token           Session, JSON
//	tableDevice     str user, str device                  Device, JSON
//	tableFilter     str user, str filter ID               Filter, JSON
//	tableProfile    str user                              fields, JSON
//	tableReport     u64 number                            Report, JSON
//	tableAccountData str user, str room ("" = global),    AccountData, JSON
//	                str type
//	tableAccountDataBytes str user                        u64 bytes of all that the user keeps
//
// Tables from 0x40 on belong to accounts and what hangs on them. Of these, end-to-end keys and messages to devices:
//
//	tableDeviceKeys    str user, str device               the device's identity keys, as uploaded
//	tableOneTimeKey    str user, str device,              the key object
//	                   str algorithm, u64 upload, str id
//	tableFallbackKey   str user, str device, str algorithm  fallbackKey, JSON
//	tableClaimedKey    str user, str device, u64 slot     algorithm:key ID of a one-time key that was claimed
//	tableKeyCounts     str user, str device               KeyCounts, JSON
//	tableCrossSigning  str user, str usage                the key, as uploaded
//	tableKeySignature  str user, str device or key,       key ID: signature, JSON
//	                   str signing user
//	tableDeviceStream  str user                           u64 the user's last stream ID
//	tableRemoteDevices str user                           RemoteDevices, JSON
//	tableToDevice      str user, str device, u64 position ToDevice, JSON
//	tableToDeviceQueue str user, str device               u64 length of the queue
//	tableSeenMessage   str origin, str message ID         u64 arrival
//	tableSeenMsgOrder  str origin, u64 arrival            message ID
//	tableKeyBackup     str user, u64 version              KeyBackup, JSON
//	tableBackupVersions str user                          u64 the number of the newest version ever
//	tableBackupKey     str user, u64 version, str room,   BackupKey, JSON
//	                   str session
//	tableDelayed       str user, str delay ID             DelayedEvent, JSON
//	tableDelayedDue    u64 due ms, str user, str delay ID empty; what is scheduled
//	tableReceipt       str room, str user, str type, str thread  Receipt, JSON
//
// Media, the content of which lies in files (mediafiles.go); "media" in tableMeta: the key of their names, and counts of bytes:
//
//	tableMedia         str server, str media ID           Media, JSON
//	tableMediaUser     str server, str media ID, str user empty: a local user who has uploaded or fetched it
//	tableMediaFile     32 bytes, the file's name          empty
//	tableMediaThumb    str server, str media ID,          Thumbnail, JSON
//	                   str variant
//	tableMediaPending  str user, u64 expires ms, str media ID  empty
//	tableMediaUsed     u64 last use ms, str server,       empty; what was fetched from elsewhere
//	                   str media ID
//	tableSliding       str user, str device, str conn_id  SlidingConnection, JSON
//	tablePusher        str user, str app_id, str pushkey  Pusher, JSON
//	tablePusherCursor  str user, str app_id, str pushkey  u64 position
type table byte

const (
	tableMeta       table = 0x01
	tableCommit     table = 0x02
	tableChange     table = 0x03
	tableRoomChange table = 0x04
	tableTrie       table = 0x05

	tableEvent     table = 0x10
	tableOrder     table = 0x11
	tableEdge      table = 0x12
	tableRelation  table = 0x13
	tableClientTxn table = 0x14
	tableRedaction table = 0x15
	tableCitedBy   table = 0x16
	tableThread    table = 0x17
	tableSegment   table = 0x18

	tableRoom      table = 0x20
	tableMember    table = 0x21
	tableUserRoom  table = 0x22
	tableAlias     table = 0x23
	tableRoomAlias table = 0x24
	tablePublished table = 0x25
	tableJoin      table = 0x26
	tableStaged    table = 0x27

	tableKeyDoc      table = 0x30
	tableInbox       table = 0x31
	tableInboxID     table = 0x32
	tableSeenTxn     table = 0x33
	tableSeenOrder   table = 0x34
	tableDest        table = 0x35
	tableOutbound    table = 0x36
	tableMeeting     table = 0x37
	tableAddress     table = 0x38
	tableInviteToken table = 0x39
	tableBlocked     table = 0x3a
	tableHandedKeys  table = 0x3d
	tableHandedSum   table = 0x3e
	tableCarried     table = 0x3f

	tableAccount     table = 0x40
	tableSession     table = 0x41
	tableDevice      table = 0x42
	tableFilter      table = 0x43
	tableProfile     table = 0x44
	tableAccountData table = 0x45
	tableReport      table = 0x46

	tableAccountDataBytes table = 0x47

	tableDeviceKeys    table = 0x50
	tableOneTimeKey    table = 0x51
	tableFallbackKey   table = 0x52
	tableKeyCounts     table = 0x53
	tableCrossSigning  table = 0x54
	tableKeySignature  table = 0x55
	tableDeviceStream  table = 0x56
	tableRemoteDevices table = 0x57
	tableToDevice      table = 0x58
	tableToDeviceQueue table = 0x59
	tableSeenMessage   table = 0x5a
	tableSeenMsgOrder  table = 0x5b

	tableKeyBackup      table = 0x5c
	tableBackupVersions table = 0x5d
	tableBackupKey      table = 0x5e
	tableClaimedKey     table = 0x5f

	tableReceipt table = 0x60

	tableDelayed    table = 0x6e
	tableDelayedDue table = 0x6f

	tableMedia        table = 0x70
	tableMediaUser    table = 0x71
	tableMediaFile    table = 0x72
	tableMediaThumb   table = 0x73
	tableMediaPending table = 0x74
	tableMediaUsed    table = 0x75

	tableService      table = 0x78
	tableNetworkRoom  table = 0x79
	tableNetworkCount table = 0x7a
	tableServiceUsers table = 0x7b
	tableSliding      table = 0x61
	tablePusher       table = 0x68
	tablePusherCursor table = 0x69
)

// dbKey is a key under construction. Each method returns the longer key; a key that ends after a
// whole part is a prefix of exactly the keys that have the same parts. A dbKey that several longer keys are
// built from must be clipped (slices.Clip), like any slice that is appended to twice.
type dbKey []byte

// key begins a key of the table.
func key(t table) dbKey { return append(make(dbKey, 0, 96), byte(t)) }

// str appends a string so that no other sequence of parts yields the same bytes, and strings sort as
// they do in Go: a zero byte becomes 00 FF, and 00 01 ends the string.
func (k dbKey) str(s string) dbKey {
	for i := 0; i < len(s); i++ {
		if s[i] == 0 {
			k = append(k, 0, 0xff)
		} else {
			k = append(k, s[i])
		}
	}
	return append(k, 0, 1)
}

// u64 appends a number that sorts as itself.
func (k dbKey) u64(n uint64) dbKey { return binary.BigEndian.AppendUint64(k, n) }

// i64 appends a signed number that sorts as itself: the sign bit is flipped.
func (k dbKey) i64(n int64) dbKey { return binary.BigEndian.AppendUint64(k, uint64(n)^1<<63) }

// Short forms of event IDs: the first byte says what follows.
const (
	idOther    = iota // str
	idURLSafe         // 32 bytes, of a hash in URL-safe base64 without padding
	idStandard        // 32 bytes, of a hash in base64 without padding (room version 3)
)

var idEncodings = [...]*base64.Encoding{idURLSafe: base64.RawURLEncoding.Strict(), idStandard: base64.RawStdEncoding.Strict()}

// id appends an event ID in short form.
func (k dbKey) id(id eventgraph.EventID) dbKey {
	if hash, ok := strings.CutPrefix(string(id), "$"); ok && len(hash) == base64.RawStdEncoding.EncodedLen(sha256.Size) {
		for form := idURLSafe; form <= idStandard; form++ {
			long, err := idEncodings[form].AppendDecode(append(k, byte(form)), []byte(hash))
			if err == nil && len(long) == len(k)+1+sha256.Size { // base64 leaves out line breaks
				return long
			}
		}
	}
	return append(k, idOther).str(string(id))
}

// bytes appends raw bytes; only for parts of a fixed length.
func (k dbKey) bytes(b []byte) dbKey { return append(k, b...) }

// keyParts takes a key apart in the order in which it was built. After a part that is not there, ok is
// false and all further parts are zero.
type keyParts struct {
	rest []byte
	ok   bool
}

// parts begins to take apart a key, after its table byte.
func parts(k []byte) *keyParts {
	if len(k) == 0 {
		return &keyParts{}
	}
	return &keyParts{rest: k[1:], ok: true}
}

func (p *keyParts) str() string {
	var s []byte
	for i := 0; p.ok && i+1 < len(p.rest); i++ {
		if c := p.rest[i]; c != 0 {
			s = append(s, c)
			continue
		}
		i++
		if p.rest[i] == 1 {
			p.rest = p.rest[i+1:]
			return string(s)
		}
		s = append(s, 0)
	}
	p.ok = false
	return ""
}

func (p *keyParts) id() eventgraph.EventID {
	if !p.ok || len(p.rest) == 0 {
		p.ok = false
		return ""
	}
	form := p.rest[0]
	p.rest = p.rest[1:]
	switch {
	case form == idOther:
		return eventgraph.EventID(p.str())
	case int(form) >= len(idEncodings) || len(p.rest) < sha256.Size:
		p.ok = false
		return ""
	}
	id := "$" + idEncodings[form].EncodeToString(p.rest[:sha256.Size])
	p.rest = p.rest[sha256.Size:]
	return eventgraph.EventID(id)
}

func (p *keyParts) u64() uint64 {
	if !p.ok || len(p.rest) < 8 {
		p.ok = false
		return 0
	}
	n := binary.BigEndian.Uint64(p.rest)
	p.rest = p.rest[8:]
	return n
}

func (p *keyParts) i64() int64 {
	n := p.u64()
	if !p.ok {
		return 0
	}
	return int64(n ^ 1<<63)
}

// beyond, appended to a prefix, is greater than any key with the prefix: no part of a key begins with so many ff.
var beyond = bytes.Repeat([]byte{0xff}, 40)
