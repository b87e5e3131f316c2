"""Mounting a stack of layers: by overlayfs, by fuse-overlayfs, attached somewhere or nowhere.

A *detached* mount is in no mount table: only the descriptor that holds it leads there, and it
ends with that, however the process ends. Its root has no path, and whoever asks for one is told
``/``, the host's own root; so it is put inside a small detached tmpfs first, whose path leads
nowhere on the host. Kernels before 6.15 can't do that, and mount at a temporary directory.

All mounts are nosuid and nodev. In the first user namespace overlayfs keeps its marks in
``trusted.overlay.*``, in others in ``user.overlay.*``.
Source: reliability §4.8; Linux, Documentation/filesystems/overlayfs.rst; specification §7.5.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgdb.errors import BusyError, CannotMountError, ImgdbError
from imgdb.snapshots import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LOWERS = 500
"""Layers that overlayfs stacks."""
_STRING = 255  # bytes that fsconfig takes
_PAGE = 4096  # bytes that mount takes
_ATTRIBUTES = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV
# redirect_dir: a directory that was renamed must not need what only the kernel can read.
_OPTIONS = (("redirect_dir", "nofollow"), ("index", "off"), ("metacopy", "off"))
_TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Stacked:
    """Directories that are mounted on top of each other, all below one.

    Attributes:
        base: absolute path of that one.
        lowers: below it, topmost first.
        upper: takes the changes; None for a read-only mount.
        work: overlayfs's own, beside `upper`.
        empty: a directory without anything, for stacks that are too low.
    """

    base: str
    lowers: tuple[str, ...]
    upper: str | None
    work: str | None
    empty: str

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed."""
        return self.upper is None

    @property
    def lower_layers(self) -> tuple[str, ...]:
        """As many as overlayfs wants: one below an upper one, else two."""
        wanted = 2 if self.read_only else 1
        return self.lowers + (self.empty,) * max(0, wanted - len(self.lowers))


def in_first_user_namespace() -> bool:
    """Whether root here is root everywhere."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", "4294967295"]


# -- overlayfs -------------------------------------------------------------------------------


def overlay(stacked: Stacked) -> int:
    """A detached overlay mount; ends with its descriptor.

    Raises:
        OSError: the kernel or this process's rights don't allow it.
    """
    base = os.open(stacked.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    context = -1
    try:
        context = syscalls.fsopen("overlay")
        syscalls.fsconfig(context, "source", b"imgdb")
        if not in_first_user_namespace():
            syscalls.fsconfig(context, "userxattr")
        for layer in stacked.lower_layers:
            syscalls.fsconfig(context, "lowerdir+", _path(stacked.base, base, layer))
        if stacked.upper is not None and stacked.work is not None:
            syscalls.fsconfig(context, "upperdir", _path(stacked.base, base, stacked.upper))
            syscalls.fsconfig(context, "workdir", _path(stacked.base, base, stacked.work))
        for key, value in _OPTIONS:
            syscalls.fsconfig(context, key, value.encode())
        read_only = syscalls.MOUNT_ATTR_RDONLY if stacked.read_only else 0
        return syscalls.fsmount(context, _ATTRIBUTES | read_only)
    finally:
        if context >= 0:
            os.close(context)
        os.close(base)


def _path(base: str, base_fd: int, layer: str) -> bytes:
    """A layer's path, for people to read in the mount table where it is short enough."""
    path = os.fsencode(os.path.join(base, layer))
    return path if len(path) <= _STRING else f"/proc/self/fd/{base_fd}/{layer}".encode()


def _overlay_at(stacked: Stacked, target: str) -> None:
    """Attach an overlay mount; the old way where the kernel knows no other."""
    try:
        fd = overlay(stacked)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOSYS}:
            raise
        _by_mount(stacked, target)
        return
    try:
        syscalls.move_mount(fd, -100, os.fsencode(target))
    finally:
        os.close(fd)


def _by_mount(stacked: Stacked, target: str) -> None:
    """mount(2), whose options must fit into a page: by short relative paths.

    A thread of its own goes there, since the working directory is the whole process's otherwise.
    """
    options = [f"lowerdir={':'.join(stacked.lower_layers)}"]
    if stacked.upper is not None:
        options += [f"upperdir={stacked.upper}", f"workdir={stacked.work}"]
    options += [f"{key}={value}" for key, value in _OPTIONS]
    if not in_first_user_namespace():
        options.append("userxattr")
    data = ",".join(options).encode()
    if len(data) >= _PAGE:
        raise OSError(errno.E2BIG, "too many layers for mount(2)")
    failures: list[OSError] = []

    def work() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_FS)
            os.chdir(stacked.base)
            flags = _FLAGS | (syscalls.MS_RDONLY if stacked.read_only else 0)
            syscalls.mount(b"imgdb", os.fsencode(target), b"overlay", flags, data)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="imgdb-mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


# -- fuse-overlayfs --------------------------------------------------------------------------


def _fuse_at(stacked: Stacked, target: str) -> None:
    tool = shutil.which("fuse-overlayfs", path=_TOOLS)
    if tool is None or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise CannotMountError("mounting needs root, or fuse-overlayfs and /dev/fuse")
    layers = ":".join(stacked.lower_layers)
    options = f"lowerdir={layers}"
    if stacked.upper is not None:
        options += f",upperdir={stacked.upper},workdir={stacked.work}"
    else:
        options += ",ro"
    done = subprocess.run(  # noqa: S603 - a tool of the system, and paths of our own
        [tool, "-o", options, target],
        cwd=stacked.base,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CannotMountError(f"fuse-overlayfs: {lines[-1]}")


# -- attached mounts -------------------------------------------------------------------------


def mount_at(stacked: Stacked, target: str) -> None:
    """Mount at a directory, as the kernel, this process's rights, and fuse-overlayfs allow it.

    Raises:
        CannotMountError: nothing is mounted.
    """
    if len(stacked.lowers) > MAX_LOWERS:
        raise CannotMountError(f"overlayfs stacks {MAX_LOWERS} layers, and these are {len(stacked.lowers)}")
    try:
        _overlay_at(stacked, target)
    except OSError as error:
        try:
            _fuse_at(stacked, target)
        except CannotMountError as second:
            raise CannotMountError(
                f"{target} can't be mounted: {error.strerror or error}; {second}"
            ) from None


def unmount(target: str) -> bool:
    """End a mount; False where there is none.

    Raises:
        BusyError: something in it is in use.
        ImgdbError: this process has no right to it.
    """
    kind = mounted().get(target)
    if kind is None:
        return False
    try:
        if kind.startswith("fuse") and os.geteuid():
            _fuse_unmount(target)
        else:
            syscalls.umount(os.fsencode(target))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(
                f"{target} is in use: a process has a file or its working directory in it"
            ) from None
        raise ImgdbError(f"{target} can't be unmounted: {os.strerror(error.errno or 0)}") from None
    return True


def _fuse_unmount(target: str) -> None:
    tool = shutil.which("fusermount3", path=_TOOLS) or shutil.which("fusermount", path=_TOOLS)
    if tool is None:
        raise OSError(errno.ENOENT, "fusermount3 is missing")
    done = subprocess.run(  # noqa: S603 - a tool of the system
        [tool, "-u", target], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        busy = "busy" in done.stderr
        raise OSError(errno.EBUSY if busy else errno.EPERM, done.stderr.strip())


def mounted() -> dict[str, str]:
    """What is mounted in this mount namespace: target to kind of file system."""
    found = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            found[_unescape(before.split()[4])] = after.split()[0]
    return found


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def boot_id() -> str:
    """Of this run of the machine; no mount outlives it."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


# -- mounts for as long as something runs ----------------------------------------------------


@contextlib.contextmanager
def temporary(stacked: Stacked) -> Iterator[str]:
    """A mount for the time of a block; the path by which it is reached, by child processes too.

    Raises:
        CannotMountError: nothing can be mounted here.
        BusyError: at the end something in it was still in use; only where it had to be attached.
    """
    try:
        fd = overlay(stacked) if len(stacked.lowers) <= MAX_LOWERS else -1
    except OSError:
        fd = -1
    nested = _nest(fd) if fd >= 0 else None
    if nested is not None:
        with _closing(nested[0]):
            yield nested[1]
        return
    with temporary_directory() as target:
        if fd >= 0:
            with _closing(fd):
                syscalls.move_mount(fd, -100, os.fsencode(target))
        else:
            mount_at(stacked, target)
        try:
            yield target
        finally:
            unmount(target)


@contextlib.contextmanager
def shared(target: str) -> Iterator[str]:
    """What is mounted at a place, by a path that lasts as long as the block."""
    try:
        fd = syscalls.open_tree(os.fsencode(target))
    except OSError:
        yield target  # no right to mounts of its own, so by its own name
        return
    nested = _nest(fd)
    if nested is None:
        os.close(fd)
        yield target
        return
    with _closing(nested[0]):
        yield nested[1]


def _nest(fd: int) -> tuple[int, str] | None:
    """Put a detached mount into a detached tmpfs: its descriptor and the path; closes `fd` then."""
    context = outer = -1
    try:
        context = syscalls.fsopen("tmpfs")
        syscalls.fsconfig(context, "mode", b"0755")
        outer = syscalls.fsmount(context, _ATTRIBUTES)
        name = f"imgdb-rootfs-{secrets.token_hex(4)}"
        os.mkdir(name, 0o700, dir_fd=outer)
        syscalls.move_mount(fd, outer, name.encode())
    except OSError:
        if outer >= 0:
            os.close(outer)
        return None
    finally:
        if context >= 0:
            os.close(context)
    os.close(fd)
    return outer, f"/proc/{os.getpid()}/fd/{outer}/{name}"


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def temporary_directory() -> Iterator[str]:
    """A place to mount at; removed by rmdir alone, so that a mount that stayed is never emptied."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = runtime if runtime and os.access(runtime, os.W_OK) else None
    path = os.path.realpath(tempfile.mkdtemp(prefix="imgdb-mount-", dir=parent))
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(path)
