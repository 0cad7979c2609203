package p2ptransport

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/transport"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/salsa20"
)

// A private mesh is made of the nodes that hold one key. Below Noise or TLS each connection is XSalsa20 under that key and a
// nonce of each side (libp2p's specs/pnet/Private-Networks-PSK-V1.md), so that nothing readable passes, not even which
// protocols are spoken. libp2p does the ciphering. Two things are added here:
//
//   - libp2p's listener speaks first, so whoever connects gets some random-looking bytes and knows that there is something.
//     guardedConn says nothing before the other side has shown that it holds the key.
//   - mDNS announces the nodes of a private mesh under a service name that only the key gives, and seals the addresses.

// MeshKey is the pre-shared key of a private mesh.
type MeshKey [32]byte

// meshKeyFileMax is more than any encoding of the key takes.
const meshKeyFileMax = 1 << 10

// NewMeshKey makes a random key.
func NewMeshKey() *MeshKey {
	k := new(MeshKey)
	_, _ = rand.Read(k[:]) // never fails
	return k
}

// ReadMeshKey reads a key file in libp2p's format: "/key/swarm/psk/1.0.0/", then "/base16/", "/base64/" or "/bin/", then the
// key, each on a line of its own.
func ReadMeshKey(r io.Reader) (*MeshKey, error) {
	psk, err := pnet.DecodeV1PSK(io.LimitReader(r, meshKeyFileMax))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.New("it ends too soon for a mesh key")
	}
	if err != nil {
		return nil, err
	}
	if len(psk) != len(MeshKey{}) {
		return nil, fmt.Errorf("a mesh key has %d bytes, not %d", len(MeshKey{}), len(psk))
	}
	k := MeshKey(psk)
	if k == (MeshKey{}) {
		return nil, errors.New("the key is all zero")
	}
	return &k, nil
}

// String is the content of a key file. It is a secret.
func (k *MeshKey) String() string {
	return "/key/swarm/psk/1.0.0/\n/base16/\n" + hex.EncodeToString(k[:]) + "\n"
}

// derive makes another secret from the key, for one purpose.
func (k *MeshKey) derive(purpose string, size int) []byte {
	b, err := hkdf.Key(sha256.New, k[:], nil, "plexus mesh: "+purpose, size)
	if err != nil {
		panic("p2ptransport: HKDF of a fixed size failed: " + err.Error())
	}
	return b
}

// service is the mDNS service name of the mesh. RFC 6335 section 5.1 allows 15 characters, of which one is a letter.
func (k *MeshKey) service() string {
	tag := strings.ToLower(base32.StdEncoding.EncodeToString(k.derive("mDNS service", 10)))
	return "_p" + tag[:14] + "._udp.local."
}

// seal encrypts a short text for the nodes of the mesh; open is the reverse. A nonce of 192 bits can be random.
func (k *MeshKey) seal(text string) string {
	aead, err := chacha20poly1305.NewX(k.derive("announcements", chacha20poly1305.KeySize))
	if err != nil {
		panic("p2ptransport: a key of the right size is refused: " + err.Error())
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(text)+aead.Overhead())
	_, _ = rand.Read(nonce)
	return base64.RawStdEncoding.EncodeToString(aead.Seal(nonce, nonce, []byte(text), nil))
}

func (k *MeshKey) open(sealed string) (string, bool) {
	b, err := base64.RawStdEncoding.DecodeString(sealed)
	if err != nil {
		return "", false
	}
	aead, err := chacha20poly1305.NewX(k.derive("announcements", chacha20poly1305.KeySize))
	if err != nil || len(b) < aead.NonceSize() {
		return "", false
	}
	text, err := aead.Open(nil, b[:aead.NonceSize()], b[aead.NonceSize():], nil)
	return string(text), err == nil
}

// guardedUpgrader lets listeners of a private mesh be silent until the other side has shown the key.
type guardedUpgrader struct {
	transport.Upgrader
	key *MeshKey
}

func (u guardedUpgrader) UpgradeGatedMaListener(t transport.Transport, l transport.GatedMaListener) transport.Listener {
	return u.Upgrader.UpgradeGatedMaListener(t, guardedListener{l, u.key})
}

type guardedListener struct {
	transport.GatedMaListener
	key *MeshKey
}

func (l guardedListener) Accept() (manet.Conn, network.ConnManagementScope, error) {
	c, scope, err := l.GatedMaListener.Accept()
	if err != nil {
		return nil, nil, err
	}
	return &guardedConn{Conn: c, key: l.key}, scope, nil
}

const (
	// pskNonce goes before what a side sends; specs/pnet.
	pskNonce = 24
	// pskGreeting is what a dialler says first, in multistream-select 1.0.
	pskGreeting = "\x13/multistream/1.0.0\n"
	// maxHeld of what this side wants to say before the other has shown the key: a nonce and the greeting, and room to spare.
	maxHeld = 1 << 10
)

var errNoMeshKey = errors.New("the other side has not shown the mesh key")

// guardedConn is an accepted connection. What is written to it is held back until the first bytes that came decrypt to the
// greeting. One goroutine may read while another writes.
type guardedConn struct {
	manet.Conn
	key   *MeshKey
	first bytes.Reader // what was read to look at it; owned by Read
	shown bool         // owned by Read

	mu   sync.Mutex
	open bool
	held []byte
}

func (c *guardedConn) Read(b []byte) (int, error) {
	if !c.shown {
		if err := c.examine(); err != nil {
			_ = c.Close()
			return 0, err
		}
		c.shown = true
	}
	if c.first.Len() > 0 {
		return c.first.Read(b)
	}
	return c.Conn.Read(b)
}

// examine waits for the greeting; the upgrade's deadline bounds how long.
func (c *guardedConn) examine() error {
	start := make([]byte, pskNonce+len(pskGreeting))
	if _, err := io.ReadFull(c.Conn, start); err != nil {
		return err
	}
	plain := make([]byte, len(pskGreeting))
	salsa20.XORKeyStream(plain, start[pskNonce:], start[:pskNonce], (*[32]byte)(c.key))
	if string(plain) != pskGreeting {
		return errNoMeshKey
	}
	c.first.Reset(start)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = true
	_, err := c.Conn.Write(c.held) // a few bytes on a new connection: the buffer of the system takes them
	c.held = nil
	return err
}

func (c *guardedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if c.open {
		c.mu.Unlock()
		return c.Conn.Write(b)
	}
	defer c.mu.Unlock()
	if len(c.held)+len(b) > maxHeld {
		return 0, errNoMeshKey
	}
	c.held = append(c.held, b...)
	return len(b), nil
}

var _ net.Conn = (*guardedConn)(nil)
