"""Six processes on one store, all at once: nobody fails, nothing is lost, nothing is left."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys

import pytest

from imgdb.check.report import CheckOptions, Level
from imgdb.db.sql import now_us
from tests.builder import Archive, Artifact, Attestation, Image, Index, Layer, noise
from tests.collecting import FULL
from tests.db.rows import Rows, open_shell
from tests.integrity import check_store
from tests.storming import KEPT
from tests.tools.sample import ROOT

KINDS = ("imports", "exports", "removes", "collects", "collects", "leases")
START_S = 120


@pytest.fixture
def archives(tmp_path):
    """Images that share layers, indexes, signatures; each moves the name that exporters ask for."""
    layers = [Layer({f"layer{n}": noise(3000, n)}) for n in range(5)]
    images = [Image(layers[n : n + 2]) for n in range(4)] + [Image(layers[:1], platform="linux/arm64")]
    index = Index([images[0], images[4], Attestation(images[0])])
    signature = Artifact({"sig": b"s"}, subject=index)
    second = Artifact({"sig": b"t"}, subject=signature)
    made = [
        Archive().add(index, "app:1", KEPT).add(signature).add(second),
        Archive().add(images[1], "one:1", KEPT).add(images[2]),
        Archive().add(images[3], "app:1").add(Index([index, images[2]]), "nested:1", KEPT),
        Archive().add(Artifact({"sbom": b"{}"}, subject=images[1])).add(images[1], "one:1"),
    ]
    return [archive.oci_tar(tmp_path / f"{n}.tar") for n, archive in enumerate(made)]


def storm(root, archives, seconds):
    """Let the processes work, and return the sums of what they did; none is left when this returns."""
    command = [sys.executable, "-m", "tests.storming"]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [
        subprocess.Popen(
            [*command, kind, str(root), str(seconds), str(seed), *archives], cwd=ROOT, text=True, **pipes
        )
        for seed, kind in enumerate(KINDS)
    ]
    try:
        outputs = [process.communicate(timeout=seconds + START_S) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    failed = [output for process, output in zip(running, outputs, strict=True) if process.returncode]
    assert failed == []
    assert [error for _, error in outputs if error] == []
    return sum((collections.Counter(json.loads(out)) for out, _ in outputs), collections.Counter())


@pytest.mark.parametrize("seconds", [10, pytest.param(60, marks=pytest.mark.deep)])
def test_storm(new_store, archives, capsys, seconds):
    """Every import and export ends well or with "busy"; the store is whole and empties to the last file."""
    store = new_store()
    store.load(archives[0])
    done = storm(store.root, archives, seconds)
    with capsys.disabled():
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(done.items()))
        sys.stdout.write(f"\n{seconds} s with {len(KINDS)} processes: {counts}\n")
    assert all(done[kind] for kind in ("import", "export", "remove", "tag", "gc", "lease", "renew"))

    assert store.check(CheckOptions(Level.FULL)).damage == ()
    rows = Rows(open_shell(f"{store.root}/imgdb.db"))
    rows.sql("UPDATE imgdb_leases SET expires_at = ?", now_us() - 1)
    store.gc(FULL)
    assert {str(digest) for digest, _ in store._blobs.walk()} == {
        digest for (digest,) in rows.sql("SELECT digest FROM imgdb_blobs WHERE present")
    }
    check_store(store)
    for image in store.images():
        store.remove(image.record.name, force=True)
    store.gc()
    assert rows.sql("SELECT digest FROM imgdb_blobs") == []
    assert rows.sql("SELECT digest FROM imgdb_doomed") == []
    rows.connection.close()
    assert [name for _, _, files in os.walk(os.path.join(store.root, "blobs")) for name in files] == []
