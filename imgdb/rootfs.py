"""A root file system as one flat tar: of an image from its layers, of a snapshot from its directories.

Source: docker export.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, BinaryIO

from imgdb.archive.flatten import flatten
from imgdb.db import snapshots
from imgdb.db.leases import CONTENT, SNAPSHOTS, Resource
from imgdb.db.snapshots import VIEW
from imgdb.errors import BadArchiveError, DataLossError, InvalidArgumentError, NotFoundError
from imgdb.exporter.write import open_sink
from imgdb.holding import leased
from imgdb.progress import OneAtATime
from imgdb.snapshots.archived import write_tree
from imgdb.snapshots.layer import MAX_BYTES
from imgdb.snapshots.merged import Stack
from imgdb.snapshots.piped import Counted, Piped
from imgdb.unpacker import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgdb.access import Access
    from imgdb.db.snapshots import LayerToUnpack, SnapshotRecord
    from imgdb.oci.platform import Platform
    from imgdb.progress import Reporter
    from imgdb.snapshots.disk import SnapshotDirectory


class RootfsWriter:
    """Writes root file systems of one store.

    Args:
        access: the store.
        directory: where its snapshots are.
        protects: whether a lease can be written; else what is read may vanish, which is an error then.
        reporter: told about progress and warnings.
    """

    def __init__(
        self, access: Access, directory: SnapshotDirectory, reporter: Reporter, *, protects: bool
    ) -> None:
        self._access = access
        self._directory = directory
        self._reporter = OneAtATime(reporter)
        self._protects = protects

    def write(self, what: str, out: str | BinaryIO, platforms: Sequence[Platform]) -> None:
        """Write a snapshot of this key, or an image of this name; see `ImageStore.rootfs`."""
        if isinstance(out, str) and os.path.isdir(out):
            raise InvalidArgumentError(f"{out} is a directory; give the name of a file")
        record: SnapshotRecord | None = self._access.read(lambda c: snapshots.look_up(c, what))
        if record is not None and not platforms:
            self._snapshot(record, out)
        else:
            self._image(what, out, platforms)

    def _kept(self, *resources: Resource) -> contextlib.AbstractContextManager[None]:
        if not self._protects:
            return contextlib.nullcontext()
        return leased(self._access, resources, ("io.imgdb.rootfs", resources[0].key))

    def _snapshot(self, record: SnapshotRecord, out: str | BinaryIO) -> None:
        with contextlib.ExitStack() as ends:
            ends.enter_context(self._kept(Resource(SNAPSHOTS, record.key)))
            ids: list[int] = self._access.read(lambda c: snapshots.stack(c, record.id))
            if record.kind == VIEW and len(ids) > 1:
                ids.pop(0)  # its own directory is empty
            fds = []
            for number in ids:
                fds.append(self._directory.open_fs(number))
                ends.callback(os.close, fds[-1])
            with self._reporter.phase("write"), open_sink(out, "none") as sink:
                write_tree(Stack(fds), sink, self._reporter.advance)

    def _image(self, what: str, out: str | BinaryIO, platforms: Sequence[Platform]) -> None:
        _, jobs = self._access.read(lambda c: plan.plan(c, what, platforms))
        if len(jobs) > 1:
            raise InvalidArgumentError(f"{what}: a tar holds one root file system; give one --platform")
        layers = jobs[0].layers
        with self._kept(Resource(CONTENT, str(jobs[0].manifest))):
            total = 2 * sum(self._size(layer) for layer in layers)
            with self._reporter.phase("write", total), open_sink(out, "none") as sink:
                flatten(
                    [lambda layer=layer: self._open(layer) for layer in layers],  # type: ignore[misc] # mypy can't infer it
                    sink,
                    max_size=MAX_BYTES * max(1, len(layers)),
                    on_warning=self._reporter.warn,
                )

    def _size(self, layer: LayerToUnpack) -> int:
        status = self._access.files.stat(layer.digest)
        return 0 if status is None else status.size

    def _open(self, layer: LayerToUnpack) -> PlainLayer:
        try:
            return PlainLayer(self._access.files.open(layer.digest), layer, self._reporter)
        except NotFoundError as error:
            raise DataLossError(f"{error}; import an archive that has it") from None


class PlainLayer:
    """A layer's plain tar, checked against its diff ID where it is read to the end."""

    def __init__(self, blob: BinaryIO, layer: LayerToUnpack, reporter: Reporter) -> None:
        assert layer.diff_id is not None  # noqa: S101 - the plan looked
        self._blob = blob
        self._layer = layer
        self._ends = contextlib.ExitStack()
        self._ends.callback(blob.close)
        source = Counted(blob, reporter.advance)
        self._piped = self._ends.enter_context(Piped(source, layer.diff_id.algorithm, reporter.warn))

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; 0 at the end.

        Raises:
            BadArchiveError: damaged, or not what the diff ID says.
        """
        count = self._piped.readinto(buffer)
        if not count and len(buffer) and self._piped.digest() != self._layer.diff_id:
            raise BadArchiveError(f"wrong diff ID: its content is {self._piped.digest()}")
        return count

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.readinto(memoryview(buffer))])

    def close(self) -> None:
        """Stop reading."""
        self._ends.close()
