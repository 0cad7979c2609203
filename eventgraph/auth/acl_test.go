package auth

import (
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestServerAllowed(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		acl, server string
		want        bool
	}{
		{`{"allow":["*"]}`, "a.example", true},
		{`{"allow":["*"],"deny":["a.example"]}`, "a.example", false},
		{`{"allow":["*"],"deny":["a.example"]}`, "a.example:8448", false},
		{`{"allow":["*"],"deny":["a.example"]}`, "b.a.example", true},
		{`{"allow":["*"],"deny":["*.a.example"]}`, "b.a.example", false},
		{`{"allow":["*"],"deny":["*.a.example"]}`, "a.example", true},
		{`{"allow":["*"],"deny":["A.EXAMPLE"]}`, "a.example", false},
		{`{"allow":["*"],"deny":["a.example"]}`, "A.Example", false},
		{`{"allow":["*"],"deny":["a.example:8448"]}`, "a.example:8448", true}, // ports are not considered
		{`{"allow":["?.example"]}`, "a.example", true},
		{`{"allow":["?.example"]}`, ".example", false},
		{`{"allow":["?.example"]}`, "ab.example", false},
		{`{"allow":["a.example"]}`, "axexample", false}, // a dot is a dot
		{`{"allow":["a*b*c"]}`, "a.b.b.xc", true},
		{`{"allow":["a*b*c"]}`, "a.b.b.x", false},
		{`{"allow":["**"]}`, "a", true},
		{`{"allow":["","a.example\u0000","\u0000a.example","b"]}`, "a.example", false},
		{`{"allow":["","a.example\u0000","b"]}`, "b", true},
		{`{"allow":["a.example"],"deny":["*"]}`, "a.example", false},

		{`{}`, "a.example", false},
		{`{"deny":[]}`, "a.example", false},
		{`{"allow":"*"}`, "a.example", false},
		{`{"allow":[1,null,"a.example"],"deny":[{}]}`, "a.example", true},
		{`{"allow":["*"],"deny":"a.example"}`, "a.example", true},
		{`{"Allow":["*"]}`, "a.example", false},
		{` { "deny": [ "x" ], "allow": [ "*" ] } `, "a.example", true}, // not canonical
		{`nonsense`, "a.example", false},

		{`{"allow":["*"],"allow_ip_literals":false}`, "192.0.2.1", false},
		{`{"allow":["*"],"allow_ip_literals":false}`, "192.0.2.1:8448", false},
		{`{"allow":["*"],"allow_ip_literals":false}`, "[2001:db8::1]", false},
		{`{"allow":["*"],"allow_ip_literals":false}`, "[2001:db8::1]:8448", false},
		{`{"allow":["*"],"allow_ip_literals":false}`, "192.0.2.1.example", true},
		{`{"allow":["*"],"allow_ip_literals":"false"}`, "192.0.2.1", true},
		{`{"allow":["*"],"allow_ip_literals":true}`, "[2001:db8::1]", true},
		{`{"allow":["*"],"deny":["192.0.2.*"]}`, "192.0.2.1:8448", false},
		{`{"allow":["[2001:db8::*]"]}`, "[2001:db8::1]:8448", true},
	} {
		if got := ServerAllowed([]byte(row.acl), eventgraph.ServerName(row.server)); got != row.want {
			t.Errorf("%s, %s: %t", row.acl, row.server, got)
		}
	}
	if !ServerAllowed(nil, "a.example") {
		t.Error("denied without an ACL")
	}
}

func FuzzGlob(f *testing.F) {
	for _, seed := range [][2]string{{"*", ""}, {"a*b?c*", "aXbYcZ"}, {"?", "a"}, {"**a", "ba"}, {"", ""}, {"*1*****0*1*******0", "\x80\x00\x00\x0000000111111111111011111111111111"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, glob, s string) {
		if len(glob) > 200 || len(s) > 200 {
			return
		}
		if got, want := globMatches(glob, s), slowGlob(glob, s); got != want {
			t.Errorf("%q, %q: %t, want %t", glob, s, got, want)
		}
	})
}

// slowGlob is the definition: whether each end of the glob matches each end of s, the shortest ends first.
func slowGlob(glob, s string) bool {
	matches := make([][]bool, len(glob)+1)
	for g := len(glob); g >= 0; g-- {
		matches[g] = make([]bool, len(s)+1)
		for i := len(s); i >= 0; i-- {
			switch {
			case g == len(glob):
				matches[g][i] = i == len(s)
			case glob[g] == '*':
				matches[g][i] = matches[g+1][i] || i < len(s) && matches[g][i+1]
			default:
				matches[g][i] = i < len(s) && (glob[g] == '?' || glob[g] == s[i]) && matches[g+1][i+1]
			}
		}
	}
	return matches[0][0]
}
