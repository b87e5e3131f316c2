"""``imgdb completion``: what the shells ask, and bash's own function with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

NAMES = ["busybox:latest", "example.org/app:1", "example.org/app:2"]


@pytest.fixture
def asked(imgdb, monkeypatch):
    """`asked("export bus")`: what bash is told, as (kind, value), for a line behind `imgdb --store ROOT`."""

    def ask(line, code=0, form="bash", **environment):
        monkeypatch.setenv("_IMGDB_COMPLETE", f"{form}_complete")
        monkeypatch.setenv("_IMGDB_LINE", f"imgdb --store {imgdb.root} {line}")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = imgdb(code=code)
        assert done.err == ""
        return [tuple(item.split(",", 1)) for item in done.out.splitlines()] if form == "bash" else done.out

    return ask


def values(answers):
    """The plain ones."""
    return [value for kind, value in answers if kind == "plain"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ex", ["export", "exists"]),
        ("sa", ["save"]),
        ("image l", ["load", "ls", "list"]),
        ("blob ", ["cat", "ls", "stat"]),
        ("export --no-", ["--no-referrers"]),
        ("export --format ", ["oci-archive", "docker-archive", "oci-dir"]),
        ("export --format=d", ["docker-archive"]),
        ("--progress p", ["plain"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("images --sort la", ["last-used"]),
        ("export ", NAMES),
        ("export exa", NAMES[1:]),
        ("export example.org/app:", NAMES[1:]),
        ("export busybox:latest example.org/app:2", ["example.org/app:2"]),
        ("inspect bus", ["busybox:latest"]),
        ("tag bus", ["busybox:latest"]),
        ("rm nosuch", []),
        ('export "bus', ["busybox:latest"]),
    ],
)
def test_answers(asked, line, expected):
    """Verbs with their aliases, options, values, and names of images."""
    assert values(asked(line)) == expected


@pytest.mark.parametrize(
    ("line", "kind"), [("import ", "file"), ("export -o ", "file"), ("export --names-from ", "file")]
)
def test_files(asked, line, kind):
    """The shell itself completes those."""
    assert asked(line) == [(kind, "")]


def test_hidden_options_are_not_offered(asked):
    """Every verb takes -q, but only those offer it where it matters."""
    assert "--quiet" not in values(asked("tag --"))
    assert "--quiet" in values(asked("export --"))


def test_all_verbs(asked):
    """With nothing typed, everything there is."""
    assert {"export", "save", "images", "ls", "db", "completion"} <= set(values(asked("")))


def test_trouble_is_silent(asked, imgdb, tmp_path):
    """A broken store, an unknown shell: no completions, and no word into the prompt."""
    (imgdb.root / "index.json").write_text("{")
    assert values(asked("export ")) == []
    assert asked("export ", form="tcsh", code=1) == ""
    (imgdb.root / "index.json").unlink()
    assert values(asked("export ")) == []
    os.rename(imgdb.root, tmp_path / "spoiled")
    assert values(asked("export ")) == []


def test_names_of_the_log(asked, imgdb):
    """In large stores changes of names are in a log; torn lines are ignored."""
    lines = [{"name": "docker.io/library/new:1", "descriptor": {}}]
    lines.append({"name": "docker.io/library/busybox:latest", "descriptor": None})
    lines.append({"name": None, "descriptor": {}})
    log = imgdb.root / "names.log"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"name": "docker.io/to')
    assert values(asked("export ")) == ["example.org/app:1", "example.org/app:2", "new:1"]
    log.unlink()


def test_zsh_and_fish(asked):
    """Their forms of the question and the answer."""
    words = {"COMP_WORDS": "imgdb exp", "COMP_CWORD": "1"}
    assert asked("", form="zsh", **words) == "plain\nexport\nWrite images to one archive (docker save).\n"
    words["COMP_CWORD"] = "exp"
    assert asked("", form="fish", **words) == "plain,export\tWrite images to one archive (docker save).\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts(imgdb, shell):
    """A script that asks `imgdb`."""
    script = imgdb("completion", shell).out
    assert f"_IMGDB_COMPLETE={shell}_complete" in script
    assert script.endswith("\n")


@pytest.fixture
def bash(imgdb, tmp_path):
    """`bash("imgdb export bus")`: what bash would offer for a line."""
    (tmp_path / "imgdb").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m imgdb --store "{imgdb.root}" "$@"\n'
    )
    (tmp_path / "imgdb").chmod(0o755)
    script = imgdb("completion", "bash").out

    def offer(line, breaks=""):
        code = f"""{script}
            compopt() {{ echo "compopt $*"; }}
            COMP_WORDBREAKS=$' \\t\\n{breaks}' COMP_LINE=$1 COMP_POINT=${{#1}}
            _imgdb_completion imgdb
            printf '%s\\n' "${{COMPREPLY[@]}}" """
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "IMGDB_STORE": str(imgdb.root),
        }
        done = subprocess.run(
            ["bash", "--norc", "-c", code, "bash", line],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.split("\n")[:-1]

    return offer


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "breaks", "offered"),
    [
        ("imgdb exp", "", ["export"]),
        ("imgdb export example.org/app:", "", NAMES[1:]),
        ("imgdb export example.org/app:", ":", ["1", "2"]),
        ("imgdb export --format=oci-d", "=:", ["oci-dir"]),
        ("imgdb export -o ", ":", ["compopt -o default", ""]),
        ("imgdb export nosuch", "", [""]),
    ],
)
def test_bash(bash, line, breaks, offered):
    """Readline replaces what follows the last break, so after a colon only the tag may be offered."""
    assert bash(line, breaks) == offered


def test_no_glob_is_expanded(bash, tmp_path, monkeypatch):
    """What is offered is text, also where it looks like a pattern."""
    monkeypatch.chdir(tmp_path)
    assert bash("imgdb export [a-z]*") == [""]
