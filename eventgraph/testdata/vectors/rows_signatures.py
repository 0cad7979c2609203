"""Rows of signatures.json."""

import base64
import json

from plain import L, VERSIONS, Key, b64, b64url, dump, redact, seal, sha256, sign, without
from rows_event import base, edited, grouped, versions
from rows_keys import DAY, Node, certificate, certified, document

TS = 1700000000000
A, B = Key(sha256("signatures a")), Key(sha256("signatures b"))  # identity and device key are one
STRANGER = Key(sha256("signatures stranger"))


def doc(key, until=TS + DAY):
    return document(key.server, [key], until)


DOC_A, DOC_B = doc(A), doc(B)


def signatures():
    rows = []
    checks = "SS API, Validating hashes and signatures on received events"
    alice, bob = "@alice:" + A.server, "@bob:" + B.server

    def event(v, **changes):
        return edited({**base(v), "sender": alice, "origin_server_ts": TS}, changes)

    def add(rule, name, reason, expect, make, signers=None, documents=(DOC_A, DOC_B), among=VERSIONS, spec=checks):
        for v in among:
            given = {"pdu": dump(make(v)), "documents": [dump(d) for d in documents]}
            vector = {"name": name, "rule": rule, "input": given, "expect": expect, "reason": reason, "spec": spec}
            if signers is not None:
                vector["result"] = {"signers": signers}
            rows.append((v, vector))

    def by(*keys, **changes):
        return lambda v: seal(v, event(v, **changes), *keys)

    def resigned(change):
        """The signature of A under its key ID, changed."""
        def make(v):
            e = by(A)(v)
            message = dump(without(redact(v, e), "signatures", "unsigned")).encode()
            s = change(message)
            return {**e, "signatures": {A.server: {A.id: s if isinstance(s, str) else b64(s)}}}
        return make

    def with_signature(v, e, server, id, signature):
        signatures = {s: dict(b) for s, b in e["signatures"].items()}
        signatures.setdefault(server, {})[id] = signature
        return {**e, "signatures": signatures}

    # Who must sign.
    rule = "sender-server"
    add(rule, "signed", "by the server of the sender", "accept", by(A), [A.server])
    add(rule, "signed by another too", "more signatures do no harm, whatever they are", "accept", lambda v: with_signature(v, by(A, B)(v), "c.example", "ed25519:1", "x"), [A.server])
    add(rule, "signed by nobody", "no signature of the sender's server", "refuse", by(), [A.server])
    add(rule, "signed by another alone", "no signature of the sender's server", "refuse", by(B), [A.server])
    add(rule, "another's key in its name", "the key under that ID is another", "refuse", by(STRANGER.as_(A.server, A.id)), [A.server])
    add(rule, "another event's signature", "does not fit", "refuse", lambda v: {**by(A)(v), "signatures": by(A, depth=8)(v)["signatures"]}, [A.server])
    add(rule, "what redaction keeps was changed", "the signature covers it", "refuse", lambda v: {**by(A)(v), "depth": 8}, [A.server])
    rule = "signed-form"
    add(rule, "content changed that redaction drops", "the redacted form is signed; the hash shows the change", "accept", lambda v: {**by(A)(v), "content": {"body": "y"}}, [A.server])
    add(rule, "redacted copy", "the redacted form is signed", "accept", lambda v: redact(v, by(A)(v)), [A.server])
    add(rule, "unsigned added", "unsigned is not signed", "accept", lambda v: {**by(A)(v), "unsigned": {"age": 1}}, [A.server], spec="appendices, Signing Details")
    add(rule, "the whole was signed, not its redacted form", "not what is signed", "refuse", lambda v: {**by(A)(v), "signatures": sign(without(by(A)(v), "signatures"), A)["signatures"]}, [A.server])

    invite = {"membership": "invite", "third_party_invite": {"signed": {"mxid": bob, "token": "t", "signatures": {}}}}
    rule = "third-party-invite"
    add(rule, "invite, not signed by the sender's server", "whichever server learns of it sends it", "accept", by(type="m.room.member", state_key=bob, content=invite), [])
    add(rule, "invite without, not signed", "an invite like any other", "refuse", by(type="m.room.member", state_key=bob, content={"membership": "invite"}), [A.server])
    add(rule, "join that has one, not signed", "not an invite", "refuse", by(type="m.room.member", state_key=alice, content={**invite, "membership": "join"}), [A.server])
    add(rule, "message that has one, not signed", "not a member event", "refuse", by(content=invite), [A.server])

    restricted = "room version 8, Authorisation rules, 4.2"
    rule = "authorising-server"
    late, early, join = versions(8), versions(3, 7), {"type": "m.room.member", "state_key": alice}
    authorised = {"membership": "join", "join_authorised_via_users_server": bob}
    add(rule, "signed by both", "the sender's server and that of the authorising user", "accept", by(A, B, **join, content=authorised), [A.server, B.server], among=late, spec=restricted)
    add(rule, "signed by the sender's server alone", "the other is required", "refuse", by(A, **join, content=authorised), [A.server, B.server], among=late, spec=restricted)
    add(rule, "signed by the sender's server alone", "versions before 8 do not know the key", "accept", by(A, **join, content=authorised), [A.server], among=early, spec=restricted)
    add(rule, "signed by the other alone", "the sender's server is required", "refuse", by(B, **join, content=authorised), [A.server, B.server], among=late, spec=restricted)
    add(rule, "the other's signature wrong", "both must be right", "refuse", by(A, STRANGER.as_(B.server, B.id), **join, content=authorised), [A.server, B.server], among=late, spec=restricted)
    add(rule, "a user of the sender's server", "one server, one signature", "accept", by(A, **join, content={**authorised, "join_authorised_via_users_server": "@carol:" + A.server}), [A.server], spec=restricted)
    add(rule, "in a leave", "whatever the membership", "refuse", by(A, **join, content={**authorised, "membership": "leave"}), [A.server, B.server], among=late, spec=restricted)
    add(rule, "in a message", "only of member events", "accept", by(A, content=authorised), [A.server], spec=restricted)
    for value in ["bob", 1, None, "@bob"]:
        content = {**authorised, "join_authorised_via_users_server": value}
        add(rule, "authorised by " + json.dumps(value), "nobody can sign for what is no user ID", "refuse", by(A, **join, content=content), among=late, spec=restricted)
        add(rule, "authorised by " + json.dumps(value), "versions before 8 do not know the key", "accept", by(A, **join, content=content), [A.server], among=early, spec=restricted)
    add(rule, "the other's key is not known", "its document must be fetched", "wait", by(A, B, **join, content=authorised), [A.server, B.server], [DOC_A], late, restricted)

    # Which keys count.
    validity, rule = "room version 5, Signing key validity period", "key-validity"
    add(rule, "at the document's last moment", "valid_until_ts is at least origin_server_ts", "accept", by(A), documents=[doc(A, TS)], spec=validity)
    add(rule, "after it", "the document is too old: a newer one must be fetched", "wait", by(A), documents=[doc(A, TS - 1)], among=versions(5), spec=validity)
    add(rule, "after it", "versions 3 and 4 do not look at valid_until_ts", "accept", by(A), documents=[doc(A, TS - 1)], among=versions(3, 4), spec=validity)
    rule = "known-key"
    add(rule, "document at hand", "the key is known", "accept", by(A))
    add(rule, "no document", "it must be fetched", "wait", by(A), documents=[DOC_B])
    add(rule, "a key that the document does not show", "a newer document may", "wait", by(STRANGER.as_(A.server)))
    add(rule, "an unknown one beside", "signatures of unknown keys are skipped", "accept", by(A, STRANGER.as_(A.server)))
    add(rule, "a wrong one of an unknown key beside", "signatures of unknown keys are skipped", "accept", lambda v: with_signature(v, by(A)(v), A.server, "ed25519:unknown", b64(bytes(64))))

    n = Node("signatures node")
    device, gone = n.device, Key(sha256("signatures gone"), n.identity.server)
    cert = certificate(n.identity, 1, [certified(device, TS - DAY), certified(gone, TS - 9 * DAY, TS)])
    sender = "@alice:" + n.identity.server
    mine = lambda *keys, **more: by(*keys, sender=sender, **more)
    full = document(n.identity.server, [device], TS + DAY, cert, {"ed25519:old": (n.identity, TS)})
    rule = "expired-key"
    add(rule, "at its last moment", "expired_ts is at least origin_server_ts", "accept", mine(n.identity.as_(n.identity.server, "ed25519:old")), documents=[full])
    add(rule, "after it", "known to have expired: no signature counts", "refuse", mine(n.identity.as_(n.identity.server, "ed25519:old"), origin_server_ts=TS + 1), documents=[full])
    add(rule, "after it, beside one that counts", "signatures of expired keys are skipped", "accept", mine(device, n.identity.as_(n.identity.server, "ed25519:old"), origin_server_ts=TS + 1), documents=[full])
    add(rule, "after it and wrong, beside one that counts", "signatures of expired keys are skipped", "accept",
        lambda v: with_signature(v, mine(device, origin_server_ts=TS + 1)(v), n.identity.server, "ed25519:old", b64(bytes(64))), documents=[full])
    rule, own = "certified-key", "eventgraph, Certificate"
    add(rule, "device", "a certified device signs", "accept", mine(device), documents=[full], spec=own)
    add(rule, "device, before it was certified", "from_ts is later", "refuse", mine(device, origin_server_ts=TS - DAY - 1), documents=[full], spec=own)
    add(rule, "revoked device, before", "before revoked_ts", "accept", mine(gone, origin_server_ts=TS - 1), documents=[full], spec=own)
    add(rule, "revoked device", "from revoked_ts on it does not count", "refuse", mine(gone), documents=[full], spec=own)
    add(rule, "identity key", "counts for its name without a certificate", "accept", mine(n.identity), documents=[full], spec=own)

    # How many, and which bytes.
    rule = "all-that-count"
    add(rule, "two, both right", "of one server", "accept", mine(device, n.identity), documents=[full])
    add(rule, "two, one wrong", "all signatures of known keys must be right", "refuse", lambda v: with_signature(v, mine(device)(v), n.identity.server, n.identity.id, b64(bytes(64))), documents=[full])
    add(rule, "two, one not base64", "all signatures of known keys must be right", "refuse", lambda v: with_signature(v, mine(device)(v), n.identity.server, n.identity.id, "!"), documents=[full])
    more = [STRANGER.as_(A.server, "ed25519:%d" % i) for i in range(8)]
    bound = "plexus: bounds the verifications that one event can cost"
    add("signature-count", "8 of one server", "at most 8", "accept", by(A, *more[:7]), spec=bound)
    add("signature-count", "9 of one server", "at most 8", "refuse", by(A, *more), spec=bound)
    rule, place = "algorithm", "appendices, Checking for a Signature, step 2"
    add(rule, "another beside", "unknown algorithms are left out", "accept", lambda v: with_signature(v, by(A)(v), A.server, "rsa:1", "x"), spec=place)
    add(rule, "another alone", "no signing key identifier is left", "refuse", lambda v: with_signature(v, by()(v), A.server, "rsa:1", b64(bytes(64))), spec=place)
    rule, place = "signature-base64", "appendices, Checking for a Signature, step 4; Unpadded Base64"
    add(rule, "unpadded", "unpadded base64", "accept", by(A), spec=place)
    add(rule, "padded", "taken with padding too", "accept", resigned(lambda m: b64(A.sign(m)) + "=="), spec=place)
    add(rule, "63 bytes", "a signature has 64", "refuse", resigned(lambda m: b64(A.sign(m)[:63])), spec=place)
    add(rule, "65 bytes", "a signature has 64", "refuse", resigned(lambda m: b64(A.sign(m) + b"\0")), spec=place)
    add(rule, "empty", "a signature has 64 bytes", "refuse", resigned(lambda m: ""), spec=place)
    def urlsafe(m):
        s = b64url(A.sign(m))
        return s if set(s) & set("-_") else "-" + s[1:]
    add(rule, "URL-safe", "another alphabet", "refuse", resigned(urlsafe), spec=place)
    rule, place = "ed25519-equation", "RFC 8032, section 5.1.7; crypto/ed25519"
    add(rule, "as made", "R + [h]A = [S]B", "accept", by(A), spec=place)
    add(rule, "S + L", "S must be below the group's order, or one signature had several forms", "refuse", resigned(lambda m: plus_order(A.sign(m))), spec=place)
    add(rule, "R with a point of small order", "holds only multiplied by 8, as batch verification checks it; servers that verify one by one refuse it", "refuse", resigned(A.sign_with_torsion), spec=place)
    add(rule, "of zeros", "does not fit", "refuse", resigned(lambda m: bytes(64)), spec=place)
    add(rule, "R changed", "does not fit", "refuse", resigned(lambda m: flip(A.sign(m), 0)), spec=place)
    add(rule, "S changed", "does not fit", "refuse", resigned(lambda m: flip(A.sign(m), 32)), spec=place)

    return "signatures", "Signatures of events and of other JSON.", [k.described() for k in (A, B, n.identity, device, gone, STRANGER)], grouped(rows) + signed_json()


def plus_order(s):
    return s[:32] + (int.from_bytes(s[32:], "little") + L).to_bytes(32, "little")


def flip(s, i):
    return s[:i] + bytes([s[i] ^ 1]) + s[i + 1:]


def signed_json():
    """Of JSON that is no event: input.object is checked for the signature of input.server under input.key_id."""
    vectors = []
    spec_key = Key(base64.b64decode("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1="), "domain", "ed25519:1")
    examples, place = "appendices, Cryptographic Test Vectors, JSON Signing", "appendices, Signing JSON; Checking for a Signature"

    def add(name, reason, ok, object, key=spec_key, server=None, id=None, public=None, spec=place):
        text = object if isinstance(object, str) else dump(object)
        given = {"object": text, "server": server or key.server, "key_id": id or key.id, "public_key": b64(public if public is not None else key.public)}
        vectors.append({"name": name, "rule": "signed-json", "input": given, "expect": "accept" if ok else "refuse", "reason": reason, "spec": spec})

    first = '{"signatures":{"domain":{"ed25519:1":"K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"}}}'
    second = '{"one":1,"signatures":{"domain":{"ed25519:1":"KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"}},"two":"Two"}'
    assert dump(sign({}, spec_key)) == first and dump(sign({"one": 1, "two": "Two"}, spec_key)) == second
    add("the specification's, empty", "as the appendices print it", True, first, spec=examples)
    add("the specification's, with data", "as the appendices print it", True, second, spec=examples)
    object = {**sign({"x": 1}, A, B), "unsigned": {"y": 2}}
    add("of two servers", "each counts by itself", True, object, A)
    add("of two servers, the other", "each counts by itself", True, object, B)
    add("unsigned changed", "unsigned is not signed", True, {**object, "unsigned": {"y": 3}}, A)
    add("spaces, and another order", "the canonical form is signed", True, json.dumps(dict(reversed(object.items())), indent=1), A)
    add("a member changed", "it is signed", False, {**object, "x": 2}, A)
    add("a member more", "it is signed", False, {**object, "w": 2}, A)
    add("of a server that has not signed", "no entry", False, object, A, server="c.example")
    add("under another key ID", "no entry", False, object, A, id=B.id)
    add("by another key", "does not fit", False, object, A, public=B.public)
    add("a key of 31 bytes", "no key", False, object, A, public=A.public[:31])
    add("not JSON", "no JSON", False, "{", A)
    add("no object", "no object", False, "[]", A)
    add("a repeated member", "no JSON of one meaning", False, dump(object).replace('"x":1', '"x":1,"x":1'), A)
    add("a fraction", "not canonical JSON", False, dump(object).replace('"x":1', '"x":1.0'), A)
    return vectors


FILES = [signatures]
