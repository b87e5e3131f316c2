"""A check beside running importers, exporters, removers and collectors: no false alarm."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgdb.check.report import CheckOptions, Level
from tests.builder import Archive, Artifact, Image, Index, Layer, noise
from tests.tools.sample import ROOT

SECONDS = 5
LONGEST = 120  # on a machine with much else to do

# Each works until its standard input ends, and says how often it did what it is for.
WORKER = """
import random, sys, threading, time
from imgdb.errors import BusyError, ConflictError, NotFoundError
from imgdb.importer import commit
from imgdb.store import ImageStore
kind, root, batch, *archives = sys.argv[1:]
# Several transactions an import, as a large one has them.
commit.BATCH = int(batch)
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
store = ImageStore.open(root, durable=False)
chance, done = random.Random(kind), 0
while not ended.is_set():
    names = [image.record.display_name for image in store.images()]
    try:
        if kind.startswith("import"):
            store.load(chance.choice(archives))
        elif kind == "gc":
            store.gc()
        elif names and kind == "remove":
            store.remove(chance.choice(names), force=True)
        elif names:
            store.export([chance.choice(names)], root + "/../export.tar")
        done += 1
        with open(f"{root}/../did-{kind}", "w") as file:
            file.write("something")
        # Importers have more to do than the others: without pauses they would hardly get the lock.
        time.sleep(0 if kind.startswith("import") else chance.uniform(0, 0.1))
    except (BusyError, NotFoundError, ConflictError):
        pass
store.close()
print(done)
"""


@pytest.fixture
def archives(tmp_path):
    """Images that share layers, with signatures; one comes without its config first."""
    shared = Layer(noise(200_000), compression="none")
    images = [Image([shared, {f"own/{n}": noise(2000, n)}], labels={"n": str(n)}) for n in range(4)]
    index = Index(images[:2])
    signature = Artifact({"sig": b"s"}, subject=index)
    second = Artifact({"sig": b"t"}, subject=signature)
    made = [
        Archive().add(index, "app:1").add(images[2], "app:2").add(signature).add(second),
        Archive().add(images[0], "one:1").add(images[3], "one:2"),
        Archive().add(images[1], "app:1").add(images[3], "app:2"),
    ]
    return [archive.oci_tar(tmp_path / f"{n}.tar") for n, archive in enumerate(made)]


class Workers:
    """Processes that work on a store in the block, and must not have failed after it.

    Attributes:
        done: how often each did what it is for; known after the block.
    """

    def __init__(self, kinds, store, batch, archives):
        command = [sys.executable, "-c", WORKER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.done = {}
        self._did = [Path(store.root).parent / f"did-{kind}" for kind in kinds]
        self._processes = {
            kind: subprocess.Popen(
                [*command, kind, store.root, str(batch), *archives], cwd=ROOT, text=True, **pipes
            )
            for kind in kinds
        }

    def __enter__(self):
        return self

    def busy(self):
        """Yield as long as the test shall last: some seconds, and until each has done something."""
        begun = time.monotonic()
        while time.monotonic() < begun + SECONDS or not all(path.exists() for path in self._did):
            assert time.monotonic() < begun + LONGEST
            yield

    def __exit__(self, *_):
        for process in self._processes.values():
            process.stdin.close()
            process.stdin = None
        results = {kind: process.communicate(timeout=120) for kind, process in self._processes.items()}
        assert {kind: error for kind, (_, error) in results.items() if error} == {}
        self.done = {kind: int(out) for kind, (out, _) in results.items()}


@pytest.mark.parametrize("batch", [4000, 2])
def test_no_false_alarm(new_store, archives, batch):
    """Checks of every level, one after the other, while others change everything all the time."""
    store = new_store(garbage_files=True)
    store.load(archives[0])
    wrong, checks = [], 0
    with Workers(("import-1", "import-2", "remove", "gc", "export"), store, batch, archives) as workers:
        for _ in workers.busy():
            for level in Level:
                wrong += store.check(CheckOptions(level)).damage
                checks += 1
    assert wrong == []
    assert checks >= len(Level)
    assert all(workers.done.values()), workers.done
    assert store.check(CheckOptions(Level.FULL)).damage == ()


def test_repairs_beside_others(new_store, archives):
    """A repair that runs all the time finds nothing to repair and spoils nobody's work."""
    store = new_store(garbage_files=True)
    store.load(archives[0])
    findings = []
    with Workers(("import-1", "remove", "gc"), store, 4000, archives) as workers:
        for _ in workers.busy():
            report = store.check(CheckOptions(repair=True))
            findings += [finding for finding in report.findings if not finding.is_note]
    assert findings == []
    assert store.check(CheckOptions(Level.FULL)).damage == ()
