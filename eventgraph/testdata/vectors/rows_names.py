"""Rows of identifiers.json."""

import hashlib

from plain import MULTIHASH, P, Key, b64, b64url, base36, base58, decode_point, encode_point, peer_id, server_name, small_order, times, torsion

NUL = "\0"


def identifiers():
    vectors = []

    def row(kind, rule, name, value, ok, reason, spec):
        given = {"kind": kind, **({"text": value} if isinstance(value, str) else {"hex": value.hex()})}
        vectors.append({"name": kind + ": " + name, "rule": rule, "input": given, "expect": "accept" if ok else "refuse", "reason": reason, "spec": spec})

    key = Key(bytes([1]) * 32)
    name, raw = server_name(key.public), bytes([1, 0x72]) + MULTIHASH + key.public

    # Server names of Matrix, wide: they stand in identifiers and must not break events.
    place = "appendices, Server Name"
    for value, reason in [("matrix.org", "a DNS name"), ("matrix.org:8888", "with a port"), ("1.2.3.4", "an IPv4 literal"), ("1.2.3.4:12345", "with a port"),
                          ("a-b.C0", "letters, digits, hyphens and points"), ("x:1", "a port of one digit"), (name, "a key"), (name + ".example.org", "a key with a zone")]:
        row("matrix_server_name", "server-host", value[:16] + value[62:], value, True, reason, place)
    for value, reason in [("", "empty"), (":80", "no host"), ("a_b", "underscore"), ("a b", "space"), ("é", "not ASCII"), ("a/b", "slash"), ("a\0b", "NUL"), ("a@b", "at sign")]:
        row("matrix_server_name", "server-host", repr(value), value, False, reason, place)
    row("matrix_server_name", "server-port", "five digits", "a:12345", True, "one to five digits", place)
    for value, reason in [("a:", "no digit"), ("a:123456", "six digits"), ("a:x", "no number"), ("a:1:2", "two ports"), ("a:-1", "a sign"), ("[::1]:", "no digit"), ("[::1]:x", "no number")]:
        row("matrix_server_name", "server-port", value, value, False, reason, place)
    for value in ["[::1]", "[1234:5678::abcd]", "[1234:5678::abcd]:5678", "[::ffff:1.2.3.4]", "[ABCD::1]"]:
        row("matrix_server_name", "server-ipv6", value, value, True, "an IPv6 literal", place)
    for value, reason in [("[::1", "no closing bracket"), ("[::1]x", "more behind it"), ("[x]", "no address"), ("[1.2.3.4]", "IPv4 in brackets"), ("[fe80::1%eth0]", "a zone"), ("[]", "empty"),
                          ("::1", "without brackets"), ("[1::2::3]", "two gaps")]:
        row("matrix_server_name", "server-ipv6", value, value, False, reason, place)

    # Identifiers of the form &localpart:domain.
    for kind, sigil, short, place in [("user_id", "@", "user", "appendices, User Identifiers; Historical User IDs"), ("room_id", "!", "room", "appendices, Room IDs"),
                                      ("room_alias", "#", "alias", "appendices, Room Aliases")]:
        row(kind, short + "-sigil", "with sigil", sigil + "a:example.org", True, "begins with " + sigil, place)
        for other in ["", "$", "+", "@" if sigil != "@" else "!", " " + sigil]:
            row(kind, short + "-sigil", "sigil " + repr(other), other + "a:example.org", False, "does not begin with " + sigil, place)
        row(kind, short + "-sigil", "empty", "", False, "does not begin with " + sigil, place)
        for n, local, reason in [("lower case", "a", "plain"), ("the grammar", "az09._=-/+", "every character of the grammar"), ("empty", "", "historical: the empty localpart"),
                                 ("capitals and space", "A B", "historical"), ("control characters", "a\x01\x7f", "historical"), ("not ASCII", "é😀\uffff", "historical"),
                                 ("sigils", "@!#$", "historical"), ("brackets", "[a]", "historical")]:
            row(kind, short + "-localpart", "localpart: " + n, sigil + local + ":example.org", True, reason, place)
        row(kind, short + "-localpart", "localpart: NUL", sigil + "a" + NUL + "b:example.org", False, "NUL", place)
        row(kind, short + "-localpart", "localpart: not UTF-8", sigil.encode() + b"\xff:example.org", False, "no code point", place)
        row(kind, short + "-localpart", "localpart: a surrogate", sigil.encode() + b"\xed\xa0\x80:example.org", False, "no code point", place)
        for domain in ["example.org", "MATRIX.org", "x:1", "1.2.3.4:12345", "[::1]", "[1234:5678::abcd]:5678", name, name + ".example.org"]:
            row(kind, short + "-domain", "domain: " + domain[:24] + domain[62:], sigil + "a:" + domain, True, "a server name", place)
        for n, value, reason in [("none", "a", "no colon"), ("empty", "a:", "an empty server name"), ("two colons", "a:b:", "no port behind the second colon"), ("a colon in the localpart", "a:b:c", "the first colon ends the localpart"),
                                 ("port too long", "a:b:123456", "six digits"), ("not closed", "a:[::1", "no IPv6 literal"), ("underscore", "a:b_c", "no such character in a server name"), ("space", "a:b c", "no such character in a server name")]:
            row(kind, short + "-domain", "domain: " + n, sigil + value, False, reason, place)
        for n, local, ok in [("255 bytes", "a" * 252, True), ("256 bytes", "a" * 253, False), ("255 bytes, fewer characters", "é" * 126, True), ("256 bytes, fewer characters", "é" * 126 + "a", False)]:
            row(kind, short + "-length", n, sigil + local + ":x", ok, "at most 255 bytes with sigil and domain", place)

    h = hashlib.sha256(b"event").digest()
    # h is chosen so that the two alphabets differ.
    n = 0
    while not ("-" in b64url(h) and "_" in b64url(h)):
        n += 1
        h = hashlib.sha256(b"event %d" % n).digest()
    hashed, place = b64url(h), "room version 12, Event format; appendices, Room IDs"
    row("room_id", "room-hash", "a hash", "!" + hashed, True, "the create event's ID with the other sigil", place)
    last = hashed[:-1] + chr(ord(hashed[-1]) + 1)
    for n, value, reason in [("too short", hashed[:42], "42 characters"), ("too long", hashed + "A", "44 characters"), ("padded", hashed[:42] + "=", "padding"), ("the other alphabet", b64(h), "not URL-safe"),
                             ("unused bits", last, "bits beyond the 256th are not zero: another spelling"), ("line feed", hashed[:42] + "\n", "no such character")]:
        row("room_id", "room-hash", "hash: " + n, "!" + value, False, reason, place)
    row("user_id", "user-domain", "a hash", "@" + hashed, False, "no colon", "appendices, User Identifiers")

    place = "appendices, Event IDs; room versions 3 and 4, Event IDs"
    row("event_id", "event-sigil", "of version 4", "$" + hashed, True, "URL-safe base64", place)
    row("event_id", "event-sigil", "of version 3", "$" + b64(h), True, "standard base64", place)
    row("event_id", "event-sigil", "of version 1", "$old:example.org", True, "who asks for an event may ask for any; what events refer to is stricter (events.json)", place)
    for n, value in [("without sigil", hashed), ("empty", ""), ("sigil alone", "$"), ("another sigil", "!" + hashed)]:
        row("event_id", "event-sigil", n, value, False, "$ and at least one character", place)
    row("event_id", "event-characters", "not ASCII", "$é", True, "opaque", place)
    row("event_id", "event-characters", "NUL", "$a\0", False, "NUL", place)
    row("event_id", "event-characters", "not UTF-8", b"$\xff", False, "no code point", place)
    row("event_id", "event-length", "255 bytes", "$" + "a" * 254, True, "at most 255 bytes", place)
    row("event_id", "event-length", "256 bytes", "$" + "a" * 255, False, "at most 255 bytes", place)

    place = "SS API, Retrieving server keys (verify_keys)"
    row("key_id", "key-algorithm", "ed25519", "ed25519:1", True, "the one algorithm", place)
    for value in ["", "1", "ed25519", "curve25519:1", "Ed25519:1", "ed25519 :1", "rsa:1"]:
        row("key_id", "key-algorithm", "algorithm " + repr(value), value, False, "not ed25519", place)
    for value in ["ed25519:a_B9", key.id, "ed25519:_"]:
        row("key_id", "key-version", value[:20], value, True, "letters, digits and underscores", place)
    for value in ["ed25519:", "ed25519:a-b", "ed25519:a:b", "ed25519:a b", "ed25519:é", "ed25519:a\0", "ed25519:a.b"]:
        row("key_id", "key-version", "version " + repr(value[8:]), value, False, "not letters, digits and underscores, at least one", place)
    row("key_id", "key-length", "128 bytes", "ed25519:" + "a" * 120, True, "at most 128 bytes", "plexus: the spec has no limit; its own IDs have 60 bytes")
    row("key_id", "key-length", "129 bytes", "ed25519:" + "a" * 121, False, "at most 128 bytes", "plexus: the spec has no limit; its own IDs have 60 bytes")

    # Names of plexus' servers: keys.
    spelling = "eventgraph, ServerName: one spelling, CIDv1 libp2p-key in base36"
    cid = lambda b: "k" + base36(b)
    changed = lambda i, b: cid(raw[:i] + bytes([b]) + raw[i + 1:])
    row("server_name", "name-spelling", "a key", name, True, "the one spelling", spelling)
    for n, value, reason in [
        ("empty", "", "nothing"), ("a domain", "example.org", "no key"), ("upper case", name.upper(), "base36 has one case"), ("one part in upper case", name[:20] + name[20:].upper(), "base36 has one case"),
        ("a port", name + ":8448", "names have no port"), ("too short", name[:61], "61 characters"), ("one more", name + "0", "63 characters"), ("a zero before", "k0" + name[1:], "another spelling of the number"),
        ("space", " " + name, "no such character"), ("base58", peer_id(key.public), "another base"), ("base32", "b" + name[1:], "another base"), ("base36 upper", "K" + name[1:].upper(), "another base"),
        ("dash", name[:30] + "-" + name[31:], "no such digit")]:
        row("server_name", "name-spelling", n, value, False, reason, spelling)
    kind = "libp2p specs, Peer Ids; multiformats CID"
    row("server_name", "name-ed25519", "ed25519 key", name, True, "CIDv1, libp2p-key, identity multihash, Ed25519, 32 bytes", kind)
    for n, value, reason in [("CIDv2", changed(0, 2), "another version"), ("codec raw", changed(1, 0x55), "another codec"), ("SHA-256", changed(2, 0x12), "a hash of a key"), ("RSA", changed(5, 0), "another key type"),
                             ("31 bytes", cid(raw[:39]), "a shorter key"), ("33 bytes", cid(raw + b"\1"), "a longer key"), ("hash of 35 bytes", changed(3, 0x23), "a length that is not the key's")]:
        row("server_name", "name-ed25519", n, value, False, reason, kind)
    point = "RFC 8032, section 5.1.3; a small-order key has signatures that fit many messages"
    for seed in [2, 3, 99]:
        row("server_name", "name-point", f"key {seed}", server_name(Key(bytes([seed]) * 32).public), True, "a point of large order", point)
    t, points = torsion(), set()
    for i in range(8):
        points.add(encode_point(times(i, t) if i else (0, 1, 1, 0)))
    assert len(points) == 8 and all(small_order(decode_point(p)) for p in points)
    small = sorted(points)
    # The other spellings of those points: y + p where it fits 255 bits, and a sign where x is 0.
    for y, sign in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        small.append((y + P | sign << 255).to_bytes(32, "little"))
    small += [(1 | 1 << 255).to_bytes(32, "little"), (P - 1 | 1 << 255).to_bytes(32, "little")]
    assert len(set(small)) == 14
    for p in small:
        row("server_name", "name-point", "small order " + p.hex()[:6] + "…" + p.hex()[-2:], server_name(p), False, "a point of small order, or another spelling of one", point)
    for y in range(2, 19):
        p = (y + P).to_bytes(32, "little")
        if decode_point(y.to_bytes(32, "little")):
            row("server_name", "name-point", f"p + {y}", server_name(p), False, "another spelling of a point: y is not reduced", point)
    assert decode_point((2).to_bytes(32, "little")) is None
    row("server_name", "name-point", "y = 2", server_name((2).to_bytes(32, "little")), False, "not on the curve", point)
    zone = "eventgraph, ServerName: a DNS zone behind the key's label"
    for n, value in [("one label", ".org"), ("two labels", ".example.org"), ("digits and hyphens", ".x1.a-b.c"), ("63 characters", "." + "a" * 63 + "." + "b" * 63)]:
        row("server_name", "name-zone", n, name + value, True, "labels of a DNS name in lower case", zone)
    for n, value, reason in [("empty", ".", "an empty label"), ("empty label", ".a..b", "an empty label"), ("point at the end", ".org.", "an empty label"), ("upper case", ".Example.org", "another spelling"),
                             ("underscore", ".a_b", "no such character"), ("hyphen first", ".-a", "a label begins with a letter or digit"), ("hyphen last", ".a-", "a label ends with a letter or digit"),
                             ("64 characters", "." + "a" * 64, "a label has at most 63"), ("not ASCII", ".é", "no such character")]:
        row("server_name", "name-zone", "zone: " + n, name + value, False, reason, zone)
    row("server_name", "name-zone", "zone before", "example." + name, False, "the key is the first label", zone)
    row("server_name", "name-length", "230 characters", name + ".a" * 84, True, "at most 230", "appendices, Server Name: should not exceed 230 characters")
    row("server_name", "name-length", "232 characters", name + ".a" * 85, False, "at most 230", "appendices, Server Name: should not exceed 230 characters")

    spelling = "libp2p specs, Peer Ids"
    row("peer_id", "peer-spelling", "a key", key.peer, True, "identity multihash in base58", spelling)
    for n, value in [("empty", ""), ("one more", key.peer + "1"), ("one before", "1" + key.peer), ("one less", key.peer[1:]), ("space", " " + key.peer), ("CID", name), ("long", "1" * 1000),
                     ("hash of a key", base58(b"\x12\x20" + key.public))]:
        row("peer_id", "peer-spelling", n, value, False, "not the one spelling", spelling)
    row("peer_id", "peer-point", "a key", key.peer, True, "a point of large order", point)
    row("peer_id", "peer-point", "order 1", peer_id(encode_point((0, 1, 1, 0))), False, "a point of small order", point)
    return "identifiers", "Identifiers and names: which are well-formed.", None, vectors


FILES = [identifiers]
