"""The database made anew, or brought up to its store, from blobs and mirror alone.

What wins where they differ:

* A database of another store is set aside (the file renamed, or copied out of a host's), and a
  new one is made; nothing of it is kept. One that is damaged likewise.
* A database of this store that is at least as new as the mirror knows the names better: they
  stay, and the mirror is written anew.
* One that is older does not: names get the mirror's targets, those that the mirror lacks were
  removed since and go, and so it is with pins. Leases, labels, history and events of the older
  database stay.
* Where index.json is lost no name is removed; where there is no database either, every manifest
  or index that nothing leads to becomes a dangling image.

Blobs that nothing needs stay files without rows: garbage for ``gc --full``, after its grace.
Until the end the halves don't fit, so that every other writer refuses; a rebuild that was
killed is simply run again. Source: design §4.10-4.11, §7 (db rebuild).
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from imgdb import mirror, pair, places, setup, upkeep
from imgdb.access import Access
from imgdb.check.adopt import Adopter
from imgdb.check.content import Meter
from imgdb.content.disk import DiskBlobStore
from imgdb.content.files import set_aside
from imgdb.content.holds import locked
from imgdb.db import audit, blobs, engine, events, garbage, images, leases, mend, pins, schema
from imgdb.db.blobs import BlobRow
from imgdb.db.sql import chunks, now_us
from imgdb.errors import BusyError, DataLossError, NotFoundError
from imgdb.oci.spec import Kind
from imgdb.progress import SILENT
from imgdb.snapshots.disk import SnapshotDirectory
from imgdb.unpacker.restore import restore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy import Connection, Engine

    from imgdb.mirror import Entry, Mirror
    from imgdb.oci.digest import Digest
    from imgdb.progress import Reporter

_NAMES_PER_TRANSACTION = 100


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made.

    Attributes:
        database: path of the database.
        names, pins, blobs: how many there are now; blobs that are here.
        removed: names that an older database had and the mirror had not.
        unnamed: images that became dangling, because the mirror was lost.
        snapshots: that got their rows back.
        lost: blobs that something needs, and whose files are gone or have other bytes.
        left: files that nothing needs.
        aside: where the database is that was there before; None when it was used.
        warnings: sentences for the user.
    """

    database: str
    names: int
    pins: int
    blobs: int
    removed: tuple[str, ...]
    unnamed: int
    snapshots: int
    lost: tuple[Digest, ...]
    left: int
    aside: str | None
    warnings: tuple[str, ...]


def rebuild(
    path: str | None = None, db: str | None = None, *, durable: bool = True, reporter: Reporter = SILENT
) -> Rebuilt:
    """Make store and database fit again; see the module for what wins.

    Args:
        path: the store's directory; None for the default one.
        db: path or URL of its database, when it shall be another than the store remembers.
        durable: False skips syncing to disk; for tests.
        reporter: told about progress.

    Raises:
        NotFoundError: there is no store, or no such database outside of it.
        RefusedError: the store is another user's, or of a newer format.
        SchemaError: the database needs an upgrade first, or a newer imgdb.
        BusyError: a collection is running, or the database was locked too long.
    """
    root = os.path.abspath(path or places.default_root())
    if not (pair.exists(root) or os.path.isdir(os.path.join(root, "blobs"))):
        raise NotFoundError(f"there is no store in {root}")
    pair.check_owner(root)
    files = DiskBlobStore.create(root, durable=durable)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(os.path.join(root, "gc-run.lock"), fcntl.LOCK_EX, deadline_s=0))
        except BusyError:
            raise BusyError("a gc is running on this store; try again later") from None
        return _Rebuild(root, db, files, reporter).run()


class _Rebuild:
    """One rebuild of one store."""

    def __init__(self, root: str, db: str | None, files: DiskBlobStore, reporter: Reporter) -> None:
        self._root = root
        self._files = files
        self._reporter = reporter
        self._warnings: list[str] = []
        self._half = self._read_half()
        self._seen = self._read_mirror()
        self._db = db or (self._half.database if self._half else None)
        if self._db is not None and os.path.abspath(self._db) == self._own_path:
            self._db = None

    @property
    def _own_path(self) -> str:
        return os.path.join(self._root, "imgdb.db")

    @property
    def _expected_id(self) -> str | None:
        """The store's id, as far as its files tell."""
        return self._half.store_id if self._half else self._seen.store_id

    def _read_half(self) -> pair.StoreFile | None:
        try:
            return pair.read(self._root)
        except (NotFoundError, DataLossError) as error:
            self._warnings.append(str(error))
            return None

    def _read_mirror(self) -> Mirror:
        with pair.index_lock(self._root):
            try:
                return mirror.read(self._root)
            except DataLossError as error:
                self._warnings.append(str(error))
                return mirror.read_log(self._root)

    def run(self) -> Rebuilt:
        """Do it all."""
        database, aside = self._open()
        try:
            engine.run_write(database, schema.upgrade)
            with engine.read(database) as connection:
                meta = schema.find_meta(connection)
            return self._fill(database, meta, aside)
        finally:
            database.dispose()

    def _open(self) -> tuple[Engine, str | None]:
        """The database to be filled, and where the one is that was in its place."""
        aside = None
        stamp = f"aside-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        if self._db is not None:
            database = setup.connect(self._root, self._db)
            if not self._is_usable(database):
                aside = f"{self._own_path}.{stamp}"
                upkeep.copy(database, aside)
                engine.run_write(database, schema.remove)
            return database, aside
        if os.path.exists(self._own_path):
            database = engine.own_engine(self._own_path)
            try:
                usable = self._is_usable(database)
            except DataLossError as error:
                self._warnings.append(str(error))
                usable = False
            finally:
                database.dispose()
            if not usable:
                aside = set_aside(self._own_path, stamp)
        return engine.own_engine(self._own_path, create=True), aside

    def _is_usable(self, database: Engine) -> bool:
        """Whether a database is empty, or this store's."""
        with engine.read(database) as connection:
            damage = audit.integrity(connection)
            if damage:
                raise DataLossError(f"{engine.describe(database)}: {damage[0]}")
            if schema.current(connection) is None:
                return True
            schema.check(connection, writing=False)
            meta = schema.find_meta(connection)
            return meta is None or self._expected_id in {None, meta.store_id}

    def _fill(self, database: Engine, meta: schema.Meta | None, aside: str | None) -> Rebuilt:
        store_id = self._expected_id or (meta.store_id if meta else str(uuid.uuid4()))
        known = [self._half and self._half.generation, self._seen.generation, meta and meta.generation]
        generation = max(number or 0 for number in known) + 1
        if meta is None:
            engine.run_write(database, lambda c: schema.create_meta(c, store_id))
        if self._half is None:
            # Ahead of the database until the end: nobody else writes.
            pair.write(self._root, pair.StoreFile(store_id, pair.FORMAT, generation, self._db))
        access = _access(self._root, self._files, database)
        removed = self._names(access, meta)
        unnamed = self._blobs(access, is_new=meta is None)
        restored, warnings = restore(access, SnapshotDirectory(self._root, durable=self._files.durable))
        self._warnings += warnings
        self._finish(access, store_id, generation)
        return self._result(access, database, removed, unnamed, restored, aside)

    def _names(self, access: Access, meta: schema.Meta | None) -> list[str]:
        """Bring names and pins to what they should be; returns the names that went."""
        if meta is not None:
            access.write(garbage.recount)
        broken: set[str] = access.write(mend.drop_broken_images)
        entries = self._seen.entries
        newest = self._seen.generation
        if newest is None and self._half is not None:
            newest = self._half.generation
        if meta is not None and newest is not None and meta.generation >= newest:
            _put_names(access, {name: entries[name] for name in broken if name in entries})
            return []
        there: set[str] = access.read(lambda c: {record.name for record in images.listing(c)})
        if meta is not None and newest is None:
            # Nobody knows which is newer: nothing that either has may be lost.
            _put_names(access, {name: entry for name, entry in entries.items() if name not in there})
            return []
        gone = sorted(there - entries.keys()) if self._seen.has_index else []
        _put_names(access, entries)
        for batch in chunks(gone, _NAMES_PER_TRANSACTION):
            access.write(partial(_drop_names, names=batch))
        access.write(partial(_set_pins, entries=entries, complete=self._seen.has_index))
        return gone

    def _blobs(self, access: Access, *, is_new: bool) -> int:
        """Bring blobs and edges to what the files are; returns how many images became dangling."""
        adopter = Adopter(access, Meter(self._reporter, None, None))
        with self._reporter.phase("rebuild"):
            adopter.drop_absent()
            adopter.needed()
            unnamed = adopter.unnamed() if is_new and not self._seen.has_index else 0
            adopter.referrers()
        return unnamed

    def _finish(self, access: Access, store_id: str, generation: int) -> None:
        """Make the pair: the database first, since the file may never be ahead of it."""
        with pair.index_lock(self._root):
            access.write(lambda c: _pair_up(c, store_id, generation))
            records, pinned = access.read(lambda c: (images.listing(c), pins.pinned(c)))
            durable = self._files.durable
            mirror.write_layout(self._root, durable=durable)
            mirror.write_index(
                self._root,
                records,
                store_id=store_id,
                generation=generation,
                pinned=pinned,
                durable=durable,
            )
            half = pair.StoreFile(store_id, pair.FORMAT, generation, self._db)
            pair.write(self._root, half, durable=durable)

    def _result(
        self,
        access: Access,
        database: Engine,
        removed: list[str],
        unnamed: int,
        restored: int,
        aside: str | None,
    ) -> Rebuilt:
        names, pinned, count, lost = access.read(_figures)
        return Rebuilt(
            database=engine.describe(database),
            names=names,
            pins=pinned,
            blobs=count,
            removed=tuple(removed),
            unnamed=unnamed,
            snapshots=restored,
            lost=tuple(lost),
            left=sum(1 for _ in self._files.walk()) - count,
            aside=aside,
            warnings=tuple(self._warnings),
        )


def _access(root: str, files: DiskBlobStore, database: Engine) -> Access:
    """The store for walks; the pair is not asked, for making it is what this is about."""

    def read(question: Callable[[Connection], Any]) -> Any:
        with engine.read(database) as connection:
            return question(connection)

    def write(
        work: Callable[[Connection], Any],
        *,
        changes: Callable[[Any], Collection[str]] | None = None,  # noqa: ARG001 - the mirror comes last
        raises_generation: bool = True,  # noqa: ARG001 - likewise
    ) -> Any:
        return engine.run_write(database, work)

    return Access(root, files, read, write)


def _put_names(access: Access, entries: Mapping[str, Entry]) -> None:
    for batch in chunks(sorted(entries.items()), _NAMES_PER_TRANSACTION):
        access.write(partial(_put_batch, batch=batch, at=now_us()))


def _put_batch(connection: Connection, batch: list[tuple[str, Entry]], at: int) -> None:
    there = images.by_names(connection, [name for name, _ in batch])
    for name, entry in batch:
        target = entry.target
        if name in there and there[name].target == target:
            continue
        stub = BlobRow(target.digest, target.size, Kind.BLOB.value, target.media_type, present=False)
        blobs.put_stubs(connection, [stub])
        images.put(connection, name, target, at=at)


def _drop_names(connection: Connection, names: Collection[str]) -> None:
    for name in names:
        images.remove(connection, name)


def _set_pins(connection: Connection, entries: Mapping[str, Entry], *, complete: bool) -> None:
    """Pin what the mirror says is pinned; where that is complete, nothing else."""
    wanted = sorted(name for name, entry in entries.items() if entry.pinned)
    for name, lease in pins.pinned(connection).items():
        if complete and name not in wanted:
            leases.remove(connection, lease)
    for name in wanted:
        pins.pin(connection, name, at=now_us())


def _pair_up(connection: Connection, store_id: str, generation: int) -> None:
    mend.set_meta(connection, store_id, generation)
    events.record(connection, [events.NewEvent("rebuild", store_id)], now_us())


def _figures(connection: Connection) -> tuple[int, int, int, list[Digest]]:
    lost = [row.digest for row in audit.marked(connection) if not row.present]
    return images.count(connection), len(pins.pinned(connection)), blobs.totals(connection)[0], lost
