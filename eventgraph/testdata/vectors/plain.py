"""A second, plain implementation of what the vectors are made of: canonical JSON, ed25519, names, hashes, redaction.

It is written from the specification, slow, and uses only Python's standard library. make.py computes every expected
byte with it, so that the files do not say merely what plexus does.
"""

import base64
import hashlib
import json
import sys

sys.setrecursionlimit(20000)

VERSIONS = [str(n) for n in range(3, 13)]


# --- JSON -----------------------------------------------------------------------------------------------------------

class Raw:
    """JSON text that stands as it is."""

    def __init__(self, text):
        self.text = text


class Refused(Exception):
    pass


def number(strict):
    def parse(literal):
        if strict:
            if not literal.lstrip("-").isdigit() or literal == "-0":
                raise Refused("fraction, exponent or negative zero")
            if abs(int(literal)) > 2**53 - 1:
                raise Refused("out of range")
        return Raw(literal)
    return parse


def unique(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refused("a member is repeated")
    return members


def parse(data, strict=True):
    """data is bytes or text. Numbers come out as Raw, as they were written."""
    def constant(name):
        raise Refused(name)
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=unique, parse_int=number(strict), parse_float=number(strict), parse_constant=constant)
        dump(value).encode("utf-8")
    except (ValueError, UnicodeError, RecursionError) as e:
        raise Refused(str(e))
    if depth(value) > 1001:
        raise Refused("nested too deep")
    return value


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def quote(s):
    return '"' + "".join(ESCAPES.get(c) or ("\\u%04x" % ord(c) if c < " " else c) for c in s) + '"'


def dump(value):
    """Canonical JSON of a value whose numbers are in range (appendices, Canonical JSON)."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(quote(k) + ":" + dump(value[k]) for k in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, str):
        return quote(value)
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def b64(data):
    return base64.b64encode(data).decode().rstrip("=")


def b64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def sha256(text):
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).digest()


# --- ed25519 (RFC 8032, section 5.1) --------------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def add(a, b):
    """Of two points in extended coordinates."""
    A, B = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    C, E = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = B - A, E - C, E + C, B + A
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add(q, p)
        p, n = add(p, p), n >> 1
    return q


def decode_point(data):
    """None if it is no encoding of a point, or not its only one."""
    y = int.from_bytes(data, "little") & (2**255 - 1)
    sign = data[31] >> 7
    if y >= P:
        return None
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - x2) % P or x == 0 and sign:
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


def encode_point(p):
    z = pow(p[2], P - 2, P)
    x, y = p[0] * z % P, p[1] * z % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = decode_point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def small_order(p):
    q = times(8, p)
    return q[0] % P == 0 and (q[1] - q[2]) % P == 0


def torsion():
    """A point of order 8."""
    y = 2
    while True:
        p = decode_point(y.to_bytes(32, "little"))
        y += 1
        if p:
            t = times(L, p)
            four = times(4, t)
            if (four[1] - four[2]) % P or four[0] % P:
                return t


class Key:
    def __init__(self, seed, server=None, id=None):
        self.seed = seed
        h = hashlib.sha512(seed).digest()
        self.a = int.from_bytes(h[:32], "little") & (2**254 - 8) | 2**254
        self.prefix = h[32:]
        self.public = encode_point(times(self.a, BASE))
        self.server = server or server_name(self.public)
        self.id = id or "ed25519:" + peer_id(self.public)

    def as_(self, server, id=None):
        return Key(self.seed, server, id or self.id)

    @property
    def peer(self):
        return peer_id(self.public)

    def sign(self, message):
        r = int.from_bytes(hashlib.sha512(self.prefix + message).digest(), "little") % L
        return self.finish(encode_point(times(r, BASE)), r, message)

    def sign_with_torsion(self, message):
        """A signature that holds when both sides are multiplied by 8, and not otherwise."""
        r = int.from_bytes(hashlib.sha512(self.prefix + message).digest(), "little") % L
        return self.finish(encode_point(add(times(r, BASE), torsion())), r, message)

    def finish(self, R, r, message):
        h = int.from_bytes(hashlib.sha512(R + self.public + message).digest(), "little") % L
        return R + ((r + h * self.a) % L).to_bytes(32, "little")

    def described(self):
        return {"server": self.server, "key_id": self.id, "seed": b64(self.seed), "public_key": b64(self.public)}


# --- names ----------------------------------------------------------------------------------------------------------

MULTIHASH = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


def digits(data, alphabet):
    n, out = int.from_bytes(data, "big"), ""
    while n:
        n, d = divmod(n, len(alphabet))
        out = alphabet[d] + out
    return alphabet[0] * (len(data) - len(data.lstrip(b"\0"))) + out


def base36(data):
    return digits(data, "0123456789abcdefghijklmnopqrstuvwxyz")


def base58(data):
    return digits(data, "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")


def server_name(public):
    return "k" + base36(bytes([0x01, 0x72]) + MULTIHASH + public)


def peer_id(public):
    return base58(MULTIHASH + public)


# --- events ---------------------------------------------------------------------------------------------------------

TOP = ["event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth", "prev_events", "auth_events", "origin_server_ts"]
TOP_BEFORE_11 = ["prev_state", "origin", "membership"]
LEVELS = ["ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"]


def kept_content(version, type):
    """The keys of content that redaction keeps, None for all (room versions, Redactions)."""
    n = int(version)
    if type == "m.room.member":
        return ["membership"] + ["join_authorised_via_users_server"] * (n >= 9) + ["third_party_invite"] * (n >= 11)
    if type == "m.room.create":
        return ["creator"] if n < 11 else None
    if type == "m.room.join_rules":
        return ["join_rule"] + ["allow"] * (n >= 8)
    if type == "m.room.power_levels":
        return LEVELS + ["invite"] * (n >= 11)
    if type == "m.room.aliases":
        return ["aliases"] * (n < 6)
    if type == "m.room.history_visibility":
        return ["history_visibility"]
    if type == "m.room.redaction":
        return ["redacts"] * (n >= 11)
    return []


def redact(version, event):
    n = int(version)
    out = {k: v for k, v in event.items() if k in TOP or n < 11 and k in TOP_BEFORE_11}
    content = out.get("content")
    keys = kept_content(version, event.get("type"))
    if isinstance(content, dict) and keys is not None:
        content = {k: v for k, v in content.items() if k in keys}
        invite = content.get("third_party_invite")
        if isinstance(invite, dict):
            content["third_party_invite"] = {k: v for k, v in invite.items() if k == "signed"}
        elif invite is not None:
            del content["third_party_invite"]
        out["content"] = content
    elif isinstance(content, Raw) and keys == []:
        out["content"] = {}
    return out


def without(object, *keys):
    return {k: v for k, v in object.items() if k not in keys}


def content_hash(event):
    return sha256(dump(without(event, "unsigned", "signatures", "hashes")))


def reference_hash(version, event):
    return sha256(dump(without(redact(version, event), "unsigned", "signatures")))


def event_id(version, event):
    h = reference_hash(version, event)
    return "$" + (b64(h) if version == "3" else b64url(h))


def sign(object, *keys):
    """Signing JSON of the appendices."""
    message = dump(without(object, "signatures", "unsigned")).encode()
    signatures = {s: dict(by) for s, by in object.get("signatures", {}).items()}
    for k in keys:
        signatures.setdefault(k.server, {})[k.id] = b64(k.sign(message))
    return {**object, "signatures": signatures}


def seal(version, event, *keys):
    """Adds hash and signatures (SS API, Adding hashes and signatures to outgoing events)."""
    event = {**event, "hashes": {"sha256": b64(content_hash(event))}, "signatures": {}}
    event["signatures"] = sign(redact(version, event), *keys)["signatures"]
    return event
