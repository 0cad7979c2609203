package federation

import (
	"bytes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// The secrets of gossip (gossip.go): epochs and topics, the senders' keys, sealing and opening. All of it is in memory only.
//
// A sender's key is a chain. Each payload is sealed under a message key made from the chain, which then moves on and cannot be turned back:
// who is given the chain opens what comes after, not what was before; and who has opened a payload has forgotten its key, so that
// it opens once.
//
//	chain 0 ──→ chain 1 ──→ chain 2 …
//	   └→ message 0   └→ message 1
//
// All members have the chain, so what is sealed is signed too, by a key that the sender makes with the chain and keeps: else each could speak
// in another's name, spend what the other may have us do, and use up the other's message keys.

const (
	// keyLife is how many payloads a key seals; a receiver that missed some goes so many steps at most, some 1 ms.
	keyLife = 1000
	// maxSkipped bounds the message keys kept of payloads that have not come yet though later ones have: 40 bytes each.
	maxSkipped = 128
	secretSize = 32
	keyIDSize  = 16
	// markSize is of the public key of the signatures, from which the ID of a sender's key is made.
	markSize = ed25519.PublicKeySize
	// sealHead is the version, the ID of the key, the number of the message key and the nonce before what is sealed.
	sealHead    = 1 + keyIDSize + 4 + chacha20poly1305.NonceSizeX
	sealVersion = 1
)

// Why a payload is not opened.
var (
	errSealForm     = errors.New("not a sealed payload")
	errSealRepeated = errors.New("payload has come before, or is too old")
	errSealBroken   = errors.New("payload does not open")
	errSealForged   = errors.New("payload is not of the server whose key it is sealed under")
)

// epoch is a hash of the servers joined to a room. Those who agree on them are in the same epoch.
type epoch [sha256.Size]byte

// epochOf hashes the joined servers, sorted.
func epochOf(room eventgraph.RoomID, servers []eventgraph.ServerName) epoch {
	h := sha256.New()
	h.Write([]byte("plexus gossip epoch\x00" + string(room)))
	for _, s := range servers {
		h.Write([]byte("\x00" + string(s)))
	}
	return epoch(h.Sum(nil))
}

// topicSecret is what the name of an epoch's topic is made with. Any joined server may mint one; of several the one with the lowest
// hash counts, so all who exchange theirs come to the same.
type topicSecret [secretSize]byte

func newTopicSecret() (s topicSecret) {
	rand.Read(s[:]) // never fails
	return s
}

// before says whether s counts and not t.
func (s topicSecret) before(t topicSecret) bool {
	a, b := sha256.Sum256(s[:]), sha256.Sum256(t[:])
	return bytes.Compare(a[:], b[:]) < 0
}

// topicName tells who has not the secret nothing about the room.
func topicName(s topicSecret, e epoch) string {
	return base64.RawURLEncoding.EncodeToString(keyed(s, "plexus gossip topic", e[:]))
}

func keyed(key [secretSize]byte, purpose string, more []byte) []byte {
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte(purpose))
	mac.Write(more)
	return mac.Sum(nil)
}

// keyID names a key on the wire. It is bound to the server whose key it is, so nobody can put a key of his own in its place.
type keyID [keyIDSize]byte

func keyIDOf(server eventgraph.ServerName, room eventgraph.RoomID, mark []byte) keyID {
	h := sha256.New()
	h.Write([]byte("plexus gossip key\x00" + string(server) + "\x00" + string(room) + "\x00"))
	h.Write(mark)
	return keyID(h.Sum(nil)[:keyIDSize])
}

// chain is a sender's key as it stands: next is the number of the message key that comes next.
type chain struct {
	next uint32
	key  [secretSize]byte
}

// step makes the next message key, and forgets what it was made from.
func (c *chain) step() (message [secretSize]byte) {
	message = [secretSize]byte(keyed(c.key, "message", nil))
	c.key = [secretSize]byte(keyed(c.key, "next", nil))
	c.next++
	return message
}

// sealingKey is our own key for a room.
type sealingKey struct {
	mark [markSize]byte // of which the signatures are, and from which the ID is made; it is given with the chain
	sign ed25519.PrivateKey
	id   keyID
	chain
}

func newSealingKey(server eventgraph.ServerName, room eventgraph.RoomID) *sealingKey {
	k := &sealingKey{}
	var seed [ed25519.SeedSize]byte
	rand.Read(seed[:]) // never fails
	rand.Read(k.key[:])
	k.sign = ed25519.NewKeyFromSeed(seed[:])
	k.mark = [markSize]byte(k.sign.Public().(ed25519.PublicKey))
	k.id = keyIDOf(server, room, k.mark[:])
	return k
}

// seal seals a payload for a topic. The key must not have come to the end of its life.
func (k *sealingKey) seal(topic string, plain []byte) []byte {
	head := make([]byte, 0, sealHead+len(plain)+ed25519.SignatureSize+chacha20poly1305.Overhead)
	head = append(head, sealVersion)
	head = append(head, k.id[:]...)
	head = binary.BigEndian.AppendUint32(head, k.next)
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	rand.Read(nonce) // never fails
	head = append(head, nonce...)
	to := bound(topic, head)
	signed := append(slices.Clone(plain), ed25519.Sign(k.sign, signedText(to, plain))...)
	return aead(k.step()).Seal(head, nonce, signed, to)
}

func aead(key [secretSize]byte) cipher.AEAD {
	a, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		panic("federation: seal: " + err.Error()) // only for a key of the wrong size
	}
	return a
}

// bound is what a payload is bound to: it opens only as what it was sent.
func bound(topic string, head []byte) []byte { return append([]byte(topic), head[:sealHead]...) }

// signedText is what the sender signs.
func signedText(bound, plain []byte) []byte {
	return slices.Concat([]byte("plexus gossip payload\x00"), bound, plain)
}

// sealedBy reads which key a payload is sealed under.
func sealedBy(payload []byte) (id keyID, err error) {
	if len(payload) < sealHead+ed25519.SignatureSize+chacha20poly1305.Overhead || payload[0] != sealVersion {
		return id, errSealForm
	}
	return keyID(payload[1 : 1+keyIDSize]), nil
}

// openingKey is another server's key as we were given it.
type openingKey struct {
	server  eventgraph.ServerName
	mark    [markSize]byte
	id      keyID
	taken   uint64 // the order in which a room's keys were taken
	chain   chain
	skipped []skippedKey // in order
}

type skippedKey struct {
	number  uint32
	message [secretSize]byte
}

// far says whether a payload is further on than a few lost ones explain: opening it takes more work.
func (k *openingKey) far(payload []byte) bool {
	return len(payload) >= sealHead && numberOf(payload) > k.chain.next+maxSkipped
}

func numberOf(payload []byte) uint32 { return binary.BigEndian.Uint32(payload[1+keyIDSize:]) }

// open opens a payload that sealedBy says is under this key, once. What does not open changes nothing.
func (k *openingKey) open(topic string, payload []byte) ([]byte, error) {
	number := numberOf(payload)
	if number >= keyLife {
		return nil, errSealForm
	}
	after, skipped := k.chain, slices.Clone(k.skipped)
	var message [secretSize]byte
	if number < after.next {
		i := slices.IndexFunc(skipped, func(s skippedKey) bool { return s.number == number })
		if i < 0 {
			return nil, errSealRepeated
		}
		message = skipped[i].message
		skipped = slices.Delete(skipped, i, i+1)
	} else {
		for after.next < number {
			passed := after.next
			skipped = append(skipped, skippedKey{passed, after.step()})
		}
		message = after.step()
		skipped = slices.Delete(skipped, 0, max(0, len(skipped)-maxSkipped))
	}
	nonce := payload[sealHead-chacha20poly1305.NonceSizeX : sealHead]
	to := bound(topic, payload)
	signed, err := aead(message).Open(nil, nonce, payload[sealHead:], to)
	if err != nil {
		return nil, errSealBroken
	}
	plain, signature := signed[:len(signed)-ed25519.SignatureSize], signed[len(signed)-ed25519.SignatureSize:]
	if !ed25519.Verify(k.mark[:], signedText(to, plain), signature) {
		return nil, errSealForged
	}
	k.chain, k.skipped = after, slices.Clip(skipped)
	return plain, nil
}
