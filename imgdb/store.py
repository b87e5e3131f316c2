"""The façade: one object for one store, and the only place that begins and commits transactions.

::

    with ImageStore.open("/var/lib/imgdb") as store:
        store.load("busybox.tar")
        store.export(["busybox"], "copy.tar")

Every method is thread-safe: there is no state but the engine and paths. Results are frozen
values, errors are those of `imgdb.errors`. Source: design §4, §8.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

from imgdb import mirror, pair, places, setup
from imgdb.access import Access
from imgdb.content.disk import DiskBlobStore
from imgdb.db import blobs, engine, history, images, leases, naming, pins, schema
from imgdb.db.sql import now_us
from imgdb.errors import BusyError, ImgdbError, NotFoundError, RefusedError
from imgdb.exporter.plan import ExportOptions, make_plan
from imgdb.exporter.walk import artifact_types, choose, lease_targets, read_tree
from imgdb.exporter.write import BlobDamageError, Verifier, open_sink, write_archive, write_directory
from imgdb.filesystems import FileSystems
from imgdb.importer import rows, walk
from imgdb.importer.commit import commit
from imgdb.importer.plan import ImportOptions
from imgdb.keeping import Keeping
from imgdb.leasing import Leasing
from imgdb.looking import Looking
from imgdb.oci.digest import Digest
from imgdb.oci.reference import parse_normalized
from imgdb.progress import SILENT
from imgdb.results import ExportResult, LoadResult

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy import Connection, Engine

    from imgdb.db.history import Restored
    from imgdb.db.images import ImageRecord
    from imgdb.db.naming import Removal, Tagging
    from imgdb.exporter.plan import ExportPlan, Requested
    from imgdb.progress import Reporter

_T = TypeVar("_T")

logging.getLogger("imgdb").addHandler(logging.NullHandler())
_log = logging.getLogger("imgdb")


class ImageStore(Looking, Keeping, Leasing, FileSystems):
    """One store and its database; make it with `open`."""

    def __init__(self, root: str, half: pair.StoreFile, database: Engine, *, durable: bool = True) -> None:
        self.root = root
        self._half = half
        self._engine = database
        self._durable = durable
        self._blobs = DiskBlobStore(root, durable=durable)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        db: str | None = None,
        *,
        create: bool = False,
        durable: bool = True,
    ) -> Self:
        """Open a store.

        Args:
            path: its directory; None for the default one (`imgdb.places.default_root`).
            db: path or URL of its database, once; the store remembers it.
            create: make the store when there is none.
            durable: False skips syncing to disk; for tests.

        Raises:
            NotFoundError: there is no store, and `create` is False.
            RefusedError: it is another user's, or of a newer format.
            SchemaError: the database needs an upgrade, or a newer imgdb.
        """
        root = os.path.abspath(os.fspath(path) if path is not None else places.default_root())
        if create and not pair.exists(root):
            setup.create(root, db, durable=durable)
        half = pair.read(root)
        database = setup.connect(root, db or half.database)
        try:
            setup.check_database(root, database)
        except BaseException:
            database.dispose()
            raise
        return cls(root, half, database, durable=durable)

    def close(self) -> None:
        """Close the connections; the object is of no more use."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- import ------------------------------------------------------------------------------

    def load(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        options: ImportOptions | None = None,
        *,
        dry_run: bool = False,
        reporter: Reporter = SILENT,
    ) -> LoadResult:
        """Import an archive: a file, a directory with a layout, or a binary stream.

        All of it becomes visible in one transaction, or nothing stays.

        Args:
            source: a path, or an object with ``readinto`` or ``read``.
            options: see `ImportOptions`.
            dry_run: verify, and say what would change.
            reporter: told about progress and warnings.

        Raises:
            NoImageError: the input is no image archive.
            BadArchiveError: it is a damaged or forbidden one.
            NotFoundError: no such file or lease, or a requested platform is not in it.
            RefusedError: a name points elsewhere and may not move, or the store can't be written.
            BusyError: the database was locked too long.
        """
        options = options or ImportOptions()
        self._check_writable()
        if options.lease is not None:
            self._read(partial(leases.changeable, lease_id=options.lease))
        staged = walk.stage(
            self._blobs,
            walk.Rows(self._ask(blobs.find), self._ask(blobs.known)),
            _plain(source),
            options,
            now=now_us(),
            dry_run=dry_run,
            reporter=reporter,
        )
        try:
            for warning in staged.plan.warnings:
                reporter.warn(warning)
            if dry_run:
                with engine.read(self._engine) as connection:
                    loaded = rows.compare(connection, staged.plan.images, replace=options.replace)
            else:
                loaded = commit(self._write, staged, replace=options.replace, into=options.lease)
        except (RefusedError, BusyError, NotFoundError):
            # Said before any commit, so nothing of this import is or will be visible.
            staged.release()
            self._blobs.sweep(staged.placed, self._ask(blobs.known))
            raise
        except BaseException:
            # A commit that failed may yet turn out to be whole; a collector looks when that is known.
            staged.leave()
            raise
        staged.release()
        return LoadResult(tuple(loaded), len(staged.new), staged.new_bytes, staged.plan.warnings)

    # -- export ------------------------------------------------------------------------------

    def export(
        self,
        names: Sequence[str],
        out: str | os.PathLike[str] | BinaryIO,
        options: ExportOptions | None = None,
        *,
        every: bool = False,
        reporter: Reporter = SILENT,
    ) -> ExportResult:
        """Write images to one archive; verified while it is written.

        Args:
            names: image names, IDs, short IDs, config digests; a repository gives all its tags.
            out: a path (appears when it is whole), or a binary stream.
            options: see `ExportOptions`.
            every: all images of the store.
            reporter: told about progress and warnings.

        Raises:
            NotFoundError: no such image, or it is not completely here.
            DataLossError: a blob is damaged; a file is not left behind.
            RefusedError: the target may not be written.
        """
        options = options or ExportOptions()
        target = _plain(out)
        with ExitStack() as stack:
            requested = self._lease_targets(names, stack, every=every, target=target)
            plan, verifier = self._plan_export(requested, options)
            for image in plan.images:
                if image.missing:
                    reporter.warn(f"{image.display_name}: not here, so left out: {', '.join(image.missing)}")
            try:
                if options.format == "oci-dir":
                    write_directory(plan, _as_path(target), verifier, reporter)
                else:
                    with open_sink(target, options.compress) as sink:
                        write_archive(plan, sink, verifier, reporter)
            except BlobDamageError as error:
                self._mark_damaged(error.digest)
                raise
        return ExportResult(plan.images, len(plan.blobs), plan.blob_bytes)

    def _lease_targets(
        self, names: Sequence[str], stack: ExitStack, *, every: bool, target: str | BinaryIO
    ) -> list[Requested]:
        """Resolve and lease in one transaction; on a store that can't be written, only resolve."""
        # A database that doesn't fit may be read all the same; what is exported is verified anyway.
        if not self._may_write():
            with engine.read(self._engine) as connection:
                return choose(connection, names, every=every)
        lease = leases.random_id()
        hold = stack.enter_context(self._blobs.hold())
        label = target if isinstance(target, str) else "-"
        requested: list[Requested] = self._write(
            lambda connection: lease_targets(
                connection, lease, names, every=every, label=label, hold=hold.name
            ),
            raises_generation=False,
        )
        stack.callback(self._drop_lease, lease)
        return requested

    def _drop_lease(self, lease: str) -> None:
        # It expires by itself; a full disk here must not turn a good export into a failure.
        with suppress(ImgdbError):
            self._write(lambda connection: leases.remove(connection, lease), raises_generation=False)

    def _plan_export(
        self, requested: Sequence[Requested], options: ExportOptions
    ) -> tuple[ExportPlan, Verifier]:
        with engine.read(self._engine) as connection:
            tree = read_tree(connection, [request.target for request in requested])
            plan = make_plan(requested, tree, options, artifact_types(connection, tree))
            facts = blobs.find(connection, {digest for digest, _ in plan.blobs.values()})
        return plan, Verifier(self._blobs, facts, options.trust, protected=self._may_write())

    def _mark_damaged(self, digest: Digest) -> None:
        with suppress(ImgdbError):
            self._write(lambda c: blobs.mark_damaged(c, digest, now_us()), raises_generation=False)

    # -- change ------------------------------------------------------------------------------

    def tag(self, source: str, name: str) -> ImageRecord | None:
        """Give an image another name.

        Returns:
            The record that `name` was before, when it pointed elsewhere; its image is kept as
            dangling.

        Raises:
            InvalidArgumentError: `name` is no name, or has a digest.
            NotFoundError: `source` is no image.
        """
        reference = parse_normalized(name)
        tagging: Tagging = self._write(
            lambda connection: naming.tag(connection, source, reference, at=now_us()),
            changes=lambda result: result.changed,
        )
        return tagging.moved_from

    def remove(self, argument: str, *, force: bool = False) -> Removal:
        """Remove a name, or all names of an ID, by docker's rules.

        Raises:
            NotFoundError: no such image.
            ConflictError: an ID with names in several repositories, without `force`.
        """
        return self._write(
            lambda connection: naming.remove(connection, argument, force=force, at=now_us()),
            changes=lambda removal: {record.name for record in removal.records},
        )

    def restore_tag(self, name: str, to: str | None = None) -> Digest:
        """Let a name point where it pointed before; what it points to now is kept.

        Args:
            name: the name.
            to: digest of an earlier target; None for the one before.

        Raises:
            NotFoundError: it never pointed anywhere else.
            RefusedError: that image is no longer in the store.
        """
        reference = parse_normalized(name)
        digest = None if to is None else Digest.parse(to)
        restored: Restored = self._write(
            lambda connection: history.restore(connection, reference, digest, at=now_us()),
            changes=lambda result: result.changed,
        )
        return restored.target

    # -- transactions ------------------------------------------------------------------------

    def _access(self) -> Access:
        return Access(self.root, self._blobs, self._read, self._write)

    def _read(self, question: Callable[[Connection], _T]) -> _T:
        with engine.read(self._engine) as connection:
            return question(connection)

    def _ask(
        self, question: Callable[[Connection, Collection[Digest]], _T]
    ) -> Callable[[Collection[Digest]], _T]:
        return lambda digests: self._read(lambda connection: question(connection, digests))

    def _can_write(self) -> bool:
        return os.access(self.root, os.W_OK) and os.stat(self.root).st_uid == os.geteuid()

    def _check_writable(self) -> None:
        """Before long work: would writing be refused?"""
        pair.check_owner(self.root)
        half = pair.read(self.root)
        with engine.read(self._engine) as connection:
            schema.check(connection)
            self._check_pair(connection, half)

    def _check_pair(self, connection: Connection, half: pair.StoreFile) -> None:
        pair.check_writable(self.root, half, schema.find_meta(connection))

    def _write(
        self,
        work: Callable[[Connection], _T],
        *,
        changes: Callable[[_T], Collection[str]] | None = None,
        raises_generation: bool = True,
    ) -> _T:
        """One write transaction of the store, and after it the store's half and mirror.

        Args:
            work: runs inside, maybe more than once.
            changes: names that the result changed, for the mirror.
            raises_generation: whether blobs or names may have been added.
        """
        pair.check_owner(self.root)
        half = pair.read(self.root)

        def transaction(connection: Connection) -> tuple[_T, int | None]:
            self._check_pair(connection, half)
            result = work(connection)
            return result, schema.bump_generation(connection) if raises_generation else None

        result, generation = engine.run_write(self._engine, transaction)
        if generation is not None:
            self._after_commit(generation, changes(result) if changes else ())
        return result

    def _after_commit(self, generation: int, changed: Collection[str]) -> None:
        """The commit stands whatever happens here; what is missed is written with the next change."""
        try:
            with pair.index_lock(self.root):
                mirrored = pair.read(self.root).generation
                if mirrored >= generation:
                    # Whoever came after this commit, and before it here, found it missing and wrote it.
                    return
                missed = mirrored < generation - 1
                if changed or missed:
                    self._mirror(changed, whole=missed)
                pair.advance(self.root, generation, durable=self._durable)
        except (OSError, ImgdbError) as error:
            _log.warning("the mirror of names in %s was not written: %s", self.root, error)

    def _renew_mirror(self, *, full: bool) -> None:
        """Write the mirror from the rows, since plain SQL passes it by, and empty its log.

        With many names only where that was asked for, or where the log has grown long.
        """
        try:
            with pair.index_lock(self.root):
                few = self._read(images.count) <= mirror.LIMIT
                if few or full or mirror.is_log_long(self.root):
                    self._mirror((), whole=True)
        except (OSError, ImgdbError) as error:
            _log.warning("the mirror of names in %s was not written: %s", self.root, error)

    def _mirror(self, changed: Collection[str], *, whole: bool = False) -> None:
        with engine.read(self._engine) as connection:
            whole = whole or images.count(connection) <= mirror.LIMIT
            if whole:
                records = images.listing(connection)
            else:
                found = images.by_names(connection, changed)
            pinned = pins.pinned(connection)
            # As it is now: somebody else's commit may be among what was read.
            meta = schema.read_meta(connection)
        if whole:
            mirror.write_index(
                self.root,
                records,
                store_id=meta.store_id,
                generation=meta.generation,
                pinned=pinned,
                durable=self._durable,
            )
        else:
            lines = {name: found.get(name) for name in changed}
            mirror.append(self.root, lines, meta.generation, pinned=pinned, durable=self._durable)


def _plain(argument: str | os.PathLike[str] | BinaryIO) -> str | BinaryIO:
    return os.fspath(argument) if isinstance(argument, os.PathLike) else argument


def _as_path(out: str | BinaryIO) -> str:
    if not isinstance(out, str):
        raise RefusedError("oci-dir needs the name of a directory (-o DIR), not a stream")
    return out
