"""Running a command on a mounted root file system.

It runs on the host, as the host's user, and starts in the root's directory; or inside, by chroot,
which is no isolation. Where it can be, the mount is given a place of its own in a mount namespace
of the command, so that its working directory has a path; the place vanishes with the command.
Source: specification §7.5.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

from imgdb.errors import CommandNotFoundError, CommandRefusedError, RefusedError
from imgdb.snapshots import syscalls
from imgdb.snapshots.mount import temporary_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOTFS = "IMGDB_ROOTFS"
"""Environment variable that tells a command on the host where the root is."""
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def run(path: str, command: Sequence[str], *, inside: bool = False, lock: int | None = None) -> int:
    """Run a command until it ends.

    Args:
        path: of the root file system.
        command: what to run, and its arguments.
        inside: chroot there; else it is the host's command, with the root as working directory.
        lock: a descriptor that the command keeps, so that a lock lives as long as it does.

    Returns:
        Its exit code; 128 and the number of the signal that ended it.

    Raises:
        CommandNotFoundError: there is no such command.
        CommandRefusedError: it can't be executed.
        RefusedError: this process can't chroot.
    """
    if inside and os.geteuid():
        raise RefusedError("chroot needs root; try it in unshare -rm, with --store")
    parent = os.getpid()
    with temporary_directory() as place:
        environment = os.environ | ({} if inside else {ROOTFS: place})

        def enter() -> None:
            # In the child, between fork and exec.
            syscalls.die_with_parent(parent)
            here = _attach(path, place)
            os.environ[ROOTFS] = here
            if inside:
                os.chroot(here)
                os.chdir("/")
            else:
                os.chdir(here)

        attached = _can_attach(path)
        if not attached:
            environment[ROOTFS] = path
        try:
            process = subprocess.Popen(  # noqa: S603 - the user's own command
                list(command),
                preexec_fn=enter,  # noqa: PLW1509 - `ImageStore.execute` is for programs with one thread
                env=environment,
                pass_fds=() if lock is None else (lock,),
            )
        except FileNotFoundError:
            where = " in there" if inside else ""
            raise CommandNotFoundError(f"{command[0]}: no such command{where}") from None
        except subprocess.SubprocessError:
            raise RefusedError(
                f"{command[0]} can't be run there: this process may not chroot or mount"
            ) from None
        except OSError as error:
            raise CommandRefusedError(f"{command[0]} can't be run: {error.strerror}") from None
        with _forwarding(process):
            code = process.wait()
    return code if code >= 0 else 128 - code


def _can_attach(path: str) -> bool:
    """Whether the mount at a path can be had once more, in a mount namespace of one's own."""
    if os.geteuid() or not path.startswith("/proc/"):
        return False
    try:
        os.close(syscalls.open_tree(os.fsencode(path)))
    except OSError:
        return False
    return True


def _attach(path: str, place: str) -> str:
    """Mount what is at `path` at `place`, for this process alone; where it is reached then."""
    if not _can_attach(path):
        return path
    fd = syscalls.open_tree(os.fsencode(path))
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(b"none", b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.move_mount(fd, -100, os.fsencode(place))
    os.close(fd)
    return place


@contextlib.contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand signals on to the command and wait for it, so that the mount ends after it."""

    def forward(number: int, _frame: object) -> None:
        # A terminal has sent it to the command as well.
        if number != signal.SIGINT or not os.isatty(0):
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
