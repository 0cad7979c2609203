package node_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers lists who may import whom of ours (ARCHITECTURE.md, Layers), with the reason shown when it is broken.
var layers = map[string]struct {
	may    []string
	reason string
}{
	"eventgraph/canonicaljson": {nil, "it is the bottom: bytes in, canonical bytes out"},
	literal:                    {nil, "it is worth something only as long as it shares nothing with what it is compared with"},
	"eventgraph":               {[]string{"eventgraph/canonicaljson"}, "events must be judged the same everywhere, so nothing of this node may reach them"},
	"eventgraph/auth":          {[]string{"eventgraph/canonicaljson", "eventgraph"}, "the rules depend on events alone"},
	"eventgraph/stateres":      {[]string{"eventgraph/canonicaljson", "eventgraph", "eventgraph/auth"}, "resolution depends on events and rules alone"},
	"store":                    {[]string{"eventgraph/canonicaljson", "eventgraph"}, "the store keeps what others decide; it decides nothing"},
	"p2ptransport":             {nil, "the transport carries opaque bytes and knows no rooms"},
	"p2ptransport/memnet":      {[]string{"p2ptransport"}, "a network in memory knows no more than a real one"},
	"node/ephemeral":           {[]string{"eventgraph"}, "typing and presence rest on names only"},
	"node/pushrules":           {[]string{"eventgraph"}, "push rules are a pure evaluation"},
	"node/media":               {[]string{"eventgraph/canonicaljson", "eventgraph", "store"}, "media knows files and pictures; who is given them is said above"},
	"node/appservice":          {[]string{"eventgraph", "store", "node/ephemeral", "node/outgoing"}, "services are told what is committed; what they may do is said in the client API"},
	"node/outgoing":            {nil, "which addresses may be called depends on nothing of ours"},
	"node/push":                {[]string{"eventgraph", "store", "node/outgoing"}, "push reads the store's changes and declares whom it asks what they mean to a user"},
	"node/search":              {[]string{"eventgraph", "store"}, "the index depends on what was said alone; who may see it is asked above"},
	"node/rooms":               {[]string{"eventgraph/canonicaljson", "eventgraph", "eventgraph/auth", "eventgraph/stateres", "store"}, "rooms never knows the network: Accept asks, others fetch"},
	"node/federation":          {[]string{"eventgraph/canonicaljson", "eventgraph", "eventgraph/auth", "eventgraph/stateres", "store", "node/ephemeral", "node/media", "node/rooms"}, "federation declares the transport it needs and knows no clients"},
	"node/clientapi":           {[]string{"eventgraph/canonicaljson", "eventgraph", "eventgraph/auth", "eventgraph/stateres", "store", "node/appservice", "node/ephemeral", "node/media", "node/outgoing", "node/push", "node/pushrules", "node/rooms", "node/search", "node/federation"}, "the client API asks the layers below and no transport"},
}

// literal and specdata are imported by tests alone.
const (
	literal  = "eventgraph/internal/literal"
	specdata = "node/internal/specdata"
)

func TestLayers(t *testing.T) {
	const module = "github.com/plexus-p2p/plexus/"
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(strings.ReplaceAll(line, module, ""))
		if slices.Contains(words[1:], literal) {
			t.Errorf("%s must not import %s: the slow second implementation is for tests to compare with", words[0], literal)
		}
		if slices.Contains(words[1:], specdata) {
			t.Errorf("%s must not import %s: what the specification says of answers, and its validator, are for tests", words[0], specdata)
		}
		layer, ok := layers[words[0]]
		if !ok {
			continue // node, cmd and what uses them may import all
		}
		seen++
		may := " " + strings.Join(layer.may, " ") + " "
		for _, imported := range words[1:] {
			ours := strings.HasPrefix(imported, "eventgraph") || strings.HasPrefix(imported, "store") || strings.HasPrefix(imported, "node") || strings.HasPrefix(imported, "p2ptransport") || strings.HasPrefix(imported, "cmd/")
			if ours && !strings.Contains(may, " "+imported+" ") {
				t.Errorf("%s must not import %s: %s", words[0], imported, layer.reason)
			}
			if strings.HasPrefix(words[0], "eventgraph") && impure[imported] {
				t.Errorf("%s must not import %s: the event graph has no clock, randomness, context, I/O or goroutine", words[0], imported)
			}
		}
	}
	if seen != len(layers) {
		t.Errorf("go list showed %d of %d layers", seen, len(layers))
	}
}

// impure are packages that would give eventgraph a clock, randomness, I/O or concurrency. crypto/ed25519 is pure as used: keys are arguments.
var impure = map[string]bool{"time": true, "context": true, "os": true, "net": true, "net/http": true, "math/rand": true, "math/rand/v2": true, "crypto/rand": true, "sync": true, "io/fs": true}
