package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph"
)

func TestJoin(t *testing.T) {
	t.Parallel()
	rule := func(name string) []string {
		return []string{`m.room.join_rules '' @alice {"join_rule":"` + name + `"}`}
	}
	const (
		join     = `m.room.member @dave @dave {"membership":"join"}`
		rejoin   = `m.room.member @carol @carol {"membership":"join","displayname":"x"}`
		accept   = `m.room.member @invited @invited {"membership":"join"}`
		admitted = `m.room.member @knocker @knocker {"membership":"join"}`
		banned   = `m.room.member @banned @banned {"membership":"join"}`
		other    = `m.room.member @invited @carol {"membership":"join"}`

		isBanned = "3:5.2.3 6:4.2.3 8:4.3.3 12:5.3.3"
		notSelf  = "3:5.2.2 6:4.2.2 8:4.3.2 12:5.3.2"
	)
	const elseRule = "3:5.2.6 6:4.2.6 8:4.3.7 12:5.3.7"
	run(t, []row{
		{"no state key", nil, `m.room.member - @carol {"membership":"join"}`, "3:5.1 6:4.1 12:5.1"},
		{"no membership", nil, `m.room.member @carol @carol {}`, "3:5.1 6:4.1 12:5.1"},
		{"membership in other case", nil, `m.room.member @carol @carol {"Membership":"join"}`, "3:5.1 6:4.1 12:5.1"},
		{"unknown membership", nil, `m.room.member @carol @carol {"membership":"x"}`, "3:5.6 6:4.6 7:4.7 8:4.8 12:5.8"},
		{"membership not a string", nil, `m.room.member @carol @carol {"membership":1}`, "3:5.6 6:4.6 7:4.7 8:4.8 12:5.8"},

		{"invite: stranger", nil, join, elseRule},
		{"invite: member", nil, rejoin, allowed},
		{"invite: invited", nil, accept, allowed},
		{"invite: by another", nil, other, notSelf},
		{"invite: banned", nil, banned, isBanned},
		{"invite: who has left", nil, `m.room.member @gone @gone {"membership":"join"}`, elseRule},
		{"no join rules: stranger", []string{`without m.room.join_rules ''`}, join, elseRule},
		{"no join rules: invited", []string{`without m.room.join_rules ''`}, accept, allowed},
		{"unknown rule: invited", rule("private"), accept, elseRule},
		{"rule not a string: invited", []string{`m.room.join_rules '' @alice {"join_rule":1}`}, accept, elseRule},
		{"rule absent: invited", []string{`m.room.join_rules '' @alice {}`}, accept, elseRule},

		{"public: stranger", rule("public"), join, allowed},
		{"public: member", rule("public"), rejoin, allowed},
		{"public: banned", rule("public"), banned, isBanned},
		{"public: by another", rule("public"), `m.room.member @dave @carol {"membership":"join"}`, notSelf},

		{"knock: stranger", rule("knock"), join, elseRule},
		{"knock: knocking", rule("knock"), admitted, elseRule},
		{"knock: invited", rule("knock"), accept, "3:5.2.6 6:4.2.6 7:ok"},
		{"knock: member", rule("knock"), rejoin, "3:5.2.6 6:4.2.6 7:ok"},

		{"restricted: stranger", rule("restricted"), join, "3:5.2.6 6:4.2.6 8:4.3.5.2 12:5.3.5.2"},
		{"restricted: invited", rule("restricted"), accept, "3:5.2.6 6:4.2.6 8:ok"},
		{"restricted: member", rule("restricted"), rejoin, "3:5.2.6 6:4.2.6 8:ok"},
		{"restricted: banned", rule("restricted"), banned, isBanned},
		{"restricted: authorised", rule("restricted"),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@carol"}`, "3:5.2.6 6:4.2.6 8:ok"},
		{"restricted: authorised by one who may not invite",
			append(rule("restricted"), `m.room.power_levels '' @alice {"invite":50,"users":{"@admin":100}}`),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@carol"}`, "8:4.3.5.2 12:5.3.5.2"},
		{"restricted: authorised by one who may invite",
			append(rule("restricted"), `m.room.power_levels '' @alice {"invite":50,"users":{"@admin":100}}`),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@admin"}`, "8:ok"},
		{"restricted: authorised by a creator",
			append(rule("restricted"), `m.room.power_levels '' @alice {"invite":50}`),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@alice"}`, "8:4.3.5.2 12:ok"},
		{"restricted: authorised by one who has left", rule("restricted"),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@gone"}`, "8:4.3.5.2 12:5.3.5.2"},
		{"restricted: authorised by nobody here", rule("restricted"),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@nobody"}`, "8:4.3.5.2 12:5.3.5.2"},
		{"knock_restricted: authorised", rule("knock_restricted"),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@carol"}`,
			"3:5.2.6 6:4.2.6 8:4.3.7 10:ok"},
		{"knock_restricted: invited", rule("knock_restricted"), accept, "3:5.2.6 6:4.2.6 8:4.3.7 10:ok"},
		{"knock_restricted: stranger", rule("knock_restricted"), join, "3:5.2.6 6:4.2.6 8:4.3.7 10:4.3.5.2 12:5.3.5.2"},

		{"authorised, not signed by that server", rule("restricted"),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@erin:b"}`, "3:5.2.6 6:4.2.6 8:4.2.1 12:5.2.1"},
		{"authorised by no user ID", rule("public"),
			`m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":1}`, "3:ok 8:4.2.1 12:5.2.1"},
		{"authorised, not a join, not signed", nil,
			`m.room.member @carol @carol {"membership":"leave","join_authorised_via_users_server":"@erin:b"}`, "3:ok 8:4.2.1 12:5.2.1"},
	})
}

// Rule 5.3.1: right after the create event its maker, and nobody else, may join.
func TestFirstJoin(t *testing.T) {
	t.Parallel()
	for _, v := range eventgraph.SupportedVersions() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			content := fmt.Sprintf(`{"creator":"@bob","room_version":%q,"additional_creators":["@dave"]}`, v)
			r := newRoom(t, v, content)
			afterCreate := func(d *eventgraph.Draft) { d.PrevEvents = []eventgraph.EventID{r.create.ID()} }
			closed := "3:5.2.6 6:4.2.6 8:4.3.7 12:5.3.7"
			for user, want := range map[string]string{
				"@bob":   "3:ok 11:4.3.7 12:5.3.7", // the creator field counts up to version 10
				"@alice": closed + " 11:ok",
				"@dave":  closed,
				"@carol": closed,
			} {
				rule, _ := wanted(t, want, v)
				e := r.event(t, fmt.Sprintf(`m.room.member %s %s {"membership":"join"}`, user, user), afterCreate)
				expect(t, Check(e, r.state), rule)
				expect(t, CheckAuthEvents(e, r.authEvents(e), nil), rule)
			}

			first := "@bob"
			if r.traits.NoCreatorField {
				first = "@alice"
			}
			line := fmt.Sprintf(`m.room.member %s %s {"membership":"join"}`, first, first)
			rule, _ := wanted(t, closed, v)
			expect(t, Check(r.event(t, line, nil), r.state), rule) // after something else
			expect(t, Check(r.event(t, line, func(d *eventgraph.Draft) {
				d.PrevEvents = append([]eventgraph.EventID{r.create.ID()}, d.PrevEvents...)
			}), r.state), rule) // not after it alone
		})
	}
}

// With the signature of the authorising server, rule 5.2 has nothing against the event.
func TestAuthorisedBySignature(t *testing.T) {
	t.Parallel()
	for _, v := range []eventgraph.RoomVersion{"8", "9", "10", "11", "12"} {
		r := newRoom(t, v, "").with(t, base...).with(t, `m.room.join_rules '' @alice {"join_rule":"restricted"}`)
		e := r.event(t, `m.room.member @dave @dave {"membership":"join","join_authorised_via_users_server":"@erin:b"}`, nil)
		signed, err := e.WithSignature(keyOf("b.example"))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, Check(signed, r.state), "ok")
		expect(t, CheckAuthEvents(signed, r.authEvents(signed), nil), "ok")
	}
}

func TestInvite(t *testing.T) {
	t.Parallel()
	const level = `m.room.power_levels '' @alice {"invite":50,"users":{"@admin":100,"@mod":50}}`
	run(t, []row{
		{"a stranger", nil, `m.room.member @dave @carol {"membership":"invite"}`, allowed},
		{"one who has left", nil, `m.room.member @gone @carol {"membership":"invite"}`, allowed},
		{"one who knocks", nil, `m.room.member @knocker @carol {"membership":"invite"}`, allowed},
		{"one who is invited", nil, `m.room.member @invited @mod {"membership":"invite"}`, allowed},
		{"by a stranger", nil, `m.room.member @dave @dave {"membership":"invite"}`, "3:5.3.2 6:4.3.2 8:4.4.2 12:5.4.2"},
		{"by one who is invited", nil, `m.room.member @dave @invited {"membership":"invite"}`, "3:5.3.2 6:4.3.2 8:4.4.2 12:5.4.2"},
		{"a member", nil, `m.room.member @mod @carol {"membership":"invite"}`, "3:5.3.3 6:4.3.3 8:4.4.3 12:5.4.3"},
		{"a banned user", nil, `m.room.member @banned @admin {"membership":"invite"}`, "3:5.3.3 6:4.3.3 8:4.4.3 12:5.4.3"},
		{"below the level", []string{level}, `m.room.member @dave @carol {"membership":"invite"}`, "3:5.3.5 6:4.3.5 8:4.4.5 12:5.4.5"},
		{"at the level", []string{level}, `m.room.member @dave @mod {"membership":"invite"}`, allowed},
		{"by the creator", []string{level}, `m.room.member @dave @alice {"membership":"invite"}`, "3:5.3.5 6:4.3.5 8:4.4.5 12:ok"},
	})
}

func TestThirdPartyInvite(t *testing.T) {
	t.Parallel()
	identity := keyOf("identity.example")
	public := identity.Private.Public().(ed25519.PublicKey)
	urlSafe := base64.RawURLEncoding.EncodeToString(public)
	other := base64.RawStdEncoding.EncodeToString(keyOf("other").Private.Public().(ed25519.PublicKey))

	sign := func(t *testing.T, object string) string {
		signed, err := eventgraph.SignJSON([]byte(expand(object)), identity)
		if err != nil {
			t.Fatal(err)
		}
		return string(signed)
	}
	good := sign(t, `{"mxid":"@dave","token":"tok"}`)
	key := base64.RawStdEncoding.EncodeToString(public)
	single := `m.room.third_party_invite tok @carol {"public_key":"` + key + `"}`

	for _, v := range eventgraph.SupportedVersions() {
		origin := newRoom(t, v, "").with(t, base...)
		at, _ := wanted(t, "3:5.3.1 6:4.3.1 8:4.4.1 12:5.4.1", v)
		for _, row := range []struct {
			name, invite, event, want string
		}{
			{"one key", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` + good + `}}`, "ok"},
			{"a list of keys", `m.room.third_party_invite tok @carol {"public_key":"` + other + `","public_keys":[{"public_key":"` + key + `"}]}`,
				`m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` + good + `}}`, "ok"},
			{"URL-safe key, malformed ones beside it", `m.room.third_party_invite tok @carol {"public_key":1,"public_keys":[7,{},{"public_key":"x"},{"public_key":"` + urlSafe + `"}]}`,
				`m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` + good + `}}`, "ok"},
			{"the sender need not be joined", `m.room.third_party_invite tok @gone {"public_key":"` + key + `"}`,
				`m.room.member @dave @gone {"membership":"invite","third_party_invite":{"signed":` + good + `}}`, "ok"},
			{"banned", single, `m.room.member @banned @carol {"membership":"invite","third_party_invite":{"signed":` + sign(t, `{"mxid":"@banned","token":"tok"}`) + `}}`, ".1"},
			{"nothing signed", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{}}`, ".2"},
			{"not an object", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":null}`, ".2"},
			{"no token", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` + sign(t, `{"mxid":"@dave"}`) + `}}`, ".3"},
			{"no mxid", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` + sign(t, `{"token":"tok"}`) + `}}`, ".3"},
			{"another user", single, `m.room.member @eve @carol {"membership":"invite","third_party_invite":{"signed":` + good + `}}`, ".4"},
			{"another token", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` + sign(t, `{"mxid":"@dave","token":"no"}`) + `}}`, ".5"},
			{"another sender", single, `m.room.member @dave @mod {"membership":"invite","third_party_invite":{"signed":` + good + `}}`, ".6"},
			{"another key", `m.room.third_party_invite tok @carol {"public_key":"` + other + `"}`,
				`m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` + good + `}}`, ".8"},
			{"changed after signing", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":` +
				strings.Replace(good, `"token"`, `"more":1,"token"`, 1) + `}}`, ".8"},
			{"no signature", single, `m.room.member @dave @carol {"membership":"invite","third_party_invite":{"signed":{"mxid":"@dave","token":"tok"}}}`, ".8"},
		} {
			t.Run(string(v)+" "+row.name, func(t *testing.T) {
				r := origin.clone().with(t, row.invite)
				e := r.event(t, row.event, nil)
				rule := row.want
				if rule != "ok" {
					rule = at + rule
				}
				expect(t, Check(e, r.state), rule)
				expect(t, CheckAuthEvents(e, r.authEvents(e), nil), rule)
			})
		}
	}
}

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

func TestLeave(t *testing.T) {
	t.Parallel()
	const (
		self  = "3:5.4.1 6:4.4.1 8:4.5.1 12:5.5.1"
		out   = "3:5.4.2 6:4.4.2 8:4.5.2 12:5.5.2"
		unban = "3:5.4.3 6:4.4.3 8:4.5.3 12:5.5.3"
		kick  = "3:5.4.5 6:4.4.5 8:4.5.5 12:5.5.5"
	)
	run(t, []row{
		{"own, joined", nil, `m.room.member @carol @carol {"membership":"leave"}`, allowed},
		{"own, invited", nil, `m.room.member @invited @invited {"membership":"leave"}`, allowed},
		{"own, knocking", nil, `m.room.member @knocker @knocker {"membership":"leave"}`, "3:5.4.1 6:4.4.1 7:ok"},
		{"own, left already", nil, `m.room.member @gone @gone {"membership":"leave"}`, self},
		{"own, never there", nil, `m.room.member @dave @dave {"membership":"leave"}`, self},
		{"own, banned", nil, `m.room.member @banned @banned {"membership":"leave"}`, self},

		{"kick by a stranger", nil, `m.room.member @carol @dave {"membership":"leave"}`, out},
		{"kick", nil, `m.room.member @carol @mod {"membership":"leave"}`, allowed},
		{"kick below the level", nil, `m.room.member @carol @erin:b {"membership":"leave"}`, kick},
		{"kick of an equal", nil, `m.room.member @peer @mod {"membership":"leave"}`, kick},
		{"kick of one above", nil, `m.room.member @admin @mod {"membership":"leave"}`, kick},
		{"kick at another kick level", []string{`m.room.power_levels '' @alice {"kick":60,"users":{"@admin":100,"@mod":50}}`},
			`m.room.member @carol @mod {"membership":"leave"}`, kick},
		{"invite taken back", nil, `m.room.member @invited @mod {"membership":"leave"}`, allowed},
		{"knock refused", nil, `m.room.member @knocker @mod {"membership":"leave"}`, allowed},

		{"unban", nil, `m.room.member @banned @mod {"membership":"leave"}`, allowed},
		{"unban below the ban level", []string{`m.room.power_levels '' @alice {"ban":60,"users":{"@admin":100,"@mod":50}}`},
			`m.room.member @banned @mod {"membership":"leave"}`, unban},
		{"unban below the kick level", []string{`m.room.power_levels '' @alice {"kick":60,"users":{"@admin":100,"@mod":50}}`},
			`m.room.member @banned @mod {"membership":"leave"}`, kick},

		{"kick of the creator", nil, `m.room.member @alice @admin {"membership":"leave"}`, "3:ok 12:5.5.5"},
		{"kick by the creator", nil, `m.room.member @admin @alice {"membership":"leave"}`, "3:5.4.5 6:4.4.5 8:4.5.5 12:ok"},
	})
}

func TestBan(t *testing.T) {
	t.Parallel()
	const (
		out = "3:5.5.1 6:4.5.1 8:4.6.1 12:5.6.1"
		low = "3:5.5.3 6:4.5.3 8:4.6.3 12:5.6.3"
	)
	run(t, []row{
		{"by a stranger", nil, `m.room.member @carol @dave {"membership":"ban"}`, out},
		{"a member", nil, `m.room.member @carol @mod {"membership":"ban"}`, allowed},
		{"a stranger", nil, `m.room.member @dave @mod {"membership":"ban"}`, allowed},
		{"one who is banned", nil, `m.room.member @banned @mod {"membership":"ban","reason":"x"}`, allowed},
		{"below the level", nil, `m.room.member @dave @carol {"membership":"ban"}`, low},
		{"an equal", nil, `m.room.member @peer @mod {"membership":"ban"}`, low},
		{"oneself", nil, `m.room.member @mod @mod {"membership":"ban"}`, low},
		{"at another ban level", []string{`m.room.power_levels '' @alice {"ban":60,"users":{"@admin":100,"@mod":50}}`},
			`m.room.member @carol @mod {"membership":"ban"}`, low},
		{"the creator", nil, `m.room.member @alice @admin {"membership":"ban"}`, "3:ok 12:5.6.3"},
	})
}

func TestKnock(t *testing.T) {
	t.Parallel()
	rule := func(name string) []string {
		return []string{`m.room.join_rules '' @alice {"join_rule":"` + name + `"}`}
	}
	const (
		knock   = `m.room.member @dave @dave {"membership":"knock"}`
		unknown = "3:5.6 6:4.6 "
		member  = unknown + "7:4.6.4 8:4.7.4 12:5.7.4"
	)
	run(t, []row{
		{"knock", rule("knock"), knock, unknown + "7:ok"},
		{"knock_restricted", rule("knock_restricted"), knock, unknown + "7:4.6.1 8:4.7.1 10:ok"},
		{"restricted", rule("restricted"), knock, unknown + "7:4.6.1 8:4.7.1 12:5.7.1"},
		{"public", rule("public"), knock, unknown + "7:4.6.1 8:4.7.1 12:5.7.1"},
		{"invite", rule("invite"), knock, unknown + "7:4.6.1 8:4.7.1 12:5.7.1"},
		{"for another", rule("knock"), `m.room.member @dave @carol {"membership":"knock"}`, unknown + "7:4.6.2 8:4.7.2 12:5.7.2"},
		{"again", rule("knock"), `m.room.member @knocker @knocker {"membership":"knock"}`, unknown + "7:ok"},
		{"having left", rule("knock"), `m.room.member @gone @gone {"membership":"knock"}`, unknown + "7:ok"},
		{"joined", rule("knock"), `m.room.member @carol @carol {"membership":"knock"}`, member},
		{"invited", rule("knock"), `m.room.member @invited @invited {"membership":"knock"}`, member},
		{"banned", rule("knock"), `m.room.member @banned @banned {"membership":"knock"}`, member},
	})
}
