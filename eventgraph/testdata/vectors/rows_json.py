"""Rows of canonicaljson.json."""

from plain import VERSIONS, Refused, dump, parse

STRICT, LENIENT = VERSIONS[3:], VERSIONS[:3]
PLACE = "appendices, Canonical JSON"
LAX = "room versions 3 to 5, Canonical JSON"


def canonicaljson():
    vectors = []

    def row(rule, name, data, reason, ok, versions=VERSIONS, want=None, spec=PLACE):
        if isinstance(data, str):
            given, raw = {"text": data}, data.encode()
        elif isinstance(data, bytes):
            given, raw = {"hex": data.hex()}, data
        else:
            given, raw = {"parts": data}, "".join(s * n for s, n in data).encode()
        v = {"name": name, "rule": rule, "versions": versions, "input": given, "expect": "accept" if ok else "refuse", "reason": reason, "spec": spec}
        for strict in {version in STRICT for version in versions}:
            try:
                out = dump(parse(raw, strict))
                assert ok, f"{name}: accepted as {out[:80]}"
                assert want is None or out == want, f"{name}: {out}"
                if not isinstance(data, list):
                    v["result"] = {"canonical": out}
            except Refused as e:
                assert not ok, f"{name}: {e}"
        vectors.append(v)

    def accept(rule, name, data, reason, want=None, **more):
        row(rule, name, data, reason, True, want=want, **more)

    def refuse(rule, name, data, reason, **more):
        row(rule, name, data, reason, False, **more)

    # The examples of the appendices, all but the last ({"a":-0,"b":1e10}), which the text above it forbids.
    examples = PLACE + ", Examples"
    accept("object", "spec 1", "{}", "an empty object", "{}", spec=examples)
    accept("object", "spec 2", '{\n    "one": 1,\n    "two": "Two"\n}', "space goes", '{"one":1,"two":"Two"}', spec=examples)
    accept("object", "spec 3", '{\n    "b": "2",\n    "a": "1"\n}', "members are sorted", '{"a":"1","b":"2"}', spec=examples)
    accept("object", "spec 4", '{"b":"2","a":"1"}', "members are sorted", '{"a":"1","b":"2"}', spec=examples)
    accept("object", "spec 5", '{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe", "three_pids": '
           '[{"medium": "email", "address": "john.doe@example.org"}, {"medium": "msisdn", "address": "123456789"}]}}}', "members are sorted at every depth",
           '{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},'
           '{"address":"123456789","medium":"msisdn"}]},"success":true}}', spec=examples)
    accept("utf8", "spec 6", '{"a": "日本語"}', "what is not ASCII stands as it is", '{"a":"日本語"}', spec=examples)
    accept("object", "spec 7", '{"本": 2, "日": 1}', "members are sorted by code point", '{"日":1,"本":2}', spec=examples)
    accept("string-escape", "spec 8", '{"a": "\\u65E5"}', "an escape that is not needed goes", '{"a":"日"}', spec=examples)
    accept("literal", "spec 9", '{"a": null}', "null is kept", '{"a":null}', spec=examples)

    accept("value", "a string alone", '"x"', "any value is JSON")
    accept("value", "a number alone", "1", "any value is JSON")
    accept("value", "space around", " \t\n\r[] \r\n", "space goes", "[]")
    for name, text in [("nothing", ""), ("only space", " "), ("two objects", "{}{}"), ("two arrays", "[] []"), ("two numbers", "1 2"), ("a comma after it", "1,"),
                       ("undefined", "undefined"), ("quotes of the other kind", "'a'"), ("a comment before", "/**/1"), ("a comment behind", "1 // x"),
                       ("a zero byte", "\0"), ("a brace alone", "}"), ("a bracket alone", "]")]:
        refuse("value", name, text, "not exactly one value")
    accept("space", "the four kinds", '{ "a"\t:\n[\r1 , 2 ] }', "space, tab, line feed and carriage return", '{"a":[1,2]}')
    for name, text in [("form feed", "[\f1]"), ("vertical tab", "[\v1]"), ("no-break space", "[\u00a01]"), ("byte order mark", "\ufeff{}"), ("line separator", "[\u20281]")]:
        refuse("space", name, text, "no other space is JSON's")

    accept("literal", "true and false", "[true,false,null]", "the three literals", "[true,false,null]")
    for text in ["True", "nul", "nulL", "tru", "falsy", "NaN", "Infinity", "-Infinity"]:
        refuse("literal", text, text, "JSON has no such literal")

    accept("array", "one within another", "[[],[[1]],2]", "arrays keep their order", "[[],[[1]],2]")
    for text in ["[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1}", "[,]"]:
        refuse("array", "array " + text, text, "not an array")

    accept("object", "order of code points, not of UTF-16", '{"😀":1,"\\uffff":2}', "U+FFFF comes before U+1F600, whose UTF-16 form begins with 0xD83D", '{"\uffff":2,"😀":1}')
    accept("object", "order of what escapes mean", '{"]":1,"\\\\":2,"[":3,"\\"":4,"!":5,"#":6,"\\n":7,"\\u0001":8,"":9,"\\u007f":10,"~":11}',
           "names are compared by their characters, not by how they are written", '{"":9,"\\u0001":8,"\\n":7,"!":5,"\\"":4,"#":6,"[":3,"\\\\":2,"]":1,"~":11,"\x7f":10}')
    accept("object", "a prefix first", '{"aa":1,"a":2,"A":3,"é":4,"z":5}', "a shorter name comes before those that it begins", '{"A":3,"a":2,"aa":1,"z":5,"é":4}')
    accept("object", "unsorted within unsorted", '{"b":{"b":1,"a":2},"a":[{"d":1,"c":2}]}', "members are sorted at every depth", '{"a":[{"c":2,"d":1}],"b":{"a":2,"b":1}}')
    accept("object", "an empty name", '{"":1}', "a name may be empty", '{"":1}')
    for text in ["{", '{"a"}', '{"a":}', '{"a":1,}', '{,"a":1}', "{a:1}", "{1:1}", '{"a":1 "b":2}', '{"a" 1}', '{"a":1', '{"a":1]', '{"a":1,"b"', "{null:1}"]:
        refuse("object", "object " + text, text, "not an object")

    accept("duplicate-member", "one name at two depths", '{"a":{"a":1},"b":{"a":2}}', "names are compared within one object")
    accept("duplicate-member", "names that differ in case", '{"a":1,"A":2}', "names are compared by code point")
    accept("duplicate-member", "names that look the same", '{"\u00e9":1,"e\u0301":2}', "no Unicode normalisation")
    for name, text in [("side by side", '{"a":1,"a":1}'), ("with another between", '{"a":1,"b":2,"a":3}'), ("unsorted", '{"b":1,"a":2,"b":3}'), ("by an escape", '{"a":1,"\\u0061":2}'),
                       ("deep", '[{"x":{"a":1,"a":1}}]'), ("two escapes", '{"\\n":1,"\\u000a":2}')]:
        refuse("duplicate-member", "repeated " + name, text, "servers differ on which of two members counts, so both mean nothing",
               spec="RFC 8259, section 4 (names should be unique); plexus refuses")

    accept("string-escape", "those with a letter", '"\\b\\t\\n\\f\\r\\"\\\\\\/"', "two-character escapes stay, that of the slash goes", '"\\b\\t\\n\\f\\r\\"\\\\/"')
    accept("string-escape", "by number", '"\\u0008\\u0009\\u000A\\u000c\\u000D\\u0022\\u005C\\u002F"', "the shortest form is written", '"\\b\\t\\n\\f\\r\\"\\\\/"')
    accept("string-escape", "what HTML escapes", '"\\u003c\\u003E&\\u2028\\u2029\\u007f"', "no escape beyond those that must be", '"<>&\u2028\u2029\x7f"')
    for text in ['"\\x41"', '"\\u12"', '"\\u12g4"', '"\\', '"\\u', '"\\U0041"', '"\\\'"', '"\\0"', '"\\u 123"', '"abc', '"']:
        refuse("string-escape", "string " + text, text, "no such escape, or a string without end")

    accept("control-character", "escaped", '"\\u0000\\u0007\\u000B\\u000e\\u001F"', "control characters are escaped, with small letters", '"\\u0000\\u0007\\u000b\\u000e\\u001f"')
    accept("control-character", "delete", '"\x7f"', "U+007F is not among them", '"\x7f"')
    for name, text in [("U+0000", '"\0"'), ("U+0001", '"\x01"'), ("line feed", '"\n"'), ("tab", '"\t"'), ("U+001F", '"\x1f"'), ("in a name", '{"\n":1}')]:
        refuse("control-character", "raw " + name, text, "control characters in strings must be escaped")

    accept("utf8", "one to four bytes", b'"a\xc3\xa9\xe6\x97\xa5\xf0\x9f\x98\x80"', "kept as they are")
    accept("utf8", "the last of each length", b'"\x7f\xdf\xbf\xef\xbf\xbf\xf4\x8f\xbf\xbf"', "noncharacters are code points")
    accept("utf8", "the replacement character", b'"\xef\xbf\xbd"', "U+FFFD itself is a code point")
    for name, data in [("a byte that is never", b'"\xff"'), ("overlong", b'"\xc0\x80"'), ("a surrogate", b'"\xed\xa0\x80"'), ("beyond U+10FFFF", b'"\xf4\x90\x80\x80"'),
                       ("cut short", b'"\xe6\x97"'), ("continuation alone", b'"\x80"'), ("in a name", b'{"\xff":1}'), ("UTF-16", '{"a":1}'.encode("utf-16-le"))]:
        refuse("utf8", "invalid: " + name, data, "not UTF-8")

    accept("surrogate", "a pair", '"\\ud83d\\ude00"', "a pair is one code point", '"😀"')
    accept("surrogate", "a pair in capitals", '"\\uD83D\\uDE00\\uffff\\ufffd"', "hexadecimal digits of either case", '"😀\uffff\ufffd"')
    for text in ['"\\ud800"', '"\\udc00"', '"\\ud800x"', '"\\ud800\\u0041"', '"\\ud800\\ud800"', '"\\udc00\\ud800"', '{"\\ud800":1}', '"\\ud83d\\n"']:
        refuse("surrogate", "lone " + text, text, "half a pair is no code point, and has no UTF-8")

    for text in ["0", "1", "-1", "10", "1234567890"]:
        accept("number-grammar", "number " + text, text, "an integer", text)
    for text in ["01", "-", "+1", "-01", "00", ".5", "5.", "1e", "1e+", "1.e1", "0x1", "1_000", "--1", "1.2.3", "-a"]:
        refuse("number-grammar", "number " + text, text, "no number of JSON")

    def numeric(rule, literals, reason):
        for text in literals:
            refuse(rule, "strict " + text, text, reason, versions=STRICT)
            accept(rule, "kept " + text, '{"b":' + text + ',"a":1}', "before version 6 a number is kept as written", '{"a":1,"b":' + text + "}", versions=LENIENT, spec=LAX)

    for text in ["9007199254740991", "-9007199254740991"]:
        accept("number-range", "the limit " + text, text, "within 2^53-1", text)
    numeric("number-range", ["9007199254740992", "-9007199254740992", "9223372036854775808", "100000000000000000000"], "beyond 2^53-1")
    numeric("number-fraction", ["1.0", "0.0", "-0.5", "1.50", "9007199254740991.0"], "a fraction, even where it is zero")
    numeric("number-exponent", ["1e1", "1E0", "1E+3", "1e10", "1e400", "1e-1"], "an exponent")
    numeric("negative-zero", ["-0", "-0.0", "-0e1"], "negative zero")

    limit = "plexus: servers written in Python stop near 1,000 levels, so such events travel nowhere"
    accept("depth", "arrays, 1001", [["[", 1001], ["]", 1001]], "as deep as is taken", spec=limit)
    accept("depth", "objects, 1000 and a number", [['{"a":', 1000], ["1", 1], ["}", 1000]], "as deep as is taken", spec=limit)
    refuse("depth", "arrays, 1002", [["[", 1002], ["]", 1002]], "one too deep", spec=limit)
    refuse("depth", "arrays, a million and no end", [["[", 1000000]], "refused before it is read to its end", spec=limit)
    refuse("depth", "objects, 1002", [['{"a":', 1001], ["{}", 1], ["}", 1001]], "one too deep", spec=limit)
    return "canonicaljson", "Canonical JSON: what is accepted, and the bytes that it becomes.", None, vectors


FILES = [canonicaljson]
