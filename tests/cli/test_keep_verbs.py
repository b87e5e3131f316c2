"""``gc``, ``why``, ``df``, ``prune`` as users and cron jobs type them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import subprocess
import sys

import pytest

from imgdb.cli.printable import human_size
from imgdb.store import ImageStore
from tests.builder import Archive
from tests.cli.conftest import AMD, APP, ARM, BUSYBOX, NAMELESS, SIGNATURE
from tests.looking import digests
from tests.tools.sample import ROOT

EVERYTHING = digests(APP, BUSYBOX, NAMELESS, SIGNATURE)
LINES = r"imgdb_(\w+) (\S+)\n"


def size_of(*nodes):
    """Bytes of everything at and below some nodes."""
    return sum({blob.digest: blob.size for node in nodes for blob in node.blobs().values()}.values())


@pytest.fixture
def garbage(imgdb):
    """The stock without its index, which is garbage with its signature."""
    for tag in (1, 2):
        imgdb("rm", "--no-gc", f"example.org/app:{tag}")
    return imgdb


# -- gc ------------------------------------------------------------------------------------------


def test_gc(garbage):
    """One line for people; again, and there is nothing left."""
    gone, kept = size_of(APP, SIGNATURE), size_of(BUSYBOX, NAMELESS)
    count = len(digests(APP, SIGNATURE))
    line = f"{count} blobs, {human_size(gone)}; kept {human_size(kept)}\n"
    assert garbage("gc", "-n") == (0, f"would free {line}", "")
    assert garbage("gc") == (0, f"freed {line}", "")
    assert garbage("gc").out == f"freed 0 blobs, 0B; kept {human_size(kept)}\n"


def test_gc_json(garbage):
    """A dry run and a run say the same, but for what only a run can know."""
    planned = json.loads(garbage("gc", "--dry-run", "--json").out)
    done = json.loads(garbage("gc", "--json").out)
    assert (planned.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert planned.pop("duration_s") == 0
    assert done.pop("duration_s") > 0
    assert planned == done
    assert done["freed_bytes"] == size_of(APP, SIGNATURE)
    assert done["kept_bytes"] == size_of(BUSYBOX, NAMELESS)
    assert done["freed_blobs"] == len(done["blobs"])
    assert set(done["blobs"]) == digests(APP, SIGNATURE)
    assert (done["freed_snapshots"], done["expired_leases"], done["remaining_bytes"]) == (0, 0, 0)
    assert (done["complete"], done["foreign"]) == (True, [])


def test_gc_stops_early_and_goes_on(garbage):
    """And says so."""
    report = json.loads(garbage("gc", "--max-delete", "2", "--json").out)
    assert (report["freed_blobs"], report["complete"]) == (2, False)
    assert report["remaining_bytes"] == size_of(APP, SIGNATURE) - report["freed_bytes"]
    assert garbage("gc", "--max-delete", "1").out.endswith("; stopped early, run gc again\n")
    assert "stopped" not in garbage("gc", "--time-limit", "1h").out
    for wrong in (["--max-delete", "0"], ["--time-limit", "soon"], ["--grace", "-1h"]):
        garbage("gc", *wrong, code=2)


def test_gc_full(garbage, root):
    """Files that nobody knows go after the grace; foreign ones are named on standard error and stay."""
    unknown = root / "blobs/sha256" / ("0" * 64)
    unknown.write_bytes(b"nobody's")
    foreign = root / "blobs/README"
    foreign.write_text("mine")
    garbage("gc", "--full")
    assert unknown.exists()
    outcome = garbage("gc", "--full", "--grace", "0s")
    assert outcome.out.startswith("freed 1 blob, 8B; ")
    assert outcome.err == f"imgdb: {foreign} is no blob and was left alone\n"
    assert not unknown.exists()
    assert json.loads(garbage("gc", "--full", "--json").out)["foreign"] == [str(foreign)]
    assert garbage("-q", "gc", "--full").err == ""
    foreign.unlink()


def test_gc_explain(garbage, root):
    """A line for each blob: why it goes, or what keeps it."""
    layer = AMD.layers[0].blob().digest
    with ImageStore.open(root, durable=False) as store:
        store.create_lease("flat", flat=True)
        store.add_to_lease("flat", [layer])
    lines = garbage("gc", "-n", "--explain").out.splitlines()[:-1]
    said = dict(re.fullmatch(r"\w+ (sha256:\w+)(?: \(\S+\))?: (.*)", line).groups() for line in lines)
    verbs = {line.split()[1].rstrip(":"): line.split()[0] for line in lines}
    gone = digests(APP, SIGNATURE) - {layer}
    assert {digest for digest, verb in verbs.items() if verb == "freed"} == gone
    assert {said[digest] for digest in gone} == {"no image, lease or document needs it"}
    assert said[BUSYBOX.digest] == said[BUSYBOX.config.digest] == "image busybox:latest"
    assert said[NAMELESS.digest] == f"dangling image {NAMELESS.digest}"
    assert said[layer] == "flat lease flat"
    assert verbs.keys() == EVERYTHING
    outcome = garbage("gc", "--explain", "--json")
    assert set(json.loads(outcome.out)["blobs"]) == gone
    assert sorted(outcome.err.splitlines()) == sorted(lines)
    garbage("lease", "rm", "flat")
    garbage("gc")


def test_gc_textfile(garbage, tmp_path):
    """Metrics that node_exporter reads: in one step, readable for all, and not by a dry run."""
    path = tmp_path / "imgdb.prom"
    garbage("gc", "-n", "--textfile", path)
    assert not path.exists()
    garbage("gc", "--textfile", path)
    text = path.read_text()
    values = {name: float(value) for name, value in re.findall(rf"^{LINES}", text, re.MULTILINE)}
    assert values.keys() == {
        "gc_last_success_timestamp_seconds",
        "gc_duration_seconds",
        "gc_freed_bytes",
        "gc_freed_blobs",
        "gc_remaining_bytes",
        "store_bytes",
    }
    assert values["gc_freed_bytes"] == size_of(APP, SIGNATURE)
    assert values["gc_freed_blobs"] == len(digests(APP, SIGNATURE))
    assert values["store_bytes"] == size_of(BUSYBOX, NAMELESS)
    assert -2 < os.stat(path).st_mtime - values["gc_last_success_timestamp_seconds"] < 60
    for name in values:
        assert f"# HELP imgdb_{name} " in text
        assert f"# TYPE imgdb_{name} gauge\n" in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    garbage("gc", "--textfile", path)
    assert "imgdb_gc_freed_bytes 0\n" in path.read_text()
    assert [name for name in os.listdir(tmp_path) if name.startswith("imgdb.prom")] == ["imgdb.prom"]


def test_gc_beside_another(garbage, root, tmp_path):
    """Busy, exit 75, which cron takes for success; metrics of the last good run stay. rm goes on without."""
    with open(root / "gc-run.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = garbage("gc", "--textfile", tmp_path / "imgdb.prom", code=75)
        assert outcome.err == "imgdb: error: another gc is running on this store; try again later\n"
        assert not (tmp_path / "imgdb.prom").exists()
        assert garbage("rm", "busybox").out.startswith("Untagged: busybox:latest\n")
        assert "reclaimed space: 0B" in garbage("prune", "-f").out
    assert garbage("gc").out.startswith(f"freed {len(EVERYTHING)} blobs, ")


# -- why -----------------------------------------------------------------------------------------


def test_why(imgdb):
    """A line for each root."""
    layer = ARM.layers[0].blob().digest
    way = f"index {APP.digest} -> manifest {ARM.digest} -> layer {layer}\n"
    expected = "".join(f"image example.org/app:{tag} -> {way}" for tag in (1, 2))
    assert imgdb("why", layer) == (0, expected, "")
    assert imgdb("why", layer[7:19]).out == expected
    assert imgdb("why", "busybox").out == f"image busybox:latest -> manifest {BUSYBOX.digest}\n"
    assert imgdb("why", "nothing:1", code=1).err == "imgdb: error: No such image: nothing:1\n"


def test_why_of_garbage(garbage):
    """Since when, and what the next gc frees."""
    line = garbage("why", APP.digest).out
    said = re.fullmatch(rf"{APP.digest} is garbage since (\S+); the next gc frees (\S+)\n", line)
    assert said[2] == human_size(APP.blob.size)
    answer = json.loads(garbage("why", "--json", APP.digest).out)
    assert answer["garbage_since"] == said[1]
    assert (answer["ways"], answer["present"], answer["size"]) == ([], True, APP.blob.size)


def test_why_json(imgdb):
    """The same with raw values."""
    answer = json.loads(imgdb("why", "--json", BUSYBOX.config.digest).out)
    assert (answer["digest"], answer["garbage_since"]) == (BUSYBOX.config.digest, None)
    steps = [
        {"digest": BUSYBOX.digest, "kind": "manifest", "role": ""},
        {"digest": BUSYBOX.config.digest, "kind": "config", "role": "config"},
    ]
    assert answer["ways"] == [{"root": {"kind": "image", "name": "busybox:latest"}, "steps": steps}]


# -- df ------------------------------------------------------------------------------------------


def test_df(garbage):
    """Docker's columns; what would be freed, exactly."""
    garbage("pin", "busybox")
    table = [re.split(r" {3,}", line) for line in garbage("df").out.splitlines()]
    kept, gone = size_of(BUSYBOX, NAMELESS), size_of(APP, SIGNATURE)
    assert table == [
        ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"],
        ["Images", "2", "1", human_size(kept), human_size(size_of(NAMELESS))],
        [
            "Blobs",
            str(len(EVERYTHING)),
            str(len(digests(BUSYBOX, NAMELESS))),
            human_size(kept + gone),
            human_size(gone),
        ],
        ["Snapshots", "0", "0", "0B", "0B"],
    ]
    records = json.loads(garbage("df", "--format", "json").out)
    assert [record["reclaimable"] for record in records] == [size_of(NAMELESS), gone, 0]
    shown = garbage("df", "--format", "{{.Type}} {{.TotalCount}} {{.Size}} {{.Reclaimable}}").out.splitlines()
    assert shown[0] == f"Images 2 {human_size(kept)} {human_size(size_of(NAMELESS))}"
    garbage("unpin", "busybox")


def test_df_verbose(imgdb):
    """Shared and unique sizes of each name."""
    records = {r["name"]: r for r in json.loads(imgdb("df", "-v", "--format", "json").out)}
    assert records.keys() == {"busybox:latest", "example.org/app:1", "example.org/app:2", NAMELESS.digest}
    assert records["busybox:latest"] == {
        "name": "busybox:latest",
        "digest": BUSYBOX.digest,
        "size": size_of(BUSYBOX),
        "shared_size": 0,
        "unique_size": size_of(BUSYBOX),
        "used": False,
    }
    assert imgdb("df", "-v").out.startswith("NAME ")


# -- prune ---------------------------------------------------------------------------------------


def test_prune(imgdb):
    """Dangling images; the dry run's list is what is then deleted."""
    planned = imgdb("prune", "-n").out
    done = imgdb("prune", "--force").out
    assert done == f"Deleted: {NAMELESS.digest}\nTotal reclaimed space: {human_size(size_of(NAMELESS))}\n"
    words = {"Would be deleted": "Deleted", "Would reclaim": "Total reclaimed space"}
    for word, meant in words.items():
        planned = planned.replace(word, meant)
    assert planned == done
    assert imgdb("prune", "-f").out == "Total reclaimed space: 0B\n"


def test_prune_all(imgdb):
    """Everything that nobody uses must be meant; names and IDs are said as rm says them."""
    assert "--yes-all" in imgdb("prune", "-a", "-f", code=2).err
    imgdb("pin", "busybox")
    done = json.loads(imgdb("prune", "-a", "--yes-all", "-n", "--json").out)
    out = imgdb("image", "prune", "-a", "--yes-all", "-f").out
    deleted = sorted([APP.digest, NAMELESS.digest])
    assert out.splitlines() == [
        "Untagged: example.org/app:1",
        "Untagged: example.org/app:2",
        *(f"Deleted: {digest}" for digest in deleted),
        f"Total reclaimed space: {human_size(size_of(APP, NAMELESS, SIGNATURE))}",
    ]
    assert done["deleted"] == deleted
    assert done["freed_bytes"] == size_of(APP, NAMELESS, SIGNATURE)
    assert {image["digest"] for image in done["images"]} == set(deleted)
    assert imgdb("images", "-q").out.splitlines() == [BUSYBOX.digest[7:19]]
    imgdb("unpin", "busybox")


def test_prune_one_of_two_names(imgdb):
    """The image stays by its other name: untagged, and nothing deleted."""
    out = imgdb("prune", "-a", "-f", "--filter", "reference=example.org/app:1").out
    assert out == "Untagged: example.org/app:1\nTotal reclaimed space: 0B\n"


@pytest.mark.parametrize(
    ("filters", "gone"),
    [
        (["label=stage=prod"], {"example.org/app:1", "example.org/app:2"}),
        (["label!=stage"], {NAMELESS.digest}),
        (["label=stage", "label!=team"], {"busybox:latest"}),
        (["until=1h"], set()),
        (["until=2000-01-01"], set()),
        (["reference=busybox"], {"busybox:latest"}),
        (["last-used=1h"], set()),
    ],
)
def test_prune_filters(imgdb, filters, gone):
    """Each with --all, which they make safe."""
    options = [word for filter_ in filters for word in ("--filter", filter_)]
    listed = json.loads(imgdb("prune", "-a", "-n", "--json", *options).out)["images"]
    names = {
        image["name"].removeprefix("docker.io/library/").removeprefix("moby-dangling@") for image in listed
    }
    assert names == gone


@pytest.mark.parametrize("filter_", ["until", "color=red", "until=soon"])
def test_wrong_prune_filters(imgdb, filter_):
    """Usage errors; nothing is removed."""
    imgdb("prune", "-a", "-f", "--filter", filter_, code=2)
    assert imgdb("exists", "busybox")


def test_prune_without_gc(imgdb):
    """Names only; a collection frees the rest later."""
    assert imgdb("prune", "-f", "--no-gc").out.endswith("Total reclaimed space: 0B\n")
    assert imgdb("gc").out.startswith(f"freed {len(digests(NAMELESS))} blobs")


def test_prune_asks(started, imgdb):
    """Only who can answer: without a terminal it wants --force."""
    assert "--force" in imgdb("prune", code=2).err
    process = started("prune", stdin=0)
    assert process.wait(60) == 2
    assert json.loads(imgdb("prune", "-n", "--json").out)["images"] != []


def test_cron(imgdb, tmp_path):
    """What the crontab line runs: prune what is old, then gc, whatever there is to do."""
    old = Archive().add(AMD, "busybox:latest").oci_tar(tmp_path / "old.tar")
    imgdb("import", old)
    imgdb("prune", "--filter", "until=168h", "-f")
    imgdb("gc")
    assert imgdb("exists", BUSYBOX.digest)
    imgdb("prune", "--filter", "until=0s", "-f")
    imgdb("exists", BUSYBOX.digest, code=1)


def commands_of(name):
    """The commands that one of the shipped files runs."""
    lines = (ROOT / "scripts" / name).read_text(encoding="utf-8").splitlines()
    if name == "crontab":
        return [line.split(maxsplit=5)[5] for line in lines if line and not line.startswith("#")]
    return [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("name", ["crontab", "systemd/imgdb-gc.service"])
def test_the_shipped_lines_run(imgdb, root, monkeypatch, name, busy):
    """As cron and systemd run them; that another collection runs is no failure."""
    monkeypatch.setenv("IMGDB_STORE", str(root))
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    fine = {0, 75} if name.endswith(".service") else {0}
    commands = commands_of(name)
    assert commands
    with open(root / "gc-run.lock", "ab") as lock:
        if busy:
            fcntl.flock(lock, fcntl.LOCK_EX)
        ends = [subprocess.run(["sh", "-c", command], check=False).returncode for command in commands]
    assert set(ends) <= fine
    assert (75 in ends) == (busy and 75 in fine)
    assert imgdb("exists", NAMELESS.digest)
    documented = (ROOT / "docs" / "cron.md").read_text(encoding="utf-8")
    assert name != "crontab" or commands[0] in documented
