"""What a collection must leave: tricolor mark and sweep over documents, knowing nothing of counters.

`World` reads a store's roots and rows with sqlite3 alone; `live` marks. The graph comes from the
documents' bytes, never from edge rows.
"""

from __future__ import annotations

import json
import sqlite3
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.db.rows import Rows


def children(document):
    """Digests that a manifest or an index leads to; its subject is not among them."""
    entries = [document.get("config"), *document.get("layers", ()), *document.get("manifests", ())]
    return {entry["digest"] for entry in entries if entry}


def manifests(document):
    """Digests that an index refers to as documents."""
    return {entry["digest"] for entry in document.get("manifests", ())}


def reach(edges, roots):
    """Everything at and below some roots: grey what is found, black what was looked at, white the rest."""
    grey, black = list(roots), set()
    while grey:
        digest = grey.pop()
        if digest not in black:
            black.add(digest)
            grey += edges.get(digest, ())
    return black


def graph(documents):
    """Edges between documents; a subject keeps its referrers, but for those that would close a circle."""
    edges = {digest: children(document) for digest, document in documents.items()}
    pairs = [
        (digest, (document.get("subject") or {}).get("digest")) for digest, document in documents.items()
    ]
    for referrer, subject in sorted(pair for pair in pairs if pair[1] in documents):
        if subject not in reach(edges, [referrer]):
            edges[subject].add(referrer)
    return edges


def live(documents, roots, flat):
    """What must be here.

    Args:
        documents: those that were read, by digest.
        roots: digests that names and leases point to.
        flat: digests that are kept without what they lead to.

    Returns:
        What the roots reach, and what must be here with the flat ones: two sets of digests.
    """
    marked = reach(graph(documents), roots)
    return marked, marked | set(flat)


class World:
    """A store, looked at from outside.

    Args:
        root: its directory.
        bodies: the JSON of every document that a test uses, by digest.
    """

    def __init__(self, root, bodies):
        self.root = Path(root)
        self.bodies = bodies
        self.db = sqlite3.connect(self.root / "imgdb.db", isolation_level=None)
        self.rows = Rows(self.db)

    def close(self):
        """No more questions."""
        self.db.close()

    def sql(self, statement, *parameters):
        """The first column of any statement, as an admin would run it."""
        return [row[0] for row in self.rows.sql(statement, *parameters)]

    def present(self):
        """Digests whose rows say that they are here."""
        return set(self.sql("SELECT digest FROM imgdb_blobs WHERE present"))

    def read(self):
        """Digests of documents whose edges are recorded."""
        return set(self.sql("SELECT digest FROM imgdb_blobs WHERE expanded"))

    def files(self):
        """Digests of the files there are."""
        return {f"{path.parent.name}:{path.name}" for path in (self.root / "blobs").glob("*/*")}

    def names(self):
        """Names, each with the digest it points to."""
        return dict(
            self.rows.sql(
                "SELECT i.name, b.digest FROM imgdb_images i JOIN imgdb_blobs b ON b.id = i.target_id"
            )
        )

    def pinned(self):
        """Names that are pinned."""
        labels = self.sql("SELECT labels FROM imgdb_leases")
        return {name for text in labels if (name := json.loads(text).get("io.imgdb.pinned"))}

    def leases(self):
        """Ids of all leases, pins among them."""
        return self.sql("SELECT id FROM imgdb_leases ORDER BY id")

    def leased(self, *, flat):
        """Digests on leases that have not expired."""
        return self.sql(
            "SELECT r.key FROM imgdb_lease_resources r JOIN imgdb_leases l ON l.id = r.lease_id"
            " WHERE r.type = 'content' AND l.flat = ? AND (l.expires_at IS NULL OR l.expires_at >= ?)",
            int(flat),
            time.time_ns() // 1000,
        )

    def live(self):
        """What must be here, and what of it by strong roots: digests that names or leases reach."""
        roots = [*self.names().values(), *self.leased(flat=False)]
        documents = {digest: self.bodies[digest] for digest in self.read()}
        return live(documents, roots, self.leased(flat=True))

    def wrong(self):
        """What must hold at any time and doesn't: counters, files behind rows, no circle that counts."""
        found = [f"counter of {row}: {values}" for row, values in self.rows.drift().items()]
        found += [f"no file: {digest}" for digest in self.present() - self.files()]
        counted = TopologicalSorter()
        for parent, child in self.rows.sql("SELECT parent_id, child_id FROM imgdb_descriptors WHERE counted"):
            counted.add(parent, child)
        try:
            counted.prepare()
        except CycleError as error:
            found.append(f"counted circle: {error.args[1]}")
        return found


def bodies_of(nodes):
    """The JSON of every document at and below some nodes, by digest."""
    return {
        blob.digest: json.loads(blob.data)
        for node in nodes
        for blob in node.blobs().values()
        if "manifest" in blob.media_type or "index" in blob.media_type
    }
