"""Writing an archive: exact headers, bodies by the kernel, every blob verified beside its copy.

To a file the verification runs while the blob is copied, and a bad archive is withdrawn; to a
pipe it runs before the blob's header, since nothing can be withdrawn there.
Source: design §4.5, §5.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from imgdb.archive import tarwriter
from imgdb.archive.compression import open_compressor
from imgdb.archive.sink import FileSink, PipeSink, StreamSink
from imgdb.archive.tar import MemberKind
from imgdb.errors import BusyError, DataLossError, ImgdbError, NotFoundError, RefusedError
from imgdb.oci.digest import new_hasher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgdb.archive.sink import Sink
    from imgdb.content.store import BlobStore
    from imgdb.db.blobs import BlobRow
    from imgdb.exporter.plan import ExportPlan
    from imgdb.oci.digest import Digest
    from imgdb.progress import Reporter

_BLOB_MODE = 0o444
_DOCUMENT_MODE = {"oci-layout": 0o444}
_DEFAULT_DOCUMENT_MODE = 0o644
_DIRECTORY_MODE = 0o755


class BlobDamageError(DataLossError):
    """A blob failed its verification while it was exported, or is not there.

    Attributes:
        digest: which.
    """

    def __init__(self, digest: Digest) -> None:
        super().__init__(
            f"blob {digest} is damaged: its file is lost or fails its digest; nothing was exported. "
            "Import an archive that has it to heal it"
        )
        self.digest = digest


@dataclass(frozen=True, slots=True)
class Verifier:
    """Knows what each blob must hash to.

    Attributes:
        rows: what the database remembers.
        trust: believe a file whose ctime is the remembered one without reading it.
        protected: a lease keeps the blobs; without one a garbage collector may come in between.
    """

    store: BlobStore
    rows: Mapping[Digest, BlobRow]
    trust: bool
    protected: bool

    def check(self, digest: Digest) -> None:
        """Read a blob and compare.

        Raises:
            BlobDamageError: other bytes, another size, or no file under a lease.
            BusyError: no file, and no lease: the image was removed meanwhile.
        """
        row = self.rows[digest]
        status = self.store.stat(digest)
        if status is None and not self.protected:
            raise BusyError(f"blob {digest} vanished: its image was removed meanwhile; try again")
        if status is None or status.size != row.size:
            raise BlobDamageError(digest)
        if self.trust and row.ctime_ns == status.ctime_ns:
            return
        good = self.store.blake3(digest) == row.blake3 if row.blake3 else self._identity(digest)
        if not good:
            raise BlobDamageError(digest)

    def _identity(self, digest: Digest) -> bool:
        hasher = new_hasher(digest.algorithm)
        with self.store.open(digest) as file:
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
        return hasher.hexdigest() == digest.hex


def write_archive(plan: ExportPlan, sink: Sink, verifier: Verifier, reporter: Reporter) -> None:
    """Write a tar; members ascending by path, two zero blocks at the end and no more."""
    position = 0

    def put(data: bytes) -> None:
        nonlocal position
        sink.write(data)
        position += len(data)

    with reporter.phase("write", plan.blob_bytes), ThreadPoolExecutor(1, "imgdb-verify") as pool:
        for name in _directories(plan):
            put(tarwriter.header(name, 0, kind=MemberKind.DIRECTORY, mode=_DIRECTORY_MODE))
        for name in sorted([*plan.blobs, *plan.documents]):
            if name in plan.documents:
                data = plan.documents[name]
                mode = _DOCUMENT_MODE.get(name, _DEFAULT_DOCUMENT_MODE)
                put(tarwriter.header(name, len(data), mode=mode) + data + tarwriter.padding(len(data)))
                continue
            digest, size = plan.blobs[name]
            reporter.blob(str(digest), size)
            header = tarwriter.aligned_header(name, size, position)
            _write_blob(digest, header, size, sink, verifier, pool, reporter)
            position += len(header) + size
            put(tarwriter.padding(size))
        put(tarwriter.END)


def _write_blob(
    digest: Digest,
    header: bytes,
    size: int,
    sink: Sink,
    verifier: Verifier,
    pool: ThreadPoolExecutor,
    reporter: Reporter,
) -> None:
    if sink.final:
        verifier.check(digest)
        sink.write(header)
        _copy(digest, size, sink, verifier, reporter)
        return
    verdict = pool.submit(verifier.check, digest)
    sink.write(header)
    _copy(digest, size, sink, verifier, reporter)
    verdict.result()


def _copy(digest: Digest, size: int, sink: Sink, verifier: Verifier, reporter: Reporter) -> None:
    try:
        file = verifier.store.open(digest)
    except NotFoundError:
        verifier.check(digest)  # knows whether that is damage or a removal
        raise
    with file:
        try:
            sink.copy(file.fileno(), size, reporter.advance)
        except DataLossError:
            raise BlobDamageError(digest) from None


def _directories(plan: ExportPlan) -> list[str]:
    parents = {os.path.dirname(name) for name in plan.blobs} - {""}
    return sorted({f"{path}/" for parent in parents for path in (os.path.dirname(parent), parent) if path})


def write_directory(plan: ExportPlan, target: str, verifier: Verifier, reporter: Reporter) -> None:
    """Write an OCI layout as a directory that appears at once, whole.

    Raises:
        RefusedError: something is at `target` already, other than an empty directory.
    """
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise RefusedError(f"{target} exists; choose a new directory for oci-dir")
    temporary = _beside(target)
    try:
        os.mkdir(temporary)
    except OSError as error:
        raise ImgdbError(f"{target}: {error.strerror}") from None
    try:
        with reporter.phase("write", plan.blob_bytes):
            for name in _directories(plan):
                os.mkdir(os.path.join(temporary, name))
            for name, (digest, size) in sorted(plan.blobs.items()):
                reporter.blob(str(digest), size)
                verifier.check(digest)
                with open(os.path.join(temporary, name), "xb", buffering=0) as file:
                    _copy(digest, size, FileSink(file.fileno()), verifier, reporter)
            os.makedirs(os.path.join(temporary, "blobs"), exist_ok=True)
            for name, data in plan.documents.items():
                with open(os.path.join(temporary, name), "xb") as file:
                    file.write(data)
            _sync_tree(temporary)
        if os.path.isdir(target):
            os.rmdir(target)
        os.rename(temporary, target)
        _sync(os.path.dirname(os.path.abspath(target)))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def open_sink(out: str | BinaryIO, compress: str) -> Iterator[Sink]:
    """A sink for a path or a binary stream; a file appears under its name when it is whole.

    Raises:
        ImgdbError: it can't be created.
    """
    if not isinstance(out, str):
        with _compressed(_sink_for(out), compress) as sink:
            yield sink
    elif _is_written_through(out):
        with open(out, "wb", buffering=0) as file, _compressed(_sink_for(file), compress) as sink:
            yield sink
    else:
        # A link stays one: its target is what is replaced, as the shell's > does it.
        with _whole_file(os.path.realpath(out)) as fd, _compressed(FileSink(fd), compress) as sink:
            yield sink


@contextmanager
def _whole_file(path: str) -> Iterator[int]:
    temporary = _beside(path)
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ImgdbError(f"{path}: {error.strerror}") from None
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        _sync(os.path.dirname(os.path.abspath(path)))
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextmanager
def _compressed(sink: Sink, compress: str) -> Iterator[Sink]:
    if compress == "none":
        yield sink
        return
    compressor = open_compressor(sink, compress)
    yield StreamSink(compressor, final=sink.final)
    compressor.close()


def _sink_for(stream: BinaryIO) -> Sink:
    try:
        fd = stream.fileno()
    except (OSError, AttributeError):
        return StreamSink(stream)
    stream.flush()
    # A file that somebody else opened can't be withdrawn any more than a pipe can.
    return FileSink(fd, final=True) if stat.S_ISREG(os.fstat(fd).st_mode) else PipeSink(fd)


def _is_written_through(path: str) -> bool:
    """Whether there is nothing to rename: a FIFO, a device, or a descriptor by its name."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise RefusedError(f"{path} is a directory; give a file name, or use --format oci-dir")
    return not stat.S_ISREG(mode) or os.path.abspath(path).startswith(("/dev/fd/", "/proc/self/fd/"))


def _beside(path: str) -> str:
    absolute = os.path.abspath(path)
    return os.path.join(os.path.dirname(absolute), f".{os.path.basename(absolute)}.{secrets.token_hex(4)}")


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_tree(path: str) -> None:
    for directory, _, files in os.walk(path):
        for name in files:
            _sync(os.path.join(directory, name))
        _sync(directory)
