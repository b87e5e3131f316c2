"""What must hold for every store between two operations; run after each test that wrote.

`check_store` looks at the files and at the database with sqlite3 alone, and derives everything a
second time: hashes from the files, edges from the documents, counters from the edges. Of imgdb it
uses `spec.read_document`, which is the definition of an edge, and nothing that writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
from collections import Counter, defaultdict
from pathlib import Path

from blake3 import blake3

from imgdb.oci import spec
from imgdb.oci.digest import Digest
from imgdb.oci.spec import Descriptor

TEXT_LIMIT = 4 << 20
DOCUMENTS = ("manifest", "index")
PIN = "io.imgdb.pinned"
PASSING = ("ingest", "holds", "trash")
FILES = {
    *PASSING,
    *("store.json", "oci-layout", "index.json", "names.log", "gc.lock", "gc-run.lock", "index.lock"),
    *("imgdb.db", "imgdb.db-wal", "imgdb.db-shm", "index.db", "reserve", "blobs", "quarantine", "snapshots"),
}
PLAIN_COLUMNS = ("media_type", "size", "artifact_type", "os", "architecture", "variant", "os_version")
JSON_COLUMNS = ("annotations", "urls", "os_features")


class IntegrityError(AssertionError):
    """A store is not what it should be; the message lists everything found."""


def check_store(store, *, leases=(), garbage_files=False):
    """Compare a store with itself.

    Args:
        store: an open `ImageStore` at rest.
        leases: ids of leases that the test made.
        garbage_files: whether files that no row knows are expected (a crash was played).

    Raises:
        IntegrityError: with one line for each thing that is wrong.
    """
    with contextlib.closing(sqlite3.connect(f"file:{store.root}/imgdb.db?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        found = _Checker(Path(store.root), db).all(set(leases), garbage_files=garbage_files)
    if found:
        raise IntegrityError("\n".join(["the store is not whole:", *found]))


class _Checker:
    """One pass over a store; each method returns what it found wrong."""

    def __init__(self, root, db):
        self.root = root
        self.db = db
        self.blobs = {row["id"]: row for row in db.execute("SELECT * FROM imgdb_blobs")}
        self.ids = {row["digest"]: row["id"] for row in self.blobs.values()}
        self.whole = set()  # ids of blobs whose bytes are right; filled by `files`
        self.edges = [dict(row) for row in db.execute("SELECT * FROM imgdb_descriptors")]

    def all(self, leases, *, garbage_files):
        return [
            *self.sqlite(),
            *self.leftovers(leases),
            *self.files(garbage_files=garbage_files),
            *self.documents(),
            *self.referrers(),
            *self.counters(),
            *self.layers(),
            *self.names(),
            *self.pair(),
            *self.snapshots(),
        ]

    def sqlite(self):
        yield from (row[0] for row in self.db.execute("PRAGMA integrity_check") if row[0] != "ok")
        yield from (f"foreign key: {tuple(row)}" for row in self.db.execute("PRAGMA foreign_key_check"))

    def leftovers(self, leases):
        for folder in PASSING:
            yield from (f"left over: {folder}/{name}" for name in os.listdir(self.root / folder))
        yield from (f"stray file: {name}" for name in os.listdir(self.root) if name not in FILES)
        there = {
            row["id"] for row in self.db.execute("SELECT * FROM imgdb_leases") if PIN not in row["labels"]
        }
        yield from (f"lease left over: {lease}" for lease in there ^ leases)

    def files(self, *, garbage_files):
        """Rows are a subset of the files; what else lies there is doomed."""
        there = {f"{path.parent.name}:{path.name}": path for path in (self.root / "blobs").glob("*/*")}
        for row in self.blobs.values():
            path = there.pop(row["digest"], None) if row["present"] else None
            if row["present"] and path is None:
                yield f"{row['digest']} is present but has no file"
            elif path is not None and row["damaged_at"] is None:
                found = list(self.file(row, path))
                if not found:
                    self.whole.add(row["id"])
                yield from found
        doomed = {row[0] for row in self.db.execute("SELECT digest FROM imgdb_doomed")}
        if not garbage_files:
            yield from (f"file without a row: {digest}" for digest in there if digest not in doomed)

    def file(self, row, path):
        data, status = path.read_bytes(), path.lstat()
        algorithm, _, hexdigits = row["digest"].partition(":")
        if len(data) != row["size"] or hashlib.new(algorithm, data).hexdigest() != hexdigits:
            yield f"{row['digest']}: the file has other bytes"
        if row["blake3"] not in {None, blake3(data).hexdigest()}:
            yield f"{row['digest']}: blake3 is another"
        if row["verified_at"] is not None and row["ctime_ns"] != status.st_ctime_ns:
            yield f"{row['digest']}: ctime is another"
        if stat.S_IMODE(status.st_mode) not in {0o400, 0o440} or not stat.S_ISREG(status.st_mode):
            yield f"{row['digest']}: mode {status.st_mode:o}"

    def bytes_of(self, row):
        return (self.root / "blobs" / row["digest"].replace(":", "/")).read_bytes()

    def read(self, row):
        """The document of a row, or None when it is not here."""
        if row["id"] not in self.whole:
            return None
        size = row["size"]
        reference = Descriptor(row["media_type"], Digest.parse(row["digest"]), size)
        return spec.read_document(self.bytes_of(row), reference)

    def documents(self):
        """Edges and texts are those of the bytes; what is named or counted is expanded."""
        recorded = defaultdict(dict)
        for edge in self.edges:
            if edge["role"] != "referrer":
                recorded[edge["parent_id"]][edge["role"], edge["position"]] = self.flat(edge)
        for row in self.blobs.values():
            document = self.read(row) if row["kind"] in DOCUMENTS else None
            if document is not None and document.kind.value != row["kind"]:
                yield f"{row['digest']} is no {row['kind']}"
            if document is not None and row["refcount"] and not row["expanded"]:
                yield f"{row['digest']} is a {row['kind']} in use and not expanded"
            derived = {} if document is None or not row["expanded"] else self.derived(document)
            known = document is not None or not row["expanded"]
            if known and recorded.get(row["id"], {}) != derived:
                yield f"{row['digest']}: other edges than its bytes have"
            yield from self.text(row)

    def derived(self, document):
        return {(edge.role.value, edge.position): self.expected(edge.child) for edge in document.edges}

    def expected(self, child):
        platform = child.platform
        values = {
            "media_type": child.media_type,
            "size": child.size,
            "artifact_type": child.artifact_type or None,
            "annotations": dict(child.annotations) or None,
            "urls": list(child.urls) or None,
            "os": platform and platform.os,
            "architecture": platform and platform.architecture,
            "variant": platform and (platform.variant or None),
            "os_version": platform and (platform.os_version or None),
            "os_features": platform and (list(platform.os_features) or None),
        }
        return str(child.digest), values

    def flat(self, edge):
        values = {name: edge[name] for name in PLAIN_COLUMNS}
        values |= {name: edge[name] and json.loads(edge[name]) for name in JSON_COLUMNS}
        return self.blobs[edge["child_id"]]["digest"], values

    def text(self, row):
        found = self.db.execute("SELECT json FROM imgdb_documents WHERE blob_id = ?", [row["id"]]).fetchone()
        if found is not None and row["id"] in self.whole:
            if found[0].encode() != self.bytes_of(row):
                yield f"{row['digest']}: its text is another"
        elif found is None and row["kind"] in DOCUMENTS and row["present"] and row["size"] <= TEXT_LIMIT:
            yield f"{row['digest']}: its text is not kept"

    def referrers(self):
        """Referrer rows mirror subject rows; counted ones close no circle, and none is uncounted in vain."""
        subjects = {
            (edge["child_id"], edge["parent_id"])
            for edge in self.edges
            if edge["role"] == "subject" and self.blobs[edge["child_id"]]["expanded"]
        }
        rows = {
            (edge["parent_id"], edge["child_id"]): edge for edge in self.edges if edge["role"] == "referrer"
        }
        yield from (f"referrer row {pair} is missing or too much" for pair in subjects ^ rows.keys())
        yield from (
            f"referrer row {pair} has position {edge['position']}"
            for pair, edge in rows.items()
            if edge["position"] != edge["child_id"]
        )
        below = self.counted_below()
        for (subject, referrer), edge in rows.items():
            if edge["counted"] == (subject in below(referrer)):
                yield f"referrer row {subject, referrer} is counted wrongly: {edge['counted']}"
        for edge in self.edges:
            if edge["role"] != "referrer" and edge["counted"] != (edge["role"] != "subject"):
                yield f"row {edge['id']} ({edge['role']}) is counted wrongly"

    def counted_below(self):
        children = defaultdict(set)
        for edge in self.edges:
            if edge["counted"]:
                children[edge["parent_id"]].add(edge["child_id"])

        def below(start):
            seen, pending = set(), [start]
            while pending:
                for child in children[pending.pop()] - seen:
                    seen.add(child)
                    pending.append(child)
            return seen

        return below

    def counters(self):
        """A blob's refcount = counted edges + names + leases; flat_refcount = flat leases."""
        strong = Counter(edge["child_id"] for edge in self.edges if edge["counted"])
        strong.update(row[0] for row in self.db.execute("SELECT target_id FROM imgdb_images"))
        flat = Counter()
        held = self.db.execute(
            "SELECT r.key, l.flat FROM imgdb_lease_resources r JOIN imgdb_leases l ON l.id = r.lease_id"
            " WHERE r.type = 'content'"
        )
        for key, is_flat in held:
            (flat if is_flat else strong)[self.ids.get(key)] += 1
        for row in self.blobs.values():
            counted = (row["refcount"], row["flat_refcount"])
            if counted != (strong[row["id"]], flat[row["id"]]):
                yield f"{row['digest']}: counters {counted}, not {strong[row['id']], flat[row['id']]}"

    def snapshots(self):
        """Each snapshot has a directory and each directory a snapshot; counters are those of the edges."""
        rows = {row["id"]: row for row in self.db.execute("SELECT * FROM imgdb_snapshots")}
        folder = self.root / "snapshots"
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        there = {int(name) for name in names if name.isdigit()}
        yield from (
            f"left over: snapshots/{name}" for name in names if not name.isdigit() and name != "empty"
        )
        yield from (f"snapshot {number} has no directory" for number in rows.keys() - there)
        yield from (f"snapshots/{number} has no row" for number in there - rows.keys())
        counted = Counter(row["parent_id"] for row in rows.values())
        for table in ("imgdb_unpacks", "imgdb_mounts"):
            counted.update(row["snapshot_id"] for row in self.db.execute(f"SELECT * FROM {table}"))  # noqa: S608
        held = self.db.execute("SELECT key FROM imgdb_lease_resources WHERE type = 'snapshots'")
        keys = Counter(row["key"] for row in held)
        for number, row in rows.items():
            expected = counted[number] + keys[row["key"]]
            if row["refcount"] != expected:
                yield f"snapshot {row['key']}: counter {row['refcount']}, not {expected}"

    def layers(self):
        """Layer rows say what manifests and configs say."""
        recorded = defaultdict(list)
        for row in self.db.execute("SELECT * FROM imgdb_layers ORDER BY manifest_id, position"):
            recorded[row["manifest_id"]].append((row["layer_id"], row["diff_id"], row["chain_id"]))
        for row in self.blobs.values():
            document = self.read(row) if row["expanded"] and row["kind"] == "manifest" else None
            if document is None:
                continue
            ids = [self.ids[str(layer.digest)] for layer in document.layers]
            expected = list(zip(ids, *self.diff_and_chain_ids(document), strict=True))
            if recorded[row["id"]] != expected:
                yield f"{row['digest']}: other layers than its bytes have"

    def diff_and_chain_ids(self, document):
        count = len(document.layers)
        nothing = [None] * count, [None] * count
        if document.config is None or document.config.media_type not in spec.CONFIG_TYPES:
            return nothing
        row = self.blobs[self.ids[str(document.config.digest)]]
        if row["id"] not in self.whole:
            return nothing
        diff_ids = (json.loads(self.bytes_of(row)).get("rootfs") or {}).get("diff_ids") or []
        if len(diff_ids) != count:
            return nothing
        chain = []
        for diff_id in diff_ids:
            text = f"{chain[-1]} {diff_id}" if chain else None
            chain.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if text else diff_id)
        return diff_ids, chain

    def names(self):
        """index.json (and the log) say what the rows say, and history is open where a name is."""
        rows = {
            row["name"]: row["digest"]
            for row in self.db.execute(
                "SELECT i.name, b.digest FROM imgdb_images i JOIN imgdb_blobs b ON b.id = i.target_id"
            )
        }
        if self.mirrored() != rows:
            yield f"the mirror has {self.mirrored()}, the rows have {rows}"
        history = self.db.execute("SELECT name, digest FROM imgdb_image_history WHERE until_at IS NULL")
        current = [tuple(row) for row in history]
        if sorted(current) != sorted(rows.items()):
            yield f"history is open for {current}, the rows have {rows}"

    def mirrored(self):
        found = {}
        for entry in json.loads((self.root / "index.json").read_bytes())["manifests"]:
            name = entry.get("annotations", {}).get(spec.REF_NAME)
            found[name or f"moby-dangling@{entry['digest']}"] = entry["digest"]
        log = self.root / "names.log"
        for line in log.read_text().splitlines() if log.exists() else ():
            change = json.loads(line)
            found.pop(change["name"], None)
            if change["descriptor"] is not None:
                found[change["name"]] = change["descriptor"]["digest"]
        return found

    def pair(self):
        meta = self.db.execute("SELECT * FROM imgdb_meta").fetchone()
        half = json.loads((self.root / "store.json").read_bytes())
        if (half["store_id"], half["generation"]) != (meta["store_id"], meta["generation"]):
            yield f"store.json {half} and imgdb_meta {dict(meta)} are no pair"
