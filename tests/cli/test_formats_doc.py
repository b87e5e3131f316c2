"""docs/formats.md says what the JSON has: no key too few, none too many, each of its type."""

from __future__ import annotations

import json
import re

import pytest

from tests.builder import Image
from tests.cli.conftest import BUSYBOX
from tests.tools.sample import ROOT

PAGE = ROOT / "docs" / "formats.md"
ROW = re.compile(r"\| `([^`]+)` \| ([a-z ]+) \| (.+) \|")
TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "map": dict,
    "array": list,
    "array of string": list,
}


def sections(text):
    """Headline to {key: type}, for the sections that have a table."""
    found = {}
    for part in text.split("\n## ")[1:]:
        rows = {row[1]: row[2] for row in ROW.finditer(part)}
        if rows:
            found[part.split("\n", 1)[0]] = rows
    return found


DOCUMENTED = sections(PAGE.read_text(encoding="utf-8"))


def flat(value, known, path=""):
    """(path, value) for everything in an object; a map is one value, and so is an array of plain values."""
    if known.get(path) in {"map", "array"}:
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, known, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(key.startswith(f"{path}[]") for key in known):
        for item in value:
            yield from flat(item, known, f"{path}[]")
    else:
        yield path, value


def wrong(known, records):
    """What is in the records and not documented, documented and in none of them, or of another type."""
    seen = set()
    for record in records:
        for path, value in flat(record, known):
            seen.add(path)
            if path not in known:
                yield f"{path} is not documented"
            elif not is_of(value, known[path]):
                yield f"{path} is {value!r} and documented as {known[path]}"
    yield from (f"{path} is documented and never there" for path in known.keys() - seen)


def is_of(value, documented):
    """Whether a value is of a documented type."""
    for name in documented.split(" or "):
        exact = name == "boolean" or not isinstance(value, bool)
        if isinstance(value, TYPES[name]) and exact:
            return name != "array of string" or all(isinstance(item, str) for item in value)
    return False


@pytest.fixture
def samples(imgdb, root, stock, tmp_path):
    """What each section is about: commands that together show every key."""

    def read(*arguments, code=0):
        found = json.loads(imgdb(*arguments, code=code).out)
        return found if isinstance(found, list) else [found]

    def messages(*arguments, code=0):
        return [json.loads(line) for line in imgdb(*arguments, code=code).err.splitlines()]

    def leases():
        imgdb("lease", "create", "--id", "l")
        imgdb("lease", "add", "l", "busybox")
        found = read("lease", "show", "l") + read("lease", "ls", "--format", "json")
        imgdb("lease", "rm", "l")
        return found

    def damaged():
        path = root / BUSYBOX.config.path
        good = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(b"x" * len(good))
        found = read("check", "--json", code=3)
        path.unlink()
        imgdb("import", stock)
        return found

    def why():
        kept = read("why", "--json", BUSYBOX.config.digest)
        imgdb("rm", "--no-gc", "busybox")
        return kept + read("why", "--json", BUSYBOX.config.digest)

    def unpacked():
        return read("unpack", "--json", "busybox", "example.org/app:1")

    def snapshots():
        unpacked()
        imgdb("snapshot", "prepare", "c", "busybox", "--label", "a=b")
        return read("snapshot", "ls", "--format", "json")

    def usage():
        snapshots()
        return read("snapshot", "usage", "--format", "json")

    def mounts():
        folder = tmp_path / "mnt"
        folder.mkdir()
        imgdb("mount", "busybox", folder)
        found = read("mount", "--format", "json")
        imgdb("umount", folder)
        return found

    new = Image([{"new": b"1"}]).oci_tar(tmp_path / "new.tar", "busybox:latest")
    return {
        "images": lambda: read("images", "--format", "json"),
        "inspect": lambda: read("inspect", "busybox", "example.org/app:1"),
        "history": lambda: read("history", "busybox", "--format", "json"),
        "history --tag": lambda: read("history", "--tag", "busybox", "--format", "json"),
        "blob ls, blob stat": lambda: read("blob", "ls", "--format", "json"),
        "events": lambda: read("events", "--format", "json"),
        "info": lambda: read("info", "--format", "json"),
        "import --json": lambda: read("import", "--json", "--unpack", new, stock),
        "export --json": lambda: read("export", "busybox", "--json", "-o", tmp_path / "out.tar"),
        "df": lambda: read("df", "--format", "json"),
        "df -v": lambda: read("df", "-v", "--format", "json"),
        "gc --json": lambda: read("gc", "-n", "--json") + read("gc", "--json"),
        "unpack --json": unpacked,
        "snapshot ls": snapshots,
        "snapshot usage": usage,
        "mount": mounts,
        "why --json": why,
        "prune --json": lambda: read("prune", "-n", "--json") + read("prune", "-f", "--json"),
        "lease ls, lease show": leases,
        "check --json": damaged,
        "Progress": lambda: messages("--progress", "json", "import", stock),
        "Messages": lambda: messages("-vv", "--log-format", "json", "rm", "absent", code=1),
    }


def test_every_section_has_a_sample(samples):
    """A new noun needs a section, and a section something that it is about."""
    assert set(DOCUMENTED) == set(samples)


@pytest.mark.parametrize("section", DOCUMENTED)
def test_keys(samples, section):
    """The table is what the command prints."""
    assert sorted(set(wrong(DOCUMENTED[section], samples[section]()))) == []


def test_findings_of_db_check(samples, imgdb):
    """They have the keys of the findings of check."""
    known = {path: kind for path, kind in DOCUMENTED["check --json"].items() if path.startswith("findings")}
    (report,) = samples["check --json"]()
    assert list(wrong(known, [{"findings": report["findings"]}])) == []
    assert json.loads(imgdb("db", "check", "--json").out) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"a": 1, "b": [{"c": "x"}], "m": {"q": 1}}, []),
        ({"a": True, "b": [{"c": "x"}], "m": {}}, ["a is True and documented as integer"]),
        ({"a": 1, "b": [{"c": "x", "d": 1}], "m": {}}, ["b[].d is not documented"]),
        ({"a": 1, "b": [], "m": {}}, ["b[].c is documented and never there"]),
        ({"a": 1, "b": [{"c": None}], "m": []}, ["m is [] and documented as map"]),
        ({"a": 1, "b": [{"c": 5}], "m": {}}, ["b[].c is 5 and documented as string or null"]),
    ],
)
def test_what_would_be_wrong(record, said):
    """The comparison finds what it is for."""
    table = "\n## x\n\n| `a` | integer | m |\n| `b[].c` | string or null | m |\n| `m` | map | m |\n"
    assert list(wrong(sections(table)["x"], [record])) == said


@pytest.mark.parametrize(("value", "kind"), [(["a"], True), ([1], False), ([], True), ("a", False)])
def test_arrays(value, kind):
    """Their items have a type, too."""
    assert is_of(value, "array of string") == kind
