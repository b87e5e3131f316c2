"""``lease``, ``pin``, ``unpin`` and ``import --lease`` as users type them."""

from __future__ import annotations

import json
import re

import pytest

from imgdb.cli.main import main
from tests.builder import Image


@pytest.fixture
def store(new_store, tmp_path):
    """A store with app:1; leases named keep-… may stay behind."""
    left = set()
    made = new_store(leases=left)
    made.left = left
    made.load(Image().oci_tar(tmp_path / "app.tar", "app:1"))
    return made


@pytest.fixture
def run(store, capsys):
    """Run a command on the store: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["--store", store.root, *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


@pytest.fixture
def ok(run):
    """Run a command that must succeed and say nothing on standard error; its output."""

    def ok(*arguments):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        return out

    return ok


def test_life_of_a_lease(store, ok, run):
    """Made, filled, shown, renewed, removed; each verb prints what a script needs."""
    made = ok("lease", "create", "--label", "job=42", "--label", "ci", "-x", "90m").strip()
    assert re.fullmatch(r"\d+-[\w-]{4}", made)
    digest = str(store.resolve("app:1").target.digest)
    assert ok("lease", "add", made, "app:1", digest) == f"content {digest}\n" * 2
    (shown,) = json.loads(ok("lease", "show", made))
    assert (shown["labels"], shown["flat"], shown["expired"]) == ({"job": "42", "ci": "true"}, False, False)
    assert (shown["resources"], shown["protects"]) == (1, [{"type": "content", "key": digest}])
    (listed,) = json.loads(ok("lease", "ls", "--format", "json"))
    assert listed == {key: value for key, value in shown.items() if key != "protects"}
    assert ok("lease", "renew", made, "-x", "never") == f"{made}\n"
    assert json.loads(ok("lease", "ls", "--format", "jsonl"))["expires_at"] is None
    code, out, err = run("lease", "rm", "absent", made)
    assert (code, out, "no lease absent" in err) == (1, f"{made}\n", True)
    assert json.loads(ok("lease", "ls", "--format", "json")) == []


def test_tables(store, ok):
    """Times as people say them; what is beyond its time and kept says by whom."""
    digest = store.resolve("app:1").target.digest
    for name, options in {
        "a": ["-x", "100m"],
        "b": ["-x", "never", "--flat"],
        "c": ["-x", "0", "--label", "y=2", "--label", "x=1"],
        "d": ["-x", "1us"],
        "e": ["-x", "1us", "--owner", "run:7"],
    }.items():
        store.left.add(name)
        ok("lease", "create", "--id", name, *options)
    ok("lease", "add", "a", "app:1")
    with store.lease("f", expires_s=50 * 3600):
        lines = [re.split(r" {3,}", line) for line in ok("lease", "ls").splitlines()]
    assert lines[0] == ["ID", "CREATED", "EXPIRES", "FLAT", "RESOURCES", "LABELS"]
    assert [(line[0], line[2], *line[3:]) for line in lines[1:]] == [
        ("a", "in 2 hours", "false", "1"),
        ("b", "never", "true", "0"),
        ("c", "never", "false", "0", "x=1,y=2"),
        ("d", "expired", "false", "0"),
        ("e", "kept by run:7", "false", "0"),
        ("f", "in 2 days", "false", "0"),
    ]
    assert all(line[1].endswith("ago") for line in lines[1:])
    assert ok("lease", "ls", "--format", "{{.ID}} {{.Expires}}", "-f", "id=d") == "d expired\n"
    assert ok("lease", "show", "a", "--format", "table") == f"TYPE      KEY\ncontent   {digest}\n"


def test_filters(store, run, ok):
    """Any of the ids, all of the labels."""
    for name, labels in {"a": ["x=1"], "b": ["x=2", "y"], "c": ["y"]}.items():
        store.left.add(name)
        ok("lease", "create", "--id", name, *(text for label in labels for text in ("--label", label)))
    for filters, expected in {
        ("label=x",): "a\nb\n",
        ("label=x=2",): "b\n",
        ("label=x", "label=y=true"): "b\n",
        ("id=a", "id=c"): "a\nc\n",
    }.items():
        assert ok("lease", "ls", "-q", *(text for one in filters for text in ("-f", one))) == expected
    assert run("lease", "ls", "-f", "size=1")[0] == 2


def test_types(store, ok, run):
    """A name to be kept, a snapshot; what a type does not take."""
    store.left.add("l")
    ok("lease", "create", "--id", "l")
    assert ok("lease", "add", "l", "--type", "images", "app:1") == "images docker.io/library/app:1\n"
    assert ok("lease", "add", "l", "--type", "snapshots", "s1") == "snapshots s1\n"
    assert run("lease", "add", "l", "--type", "content", "app:1")[0] == 2
    assert run("lease", "add", "l", "absent")[:2] == (1, "")
    assert run("lease", "add", "l", "--type", "ingests", "x")[0] == 2
    code, _, err = run("rm", "app:1")
    assert (code, "lease l keeps the name" in err) == (4, True)
    assert run("rm", "-f", "app:1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["lease", "rm", "absent"], 1, "no lease absent"),
        (["lease", "show", "absent"], 1, "no lease absent"),
        (["lease", "renew", "absent"], 1, "no lease absent"),
        (["lease", "add", "absent", "app:1"], 1, "no lease absent"),
        (["lease", "create", "--id", "keep"], 4, "lease keep exists"),
        (["lease", "create", "--id", ""], 2, "needs an id"),
        (["lease", "create", "-x", "tomorrow"], 2, "no duration"),
        (["lease", "create", "--owner", "run"], 2, "KIND:ID"),
        (["lease", "create", "--owner", "hold:x"], 2, "imgdb's own"),
        (["lease", "create", "--label", "io.imgdb.pinned=x"], 2, "imgdb pin"),
        (["pin", "absent"], 1, "No such image: absent:latest"),
        (["unpin", "app:1"], 1, "app:1 is not pinned"),
        (["import", "--lease", "absent", __file__], 1, "no lease absent"),
    ],
)
def test_errors(store, run, arguments, code, said):
    """One line, and the exit code that belongs to it."""
    store.left.add("keep")
    store.create_lease("keep")
    got, out, err = run(*arguments)
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert said in err


def test_pin(store, ok, run, tmp_path):
    """A pinned name can't be removed or moved, by no option; the message names the way out."""
    other = Image(layers=[{"x": b"1"}]).oci_tar(tmp_path / "other.tar", "app:1")
    for verb in (["pin"], ["image", "pin"]):
        assert ok(*verb, "app:1") == "Pinned: app:1\n"
    store.load(Image(layers=[{"y": b"1"}]).oci_tar(tmp_path / "new.tar", "new:1"))
    for arguments in (
        ["rm", "app:1"],
        ["rm", "-f", "app:1"],
        ["tag", "new:1", "app:1"],
        ["import", "--replace", "dangle", other],
        ["import", "--replace", "replace", other],
        ["import", "--dry-run", other],
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (4, "")
        assert "app:1 is pinned; imgdb unpin app:1 " in err
    assert ok("unpin", "app:1") == "Unpinned: app:1\n"
    assert run("rm", "app:1")[0] == 0


def test_import_into_a_lease(store, ok, run, tmp_path):
    """What was imported outlives its name as long as the lease."""
    store.left.add("l")
    ok("lease", "create", "--id", "l")
    image = Image(layers=[{"x": b"1"}])
    assert run("import", "--lease", "l", image.oci_tar(tmp_path / "x.tar", "x:1"))[0] == 0
    assert ok("lease", "show", "l", "--format", "{{range .protects}}{{.key}}{{end}}") == f"{image.digest}\n"
    run("rm", "x:1")
    store.gc()
    assert store.blob(image.digest).present
