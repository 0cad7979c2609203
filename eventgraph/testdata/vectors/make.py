"""Writes the vector files of this folder (not those of auth/): python3 make.py. README.md says what is in them.

What is expected stands in the rows (accepted or refused, and why); the bytes that go with it are from plain.py.
"""

import json
import os
import sys

sys.dont_write_bytecode = True

import rows_event
import rows_json
import rows_keys
import rows_names
import rows_signatures

here = os.path.dirname(os.path.abspath(__file__))
for name, about, keys, vectors in [f() for m in (rows_json, rows_names, rows_event, rows_signatures, rows_keys) for f in m.FILES]:
    seen = set()
    for v in vectors:
        title = v["rule"] + ": " + v["name"] + " " + ",".join(v.get("versions", []))
        assert title not in seen, f"{name}: two vectors {title}"
        seen.add(title)
    with open(os.path.join(here, name + ".json"), "w") as f:
        json.dump({"about": about, **({"keys": keys} if keys else {}), "vectors": vectors}, f, indent=1)
        f.write("\n")
    print(f"{name}.json: {len(vectors)} vectors, {len({v['rule'] for v in vectors})} rules")
