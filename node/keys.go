package node

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// Files of the data directory beside store/. The identity key is read only to sign certificates and key documents; the node
// runs without the file (design.md §1), then with the certificate that it left.
const (
	identityKeyFile  = "identity.key"
	deviceKeyFile    = "device.key"
	boxKeyFile       = "box.key"
	certificateFile  = "certificate.json"
	registrationFile = "registration_token"
	nodeFile         = "node.json"
	adminSocket      = "admin.sock"
)

// A key document is good for at most 7 days after signing (SS API, Publishing Keys: receivers take the lesser of
// valid_until_ts and 7 days), and is renewed daily, offline too.
const (
	documentValid = 7 * 24 * time.Hour
	documentRenew = 24 * time.Hour
)

// maxKeyFile bounds what is read of a key file or certificate; real ones are below 2 KiB.
const maxKeyFile = 64 << 10

// deviceKeys are the keys in the data directory.
type deviceKeys struct {
	server      eventgraph.ServerName
	peer        eventgraph.PeerID
	identity    ed25519.PrivateKey // nil where the file has been moved away
	device      ed25519.PrivateKey
	certificate *eventgraph.Certificate
}

// signing is the device key in its office as event-signing key.
func (k *deviceKeys) signing() eventgraph.SigningKey {
	return eventgraph.SigningKey{Server: k.server, ID: k.peer.KeyID(), Private: k.device}
}

// loadKeys reads the keys and the certificate, and at first start makes them; first tells so. The caller holds the
// directory's lock.
func loadKeys(dir string, now int64) (_ *deviceKeys, first bool, err error) {
	raw, err := readBounded(filepath.Join(dir, certificateFile))
	if errors.Is(err, fs.ErrNotExist) {
		k, err := makeKeys(dir)
		return k, true, err
	}
	if err != nil {
		return nil, false, err
	}
	k := &deviceKeys{}
	if k.certificate, err = eventgraph.ParseCertificate(raw); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", certificateFile, err)
	}
	k.server = k.certificate.ServerName
	if k.device, err = readKey(filepath.Join(dir, deviceKeyFile)); err != nil {
		return nil, false, err
	}
	k.peer = eventgraph.NewPeerID(k.device.Public().(ed25519.PublicKey))
	switch k.identity, err = readKey(filepath.Join(dir, identityKeyFile)); {
	case errors.Is(err, fs.ErrNotExist): // moved away: revoking stays possible with it
	case err != nil:
		return nil, false, err
	case eventgraph.NewServerName(k.identity.Public().(ed25519.PublicKey)) != k.server:
		return nil, false, fmt.Errorf("%s is not the key of %s", identityKeyFile, k.server)
	}
	if _, ok := k.certificate.Device(k.peer, now); !ok {
		return nil, false, fmt.Errorf("the certificate in %s does not cover this device's key now", certificateFile)
	}
	return k, false, nil
}

// makeKeys makes identity, device and box key and the first certificate, which is written last: its presence says
// that the rest is whole. Keys of a first start that was cut off are used again.
func makeKeys(dir string) (*deviceKeys, error) {
	identity, err := readOrMakeKey(filepath.Join(dir, identityKeyFile))
	if err != nil {
		return nil, err
	}
	device, err := readOrMakeKey(filepath.Join(dir, deviceKeyFile))
	if err != nil {
		return nil, err
	}
	box, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make box key: %w", err)
	}
	if err := writePrivate(filepath.Join(dir, boxKeyFile), box); err != nil {
		return nil, err
	}
	k := &deviceKeys{identity: identity, device: device}
	k.server = eventgraph.NewServerName(identity.Public().(ed25519.PublicKey))
	public := device.Public().(ed25519.PublicKey)
	k.peer = eventgraph.NewPeerID(public)
	k.certificate, err = eventgraph.SignCertificate(k.identitySigning(), 1, []eventgraph.CertifiedDevice{{
		PeerID: k.peer, KeyID: k.peer.KeyID(),
		FromTS: 0, // the key is as old as the name; our clock may be ahead of a peer's, or of itself once it is set right
		Key:    base64.RawStdEncoding.EncodeToString(public),
		BoxKey: base64.RawStdEncoding.EncodeToString(box.PublicKey().Bytes()),
	}})
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return k, writeFile(filepath.Join(dir, certificateFile), k.certificate.Raw)
}

func (k *deviceKeys) identitySigning() eventgraph.SigningKey {
	id := eventgraph.NewPeerID(k.identity.Public().(ed25519.PublicKey)).KeyID()
	return eventgraph.SigningKey{Server: k.server, ID: id, Private: k.identity}
}

// ownDocument is a key document kept until it is a day old. Its age is taken by the wall clock at each use: a timer does not
// count the time that the device sleeps.
type ownDocument struct {
	mu      sync.Mutex
	current *eventgraph.KeyDocument
}

// keyDocument is our own key document, renewed daily; if it cannot be signed, the last one.
func (n *Node) keyDocument() *eventgraph.KeyDocument {
	n.document.mu.Lock()
	defer n.document.mu.Unlock()
	signed := time.UnixMilli(n.document.current.ValidUntilTS).Add(-documentValid)
	if age := n.config.Now().Sub(signed); age < 0 || age >= documentRenew {
		if d, err := n.signDocument(); err != nil {
			n.log.Error("the key document was not renewed", "error", err)
		} else {
			n.document.current = d
		}
	}
	return n.document.current
}

// signDocument signs a new key document, by the identity key too while it is here.
func (n *Node) signDocument() (*eventgraph.KeyDocument, error) {
	keys := []eventgraph.SigningKey{n.keys.signing()}
	if n.keys.identity != nil {
		keys = append(keys, n.keys.identitySigning())
	}
	until := n.config.Now().Add(documentValid).UnixMilli()
	d, err := eventgraph.SignKeyDocument(n.keys.server, keys, nil, n.keys.certificate, until)
	if err != nil {
		return nil, fmt.Errorf("sign key document: %w", err)
	}
	return d, nil
}

// registrationToken returns the token given, or the one kept in dir, or makes one and keeps it there.
func registrationToken(dir, given string) (string, error) {
	if given != "" {
		return given, nil
	}
	path := filepath.Join(dir, registrationFile)
	switch raw, err := readBounded(path); {
	case err == nil && len(strings.TrimSpace(string(raw))) > 0:
		return strings.TrimSpace(string(raw)), nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	token := rand.Text()
	return token, writeFile(path, []byte(token+"\n"))
}

func readOrMakeKey(path string) (ed25519.PrivateKey, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if _, key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, writePrivate(path, key)
}

// readKey reads an ed25519 key in PKCS #8 PEM.
func readKey(path string) (ed25519.PrivateKey, error) {
	raw, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("read %s: not a PEM file", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read %s: not an ed25519 key", path)
	}
	return private, nil
}

func writePrivate(path string, key any) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, maxKeyFile)
	}
	return os.ReadFile(path)
}

// writeFile writes a file of the owner's alone so that after a power loss the old one or the whole new one is there.
func writeFile(path string, content []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
