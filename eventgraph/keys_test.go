package eventgraph

import (
	"crypto/ed25519"
	"errors"
	"maps"
	"slices"
	"testing"
)

// testNode makes an identity with one device, as plexus does.
func testNode(n byte) testNodeKeys {
	identity, device := testKey(n), testKey(n+100)
	device.Server = identity.Server
	return testNodeKeys{identity, device}
}

type testNodeKeys struct{ identity, device SigningKey }

func public(k SigningKey) ed25519.PublicKey { return k.Private.Public().(ed25519.PublicKey) }

func certified(k SigningKey, from, revoked int64) CertifiedDevice {
	p := NewPeerID(public(k))
	return CertifiedDevice{p, p.KeyID(), encodeBase64(public(k)), encodeBase64(make([]byte, 32)), from, revoked}
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	n := testNode(1)
	gone := testKey(50)
	c, err := SignCertificate(n.identity, 3, []CertifiedDevice{certified(n.device, 1000, 0), certified(gone, 500, 900)})
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCertificate(c.Raw)
	if err != nil || again.ServerName != n.identity.Server || again.Seq != 3 || !slices.Equal(again.Devices, c.Devices) || string(again.Raw) != string(c.Raw) {
		t.Errorf("%+v, %v", again, err)
	}
	if c, err := SignCertificate(n.identity, 0, nil); err != nil || len(c.Devices) != 0 {
		t.Errorf("without devices: %v", err)
	}
	zoned := n.identity
	zoned.Server += ".example.org"
	if _, err := SignCertificate(zoned, 1, c.Devices); err != nil {
		t.Errorf("of a name with a zone: %v", err)
	}

	// Two certificates under one seq: what both say counts.
	other := must(SignCertificate(n.identity, 3, []CertifiedDevice{certified(gone, 500, 0), certified(n.device, 1000, 0)}))
	if both := c.Common(other); len(both.Devices) != 1 || both.Devices[0] != certified(n.device, 1000, 0) || len(c.Devices) != 2 {
		t.Errorf("common: %+v", both.Devices)
	}
}

const day = 24 * 60 * 60 * 1000

func TestKeyDocument(t *testing.T) {
	t.Parallel()
	const now = 1_700_000_000_000
	n, gone, later, stranger := testNode(1), testKey(50), testKey(51), testKey(52)
	id := func(k SigningKey) KeyID { return NewPeerID(public(k)).KeyID() }
	cert := must(SignCertificate(n.identity, 1, []CertifiedDevice{
		certified(n.device, now-100*day, 0), certified(gone, now-300*day, now-100*day), certified(later, now+day, 0)}))
	old := map[KeyID]OldVerifyKey{
		id(gone):         {public(gone), now - 90*day},
		id(stranger):     {public(stranger), now},
		"ed25519:before": {public(n.identity), now - 200*day},
	}
	full, err := SignKeyDocument(n.identity.Server, []SigningKey{n.device, n.identity}, old, cert, now+7*day)
	if err != nil {
		t.Fatal(err)
	}
	reparsed, err := ParseKeyDocument(full.Raw)
	if err != nil || string(reparsed.Raw) != string(full.Raw) || reparsed.ValidUntilTS != now+7*day || reparsed.ServerName != n.identity.Server {
		t.Fatalf("%+v, %v", reparsed, err)
	}
	if got, want := slices.Sorted(maps.Keys(reparsed.OldVerifyKeys)), []KeyID{id(gone), "ed25519:before"}; !slices.Equal(got, want) {
		t.Errorf("old keys %v, want %v: those that were never certified do not count", got, want)
	}
	revoked := must(SignCertificate(n.identity, 2, []CertifiedDevice{certified(n.device, now-100*day, now)}))
	if _, err := full.Under(revoked).KeyFor(n.device.ID, now, true); !errors.Is(err, ErrSignature) {
		t.Errorf("under a certificate that revokes it: %v", err)
	}
}

func TestSignKeyDocumentRefused(t *testing.T) {
	t.Parallel()
	n := testNode(1)
	cert := must(SignCertificate(n.identity, 1, []CertifiedDevice{certified(n.device, 1000, 0)}))
	if _, err := SignKeyDocument(n.identity.Server, []SigningKey{n.device, n.device}, nil, cert, 5); err == nil {
		t.Error("two keys under one ID")
	}
	if _, err := SignKeyDocument(n.identity.Server, []SigningKey{n.device}, nil, nil, 5); !errors.Is(err, ErrSignature) {
		t.Errorf("a device without certificate: %v", err)
	}
	if _, err := SignKeyDocument(n.identity.Server, []SigningKey{{ID: "ed25519:1"}}, nil, nil, 5); err == nil {
		t.Error("a key without its private half")
	}
}

func FuzzParseCertificate(f *testing.F) {
	n := testNode(1)
	f.Add(must(SignCertificate(n.identity, 1, []CertifiedDevice{certified(n.device, 1000, 2000)})).Raw)
	f.Add(must(SignCertificate(n.identity, 0, nil)).Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseCertificate(raw)
		if err != nil {
			return
		}
		again, err := ParseCertificate(c.Raw)
		if err != nil || string(again.Raw) != string(c.Raw) || !slices.Equal(again.Devices, c.Devices) {
			t.Fatalf("its own bytes parse otherwise: %v", err)
		}
	})
}

func FuzzParseKeyDocument(f *testing.F) {
	n, alone := testNode(1), testKey(3)
	cert := must(SignCertificate(n.identity, 1, []CertifiedDevice{certified(n.device, 1000, 2000)}))
	f.Add(must(SignKeyDocument(n.identity.Server, []SigningKey{n.device, n.identity}, map[KeyID]OldVerifyKey{"ed25519:1": {public(n.device), 5}}, cert, 5000)).Raw)
	f.Add(must(SignKeyDocument(alone.Server, []SigningKey{alone}, nil, nil, 5000)).Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := ParseKeyDocument(raw)
		if err != nil {
			return
		}
		again, err := ParseKeyDocument(d.Raw)
		if err != nil || string(again.Raw) != string(d.Raw) || len(again.VerifyKeys) != len(d.VerifyKeys) || len(again.OldVerifyKeys) != len(d.OldVerifyKeys) {
			t.Fatalf("its own bytes parse otherwise: %v", err)
		}
		for id := range d.VerifyKeys {
			if _, err := d.KeyFor(id, 1500, true); err != nil && !errors.Is(err, ErrSignature) && !errors.Is(err, ErrKeyNotValid) {
				t.Fatalf("%s: %v", id, err)
			}
		}
	})
}
