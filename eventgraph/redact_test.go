package eventgraph

import (
	"bytes"
	"strings"
	"testing"
)

func TestRedactKeepingRules(t *testing.T) {
	t.Parallel()
	k := testKey(1)
	for _, c := range []struct {
		version            RoomVersion
		typ, content, want string
	}{
		{"10", "m.room.power_levels", `{"ban":1,"invite":50,"notifications":{"room":1},"x":1}`, `{"ban":1,"invite":50,"notifications":{"room":1}}`},
		{"12", "m.room.power_levels", `{"ban":1,"invite":50,"notifications":{"room":1},"x":1}`, `{"ban":1,"invite":50,"notifications":{"room":1}}`},
		{"10", "m.room.create", `{"creator":"@a:b","m.federate":false,"room_version":"10","topic":"x"}`, `{"creator":"@a:b","m.federate":false,"room_version":"10"}`},
		{"11", "m.room.create", `{"m.federate":false,"topic":"x"}`, `{"m.federate":false,"topic":"x"}`},
		{"8", "m.room.member", `{"displayname":"x","join_authorised_via_users_server":"USER","membership":"join"}`, `{"join_authorised_via_users_server":"USER","membership":"join"}`},
		{"10", "m.room.member", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"token":"t"}}}`, `{"membership":"invite","third_party_invite":{"signed":{"token":"t"}}}`},
		{"10", "m.room.member", `{"membership":"join","third_party_invite":{"display_name":"x"}}`, `{"membership":"join","third_party_invite":{}}`},
		{"11", "m.room.member", `{"membership":"join","third_party_invite":{"display_name":"x"}}`, `{"membership":"join","third_party_invite":{}}`},
		{"11", "m.room.member", `{"membership":"join","third_party_invite":"x"}`, `{"membership":"join"}`},
		{"12", "m.room.third_party_invite", `{"display_name":"x","key_validity_url":"u","public_key":"k","public_keys":[{"public_key":"k"}]}`, `{"public_key":"k","public_keys":[{"public_key":"k"}]}`},
		{"12", "m.room.join_rules", `{"allow":[],"join_rule":"public","x":1}`, `{"allow":[],"join_rule":"public"}`},
		{"12", "m.room.topic", `{"topic":"x"}`, `{}`},
		{"12", "m.room.message", `{"notifications":"x"}`, `{}`},
	} {
		ofOurs := strings.NewReplacer("USER", string(user("carol", k)))
		c.content, c.want = ofOurs.Replace(c.content), ofOurs.Replace(c.want)
		d := draft(c.version, c.typ, c.content, k)
		d.StateKey = pointer("")
		e := mustBuild(t, c.version, d, k)
		r := e.RedactKeepingRules()
		if r.ID() != e.ID() || string(r.Content()) != c.want {
			t.Errorf("version %s, %s: %s, want %s", c.version, c.typ, r.Content(), c.want)
		}
		if !bytes.Equal(r.Redact().Raw(), e.Redact().Raw()) {
			t.Errorf("version %s, %s: redaction afterwards makes %s", c.version, c.typ, r.Redact().Raw())
		}
		if loses := !bytes.Equal(r.Content(), e.Redact().Content()); e.RedactionLosesRules() != loses || r.Redact().RedactionLosesRules() {
			t.Errorf("version %s, %s: it is %v that redaction loses rules", c.version, c.typ, loses)
		}
		if err := r.VerifySignatures(testRing{k}); err != nil {
			t.Errorf("version %s, %s: %v", c.version, c.typ, err)
		}
		loaded, err := LoadEvent(c.version, r.ID(), r.Raw())
		if err != nil {
			t.Fatal(err)
		}
		same(t, r, loaded)
	}
}
