package eventgraph

import "testing"

// BenchmarkNames: what reading a name costs. What an event costs is BenchmarkRatios' question.
func BenchmarkNames(b *testing.B) {
	k := testKey(1)
	alice := string(user("alice", k))
	for name, f := range map[string]func() error{
		"ParseServerName":      func() error { _, err := ParseServerName(string(k.Server)); return err },
		"ParseUserID":          func() error { _, err := ParseUserID(alice); return err },
		"ServerName.PublicKey": func() error { k.Server.PublicKey(); return nil },
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
	unlisted := must(SignKeyDocument(n.identity.Server, []SigningKey{n.identity}, nil, cert, 5000))
	b.Run("KeyFor/unlisted", func(b *testing.B) {
		for b.Loop() {
			must(unlisted.KeyFor(n.device.ID, 2000, true))
		}
	})
	b.Run("KeyFor", func(b *testing.B) {
		for b.Loop() {
			must(d.KeyFor(n.device.ID, 2000, true))
		}
	})
}
