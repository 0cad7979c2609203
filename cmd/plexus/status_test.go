package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/store"
)

// newDevice makes a key.
func newDevice(t *testing.T) (ed25519.PrivateKey, eventgraph.PeerID) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return private, eventgraph.NewPeerID(public)
}

// contradiction makes two key documents of one server whose certificates have one seq and different devices.
func contradiction(t *testing.T) (eventgraph.ServerName, []*eventgraph.KeyDocument) {
	t.Helper()
	private, peer := newDevice(t)
	server := eventgraph.NewServerName(private.Public().(ed25519.PublicKey))
	identity := eventgraph.SigningKey{Server: server, ID: peer.KeyID(), Private: private}
	var documents []*eventgraph.KeyDocument
	for range 2 {
		device, peer := newDevice(t)
		unpadded := base64.RawStdEncoding.EncodeToString
		certificate, err := eventgraph.SignCertificate(identity, 1, []eventgraph.CertifiedDevice{{
			PeerID: peer, KeyID: peer.KeyID(), Key: unpadded(device.Public().(ed25519.PublicKey)), BoxKey: unpadded(make([]byte, 32)), FromTS: 1,
		}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := eventgraph.SignKeyDocument(server, []eventgraph.SigningKey{identity}, nil, certificate, time.Now().Add(time.Hour).UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, d)
	}
	return server, documents
}

// A server whose identity key somebody else seems to hold is shown with what to do.
func TestStatusShowsCompromise(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server, documents := contradiction(t)
	s, err := store.Open(filepath.Join(dir, "store"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Update(t.Context(), func(tx *store.Tx) error {
		for _, d := range documents {
			if err := tx.PutKeyDocument(d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b := build(t)
	b.start(dir).until("Peers")
	plexus := b.of(dir)
	plexus(0, "", "status", "compromised  "+string(server), "contradict each other", "plexus block")
	var status node.Status
	if err := json.Unmarshal([]byte(plexus(0, "", "status --json")), &status); err != nil || !slices.Equal(status.Compromised, []eventgraph.ServerName{server}) {
		t.Errorf("%v %v, want %s", status.Compromised, err, server)
	}
}
