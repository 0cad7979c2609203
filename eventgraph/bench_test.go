package eventgraph

import (
	"crypto/ed25519"
	"testing"
)

// BenchmarkEvent: what is done to each event on its way in.
func BenchmarkEvent(b *testing.B) {
	k := testKey(1)
	d := draft("12", "m.room.message", `{"msgtype":"m.text","body":"The quick brown fox jumps over the lazy dog"}`, k)
	e := mustBuild(b, "12", d, k)
	message, signature := []byte(e.Raw()), ed25519.Sign(k.Private, e.Raw())
	for name, f := range map[string]func() error{
		"Build":  func() error { _, err := Build("12", d, k); return err },
		"Parse":  func() error { _, err := ParseEvent("12", e.Raw()); return err },
		"Load":   func() error { _, err := LoadEvent("12", e.ID(), e.Raw()); return err },
		"Verify": func() error { return e.VerifySignatures(testRing{k}) },
		"VerifyFloor": func() error {
			ed25519.Verify(k.Private.Public().(ed25519.PublicKey), message, signature)
			return nil
		},
		"Redact":         func() error { e.Redact(); return nil },
		"ParseServer":    func() error { _, err := ParseServerName(string(k.Server)); return err },
		"ParseUserID":    func() error { _, err := ParseUserID(string(d.Sender)); return err },
		"ServerName.Key": func() error { k.Server.PublicKey(); return nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkKeyDocument(b *testing.B) {
	n := testNode(1)
	cert := must(SignCertificate(n.identity, 1, []CertifiedDevice{certified(n.device, 1000, 0)}))
	d := must(SignKeyDocument(n.identity.Server, []SigningKey{n.device, n.identity}, nil, cert, 5000))
	b.Run("Parse", func(b *testing.B) {
		for b.Loop() {
			must(ParseKeyDocument(d.Raw))
		}
	})
	b.Run("KeyFor", func(b *testing.B) {
		for b.Loop() {
			must(d.KeyFor(n.device.ID, 2000, true))
		}
	})
}
