package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// However many signatures and keys, the work is bounded, and the right pair is found if it stands early.
func TestThirdPartyInviteBound(t *testing.T) {
	t.Parallel()
	identity := keyOf("identity.example")
	key := base64.RawStdEncoding.EncodeToString(identity.Private.Public().(ed25519.PublicKey))
	signed, err := eventgraph.SignJSON([]byte(expand(`{"mxid":"@dave","token":"tok"}`)), identity)
	if err != nil {
		t.Fatal(err)
	}
	wrong := make([]string, maxInviteVerifications)
	for i := range wrong {
		wrong[i] = fmt.Sprintf(`"ed25519:w%d":"%s"`, i, strings.Repeat("A", 86))
	}
	for _, row := range []struct{ server, want string }{
		{`"a":{`, "5.4.1.8"},
		{`"z":{`, "ok"},
	} {
		many := strings.Replace(string(signed), `"signatures":{`, `"signatures":{`+row.server+strings.Join(wrong, ",")+`},`, 1)
		r := newRoom(t, "12", "").with(t, base...).with(t, `m.room.third_party_invite tok @carol {"public_key":"`+key+`"}`)
		e := r.event(t, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":`+many+`}}`, nil)
		expect(t, Check(e, r.state), row.want)
	}
}
