"""Rows of events.json, redaction.json and auth_selection.json."""

import json

from plain import (LEVELS, TOP, TOP_BEFORE_11, VERSIONS, Key, Raw, b64, b64url, content_hash, dump, event_id, parse, redact, reference_hash, seal, sha256, sign, without)

KEY = Key(sha256("a.example"), "a.example", "ed25519:1")
OTHER = Key(sha256("b.example"), "b.example", "ed25519:1")
KEYS = [KEY.described(), OTHER.described()]


def number(v):
    return int(v)


def versions(low, high=12):
    return [str(n) for n in range(low, high + 1)]


def hash_id(version, n):
    h = sha256("event %d" % n)
    return "$" + (b64(h) if version == "3" else b64url(h))


def room(version):
    return "!" + b64url(sha256("create")) if version == "12" else "!room:a.example"


def base(version):
    return {"type": "m.room.message", "sender": "@alice:a.example", "room_id": room(version), "content": {"body": "x"}, "depth": 7, "origin_server_ts": 1700000000000,
            "prev_events": [hash_id(version, 1)], "auth_events": [hash_id(version, 2), hash_id(version, 3)]}


def edited(event, changes):
    """Members set to values, or removed where the value is None."""
    return {k: v for k, v in {**event, **changes}.items() if v is not None}


def grouped(rows):
    """One vector for all versions with the same input and outcome."""
    out, index = [], {}
    for version, v in rows:
        k = json.dumps(v, sort_keys=True)
        if k in index:
            index[k]["versions"].append(version)
        else:
            index[k] = {**v, "versions": [version]}
            out.append(index[k])
    order = ["name", "rule", "versions", "input", "expect", "reason", "spec", "result"]
    return [{k: v[k] for k in order if k in v} for v in out]


def facts(version, event, mismatch=False):
    """What follows from an event that is accepted."""
    strict = number(version) >= 6
    event = without(event, "unsigned")
    kept = redact(version, event) if mismatch else event
    return {"event_id": event_id(version, event), "reference_hash": b64(reference_hash(version, event)), "content_hash": b64(content_hash(event)),
            "canonical": dump(kept), "redacted": dump(redact(version, event))}


def events():
    rows = []
    form = "room versions, Event format; SS API, PDUs"

    def add(rule, name, reason, expect, make, among=VERSIONS, spec=form):
        """make(version) gives the event, or its text."""
        for v in among:
            made = make(v)
            text = made if isinstance(made, str) else dump(made)
            vector = {"name": name, "rule": rule, "input": {"pdu": text}, "expect": expect, "reason": reason, "spec": spec}
            if expect != "refuse":
                event = without(parse(text, False), "unsigned")
                parse(dump(event), number(v) >= 6)
                assert (b64(content_hash(event)) == event["hashes"]["sha256"].rstrip("=")) == (expect == "accept"), name
                vector["result"] = facts(v, event, expect == "redact")
                if vector["result"]["canonical"] == text:
                    del vector["result"]["canonical"]
            rows.append((v, vector))

    def with_(changes, sealed=True):
        """A sound event with changes; its hash and signature made after them, where that is possible."""
        def make(v):
            c = changes(v) if callable(changes) else changes
            after = {k: c[k] for k in c if k in ("hashes", "signatures")}
            return edited(seal(v, edited(base(v), without(c, *after)), KEY), after)
        return make

    def field(key, good, bad, among=VERSIONS, absent=True, spec=form):
        """A field that must be there, of one type."""
        rule = key.replace("_", "-")
        add(rule, f"{key} as it should be", f"{key} is {good}", "accept", with_({}), among, spec)
        if absent:
            add(rule, f"no {key}", f"{key} is required", "refuse", with_({key: None}), among, spec)
        for b in bad:
            add(rule, f"{key}: {b}"[:50], f"{key} must be {good}", "refuse", with_({key: Raw(b)}), among, spec)

    # The event of the appendices. Its signature is over the redacted form of the early versions, which keeps "origin".
    spec_key = "appendices, Cryptographic Test Vectors, Event Signing"
    example = ('{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,"signatures":{"domain":{"ed25519:1":'
               '"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"}},"hashes":{"sha256":"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"},'
               '"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3}')
    add("content-hash", "the specification's", "hash and signature as the appendices print them", "accept", lambda v: example, versions(3, 11), spec_key)

    add("object", "an event", "an object", "accept", with_({}))
    for text in ["", "{", "[]", "null", '"x"', "{}", "1"]:
        add("object", "text " + repr(text), "not an object with an event's fields", "refuse", lambda v: text)
    add("object", "two events", "more behind the event", "refuse", lambda v: dump(with_({})(v)) * 2)
    add("unknown-member", "unknown members", "kept, hashed, and gone in the redacted form", "accept", with_({"org.example": {"x": [1]}}))
    add("unknown-member", "an unknown member behind the hash", "not what the hash covers", "redact", lambda v: {**with_({})(v), "org.example": 1}, spec="SS API, Calculating the content hash")

    field("type", "a string", ["1", "null", "{}", '["m.room.message"]'])
    field("sender", "a user ID", ["1", "null", '"alice"', '"@alice"', '"@alice:"', '""', '"!alice:a.example"'])
    field("content", "an object", ["[]", "null", '"x"', "1"])
    field("hashes", "an object with sha256", ["[]", "null", '"x"', "{}", '{"md5":"x"}', '{"sha256":1}', '{"sha256":"!!"}'])
    field("signatures", "an object of objects of strings", ["[]", "null", '"x"', '{"a.example":"b"}', '{"a.example":[]}', '{"a.example":{"ed25519:1":1}}', '{"a.example":{"ed25519:1":null}}'])
    field("prev_events", "an array of event IDs", ["{}", "null", '"$a"', "[1]", "[null]", '[["$a:b",{"sha256":"c"}]]', '["$a:example.org"]', '[""]'])
    field("auth_events", "an array of event IDs", ["{}", "null", '"$a"', "[1]", "[null]", '[["$a:b",{"sha256":"c"}]]', '["$a:example.org"]', '[""]'])
    field("depth", "an integer from 0 on", ['"1"', "null", "{}", "-1", "-9007199254740991"])
    field("origin_server_ts", "an integer", ['"1"', "null", "{}", "true"])
    field("room_id", "a room ID", ["1", "null", '""', '"room"', '"!room"', '"@room:a.example"', '"!room:"'], versions(3, 11))
    add("signatures", "no signature at all", "well-formed; whether those are there that must be is asked later", "accept", with_({"signatures": {}}))
    add("hashes", "another hash beside", "sha256 is looked at", "accept", lambda v: with_({"hashes": {"md5": "x", "sha256": b64(content_hash(base(v)))}})(v))
    add("prev-events", "none", "the format allows it; the create event has none", "accept", with_({"prev_events": []}))
    add("auth-events", "none", "the format allows it; the create event has none", "accept", with_({"auth_events": []}))
    add("sender", "historical", "localparts of older servers", "accept", with_({"sender": "@Al ice\x01é:a.example"}), spec="appendices, Historical User IDs")
    add("sender", "empty localpart", "localparts of older servers", "accept", with_({"sender": "@:a.example"}), spec="appendices, Historical User IDs")
    add("depth", "0", "the least", "accept", with_({"depth": 0}))
    add("origin-server-ts", "negative", "an integer", "accept", with_({"origin_server_ts": -5}))
    add("origin-server-ts", "far ahead", "an integer; the rules do not look at clocks", "accept", with_({"origin_server_ts": 2**53 - 1}))

    add("state-key", "none", "an event that is not state", "accept", with_({}))
    add("state-key", "empty", "a state event", "accept", with_({"state_key": ""}))
    for text in ["1", "null", "{}"]:
        add("state-key", "state_key: " + text, "state_key must be a string", "refuse", with_({"state_key": Raw(text)}))

    limits = "CS API, Size limits"
    for key in ["type", "state_key"]:
        for name, s, ok in [("255 bytes", "x" * 255, True), ("256 bytes", "x" * 256, False), ("255 bytes of 254 characters", "x" * 253 + "é", True), ("256 bytes of 255 characters", "x" * 254 + "é", False)]:
            add(key.replace("_", "-") + "-size", f"{key} of {name}", "at most 255 bytes", "accept" if ok else "refuse", with_({key: s}), spec=limits)
    for name, n, ok in [("255 bytes", 244, True), ("256 bytes", 245, False)]:
        add("sender-size", "sender of " + name, "at most 255 bytes", "accept" if ok else "refuse", with_({"sender": "@" + "x" * n + ":a.example"}), spec=limits)
        add("room-id-size", "room_id of " + name, "at most 255 bytes", "accept" if ok else "refuse", with_({"room_id": "!" + "x" * n + ":a.example"}), versions(3, 11), spec=limits)

    for key, limit in [("prev_events", 20), ("auth_events", 10)]:
        for n in [limit, limit + 1]:
            add(key.replace("_", "-") + "-count", f"{n} {key}", f"at most {limit}", "accept" if n == limit else "refuse", with_(lambda v: {key: [hash_id(v, i) for i in range(n)]}))

    alphabet = "room versions 3 and 4, Event IDs"
    for key in ["prev_events", "auth_events"]:
        rule = "event-id-alphabet"
        add(rule, f"{key}: + and /", "standard base64", "accept", with_({key: ["$+/" + "A" * 41]}), ["3"], alphabet)
        add(rule, f"{key}: + and /", "URL-safe base64 from version 4", "refuse", with_({key: ["$+/" + "A" * 41]}), versions(4), alphabet)
        add(rule, f"{key}: - and _", "URL-safe base64", "accept", with_({key: ["$-_" + "A" * 41]}), versions(4), alphabet)
        add(rule, f"{key}: - and _", "standard base64 in version 3", "refuse", with_({key: ["$-_" + "A" * 41]}), ["3"], alphabet)
        rule = "event-id-form"
        add(rule, f"{key}: 32 bytes", "$ and 43 characters", "accept", with_({key: ["$" + "A" * 43]}), spec=alphabet)
        for name, s in [("42 characters", "$" + "A" * 42), ("44 characters", "$" + "A" * 44), ("padded", "$" + "A" * 43 + "="), ("unused bits", "$" + "A" * 42 + "B"), ("another sigil", "!" + "A" * 43), ("no sigil", "A" * 44)]:
            add(rule, f"{key}: {name}", "not $ and the one spelling of 32 bytes", "refuse", with_({key: [s]}), spec=alphabet)

    depth = "room versions 3 to 5, Event format: less than 2^63; from 6: less than 2^53"
    add("depth-range", "depth 2^53-1", "the limit of version 6", "accept", with_({"depth": 2**53 - 1}), spec=depth)
    add("depth-range", "depth 2^53", "not canonical JSON", "refuse", with_({"depth": 2**53}), versions(6), depth)
    add("depth-range", "depth 2^53", "64 bits before version 6", "accept", with_({"depth": 2**53}), versions(3, 5), depth)
    add("depth-range", "depth 2^63-1", "64 bits before version 6", "accept", with_({"depth": 2**63 - 1}), versions(3, 5), depth)
    add("depth-range", "depth 2^63", "beyond 64 bits", "refuse", with_({"depth": 2**63}), spec=depth)
    add("depth-range", "depth 1.0", "no integer", "refuse", with_({"depth": Raw("1.0")}), spec=depth)
    add("depth-range", "depth 1e3", "no integer", "refuse", with_({"depth": Raw("1e3")}), spec=depth)

    domain, hashed = "appendices, Room IDs", "room version 12, Event format"
    add("room-id-form", "with a domain", "room IDs have a domain before version 12", "accept", with_({"room_id": "!r:a.example"}), versions(3, 11), domain)
    add("room-id-form", "with a domain", "a create event's hash from version 12", "refuse", with_({"room_id": "!r:a.example"}), ["12"], hashed)
    add("room-id-form", "a hash", "a create event's hash", "accept", with_({"room_id": room("12")}), ["12"], hashed)
    add("room-id-form", "a hash", "no domain", "refuse", with_({"room_id": room("12")}), versions(3, 11), domain)
    for name, s in [("short", "!" + "A" * 42), ("long", "!" + "A" * 44), ("unused bits", "!" + "A" * 42 + "B"), ("the other alphabet", "!+/" + "A" * 41), ("an event ID", "$" + "A" * 43)]:
        add("room-id-form", "a hash, " + name, "not ! and the one spelling of 32 bytes", "refuse", with_({"room_id": s}), ["12"], hashed)

    def create(v, **changes):
        content = {"room_version": v, **({"creator": "@alice:a.example"} if number(v) < 11 else {})}
        e = {**base(v), "type": "m.room.create", "state_key": "", "content": content, "depth": 1, "prev_events": [], "auth_events": []}
        return seal(v, edited(e, changes), KEY)

    add("room-id-of-create", "a create event without room_id", "the room's ID is made of the event's", "accept", lambda v: create(v, room_id=None), ["12"], hashed)
    add("room-id-of-create", "a create event without room_id", "room_id is required before version 12", "refuse", lambda v: create(v, room_id=None), versions(3, 11), domain)
    add("room-id-of-create", "a create event with room_id", "required before version 12", "accept", lambda v: create(v), versions(3, 11), domain)
    add("room-id-of-create", "a create event with a hash as room_id", "well-formed; the authorization rules reject it (rule 1.2)", "accept", lambda v: create(v), ["12"], hashed)
    add("room-id-of-create", "another event without room_id", "only the create event goes without", "refuse", with_({"room_id": None}), spec=hashed)
    add("room-id-of-create", "m.room.create with another state_key", "not the create event", "refuse", lambda v: create(v, room_id=None, state_key="x"), ["12"], hashed)
    add("room-id-of-create", "m.room.create without state_key", "not the create event", "refuse", lambda v: create(v, room_id=None, state_key=None), ["12"], hashed)

    # Size: with signatures, without "unsigned". {fill} stands for as many x as the vector says.
    size = "CS API, Size limits: 65536 bytes of canonical JSON with signatures"
    for name, total, more, ok in [("65536 bytes", 65536, {}, True), ("65537 bytes", 65537, {}, False), ("65536 bytes and unsigned", 65536, {"unsigned": {"age": 1, "x": "y" * 2000}}, True)]:
        rows_of_size = []
        for v in VERSIONS:
            n = total - len(dump(seal(v, {**base(v), "content": {"body": ""}}, KEY)))
            e = seal(v, {**base(v), "content": {"body": "x" * n}}, KEY)
            assert len(dump(e)) == total
            f = facts(v, e)
            f["canonical_size"] = total
            del f["canonical"]
            text = dump({**e, **more, "content": {"body": "{fill}"}})
            vector = {"name": name, "rule": "event-size", "input": {"pdu": text, "fill": n}, "expect": "accept" if ok else "refuse", "reason": "at most 65536 bytes, not counting unsigned", "spec": size}
            if ok:
                vector["result"] = f
            rows_of_size.append((v, vector))
        rows.extend(rows_of_size)

    # JSON of events.
    strict, lax = "room version 6, Canonical JSON", "room versions 3 to 5, Canonical JSON"
    for name, text in [("a fraction", '{"x":1.5}'), ("an exponent", '{"x":1E+3}'), ("negative zero", '{"x":-0}'), ("2^53", '{"x":9007199254740992}'), ("thirty digits", '{"x":123456789012345678901234567890}')]:
        add("json-numbers", "content with " + name, "canonical JSON is enforced", "refuse", with_({"content": Raw(text)}), versions(6), strict)
        add("json-numbers", "content with " + name, "hashed and kept as written", "accept", with_({"content": Raw(text)}), versions(3, 5), lax)
    for name, text in [("a repeated member", '{"x":1,"x":2}'), ("a lone surrogate", '{"x":"\\ud800"}'), ("a trailing comma", '{"x":1,}')]:
        add("json", "content with " + name, "not JSON of one meaning", "refuse", with_({"content": Raw(text)}), spec="appendices, Canonical JSON")
    add("json", "content with escapes", "escapes that are not needed go", "accept", lambda v: dump(seal(v, {**base(v), "content": {"é\n": "😀\x01/"}}, KEY)).replace("é", "\\u00e9").replace("😀", "\\uD83D\\uDE00").replace("/\"", "\\/\""),
        spec="appendices, Canonical JSON")
    add("json", "spaces, and members in another order", "the canonical form counts", "accept", lambda v: json.dumps(dict(reversed(parse_plain(with_({})(v)).items())), indent=2), spec="appendices, Canonical JSON")

    unsigned = "appendices, Signing Details"
    add("unsigned", "with unsigned", "neither hashed nor signed, and dropped", "accept", lambda v: {**with_({})(v), "unsigned": {"age": 4612}}, spec=unsigned)
    add("unsigned", "unsigned with a fraction", "need not be canonical", "accept", lambda v: {**with_({})(v), "unsigned": {"age": Raw("-0.5e3")}}, spec=unsigned)
    add("unsigned", "unsigned with a repeated member", "must be JSON", "refuse", lambda v: {**with_({})(v), "unsigned": Raw('{"a":1,"a":1}')}, spec=unsigned)
    add("unsigned", "unsigned within content", "a member like any other: what is dropped is at the top", "accept", with_({"content": {"unsigned": 1}}), spec=unsigned)

    hashes = "SS API, Validating hashes and signatures on received events"
    for typ, content, key in [("m.room.message", {"body": "hello"}, None), ("m.room.member", {"membership": "join", "displayname": "x"}, "@alice:a.example")]:
        good = with_({"type": typ, "content": content, "state_key": key})
        add("content-hash", f"{typ}, hash right", "kept whole", "accept", good, spec=hashes)
        changed = {**content, list(content)[-1]: "changed"}
        add("content-hash", f"{typ}, content changed", "another content than was hashed: redacted", "redact", lambda v: {**good(v), "content": changed}, spec=hashes)
        add("content-hash", f"{typ}, redacted copy", "whoever sent it has redacted it: the same event", "redact", lambda v: redact(v, good(v)), spec=hashes)
    add("content-hash", "hash of four bytes", "another length is a wrong hash", "redact", with_({"hashes": {"sha256": "AAAAAA"}}), spec=hashes)
    add("content-hash", "hash with padding", "base64 is taken with and without", "accept", lambda v: with_({"hashes": {"sha256": b64(content_hash(base(v))) + "="}})(v), spec="appendices, Unpadded Base64")
    return "events", "PDUs: which are well-formed, and the ID, hashes and redacted form of those that are.", KEYS, grouped(rows)


def parse_plain(event):
    return json.loads(dump(event))


def redaction():
    rows = []

    def add(rule, name, reason, kept, v, event, key=None, redacts=None, spec="room versions, Redactions"):
        given = {"pdu": dump(event), **({"key": key} if key else {})}
        result = {"redacted": dump(redact(v, event)), "event_id": event_id(v, event)}
        if redacts is not None:
            result["redacts"] = redacts
        rows.append((v, {"name": name, "rule": rule, "input": given, "expect": "accept" if kept else "refuse", "reason": reason, "spec": spec, "result": result}))

    def sealed(v, type, content, state_key="", **more):
        return seal(v, edited({**base(v), "type": type, "state_key": state_key, "content": content}, more), KEY)

    # Of content. (rule, type, key, value, kept from, kept until)
    levels = {k: {"x": 1} if k in ("events", "users") else 1 for k in LEVELS}
    table = [("member", "m.room.member", "membership", "join", 3, 12), ("member", "m.room.member", "displayname", "x", 99, 0), ("member", "m.room.member", "avatar_url", "x", 99, 0), ("member", "m.room.member", "reason", "x", 99, 0),
             ("member", "m.room.member", "is_direct", True, 99, 0),
             ("member-authorised", "m.room.member", "join_authorised_via_users_server", "@b:b.example", 9, 12), ("member-third-party", "m.room.member", "third_party_invite", {"signed": {"mxid": "@a:b"}}, 11, 12),
             ("create", "m.room.create", "creator", "@alice:a.example", 3, 12), ("create-all", "m.room.create", "room_version", "x", 11, 12), ("create-all", "m.room.create", "m.federate", False, 11, 12),
             ("create-all", "m.room.create", "org.example", {"deep": [1]}, 11, 12), ("create", "m.room.name", "creator", "x", 99, 0), ("create-all", "m.room.create", "predecessor", {}, 11, 12),
             ("join-rules", "m.room.join_rules", "join_rule", "public", 3, 12), ("join-rules", "m.room.join_rules", "org.example", 1, 99, 0), ("join-rules-allow", "m.room.join_rules", "allow", [], 8, 12),
             *[("power-levels", "m.room.power_levels", k, levels[k], 3, 12) for k in LEVELS], ("power-levels", "m.room.power_levels", "notifications", {"room": 1}, 99, 0), ("power-levels-invite", "m.room.power_levels", "invite", 1, 11, 12),
             ("aliases", "m.room.aliases", "aliases", ["#a:b"], 3, 5), ("history-visibility", "m.room.history_visibility", "history_visibility", "joined", 3, 12),
             ("history-visibility", "m.room.history_visibility", "org.example", 1, 99, 0), ("redaction-redacts", "m.room.redaction", "redacts", "$x", 11, 12), ("redaction-redacts", "m.room.redaction", "reason", "x", 99, 0),
             ("other-types", "m.room.message", "body", "x", 99, 0), ("other-types", "m.room.topic", "topic", "x", 99, 0), ("other-types", "m.room.third_party_invite", "public_key", "x", 99, 0), ("other-types", "m.room.server_acl", "allow", ["*"], 99, 0),
             ("other-types", "m.room.encryption", "algorithm", "x", 99, 0), ("other-types", "m.room.tombstone", "membership", "x", 99, 0), ("other-types", "org.example", "join_rule", "x", 99, 0),
             ("other-types", "m.room.Member", "membership", "join", 99, 0), ("member", "m.room.member", "Membership", "join", 99, 0)]
    for rule, typ, key, value, low, high in table:
        for v in VERSIONS:
            kept = low <= number(v) <= high
            event = sealed(v, typ, {key: value})
            assert (key in redact(v, event)["content"]) == kept, (v, typ, key)
            add(rule, f"{typ}: content.{key}", f"redaction {'keeps' if kept else 'drops'} {key} of {typ} in this version", kept, v, event, "content." + key)
    for v in VERSIONS:
        add("other-types", "m.room.message: content", "content itself stays, empty", True, v, sealed(v, "m.room.message", {"body": "x"}, None), "content")
    third = "room version 11, Redactions: the signed key of the third_party_invite key"
    for v in VERSIONS:
        late = number(v) >= 11
        e = sealed(v, "m.room.member", {"membership": "invite", "third_party_invite": {"display_name": "x", "signed": {"mxid": "@a:b", "token": "t"}}})
        add("member-third-party-signed", "signed", "signed is kept from version 11", late, v, e, "content.third_party_invite.signed", spec=third)
        add("member-third-party-signed", "display_name", "only signed is kept", False, v, e, "content.third_party_invite.display_name", spec=third)
        if late:
            e = sealed(v, "m.room.member", {"membership": "invite", "third_party_invite": {"display_name": "x"}})
            add("member-third-party-signed", "no signed", "the object stays, empty", True, v, e, "content.third_party_invite", spec=third)
            for value in ["x", [1], 1]:
                e = sealed(v, "m.room.member", {"membership": "invite", "third_party_invite": value})
                add("member-third-party-signed", "no object: " + json.dumps(value), "what has no keys keeps none", False, v, e, "content.third_party_invite", spec=third)

    # At the top.
    values = {"origin": "a.example", "prev_state": [], "membership": "join", "event_id": "$x"}
    for v in VERSIONS:
        full = sealed(v, "m.room.message", {"body": "x"}, "", **values, redacts="$x", age=1, **{"org.example": 1})
        for key in TOP:
            add("top-level", key, f"redaction keeps {key}", True, v, full, key)
        for key in ["redacts", "age", "org.example"]:
            add("top-level", key, f"redaction drops {key}", False, v, full, key)
        for key in TOP_BEFORE_11:
            kept = number(v) < 11
            add("top-level-" + key.replace("_", "-"), key, f"redaction {'keeps' if kept else 'drops'} {key} in this version", kept, v, full, key, spec="room version 11, Redactions")

    # Where a redaction names its target.
    place = "room version 11, Moving the redacts property of m.room.redaction events to a content property"
    target = {v: hash_id(v, 9) for v in VERSIONS}
    for v in VERSIONS:
        late = number(v) >= 11
        top = seal(v, {**base(v), "type": "m.room.redaction", "content": {}, "redacts": target[v]}, KEY)
        inside = seal(v, {**base(v), "type": "m.room.redaction", "content": {"redacts": target[v]}}, KEY)
        both = seal(v, {**base(v), "type": "m.room.redaction", "content": {"redacts": hash_id(v, 10)}, "redacts": target[v]}, KEY)
        add("redacts-place", "at the top", "the target stands at the top before version 11", not late, v, top, redacts="" if late else target[v], spec=place)
        add("redacts-place", "in content", "the target stands in content from version 11", late, v, inside, redacts=target[v] if late else "", spec=place)
        add("redacts-place", "in both", "one place counts in each version", True, v, both, redacts=hash_id(v, 10) if late else target[v], spec=place)
        for typ in ["m.room.message", "org.example"]:
            e = seal(v, {**base(v), "type": typ, "content": {"redacts": target[v]}, "redacts": target[v]}, KEY)
            add("redacts-type", typ, "only m.room.redaction redacts", False, v, e, redacts="", spec=place)
        e = seal(v, {**base(v), "type": "m.room.redaction", "content": {"redacts": target[v]}, "redacts": target[v]}, KEY)
        add("redacts-type", "m.room.redaction", "it redacts", True, v, e, redacts=target[v], spec=place)
        for value in [1, "", "x", "$" * 256]:
            e = seal(v, {**base(v), "type": "m.room.redaction", "content": {"redacts": value}, "redacts": value}, KEY)
            add("redacts-form", "target " + json.dumps(value)[:8], "no event ID: the event is well-formed and redacts nothing", False, v, e, redacts="", spec="appendices, Event IDs")
        e = seal(v, {**base(v), "type": "m.room.redaction", "content": {"redacts": "$x:a.example"}, "redacts": "$x:a.example"}, KEY)
        add("redacts-form", "target of an older form", "an event ID, of an event that cannot be in this room", True, v, e, redacts="$x:a.example", spec="appendices, Event IDs")
    return "redaction", "Redaction: which keys stay, and where a redaction names its target.", KEYS, grouped(rows)


def auth_selection():
    rows = []
    CREATE, POWER, RULES = ["m.room.create", ""], ["m.room.power_levels", ""], ["m.room.join_rules", ""]
    A, B, C = "@alice:a.example", "@bob:a.example", "@carol:c.example"
    member = lambda u: ["m.room.member", u]
    token = lambda t: ["m.room.third_party_invite", t]

    def event(type, sender, state_key, content):
        return {"type": type, "sender": sender, **({} if state_key is None else {"state_key": state_key}), "content": content}

    def add(rule, name, e, tuple, reason, chosen, all, among=VERSIONS):
        """all is what e lists, with the create event, which goes in version 12."""
        for v in among:
            selected = [t for t in all if not (t == CREATE and v == "12")]
            assert chosen == (tuple in selected), name
            rows.append((v, {"name": name, "rule": rule, "input": {"event": e, "tuple": tuple}, "expect": "accept" if chosen else "refuse", "reason": reason,
                             "spec": "SS API, Auth events selection", "result": {"selected": sorted(selected)}}))

    def of_member(state_key, content, sender=A):
        return event("m.room.member", sender, state_key, content)

    message = event("m.room.message", A, None, {"body": "x"})
    plain = [CREATE, POWER, member(A)]
    create = event("m.room.create", A, "", {"creator": A})
    add("create", "for a message", message, CREATE, "before version 12 every event lists the create event", True, plain, versions(3, 11))
    add("create", "for a message", message, CREATE, "from version 12 the room's ID implies it", False, plain, ["12"])
    none = "the create event has no auth events"
    add("create", "for the create event", create, CREATE, none, False, [])
    add("power-levels", "for a message", message, POWER, "every event but the create event", True, plain)
    add("power-levels", "for the create event", create, POWER, none, False, [])
    add("sender", "for a message", message, member(A), "the sender's membership", True, plain)
    add("sender", "for the create event", create, member(A), none, False, [])
    add("sender", "for power levels", event("m.room.power_levels", A, "", {"users": {B: 50}}), member(B), "not of users that content names", False, plain)
    for m in ["ban", "invite", "join", "knock", "leave", "org.example"]:
        rules = [RULES] * (m in ("join", "invite", "knock"))
        add("target", "for membership " + m, of_member(B, {"membership": m}), member(B), "whatever the membership", True, plain + [member(B)] + rules)
        add("join-rules", "for membership " + m, of_member(B, {"membership": m}), RULES, "for join, invite and knock only", bool(rules), plain + [member(B)] + rules)
    add("target", "for a message with a state key", event("m.room.message", A, B, {"membership": "leave"}), member(B), "only events of type m.room.member have a target", False, plain)
    add("target", "m.room.member without state key", of_member(None, {"membership": "leave"}), member(B), "no target", False, plain)
    join = of_member(A, {"membership": "join"})
    add("join-rules", "for a join of oneself", join, RULES, "for join, invite and knock", True, plain + [RULES])
    add("join-rules", "for a message that looks like a join", event("m.room.message", A, None, {"membership": "join"}), RULES, "only events of type m.room.member", False, plain)
    add("join-rules", "without membership", of_member(A, {}), RULES, "no membership", False, plain)
    add("join-rules", "Membership in capitals", of_member(A, {"Membership": "join"}), RULES, "names are compared by case", False, plain)
    add("join-rules", "membership a list", of_member(A, {"membership": ["join"]}), RULES, "no string", False, plain)

    third = lambda inner: {"membership": "invite", "third_party_invite": inner}
    tok, invited = {"signed": {"token": "tok"}}, plain + [member(B), RULES]
    add("third-party-invite", "with a token", of_member(B, third(tok)), token("tok"), "the invite of that token", True, invited + [token("tok")])
    add("third-party-invite", "with an empty token", of_member(B, third({"signed": {"token": ""}})), token(""), "a state key may be empty", True, invited + [token("")])
    for name, inner in [("without token", {"signed": {}}), ("without signed", {}), ("token a number", {"signed": {"token": 1}}), ("no object", "tok"), ("token beside signed", {"token": "tok", "signed": {}})]:
        add("third-party-invite", name, of_member(B, third(inner)), token("tok"), "no token", False, invited)
    add("third-party-invite", "in a join", of_member(A, {**third(tok), "membership": "join"}), token("tok"), "only invites", False, plain + [RULES])
    add("third-party-invite", "in an invite without", of_member(B, {"membership": "invite"}), token("tok"), "no third_party_invite", False, invited)

    by = lambda m, user: {"membership": m, "join_authorised_via_users_server": user}
    add("authorising-user", "restricted join", of_member(A, by("join", C)), member(C), "the user whose server authorises the join, from version 8", True, plain + [RULES, member(C)], versions(8))
    add("authorising-user", "restricted join", of_member(A, by("join", C)), member(C), "versions before 8 know no restricted joins", False, plain + [RULES], versions(3, 7))
    add("authorising-user", "in a leave", of_member(A, by("leave", C)), member(C), "only joins", False, plain)
    add("authorising-user", "in an invite", of_member(B, by("invite", C)), member(C), "only joins", False, invited)
    add("authorising-user", "no string", of_member(A, by("join", 1)), member(C), "no user ID", False, plain + [RULES])
    add("no-duplicates", "sender and target are one", join, member(A), "one entry for one user", True, plain + [RULES])
    add("no-duplicates", "authorised by oneself", of_member(A, by("join", A)), member(A), "one entry for one user", True, plain + [RULES])
    add("no-duplicates", "nothing beyond", event("m.room.topic", A, "", {"topic": "x"}), ["m.room.topic", ""], "not the event that it replaces", False, plain)
    return "auth_selection", "Auth events selection: which tuples of the room's state an event lists. expect says whether input.tuple is among them; result has all.", None, grouped(rows)


FILES = [events, redaction, auth_selection]
