"""Small files and directories, made durable and private in one way everywhere.

Directories are 0700 and files 0400 or 0600 whatever the umask is. Nothing here knows blobs.
Source: reliability §4.1, §2e.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from imgdb.errors import RefusedError


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything; os.write may take less than it is given."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def make_private_directory(path: str, *, parents: bool = False) -> bool:
    """Make a directory of mode 0700 whatever the umask; True when it was made.

    Raises:
        RefusedError: something that is no directory of ours is in the way.
    """
    if parents:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise RefusedError(f"{path} is not a directory; choose another --store") from None
        return False
    os.chmod(path, 0o700)
    return True


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(fd: int) -> None:
    """syncfs(2), which the standard library lacks; reports write errors since Linux 5.8."""
    import ctypes  # noqa: PLC0415 - costs milliseconds, needed for large imports only

    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        number = ctypes.get_errno()
        raise OSError(number, f"syncfs: {os.strerror(number)}")


def write_durably(path: str, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replace a small file in one step: temporary file beside it, fsync, rename, fsync directory.

    Two writers of one path need a lock: the temporary file has a fixed name, so that what a
    killed one leaves is overwritten by the next.
    """
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            write_all(fd, data)
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def publish(temporary: str, path: str, *, durable: bool = True) -> None:
    """Let a finished file appear under its name: fsync, rename, fsync the directory.

    Raises:
        OSError: it could not be done; the temporary file is gone.
    """
    try:
        if durable:
            fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        discard(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path))


def create_private_file(path: str) -> None:
    """Make a new, empty file of mode 0600 whatever the umask, to be opened by somebody else."""
    os.mknod(path, stat.S_IFREG | 0o600)
    os.chmod(path, 0o600)


def set_aside(path: str, suffix: str) -> str:
    """Rename a database that nobody uses, with the files that belong to it; returns its new path."""
    for companion in ("-wal", "-shm", "-journal", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + companion, f"{path}.{suffix}{companion}")
    return f"{path}.{suffix}"


def discard(path: str) -> None:
    """Unlink a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def open_regular(path: str) -> int | None:
    """A descriptor for reading; None where there is no regular file."""
    # Not blocking, for a FIFO would wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None
