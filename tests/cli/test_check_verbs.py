"""``check`` and ``db check|backup|rebuild|upgrade|downgrade``: exit codes, lines and JSON."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing

import pytest

from imgdb.check.report import KINDS, CheckReport, Finding, Level, State
from imgdb.cli import findings
from imgdb.db import schema
from tests import damage
from tests.cli.conftest import AMD, BUSYBOX, NAMELESS, temporary_files

LAYER = BUSYBOX.layers[1].blob(docker=True)


@pytest.fixture
def flipped(root):
    """The path of a layer in which one bit is another."""
    path = root / LAYER.path
    damage.flip(path)
    return path


def lose_database(root):
    """The database is gone."""
    for name in ("imgdb.db", "imgdb.db-wal", "imgdb.db-shm"):
        (root / name).unlink(missing_ok=True)


@pytest.mark.parametrize("verb", ["check", "fsck"])
@pytest.mark.parametrize("options", [[], ["--quick"], ["--full"], ["--repair"]])
def test_clean(imgdb, verb, options):
    """Exit 0, no line of output, one note."""
    done = imgdb(verb, *options)
    assert (done.out, done.err.count("\n")) == ("", 1)
    assert done.err.endswith(": 0 findings\n")
    assert imgdb(verb, *options, "-q").err == ""


def test_damage(imgdb, flipped, stock, root):
    """Exit 3 as long as damage remains; a line has id, digest, images, and what to do or was done."""
    line = f"blob-damaged {LAYER.digest}: other bytes; images busybox:latest; "
    heal = "import an archive that has it, or run imgdb check --repair --from ARCHIVE\n"
    assert imgdb("check", code=3).out == line + heal
    assert imgdb("check", "--repair", code=3).out == f"{line}set aside; {heal}"
    assert not flipped.exists()
    out = imgdb("check", code=3).out.splitlines()
    assert out[0].startswith(f"blob-lost {LAYER.digest}: ")
    assert out[1].startswith(f"note: quarantined {root}/quarantine/sha256-")
    assert "; repaired" in imgdb("check", "--from", stock).out
    assert imgdb("check").out.startswith("note: quarantined ")
    shutil.rmtree(root / "quarantine")
    (root / "quarantine").mkdir()
    assert imgdb("check", "--full").out == ""


@pytest.mark.usefixtures("flipped")
def test_from_standard_input(imgdb, stock):
    """An archive may come through a pipe, and --from alone repairs."""
    with open(stock, "rb") as file:
        assert imgdb("check", "--from", "-", stdin=file.read()).code == 0
    assert imgdb("check").out == ""


@pytest.mark.usefixtures("flipped")
def test_importing_heals(imgdb, stock):
    """That is what the remedy says, and it is true."""
    imgdb("check", code=3)
    imgdb("import", stock)
    assert imgdb("check", "--full").out == ""


def test_json(imgdb, flipped, root):
    """One object; raw values."""
    (root / "blobs/sha256/README").write_text("?")
    report = json.loads(imgdb("check", "--json", code=3).out)
    assert (report["level"], report["complete"], report["damage"], report["left"]) == ("default", True, 1, 0)
    assert report["blobs"] == report["verified"]
    (finding,) = report["findings"]
    assert {key: finding[key] for key in ("id", "subject", "digest", "images", "detail", "state")} == {
        "id": "blob-damaged",
        "subject": LAYER.digest,
        "digest": LAYER.digest,
        "images": ["busybox:latest"],
        "detail": "other bytes",
        "state": "found",
    }
    assert [note["id"] for note in report["notes"]] == ["foreign-file"]
    assert json.loads(imgdb("check", "--json", "--quick", code=3).out)["level"] == "quick"
    damage.flip(flipped)
    assert imgdb("check", "--repair").code == 0
    (root / "blobs/sha256/README").unlink()


@pytest.mark.parametrize("limit", ["0", "0.5", "1m", "90s"])
def test_time_limits(imgdb, limit):
    """Plain seconds, or a duration."""
    done = imgdb("check", "--time-limit", limit, "--rate", "10MB/s", "--json")
    assert json.loads(done.out)["verified"] > 0


def test_no_time(imgdb):
    """What was not read is said; it is no damage."""
    done = imgdb("check", "--time-limit", "0", "--rate", "2000")
    assert "no time for" in done.err
    assert imgdb("check").err.endswith(": 0 findings\n")


@pytest.mark.parametrize(
    "options",
    [["--rate", "fast"], ["--rate", "0"], ["--time-limit", "soon"], ["--time-limit", "-1"], ["extra"]],
)
def test_usage(imgdb, options):
    """Exit 2 before anything is read."""
    done = imgdb("check", *options, code=2)
    assert (done.out, done.err.count("\n")) == ("", 1)


def test_progress(imgdb):
    """Phases and blobs on standard error, results on standard output."""
    done = imgdb("check", "--progress", "plain")
    assert f"verify {AMD.digest[:19]}… " in done.err
    assert done.out == ""


def test_lines_are_safe(imgdb, root):
    """What an attacker named does not steer the terminal."""
    (root / "blobs/sha256/\x1b[2J").write_text("?")
    out = imgdb("check").out
    assert out.startswith("note: foreign-file ")
    assert "\x1b" not in out
    (root / "blobs/sha256/\x1b[2J").unlink()


def test_many_images_are_counted():
    """A layer that everybody has does not fill the screen; JSON has all of them."""
    finding = Finding("blob-lost", "sha256:1", "gone", images=tuple(f"i{n}:1" for n in range(5)))
    assert "images i0:1, i1:1, i2:1 and 2 more; " in findings.line(finding)
    assert len(findings.record(finding)["images"]) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_words(kind):
    """Each line says what to do, until it is done."""
    finding = Finding(kind, "subject", "detail")
    assert findings.line(finding).endswith(KINDS[kind].remedy)
    mended = Finding(kind, "subject", "detail", state=State.REPAIRED)
    assert findings.line(mended).endswith("; repaired")
    assert findings.line(finding).startswith("note: ") == KINDS[kind].is_note
    report = CheckReport(Level.DEFAULT, (finding, mended))
    assert len(report.damage) == (0 if KINDS[kind].is_note else 1)


# -- db --------------------------------------------------------------------------------------------


def test_db_check(imgdb, root):
    """0 right, 4 not to be used as it is, 3 damaged."""
    assert imgdb("db", "check").out == ""
    with closing(sqlite3.connect(root / "imgdb.db")) as connection:
        connection.execute("DROP VIEW imgdb_v1_images")
    (line,) = imgdb("db", "check", code=4).out.splitlines()
    assert line.startswith("schema-wrong imgdb_v1_images: missing, foreign, or not as this imgdb makes it")
    assert line.endswith("; run imgdb db upgrade")
    (found,) = json.loads(imgdb("db", "check", "--json", code=4).out)
    assert found["id"] == "schema-wrong"
    imgdb("db", "upgrade")
    right = damage.spoil_index(root)
    assert imgdb("db", "check", code=3).out.startswith("database-damaged ")
    (root / "imgdb.db").write_bytes(right)


def test_db_backup(imgdb, root, tmp_path):
    """A note says what was written, and the copy is a database."""
    target = tmp_path / "copy.db"
    done = imgdb("db", "backup", target)
    assert (done.out, done.err) == ("", f"imgdb: {target} written, {done.err.rpartition(' ')[2]}")
    assert temporary_files(tmp_path) == []
    shutil.copytree(root, tmp_path / "other", ignore=shutil.ignore_patterns("imgdb.db*"))
    shutil.copy(target, tmp_path / "other" / "imgdb.db")
    assert imgdb("check", "--full", store=tmp_path / "other").out == ""
    assert "is the database itself" in imgdb("db", "backup", root / "imgdb.db", code=4).err
    assert imgdb("db", "backup", tmp_path / "no" / "folder", code=1).err.count("\n") == 1


def test_db_rebuild(imgdb, root):
    """A lost database: everything refuses and names the way out, which brings everything back."""
    before = imgdb(
        "images", "--digests", "--no-trunc", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}"
    ).out
    blobs = sorted(os.listdir(root / "blobs/sha256"))
    lose_database(root)
    for verb in (["images"], ["gc", "--full", "--grace", "0s"], ["check"], ["exists", "busybox"]):
        assert imgdb(*verb, code=4).err.endswith("run imgdb db rebuild to make them fit again\n")
    assert sorted(os.listdir(root / "blobs/sha256")) == blobs
    done = imgdb("db", "rebuild")
    assert done.out == ""
    assert f"{root}/imgdb.db: 4 names, 0 pins, " in done.err
    after = imgdb("images", "--digests", "--no-trunc", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}").out
    assert after == before
    assert imgdb("check", "--full").out == ""
    assert NAMELESS.digest in after


def test_db_rebuild_says_what_is_lost(imgdb, root, stock):
    """Exit 3, a line for each blob."""
    damage.truncate(root / LAYER.path)
    lose_database(root)
    assert imgdb("db", "rebuild", code=3).out == f"blob-lost {LAYER.digest}\n"
    imgdb("import", stock)
    assert imgdb("check", "--full").out == ""


def test_db_rebuild_says_what_it_set_aside(imgdb, root):
    """What was there, and names that are gone."""
    lose_database(root)
    (root / "imgdb.db").write_bytes(b"\xff" * 5000)
    done = imgdb("db", "rebuild")
    (aside,) = [name for name in os.listdir(root) if ".aside-" in name]
    assert f"the database that was there is in {root}/{aside}" in done.err
    (root / aside).unlink()
    assert "no store" in imgdb("db", "rebuild", store=root / "nothing", code=1).err


def test_db_downgrade(imgdb):
    """Where there is nothing to do, nothing happens; what is no revision is said."""
    assert imgdb("db", "downgrade", schema.HEAD).err == f"imgdb: schema {schema.HEAD}\n"
    assert "everything is lost" in imgdb("db", "downgrade", "base", code=4).err
    assert "no revision nonsense" in imgdb("db", "downgrade", "nonsense", code=2).err


def test_db_upgrade_says_where_the_copy_is(imgdb, root, monkeypatch):
    """On standard error, with the revisions."""
    from imgdb import upkeep  # noqa: PLC0415 - patched here alone

    done = upkeep.Migration("0000", schema.HEAD, f"{root}/imgdb.db.bak-0000")
    monkeypatch.setattr(upkeep, "upgrade_database", lambda *_: done)
    said = (
        f"imgdb: the database as it was is in {root}/imgdb.db.bak-0000\nimgdb: schema 0000 -> {schema.HEAD}\n"
    )
    assert imgdb("db", "upgrade").err == said


def test_an_archive_that_is_not_there(imgdb):
    """Said on a whole store too: a typing error must not wait for the day of damage."""
    done = imgdb("check", "--from", "nofile.tar", code=1)
    assert done.err == "imgdb: error: nofile.tar: no such file or directory\n"


def test_db_check_without_a_database(imgdb, root):
    """Exit 4 and the way out, as from every other verb."""
    for name in ("imgdb.db", "imgdb.db-wal", "imgdb.db-shm"):
        (root / name).unlink(missing_ok=True)
    done = imgdb("db", "check", code=4)
    assert "no such database; run imgdb db rebuild" in done.err
    imgdb("db", "rebuild")


@pytest.mark.parametrize("arguments", [["db", "backup"], ["gc", "--textfile"]])
def test_a_folder_that_is_not_there(imgdb, tmp_path, arguments):
    """The message has the name that was given."""
    path = tmp_path / "nofolder" / "file"
    done = imgdb(*arguments, path, code=1)
    assert done.err == f"imgdb: error: {path}: No such file or directory\n"
