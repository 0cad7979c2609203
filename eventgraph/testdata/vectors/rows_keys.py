"""Rows of keys.json: certificates and key documents."""

import json
import re

from plain import Key, Raw, b64, dump, encode_point, peer_id, sha256, sign

DAY = 24 * 60 * 60 * 1000
NOW = 1700000000000
BOX = b64(bytes(32))


class Node:
    """An identity with one device, as plexus makes them."""

    def __init__(self, name):
        self.identity = Key(sha256(name + " identity"))
        self.device = Key(sha256(name + " device"), self.identity.server)


def certified(key, from_ts, revoked_ts=None):
    d = {"peer_id": key.peer, "key_id": "ed25519:" + key.peer, "key": b64(key.public), "box_key": BOX, "from_ts": from_ts}
    return d if revoked_ts is None else {**d, "revoked_ts": revoked_ts}


def certificate(identity, seq, devices, *signers, **changes):
    c = {"server_name": identity.server, "seq": seq, "devices": devices, **changes}
    return sign({k: v for k, v in c.items() if v is not None}, *(signers or (identity,)))


def document(server, keys, until, cert=None, old=None, signers=None, **changes):
    d = {"server_name": server, "valid_until_ts": until, "verify_keys": {k.id: {"key": b64(k.public)} for k in keys}, "plexus.certificate": cert}
    if old is not None:
        d["old_verify_keys"] = {id: {"key": b64(k.public), "expired_ts": ts} for id, (k, ts) in old.items()}
    d.update(changes)
    return sign({k: v for k, v in d.items() if v is not None}, *[k.as_(server) for k in (keys if signers is None else signers)])


def keys():
    vectors = []
    n, stranger = Node("keys"), Node("keys stranger")
    identity, device = n.identity, n.device
    gone, later, alone = (Key(sha256("keys " + s)) for s in ("gone", "later", "alone"))

    def add(rule, name, reason, expect, spec, **given):
        given = {k: v if isinstance(v, (str, int)) else dump(v) for k, v in given.items()}
        for k, v in list(given.items()):
            if isinstance(v, str) and (run := re.search("x{1000,}", v)):
                given[k], given["fill"] = v.replace(run.group(), "{fill}"), len(run.group())
        vectors.append({"name": name, "rule": rule, "input": given, "expect": expect, "reason": reason, "spec": spec})
        return vectors[-1]

    # --- certificates ---
    spec = "eventgraph, Certificate"
    cert = lambda rule, name, reason, expect, c: add(rule, "certificate: " + name, reason, expect, spec, certificate=c)
    d = certified(device, 1000)
    make = lambda *signers, **changes: certificate(identity, *[changes.pop(k, v) for k, v in (("seq", 1), ("devices", [d]))], *signers, **changes)
    rule = "certificate-signature"
    cert(rule, "whole", "signed by the identity key", "accept", make())
    cert(rule, "under another key ID", "the identity key counts whatever its ID", "accept", make(identity.as_(identity.server, "ed25519:1")))
    cert(rule, "signed by another too", "one signature is needed", "accept", make(identity, device))
    cert(rule, "with a zone", "the key is the name's first label", "accept", certificate(identity.as_(identity.server + ".example.org"), 1, [d]))
    cert(rule, "unsigned", "no signature", "refuse", {k: v for k, v in make().items() if k != "signatures"})
    cert(rule, "signed by the device", "only the identity key certifies", "refuse", make(device))
    cert(rule, "signed by a stranger", "only the identity key certifies", "refuse", make(stranger.identity))
    cert(rule, "signed in another's name", "not the key of that name", "refuse", make(stranger.identity.as_(identity.server)))
    cert(rule, "changed", "the signature covers it", "refuse", {**make(), "seq": 2})
    cert(rule, "another algorithm's name", "no ed25519 signature", "refuse", dump(make()).replace('{"ed25519:', '{"rsa:'))
    rule = "certificate-json"
    cert(rule, "spaces", "any JSON of the same meaning", "accept", json.dumps(make(), indent=1))
    cert(rule, "unsigned beside", "unsigned is dropped", "accept", {**make(), "unsigned": Raw("0.5")})
    cert(rule, "unknown members", "signed and kept", "accept", make(x={"y": 1}))
    cert(rule, "nothing", "no JSON", "refuse", "")
    cert(rule, "a list", "no object", "refuse", "[]")
    cert(rule, "a repeated member", "no JSON of one meaning", "refuse", dump(make()).replace('"seq":1', '"seq":1,"seq":1'))
    cert(rule, "a fraction", "not canonical JSON", "refuse", dump(make()).replace('"seq":1', '"seq":1.0'))
    rule = "certificate-fields"
    cert(rule, "seq 0", "from 0 on", "accept", make(seq=0))
    cert(rule, "no devices", "a server may be its identity key alone", "accept", make(devices=[]))
    for name, changes in [("no server name", {"server_name": None}), ("a domain as name", {"server_name": "example.org"}), ("no seq", {"seq": None}), ("seq negative", {"seq": -1}), ("seq a string", {"seq": "1"}),
                          ("devices absent", {"devices": None}), ("devices an object", {"devices": {}}), ("a device that is a string", {"devices": ["x"]}), ("a device twice", {"devices": [d, d]})]:
        cert(rule, name, "required, of one type", "refuse", make(**changes))
    rule = "device-fields"
    cert(rule, "device revoked", "revoked_ts is optional", "accept", make(devices=[{**d, "revoked_ts": 2000}]))
    small = peer_id(encode_point((0, 1, 1, 0)))
    for name, changes in [("peer ID no key", {"peer_id": "x"}), ("peer ID of small order", {"peer_id": small, "key_id": "ed25519:" + small, "key": b64(encode_point((0, 1, 1, 0)))}), ("key ID of another", {"key_id": identity.id}),
                          ("key of another", {"key": b64(identity.public)}), ("key padded", {"key": b64(device.public) + "="}), ("box key short", {"box_key": "AAAA"}), ("box key padded", {"box_key": BOX + "="}),
                          ("box key with unused bits", {"box_key": BOX[:42] + "B"}), ("from_ts a string", {"from_ts": "1000"}), ("from_ts negative", {"from_ts": -1}), ("revoked at 0", {"revoked_ts": 0})]:
        cert(rule, "device: " + name, "one spelling of one key, and its times", "refuse", make(devices=[{**d, **changes}]))
    many = lambda k: [certified(Key(sha256("keys many %d" % i)), 1) for i in range(k)]
    hundred = many(101)
    cert("certificate-size", "100 devices", "at most 100", "accept", make(devices=hundred[:100]))
    cert("certificate-size", "101 devices", "at most 100", "refuse", make(devices=hundred))
    cert("certificate-size", "49153 bytes", "at most 48 KiB", "refuse", make(x="x" * (49153 - len(dump(make(x=""))))))
    cert("certificate-size", "49152 bytes", "at most 48 KiB", "accept", make(x="x" * (49152 - len(dump(make(x=""))))))

    two = certificate(identity, 3, [certified(device, 1000), certified(gone, 500, 900)])
    for key, ts, ok in [(device, 999, False), (device, 1000, True), (device, 2**50, True), (gone, 499, False), (gone, 500, True), (gone, 899, True), (gone, 900, False), (identity, 1000, False)]:
        who = "device" if key is device else "revoked device" if key is gone else "identity key"
        add("device-times", f"{who} at {ts}", "from from_ts to before revoked_ts", "accept" if ok else "refuse", spec, certificate=two, peer_id=key.peer, ts=ts)
    other = certificate(identity, 3, [certified(gone, 500), certified(device, 1000)])
    for key, ok in [(device, True), (gone, False)]:
        add("two-under-one-seq", "in both alike" if ok else "in both, revoked in one", "of two certificates under one seq counts what both say", "accept" if ok else "refuse", spec, certificate=two, other_certificate=other, peer_id=key.peer, ts=600 if key is gone else 1000)

    # --- key documents ---
    spec = "SS API, Publishing Keys; eventgraph, KeyDocument"
    doc = lambda rule, name, reason, expect, d: add(rule, "document: " + name, reason, expect, spec, document=d)
    c = certificate(identity, 1, [d])
    whole = lambda **more: document(identity.server, [device], 5, **{"cert": c, **more})
    named = {device.id: {"key": b64(device.public)}}
    rule = "document-signature"
    doc(rule, "whole", "signed by its verify key", "accept", whole())
    doc(rule, "signed by more", "signatures of others are kept and not looked at", "accept", whole(signers=[device, stranger.device]))
    doc(rule, "unsigned", "no signature", "refuse", whole(signers=[]))
    doc(rule, "signed by another key", "each verify key signs", "refuse", whole(signers=[identity]))
    doc(rule, "one verify key has not signed", "each verify key signs", "refuse", document(identity.server, [device, identity], 5, c, signers=[device]))
    doc(rule, "changed", "the signature covers it", "refuse", {**whole(), "valid_until_ts": 6})
    rule = "document-certified"
    doc(rule, "identity key alone", "a key that is the name needs no certificate", "accept", document(alone.server, [alone], 5))
    doc(rule, "no certificate", "the device is not certified", "refuse", whole(cert=None))
    doc(rule, "another's certificate", "of another server name", "refuse", whole(cert=certificate(stranger.identity, 1, [d])))
    doc(rule, "broken certificate", "its signature does not fit", "refuse", whole(cert={**c, "seq": 2}))
    doc(rule, "certificate null", "no certificate", "refuse", whole(cert=Raw("null")))
    doc(rule, "key not certified", "neither the identity key nor certified", "refuse", document(identity.server, [stranger.device], 5, c))
    rule = "document-keys"
    doc(rule, "unknown algorithm beside", "left out", "accept", whole(verify_keys={**named, "rsa:1": {"key": "x"}}))
    doc(rule, "key padded", "base64 is taken with and without", "accept", whole(verify_keys={device.id: {"key": b64(device.public) + "="}}))
    for name, value in [("none", {}), ("only unknown algorithms", {"rsa:1": {"key": "x"}}), ("a list", []), ("absent", None), ("key no point", {device.id: {"key": b64(b"\2" + bytes(31))}}),
                        ("key of small order", {device.id: {"key": b64(encode_point((0, 1, 1, 0)))}}), ("key a number", {device.id: {"key": 1}}), ("no key", {device.id: {}}), ("key ID of other characters", {**named, "ed25519:a-b": named[device.id]}),
                        ("17 keys", {"ed25519:%d" % i: named[device.id] for i in range(17)})]:
        doc(rule, "verify_keys: " + name, "1 to 16 ed25519 keys, each a point of large order", "refuse", whole(verify_keys=value))
    old = lambda **keys: {"ed25519:" + k: v for k, v in keys.items()}
    rule = "document-old-keys"
    doc(rule, "an old key", "with the time of its end", "accept", whole(old={"ed25519:old": (identity, 5)}))
    doc(rule, "none", "may be absent", "accept", whole())
    doc(rule, "unknown algorithm", "left out", "accept", whole(old_verify_keys={"rsa:1": {}}))
    doc(rule, "200 of them", "at most 200", "accept", whole(old={"ed25519:%d" % i: (device, 5) for i in range(200)}))
    doc(rule, "201 of them", "at most 200", "refuse", whole(old={"ed25519:%d" % i: (device, 5) for i in range(201)}))
    doc(rule, "both current and old", "one or the other", "refuse", whole(old={device.id: (device, 5)}))
    doc(rule, "without its end", "expired_ts is required", "refuse", whole(old_verify_keys={"ed25519:1": named[device.id]}))
    doc(rule, "a list", "an object", "refuse", whole(old_verify_keys=[]))
    rule = "document-fields"
    doc(rule, "unknown members", "signed and kept", "accept", whole(**{"org.example": {"x": [1]}}))
    doc(rule, "unsigned beside", "unsigned is dropped", "accept", {**whole(), "unsigned": Raw("0.5")})
    for name, changes in [("no server name", {"server_name": None}), ("a domain as name", {"server_name": "example.org"}), ("no valid_until_ts", {"valid_until_ts": None}), ("valid_until_ts negative", {"valid_until_ts": -5}), ("valid_until_ts a string", {"valid_until_ts": "5"})]:
        doc(rule, name, "required, of one type", "refuse", whole(**changes))
    doc(rule, "nothing", "no JSON", "refuse", "")
    doc(rule, "a repeated member", "no JSON of one meaning", "refuse", dump(whole()).replace('"valid_until_ts":5', '"valid_until_ts":5,"valid_until_ts":5'))
    doc("document-size", "98304 bytes", "at most 96 KiB", "accept", whole(x="x" * (98304 - len(dump(whole(x=""))))))
    doc("document-size", "98305 bytes", "at most 96 KiB", "refuse", whole(x="x" * (98305 - len(dump(whole(x=""))))))

    # --- which key counts when ---
    cert = certificate(identity, 1, [certified(device, NOW - 100 * DAY), certified(gone, NOW - 300 * DAY, NOW - 100 * DAY), certified(later, NOW + DAY)])
    full = document(identity.server, [device, identity], NOW + 7 * DAY, cert, {gone.id: (gone, NOW - 90 * DAY), stranger.device.id: (stranger.device, NOW), "ed25519:before": (identity, NOW - 200 * DAY)})
    away = document(identity.server, [device], NOW + 7 * DAY, cert)
    plain = document(alone.server, [alone.as_(alone.server, "ed25519:auto")], NOW + 7 * DAY)

    def key(rule, name, reason, expect, d, id, ts, strict, k=None):
        v = add(rule, name, reason, expect, "SS API, Publishing Keys; room version 5, Signing key validity period; eventgraph, Certificate", document=d, key_id=id, ts=ts, strict=int(strict))
        v["input"]["strict"] = strict
        if expect == "accept":
            v["result"] = {"key": b64(k.public)}

    rule = "key-valid-until"
    key(rule, "device now", "certified, document valid", "accept", full, device.id, NOW, True, device)
    key(rule, "device at the document's end", "valid_until_ts is the last moment", "accept", full, device.id, NOW + 7 * DAY, True, device)
    key(rule, "device after it", "a newer document must be fetched", "wait", full, device.id, NOW + 7 * DAY + 1, True)
    key(rule, "device after it, versions 3 and 4", "they do not look at it", "accept", full, device.id, NOW + 7 * DAY + 1, False, device)
    key(rule, "identity after it", "a newer document must be fetched", "wait", full, identity.id, NOW + 8 * DAY, True)
    key(rule, "identity not listed, after it", "a newer document must be fetched", "wait", away, identity.id, NOW + 8 * DAY, True)
    rule = "key-certified"
    key(rule, "device at its first moment", "from from_ts on", "accept", full, device.id, NOW - 100 * DAY, True, device)
    key(rule, "device before it", "not yet certified", "refuse", full, device.id, NOW - 100 * DAY - 1, True)
    key(rule, "device before it, versions 3 and 4", "not yet certified", "refuse", full, device.id, NOW - 100 * DAY - 1, False)
    key(rule, "future device", "not yet certified", "refuse", full, later.id, NOW, True)
    key(rule, "future device in its time", "certified, though verify_keys does not list it", "accept", full, later.id, NOW + DAY, True, later)
    key(rule, "replaced device, not listed", "certified then", "accept", away, gone.id, NOW - 101 * DAY, True, gone)
    key(rule, "replaced device, not listed, revoked", "revoked by then", "refuse", away, gone.id, NOW - 100 * DAY, False)
    rule = "key-identity"
    key(rule, "identity", "counts for its name", "accept", full, identity.id, NOW, True, identity)
    key(rule, "identity long ago", "at any time", "accept", full, identity.id, 0, True, identity)
    key(rule, "identity not listed", "the name itself shows it", "accept", away, identity.id, NOW, True, identity)
    key(rule, "alone", "identity and device key are one", "accept", plain, "ed25519:auto", NOW, True, alone)
    key(rule, "alone, by its own ID", "the ID that the key makes", "accept", plain, alone.id, NOW, True, alone)
    key(rule, "another's identity", "not of this name", "wait", plain, identity.id, NOW, True)
    rule = "key-expired"
    key(rule, "old key in its time", "up to expired_ts", "accept", full, gone.id, NOW - 101 * DAY, True, gone)
    key(rule, "old key, revoked before it expired", "certificates count too", "refuse", full, gone.id, NOW - 95 * DAY, True)
    key(rule, "identity under an old ID, last moment", "up to expired_ts", "accept", full, "ed25519:before", NOW - 200 * DAY, True, identity)
    key(rule, "identity under an old ID, after it", "expired", "refuse", full, "ed25519:before", NOW - 200 * DAY + 1, True)
    rule = "key-known"
    key(rule, "listed", "the document shows it", "accept", full, device.id, NOW, False, device)
    key(rule, "old and never certified", "it never counted, and the document is not believed", "wait", full, stranger.device.id, NOW - DAY, True)
    key(rule, "unknown", "a newer document may show it", "wait", full, "ed25519:1", NOW, True)
    key(rule, "another's device", "a newer document may show it", "wait", plain, device.id, NOW, True)

    for name, d, k, ts, ok in [("device", full, device, NOW, True), ("device, document too old", full, device, NOW + 8 * DAY, False), ("identity", full, identity, NOW, True), ("identity not listed", away, identity, NOW, True),
                               ("revoked", full, gone, NOW, False), ("future", full, later, NOW, False), ("old but never certified", full, stranger.device, NOW, False), ("alone", plain, alone, NOW, True), ("another", plain, device, NOW, False)]:
        add("peer-speaks", name, "a peer speaks for the name if it is the identity key or certified at that time, and the document is valid", "accept" if ok else "refuse", "eventgraph, Certificate", document=d, peer_id=k.peer, ts=ts)
    return "keys", "Certificates and key documents: which are well-formed, and which key counts when.", [k.described() for k in (identity, device, gone, later, alone, stranger.identity, stranger.device)], vectors


FILES = [keys]
