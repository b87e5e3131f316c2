"""One process of `test_storm`: does one kind of work on a store until its time is over.

    python -m tests.storming KIND STORE SECONDS SEED ARCHIVE…

Prints a JSON object: how often what was done. Anything but a clean "busy" is an exception and the end,
except for those who remove names or end leases, whom others may have forestalled.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import pkgutil
import random
import sys
import tarfile
import time
from unittest import mock

from imgdb import ImageStore, ImportOptions
from imgdb.errors import BusyError, ConflictError, NotFoundError, RefusedError
from imgdb.gc import GcOptions
from imgdb.importer import commit

KEPT = "example.org/keep:1"
PAUSE_S = 0.05
LINGER_S = 0.1
# What others did first; the lease of a running command is not for others to end.
EXPECTED = {"removes": (NotFoundError, ConflictError), "leases": (NotFoundError, RefusedError)}


def read_back(data):
    """An archive as any other tool would read it: every blob has its digest, every image is whole."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        bodies = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
    for name, body in bodies.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(body).hexdigest() == name.rpartition("/")[2], name
    pending = json.loads(bodies["index.json"])["manifests"]
    while pending:
        descriptor = pending.pop()
        body = bodies["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(body) == descriptor["size"]
        if "manifest" in descriptor["mediaType"] or "index" in descriptor["mediaType"]:
            document = json.loads(body)
            pending += [*document.get("manifests", ()), *document.get("layers", ())]
            pending += [document["config"]] if "config" in document else []


class Worker:
    """What the kinds of work have in common."""

    def __init__(self, root, seed, archives):
        self.store = ImageStore.open(root, durable=False)
        self.chance = random.Random(seed)  # noqa: S311 - to be repeated, nothing secret
        self.archives = archives
        self.done = collections.Counter()

    def lingering(self, place):
        """Stay for a moment where rows and files don't go together: others shall find it so."""
        real = pkgutil.resolve_name(place)

        def late(*args, **kwargs):
            time.sleep(self.chance.uniform(0, LINGER_S))
            return real(*args, **kwargs)

        return mock.patch(place, late)

    def imports(self):
        """Names move, or their images become dangling; now and then in many transactions."""
        options = ImportOptions(replace=self.chance.choice(["dangle", "replace", "replace"]))
        with (
            mock.patch.object(commit, "BATCH", self.chance.choice([2, commit.BATCH])),
            self.lingering("imgdb.store.commit"),
        ):
            self.store.load(self.chance.choice(self.archives), options)
        return "import"

    def exports(self):
        """All images, or one whose name always exists and moves all the time."""
        out = io.BytesIO()
        self.store.export([KEPT], out, every=self.chance.random() < 0.5)
        read_back(out.getvalue())
        return "export"

    def removes(self):
        """All names of an image, one by one; or gives another name."""
        names = {image.record.name: image.record.target.digest for image in self.store.images()}
        chosen = self.chance.choice(list(names))
        if self.chance.random() < 0.2 or chosen == KEPT:
            self.store.tag(chosen, f"example.org/other:{self.chance.randrange(3)}")
            return "tag"
        for name, digest in names.items():
            if digest == names[chosen] and name != KEPT:
                self.store.remove(name, force=True)
        if self.chance.random() < 0.5:
            self.store.reclaim()
        return "remove"

    def collects(self):
        """As cron does, as an admin does, or not to the end."""
        few = GcOptions(max_delete=self.chance.randrange(1, 5))
        with self.lingering("imgdb.gc.Collector._files"):
            result = self.store.gc(self.chance.choice([GcOptions(), GcOptions(), GcOptions(full=True), few]))
        self.done["freed blobs"] += len(result.freed)
        return "gc"

    def leases(self):
        """Of anything, for moments; renewed or dropped by whoever comes along."""
        known = [lease.id for lease in self.store.leases()]
        if known and self.chance.random() < 0.5:
            lease = self.chance.choice(known)
            if self.chance.random() < 0.5:
                self.store.renew_lease(lease, self.chance.uniform(0.001, 0.3))
            else:
                self.store.remove_lease(lease)
            return "renew"
        digests = [str(blob.digest) for blob in self.store.blobs()] or ["sha256:" + "0" * 64]
        some = self.chance.sample(digests, min(3, len(digests)))
        if self.chance.random() < 0.2:
            with self.store.lease(expires_s=0.01) as block:
                block.add(*some)
        else:
            soon, flat = self.chance.uniform(0.001, 0.3), self.chance.random() < 0.4
            self.store.add_to_lease(self.store.create_lease(expires_s=soon, flat=flat).id, some)
        return "lease"

    def work(self, kind, seconds):
        """Until the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                self.done[getattr(self, kind)()] += 1
            except BusyError:
                self.done[f"busy {kind}"] += 1
            except EXPECTED.get(kind, ()):
                self.done["too late"] += 1
            # Importers have most to do: without pauses of the others they would hardly get the lock.
            time.sleep(0 if kind == "imports" else self.chance.uniform(0, PAUSE_S))
        self.store.close()


def main():
    """Command line."""
    kind, root, seconds, seed, *archives = sys.argv[1:]
    worker = Worker(root, seed, archives)
    worker.work(kind, float(seconds))
    sys.stdout.write(json.dumps(worker.done))


if __name__ == "__main__":
    main()
