package stateres

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/auth"
)

// actions are what happens in rooms, each with how often. They draft an event for the place that the generator has chosen;
// false where the action makes no sense there.
var actions = []struct {
	weight int
	make   func(g *generator) (draft, bool)
}{
	{14, (*generator).topic},
	{6, (*generator).custom},
	{3, (*generator).message},
	{14, (*generator).joining},
	{5, (*generator).leaving},
	{8, removal("leave", 50)},
	{9, removal("ban", 50)},
	{6, (*generator).inviting},
	{3, (*generator).knocking},
	{3, (*generator).thirdPartyToken},
	{5, (*generator).thirdPartyInviting},
	{22, (*generator).levels},
	{12, (*generator).changeJoinRules},
	{2, (*generator).aliases},
	{2, (*generator).redaction},
	{2, (*generator).oddMember},
	{1, (*generator).secondCreate},
}

func (g *generator) topic() (draft, bool) {
	content := object("topic", strconv.Itoa(g.rng.IntN(100)))
	return draft{typ: "m.room.topic", key: new(""), sender: g.sender(50), content: content}, true
}

func (g *generator) custom() (draft, bool) {
	sender := g.sender(50)
	key := pick(g, "", "one", "two", string(sender), string(pick(g, users...)))
	return draft{typ: "x.custom", key: &key, sender: sender, content: object("n", strconv.Itoa(g.rng.IntN(100)))}, true
}

func (g *generator) message() (draft, bool) {
	return draft{typ: "m.room.message", sender: g.sender(0), content: object("body", `"hello"`)}, true
}

func member(u, sender eventgraph.UserID, pairs ...string) draft {
	return draft{typ: "m.room.member", key: new(string(u)), sender: sender, content: object(pairs...)}
}

// joining is a join of somebody who is not in the room or, less often, is: then as a new display name. Where the room is
// restricted somebody vouches, most often one who may.
func (g *generator) joining() (draft, bool) {
	u := pick(g, users...)
	switch {
	case g.chance(25):
		u = g.sender(50)
	case g.membership(u) == "join" && g.chance(70):
		u = pick(g, users...)
	}
	content := []string{"membership", `"join"`}
	if g.chance(20) {
		content = append(content, "displayname", strconv.Quote(strconv.Itoa(g.rng.IntN(10))))
	}
	restricted := false
	if e := g.at("m.room.join_rules", ""); e != nil {
		restricted = e.Content()[len(e.Content())-4] == 'e' // restricted, knock_restricted
	}
	d := member(u, u)
	if restricted && g.chance(85) || g.chance(2) {
		via := g.sender(int64(pick(g, 0, 50)))
		content = append(content, "join_authorised_via_users_server", strconv.Quote(string(via)))
		if !g.chance(4) {
			d.signers = append(d.signers, via.Server())
		}
	} else if g.chance(1) {
		content = append(content, "join_authorised_via_users_server", pick(g, `"nobody"`, `"@bob"`, "1", "null"))
	}
	d.content = object(content...)
	if g.chance(3) {
		d.sender = pick(g, users...)
	}
	return d, true
}

func (g *generator) leaving() (draft, bool) {
	u := g.sender(0)
	if g.chance(15) || u == alice {
		u = pick(g, users...)
	}
	return member(u, u, "membership", `"leave"`, "reason", strconv.Itoa(g.rng.IntN(10))), true
}

// removal kicks (or takes a ban back, or an invite) and bans.
func removal(membership string, power int64) func(g *generator) (draft, bool) {
	return func(g *generator) (draft, bool) {
		sender := g.sender(power)
		u := pick(g, users...)
		if u == sender && g.chance(80) {
			u = pick(g, users...)
		}
		if m := g.membership(u); m == "" && g.chance(60) {
			u = pick(g, users...)
		}
		return member(u, sender, "membership", strconv.Quote(membership), "reason", strconv.Itoa(g.rng.IntN(10))), true
	}
}

func (g *generator) inviting() (draft, bool) {
	sender, u := g.sender(0), pick(g, users...)
	if g.membership(u) == "join" {
		u = pick(g, users...)
	}
	return member(u, sender, "membership", `"invite"`), true
}

func (g *generator) knocking() (draft, bool) {
	u := pick(g, users...)
	d := member(u, u, "membership", `"knock"`)
	if g.chance(8) {
		d.sender = pick(g, users...)
	}
	return d, true
}

// thirdPartyToken is a third-party invite, whose token the invited user will show.
func (g *generator) thirdPartyToken() (draft, bool) {
	token := g.rng.IntN(2)
	public, _ := thirdPartyKey(token)
	g.thirdParty++
	content := object("display_name", `"x"`, "public_key", strconv.Quote(public), "public_keys", `[{"public_key":"`+public+`"}]`)
	if g.chance(30) {
		content = object("display_name", `"x"`, "public_keys", `[{"public_key":"`+public+`"}]`)
	}
	key, sender := "t"+strconv.Itoa(token), g.sender(pick[int64](g, 0, 50))
	return draft{typ: "m.room.third_party_invite", key: &key, sender: sender, content: content}, true
}

func (g *generator) thirdPartyInviting() (draft, bool) {
	if g.thirdParty == 0 {
		return draft{}, false
	}
	token, u := g.rng.IntN(2), pick(g, users...)
	sender := g.sender(0)
	if e := g.at("m.room.third_party_invite", "t"+strconv.Itoa(token)); e != nil && g.chance(85) {
		sender = e.Sender()
	}
	signed := signedInvitation(u, token)
	invite := `{"display_name":"x","signed":` + signed + `}`
	if g.chance(15) {
		invite = pick(g, `{"display_name":"x"}`, `{"signed":{"mxid":"`+string(u)+`"}}`, `{"signed":{}}`,
			`{"signed":`+signedInvitation(alice, token)+`}`,
			`{"signed":{"mxid":"`+string(u)+`","signatures":{"id.example":{"ed25519:0":"AA"}},"token":"t`+strconv.Itoa(token)+`"}}`,
			`{"signed":{"mxid":"`+string(u)+`","token":1}}`, `null`, `{"signed":null}`)
	}
	return member(u, sender, "membership", `"invite"`, "third_party_invite", invite), true
}

func (g *generator) changeJoinRules() (draft, bool) {
	rule := pick(g, "public", "public", "invite", "knock", "restricted", "restricted", "knock_restricted", "private")
	d := draft{typ: "m.room.join_rules", key: new(""), sender: g.sender(50), content: joinRules(rule)}
	if g.chance(3) {
		d.content = object("join_rule", pick(g, "1", "null", `""`, `"odd"`))
	}
	return d, true
}

func (g *generator) aliases() (draft, bool) {
	sender := g.sender(0)
	key := string(sender.Server())
	d := draft{typ: "m.room.aliases", key: &key, sender: sender, content: object("aliases", "[]")}
	switch g.rng.IntN(5) {
	case 0:
		key = "a.example"
	case 1:
		d.key = nil
	}
	return d, true
}

func (g *generator) redaction() (draft, bool) {
	id := g.c.events[g.rng.IntN(len(g.c.events))].ID()
	d := draft{typ: "m.room.redaction", sender: g.sender(50), content: object(), redacts: id}
	if g.traits.RedactsInContent {
		d.redacts, d.content = "", object("redacts", strconv.Quote(string(id)))
	}
	return d, true
}

// oddMember is a member event as nobody should send it.
func (g *generator) oddMember() (draft, bool) {
	u := pick(g, users...)
	d := member(u, u, "membership", pick(g, `"hug"`, `"knock"`, "1", "null", `""`))
	switch g.rng.IntN(4) {
	case 0:
		d.content = object("displayname", `"x"`)
	case 1:
		d.key, d.content = nil, object("membership", `"join"`)
	}
	return d, true
}

// secondCreate is another create event of the room, or before version 12 one that could be; most break a rule.
func (g *generator) secondCreate() (draft, bool) {
	content := []string{"room_version", strconv.Quote(string(g.c.version)), "creator", strconv.Quote(string(erin))}
	d := draft{typ: "m.room.create", key: new(""), sender: pick(g, alice, bob, erin)}
	switch g.rng.IntN(8) {
	case 0:
		content = content[:2]
	case 1:
		content[1] = pick(g, `"99"`, "1", `"x"`)
	case 2:
		content = append(content, "additional_creators", pick(g, `["@x"]`, `"@bob:b.example"`, "[1]", "[]", "null"))
	}
	if g.chance(50) {
		g.prev = nil
	}
	if g.traits.RoomIDFromCreate && g.chance(70) {
		d.room = noRoom // it makes a room of its own
	}
	d.content = object(content...)
	return d, true
}

// firstLevels are the power levels that a room begins with.
func (g *generator) firstLevels() []byte {
	l := &auth.Levels{
		Users:        map[string]int64{string(alice): 100},
		StateDefault: 50, Ban: 50, Kick: 50, Redact: 50, Invite: pick[int64](g, 0, 0, 50),
	}
	if g.traits.PrivilegedCreators {
		delete(l.Users, string(alice))
	}
	for _, u := range users[1:] {
		if g.chance(45) && !g.isCreator(u) {
			l.Users[string(u)] = pick[int64](g, 50, 50, 50, 100, 99, 25)
		}
	}
	return object(g.pairs(l)...)
}

// scalars of power levels.
var scalars = []string{"ban", "events_default", "invite", "kick", "redact", "state_default", "users_default"}

// pairs are power levels, without some that are the default anyway.
func (g *generator) pairs(l *auth.Levels) []string {
	var pairs []string
	put := func(name string, level, otherwise int64) {
		if level != otherwise || g.chance(15) {
			pairs = append(pairs, name, g.level(level))
		}
	}
	put("ban", l.Ban, 50)
	put("events_default", l.EventsDefault, 0)
	put("invite", l.Invite, 0)
	put("kick", l.Kick, 50)
	put("redact", l.Redact, 50)
	put("state_default", l.StateDefault, 50)
	put("users_default", l.UsersDefault, 0)
	for _, m := range []struct {
		name   string
		levels map[string]int64
	}{{"users", l.Users}, {"events", l.Events}, {"notifications", l.Notifications}} {
		var inner []string
		for _, key := range slices.Sorted(maps.Keys(m.levels)) {
			inner = append(inner, key, g.level(m.levels[key]))
		}
		if len(inner) > 0 || m.name == "users" && g.chance(70) {
			pairs = append(pairs, m.name, string(object(inner...)))
		}
	}
	return pairs
}

// level writes a level, before version 10 sometimes as a string, and before 6 as a float.
func (g *generator) level(n int64) string {
	s := strconv.FormatInt(n, 10)
	if g.traits.IntegerLevels || !g.chance(12) {
		return s
	}
	if !g.traits.StrictJSON && g.chance(40) {
		return pick(g, s+".0", s+".7", s+"e0")
	}
	return pick(g, `"`+s+`"`, `" `+s+` "`, `"+0`+s+`"`, `"0`+s+`"`)
}

var someLevels = []int64{0, 25, 49, 50, 50, 51, 75, 99, 100, 100, 101, -1}

// levels is a change of power levels, from those of the state before: somebody goes up or down, often the sender; a required
// level changes; or it is not power levels at all.
func (g *generator) levels() (draft, bool) {
	if g.err != nil {
		return draft{}, false
	}
	d := draft{typ: "m.room.power_levels", key: new(""), sender: g.sender(50)}
	was, err := auth.PowerLevels(g.ref.state(g.state))
	if err != nil {
		g.err = err
		return d, false
	}
	l := new(*was)
	l.Users, l.Events, l.Notifications = maps.Clone(l.Users), maps.Clone(l.Events), maps.Clone(l.Notifications)
	if l.Users == nil {
		l.Users = make(map[string]int64)
	}
	for range 1 + g.rng.IntN(2) {
		g.change(l, d.sender)
	}
	pairs := g.pairs(l)
	if g.chance(5) {
		name := pick(g, scalars...)
		pairs = append(pairs, pick(g,
			[]string{name, `"50"`}, []string{name, "null"}, []string{name, `"high"`}, []string{name, "{}"}, []string{name, "true"},
			[]string{"users", "[]"}, []string{"users", `{"nobody":50}`}, []string{"users", `{"` + string(bob) + `":null}`},
			[]string{"users", `{"` + string(alice) + `":100}`}, []string{"events", "50"}, []string{"events", "null"},
			[]string{"events", `{"m.room.topic":"x"}`}, []string{"events", `{"m.room.topic":null}`},
			[]string{"notifications", `{"room":"x"}`}, []string{"notifications", `"50"`},
			[]string{"notifications", `{"room":null}`})...)
	}
	d.content = object(pairs...)
	return d, true
}

// isCreator says whether the user is in power without levels (version 12).
func (g *generator) isCreator(u eventgraph.UserID) bool {
	create := g.c.events[0]
	return g.traits.PrivilegedCreators && (u == create.Sender() || bytes.Contains(create.Content(), []byte(u)))
}

// change changes one thing.
func (g *generator) change(l *auth.Levels, sender eventgraph.UserID) {
	n := pick(g, someLevels...)
	u := string(pick(g, users...))
	switch at := g.rng.IntN(100); {
	case at < 42:
		if !g.isCreator(eventgraph.UserID(u)) || g.chance(20) {
			l.Users[u] = n
		}
	case at < 52:
		if !g.isCreator(sender) || g.chance(20) {
			l.Users[string(sender)] = n
		}
	case at < 57:
		delete(l.Users, string(sender))
	case at < 62:
		delete(l.Users, u)
	case at < 84:
		*pick(g, &l.Ban, &l.EventsDefault, &l.Invite, &l.Kick, &l.Redact, &l.StateDefault, &l.UsersDefault) = n
	case at < 95:
		if l.Events == nil {
			l.Events = make(map[string]int64)
		}
		typ := pick(g, "m.room.topic", "x.custom", "m.room.power_levels", "m.room.join_rules", "m.room.message")
		if _, ok := l.Events[typ]; ok && g.chance(40) {
			delete(l.Events, typ)
		} else {
			l.Events[typ] = n
		}
	default:
		if l.Notifications == nil {
			l.Notifications = make(map[string]int64)
		}
		l.Notifications["room"] = n
	}
}

// describe writes the chronicle, an event a line, with what a replay made of it.
func (c *chronicle) describe(r *replay) string {
	var b []byte
	names := func(places []int) string {
		s := ""
		for _, i := range places {
			if i < 0 {
				s += " nobody's"
			} else {
				s += fmt.Sprintf(" e%d", i)
			}
		}
		return s
	}
	for i, p := range c.events {
		key := "-"
		if k, ok := p.StateKey(); ok {
			key = strconv.Quote(k)
		}
		room := ""
		if p.RoomID() != c.events[0].RoomID() {
			room = " in another room"
		}
		b = fmt.Appendf(b, "e%d%s ts=%d %s %s by %s %s prev:%s auth:%s%s: %s", i, room, p.OriginServerTS(), p.Type(), key,
			p.Sender(), p.Content(), names(p.prev), names(p.auth), p.label, r.placed[i].verdict)
		if rule := r.rules[i]; rule != "" {
			b = fmt.Appendf(b, " (rule %s)", rule)
		}
		b = append(b, '\n')
	}
	return string(b)
}
