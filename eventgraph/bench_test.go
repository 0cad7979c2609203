package eventgraph

import (
	"crypto/ed25519"
	"fmt"
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

// BenchmarkTrie: in a state of 10,000 entries, one entry read, and one set and committed, from a trie just opened.
func BenchmarkTrie(b *testing.B) {
	nodes := newNodes()
	root := buildTrie(b, nodes, bigState(10_000))
	k := func(i int) StateTuple {
		return StateTuple{"m.room.member", fmt.Sprintf("@user%d:k51qzi5uqu5dlvj2baxnqndepeb86cbk3ng7n3i46uzyxzyqj2xjonzllnv0v8", i%10_000)}
	}
	b.Run("Get", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok, err := OpenTrie(nodes, root).Get(k(i)); err != nil || !ok {
				b.Fatal(err)
			}
		}
	})
	b.Run("Set", func(b *testing.B) {
		b.ReportAllocs()
		bytes := 0
		for i := 0; b.Loop(); i++ {
			trie := OpenTrie(nodes, root)
			if err := trie.Set(k(i), "$new", 0); err != nil {
				b.Fatal(err)
			}
			_, made := trie.Commit()
			for _, n := range made {
				bytes += len(n)
			}
		}
		b.ReportMetric(float64(bytes)/float64(b.N), "written-B/op")
	})
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
