"""The mounted root file system: for a callback, for a command, and until somebody unmounts it.

Source: specification §7.5, reliability §4.8.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from imgdb.errors import (
    AlreadyExistsError,
    BusyError,
    CannotMountError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from imgdb.snapshots import mount, running, syscalls
from imgdb.snapshots.disk import SnapshotDirectory
from imgdb.store import ImageStore
from tests.builder import Image, Layer
from tests.integrity import check_store
from tests.plain_user import as_plain_user, as_root, home_of_plain_user
from tests.test_unpack import HOST, TOP
from tests.tools.sample import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root; plain users are played from it")

NAME = "app:1"
IMAGE = Image([{"etc/os-release": b"ID=test\n", "bin/sh": b"#!", "doc/a": b"a"}, TOP], HOST)
MERGED = ["bin", "bin/sh", "doc", "doc/b", "etc"]


@pytest.fixture
def ready(store, tmp_path):
    """A store with an unpacked image and an active snapshot `c` on it."""
    store.load(IMAGE.oci_tar(tmp_path / "x.tar", NAME))
    store.unpack(NAME)
    store.prepare("c", NAME)
    return store


@pytest.fixture(autouse=True)
def no_mount_is_left(tmp_path, monkeypatch):
    """After each test none of its mounts is there, nor a place that was made for one."""
    (tmp_path / "places").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "places"))
    yield
    assert mounts_below(tmp_path) == []
    assert os.listdir(tmp_path / "places") == []


def mounts_below(path):
    """Where something is mounted below a directory."""
    return [target for target in mount.mounted() if target.startswith(f"{path}/")]


@pytest.fixture
def home():
    """A directory of the plain user."""
    with home_of_plain_user() as path:
        yield path


def paths(root):
    """Everything below a directory."""
    found = []
    for folder, folders, files in os.walk(root):
        found += [os.path.relpath(os.path.join(folder, name), root) for name in (*folders, *files)]
    return sorted(found)


# -- the context manager -------------------------------------------------------------------------


def test_a_snapshot_is_mounted_for_a_block(ready):
    """What is written there is there the next time; afterwards the path leads nowhere."""
    with ready.base_fs("c") as root:
        assert paths(root) == MERGED
        Path(root, "new").write_text("1", "utf-8")
    assert not os.path.exists(root)
    with ready.base_fs("c") as root:
        assert paths(root) == sorted([*MERGED, "new"])


def test_the_path_never_means_the_host(ready):
    """Resolving it must not give /, which is what the kernel says of a detached mount's root."""
    with ready.base_fs("c") as root:
        real = os.path.realpath(root)
        assert real != "/"
        assert real == root or not os.path.exists(real)


def test_it_is_in_no_mount_table(ready):
    """So a kill can leave nothing there."""
    before = set(mount.mounted())
    with ready.base_fs("c") as root:
        assert not any("imgdb-rootfs" in target for target in set(mount.mounted()) - before)
        assert mounts_below(os.path.dirname(ready.root)) == []
        assert os.path.exists(root)


def test_child_processes_reach_it(ready):
    """Under the same path."""
    with ready.base_fs("c") as root:
        out = subprocess.run(["ls", root], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["bin", "doc", "etc"]


def test_set_user_id_and_devices_do_nothing(ready):
    """The mount is nosuid and nodev."""
    with ready.base_fs("c") as root:
        flags = os.statvfs(root).f_flag
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV


def test_nested_uses_share_one_mount(ready):
    """Counted: the inner end leaves it to the outer one."""
    with ready.base_fs("c") as outer:
        with ready.base_fs("c") as inner:
            assert inner == outer
        assert paths(outer) == MERGED


def test_threads_share_one_mount(ready):
    """Each may be the first to come and the last to go."""
    seen, failures = set(), []

    def work(number):
        try:
            for turn in range(10):
                with ready.base_fs("c") as root:
                    seen.add(f"{number}-{turn}")
                    Path(root, f"{number}-{turn}").touch()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with ready.base_fs("c") as root:
        assert {name for name in os.listdir(root) if "-" in name} == seen
    assert len(seen) == 40


def test_a_function_is_called(ready):
    """What it returns is returned, what it raises is raised, and the mount is gone either way."""
    assert ready.perform_with_base_fs("c", paths) == MERGED
    roots = []

    def fail(root):
        roots.append(root)
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        ready.perform_with_base_fs("c", fail)
    assert not os.path.exists(roots[0])


def test_what_can_be_mounted(ready):
    """Active snapshots and views; not committed ones, nor what is not there."""
    ready.view("v", NAME)
    with ready.base_fs("v") as root:
        assert paths(root) == MERGED
    with pytest.raises(NotFoundError, match="no snapshot nothing"), ready.base_fs("nothing"):
        pass
    committed = ready.snapshot("c").parent
    with pytest.raises(FailedPreconditionError, match="is committed"), ready.base_fs(committed):
        pass


def test_the_snapshot_and_its_layers_are_kept(ready):
    """Also a committed one's layers below a view that somebody removes by SQL meanwhile."""
    with ready.base_fs("c") as root:
        ready.remove(NAME)
        assert len(ready.gc().snapshots) == 0
        assert paths(root) == MERGED
        leases = ready.leases()
        assert [dict(lease.labels) for lease in leases] == [{"io.imgdb.base-fs": "c"}]
    assert ready.leases() == []


# -- other processes -----------------------------------------------------------------------------

HOLDER = """
import sys, time
from imgdb.store import ImageStore
store = ImageStore.open(sys.argv[1])
with store.base_fs("c") as root:
    open(root + "/by-another", "w").close()
    print(root, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(store):
    """Another process inside `base_fs`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        process.root = process.stdout.readline().strip()
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            stream.close()


def test_another_process_waits_or_gives_up(ready):
    """Two mounts that write one layer are what overlayfs doesn't define."""
    with holder(ready) as process:
        with (
            pytest.raises(BusyError, match="snapshot c is in use by another process"),
            ready.base_fs("c", wait_s=0.2),
        ):
            pass
        threading.Timer(0.3, process.stdin.close).start()
        with ready.base_fs("c", wait_s=30) as root:
            assert "by-another" in os.listdir(root)


def test_what_was_committed_while_it_was_waited_for(ready, monkeypatch):
    """Is never written any more."""
    real = SnapshotDirectory.alone

    def late(directory, snapshot, key, **options):
        monkeypatch.undo()
        ready.commit_snapshot("d", "c")
        return real(directory, snapshot, key, **options)

    monkeypatch.setattr(SnapshotDirectory, "alone", late)
    with pytest.raises(NotFoundError, match="removed or committed meanwhile"), ready.base_fs("c"):
        pass


def test_a_kill_leaves_nothing(ready, tmp_path):
    """Neither mount nor place nor lock; the lease goes with the next gc."""
    with holder(ready) as process:
        assert process.root
        process.kill()
        process.wait()
    with ready.base_fs("c") as root:
        assert "by-another" in os.listdir(root)
    clear_up(ready, tmp_path)


def test_a_forked_child_leaves_the_mount_alone(ready):
    """It ends its block; the parent's goes on."""
    with ready.base_fs("c") as root:
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if paths(root) == MERGED else 2
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert paths(root) == MERGED


def test_a_forked_child_does_not_keep_the_lock(ready):
    """A worker that was forked inside the block, and lives on, keeps nobody out."""
    reading, writing = os.pipe()
    with ready.base_fs("c"):
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        with holder(ready) as process:
            assert process.root
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
    clear_up(ready)


# -- kernels and users that can do less ----------------------------------------------------------


def refuse(*_, **__):
    """A system call that is not allowed."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_nesting_it_is_mounted_at_a_temporary_place(ready, monkeypatch):
    """As before Linux 6.15; the place is gone afterwards, also after a failure."""
    monkeypatch.setattr(mount, "_nest", lambda _fd: None)
    with ready.base_fs("c") as root:
        assert "/imgdb-mount-" in root
        assert root in mount.mounted()
        assert paths(root) == MERGED
    assert not os.path.lexists(root)
    with pytest.raises(KeyError), ready.base_fs("c") as root:
        raise KeyError
    assert not os.path.lexists(root)


def test_a_place_that_is_in_use_is_not_emptied(ready, monkeypatch):
    """The error says so, and nothing of the container is removed."""
    monkeypatch.setattr(mount, "_nest", lambda _fd: None)
    with pytest.raises(BusyError, match="is in use"), ready.base_fs("c") as root:
        busy = open(f"{root}/bin/sh", "rb")  # noqa: SIM115 - closed below
    assert paths(root) == MERGED
    busy.close()
    assert mount.unmount(root)
    os.rmdir(root)


def test_the_old_way_to_mount(ready, monkeypatch):
    """mount(2), as before Linux 6.8, which must stack layers by short paths."""

    def old(_stacked):
        raise OSError(errno.EINVAL, "no lowerdir+")

    monkeypatch.setattr(mount, "overlay", old)
    with ready.base_fs("c") as root:
        assert paths(root) == MERGED
        Path(root, "new").touch()
    assert "new" in os.listdir(f"{ready.root}/snapshots/3/fs")


def test_a_copy_where_nothing_can_be_mounted(ready, monkeypatch):
    """The tree is the same, what is changed stays, and committing and mounting go on from there."""
    with monkeypatch.context() as patch:
        patch.setattr(mount, "overlay", refuse)
        patch.setattr(mount, "_fuse_at", _no_fuse)
        with ready.base_fs("c") as root:
            assert paths(root) == MERGED
            Path(root, "new").write_text("1", "utf-8")
            os.unlink(f"{root}/bin/sh")
        ready.view("v", NAME)
        with ready.base_fs("v") as root:
            assert paths(root) == MERGED
        assert not os.path.exists(root)
    expected = ["bin", "doc", "doc/b", "etc", "new"]
    with ready.base_fs("c") as root:
        assert paths(root) == expected
    ready.commit_snapshot("d", "c")
    ready.prepare("e", "d")
    with ready.base_fs("e") as root:
        assert paths(root) == expected


def _no_fuse(*_):
    raise CannotMountError("no fuse")


def test_a_copy_keeps_everything(ready, tmp_path, monkeypatch):
    """Owners, modes, times, links, devices, attributes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind in (("d", "5"), ("d/f", "0"), ("d/l", "2"), ("d/h", "1"), ("d/p", "6"), ("d/c", "3")):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid = kind.encode(), 0o4750, 12, 34
            info.linkname = {"2": "nowhere", "1": "d/f"}.get(kind, "")
            info.pax_headers = {"mtime": "1600000000.123456789", "SCHILY.xattr.user.x": "y"}
            info.devmajor, info.devminor = 1, 3
            tar.addfile(info)
    ready.load(Image([Layer(out.getvalue()), {"other": b""}], HOST).oci_tar(tmp_path / "y.tar", "full:1"))
    ready.unpack("full:1")
    ready.view("v", "full:1")

    def look(root):
        return {path: facts(os.path.join(root, path)) for path in paths(root)}

    mounted = ready.perform_with_base_fs("v", look)
    with monkeypatch.context() as patch:
        patch.setattr(mount, "overlay", refuse)
        patch.setattr(mount, "_fuse_at", _no_fuse)
        assert ready.perform_with_base_fs("v", look) == mounted
    assert mounted["d/f"][:4] == (0o104750, 12, 34, 1600000000123456789)


def facts(path):
    """What a copy must keep."""
    status = os.lstat(path)
    xattrs = () if os.path.islink(path) else tuple(os.listxattr(path))
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_rdev,
        status.st_nlink if not os.path.isdir(path) else 0,
        xattrs,
    )


def need_fuse():
    """Skip where the tool or the device is missing."""
    if not (os.path.exists("/dev/fuse") and os.path.exists("/usr/bin/fuse-overlayfs")):
        pytest.skip("no fuse-overlayfs or no /dev/fuse here")


@as_root
@pytest.mark.parametrize("fuse", [True, False], ids=["fuse-overlayfs", "copied"])
def test_a_plain_user(home, tmp_path, fuse):
    """By fuse-overlayfs where there is one, else by a copy; owners are recorded and said."""
    if fuse:
        need_fuse()
    archive = IMAGE.oci_tar(home / "x.tar", NAME)

    def work():
        if not fuse:
            mount._fuse_at = _no_fuse
        os.environ["TMPDIR"] = str(home)
        with ImageStore.open(home / "store", create=True, durable=False) as store:
            store.load(archive)
            (done,) = store.unpack(NAME)
            store.prepare("c", NAME)
            with store.base_fs("c") as root:
                assert (mount.mounted().get(root) == "fuse.fuse-overlayfs") == fuse
                found = paths(root)
                Path(root, "new").touch()
                os.unlink(f"{root}/bin/sh")
            with store.base_fs("c") as root:
                again = paths(root)
            store.remove(NAME)
            store.remove_snapshot("c")
            freed = len(store.gc().snapshots)
            check_store(store)
        return found, again, done.skipped, freed, os.listdir(home / "store/snapshots")

    found, again, skipped, freed, left = as_plain_user(work, fuse=tmp_path if fuse else None)
    assert found == MERGED
    assert again == ["bin", "doc", "doc/b", "etc", "new"]
    assert skipped["owner"] >= len(MERGED)
    assert (freed, left) == (2, ["empty"])


@as_root
def test_in_a_user_namespace(home):
    """Root of there mounts overlayfs with marks that a user may set."""
    archive = IMAGE.oci_tar(home / "x.tar", NAME)

    def work():
        user, group = os.getuid(), os.getgid()
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny", "ascii")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1", "ascii")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1", "ascii")
        os.environ["TMPDIR"] = str(home)
        with ImageStore.open(home / "store", create=True, durable=False) as store:
            store.load(archive)
            store.unpack(NAME)
            store.prepare("c", NAME)
            with store.base_fs("c") as root:
                kind = subprocess.run(
                    ["stat", "-f", "-c", "%T", root], capture_output=True, text=True, check=True
                ).stdout
                return kind.strip(), paths(root)

    kind, found = as_plain_user(work)
    assert kind == "overlayfs"
    assert found == MERGED


# -- mounts that stay ----------------------------------------------------------------------------


def test_an_image_is_mounted_read_only(store, tmp_path):
    """Unpacked for it, listed in the database, and kept as long as it lasts."""
    store.load(IMAGE.oci_tar(tmp_path / "x.tar", NAME))
    target = tmp_path / "mnt"
    target.mkdir()
    record = store.mount(NAME, target)
    try:
        assert (record.target, [m.target for m in store.mounts()]) == (str(target), [str(target)])
        assert paths(target) == MERGED
        with pytest.raises(OSError, match="Read-only"):
            (target / "x").touch()
        store.remove(NAME)
        assert len(store.gc().snapshots) == 0
    finally:
        store.unmount(target)
    assert store.mounts() == []
    assert os.listdir(target) == []
    assert len(store.gc().snapshots) == 2


def test_an_active_snapshot_is_mounted_to_be_written(ready, tmp_path):
    """At one place; callbacks share it; it can't be removed or committed meanwhile."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    ready.mount("c", tmp_path / "one")
    try:
        (tmp_path / "one/new").touch()
        with pytest.raises(FailedPreconditionError, match="can be written at one place only"):
            ready.mount("c", tmp_path / "two")
        with ready.base_fs("c") as root:
            (tmp_path / "one/newer").touch()
            assert {"new", "newer"} <= set(os.listdir(root))
        for change in (
            lambda: ready.remove_snapshot("c"),
            lambda: ready.commit_snapshot("d", "c"),
        ):
            with pytest.raises(FailedPreconditionError, match=r"mounted at .*; imgdb umount"):
                change()
    finally:
        ready.unmount("c")
    ready.commit_snapshot("d", "c")


def test_what_mount_refuses(ready, tmp_path):
    """Directories that are not there, or taken; things that are not there."""
    target = tmp_path / "mnt"
    with pytest.raises(NotFoundError, match="is no directory"):
        ready.mount(NAME, target)
    target.mkdir()
    with pytest.raises(NotFoundError, match="No such image"):
        ready.mount("nothing:1", target)
    ready.mount(NAME, target)
    with pytest.raises(AlreadyExistsError, match="has a mount already"):
        ready.mount("c", target)
    with open(target / "bin/sh", "rb"), pytest.raises(BusyError, match="is in use"):
        ready.unmount(target)
    ready.unmount(target)
    with pytest.raises(NotFoundError, match="imgdb has mounted nothing"):
        ready.unmount(target)


def test_a_snapshot_that_is_mounted_twice(ready, tmp_path):
    """A read-only one may be; to unmount it by its key is ambiguous then."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        ready.mount(NAME, tmp_path / name)
    with pytest.raises(InvalidArgumentError, match=r"mounted at .*one, .*two; say which"):
        ready.unmount(ready.snapshot("c").parent)
    for name in ("one", "two"):
        ready.unmount(tmp_path / name)


def test_a_mount_that_ended_without_us(ready, tmp_path):
    """Is forgotten by umount, and by the next mount at the same place."""
    target = tmp_path / "mnt"
    target.mkdir()
    for _ in range(2):
        ready.mount(NAME, target)
        subprocess.run(["umount", target], check=True)
    ready.unmount(target)
    assert ready.mounts() == []


def test_a_reboot_ends_mounts(ready, tmp_path, monkeypatch):
    """The next gc knows, and frees what only they kept."""
    target = tmp_path / "mnt"
    target.mkdir()
    ready.mount(NAME, target)
    subprocess.run(["umount", target], check=True)
    monkeypatch.setattr("imgdb.gc.boot_id", lambda: "another")
    ready.remove_snapshot("c")
    ready.remove(NAME)
    assert len(ready.gc().snapshots) == 2
    assert ready.mounts() == []


def test_a_mount_that_fails_leaves_no_row(ready, tmp_path, monkeypatch):
    """One line, and nothing to be cleaned up."""
    target = tmp_path / "mnt"
    target.mkdir()
    monkeypatch.setattr(mount, "overlay", refuse)
    monkeypatch.setattr(mount, "_fuse_at", _no_fuse)
    with pytest.raises(CannotMountError, match="can't be mounted: Operation not permitted; no fuse"):
        ready.mount(NAME, target)
    assert ready.mounts() == []


@as_root
def test_a_plain_user_mounts_by_fuse(home, tmp_path):
    """And unmounts again."""
    need_fuse()
    archive = IMAGE.oci_tar(home / "x.tar", NAME)

    def work():
        (home / "mnt").mkdir()
        with ImageStore.open(home / "store", create=True, durable=False) as store:
            store.load(archive)
            store.mount(NAME, home / "mnt")
            found = paths(home / "mnt")
            store.unmount(home / "mnt")
            return found, os.listdir(home / "mnt")

    assert as_plain_user(work, fuse=tmp_path) == (MERGED, [])


# -- commands ------------------------------------------------------------------------------------


def run(store, *command, **options):
    """Run a command on the snapshot `c`, its output in a file."""
    out = Path(store.root).parent / "out"
    with store.base_fs("c") as root, open(out, "wb") as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            code = running.run(root, command, **options)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    return code, out.read_text("utf-8")


def test_a_command_of_the_host(ready):
    """Starts in the root, whose path it is told, and which is a real one."""
    code, out = run(ready, "sh", "-c", 'pwd; echo "$IMGDB_ROOTFS"; ls; touch new; exit 3')
    here, told, *listed = out.split()
    assert code == 3
    assert here == told
    assert "/imgdb-mount-" in here
    assert listed == ["bin", "doc", "etc"]
    assert not os.path.lexists(here)
    with ready.base_fs("c") as root:
        assert "new" in os.listdir(root)


def test_a_command_inside(ready):
    """By chroot: there is nothing but what the image has."""
    with ready.base_fs("c") as root:
        subprocess.run(["cp", "/bin/busybox", f"{root}/bin/busybox"], check=True) if os.path.exists(
            "/bin/busybox"
        ) else pytest.skip("no busybox here")
    code, out = run(ready, "/bin/busybox", "ls", "/", inside=True)
    assert (code, out.split()) == (0, ["bin", "doc", "etc"])


def test_a_command_that_is_not_there(ready):
    """Outside and inside."""
    with pytest.raises(NotFoundError, match="no-such: no such command"):
        run(ready, "no-such")
    with pytest.raises(NotFoundError, match="/no-such: no such command in there"):
        run(ready, "/no-such", inside=True)


def test_a_command_that_is_killed(ready):
    """Its signal is told as shells do."""
    assert run(ready, "sh", "-c", "kill -9 $$")[0] == 128 + 9


EXECUTOR = """
import sys
from imgdb.store import ImageStore
with ImageStore.open(sys.argv[1]) as store:
    store.execute("c", ["sh", "-c", sys.argv[2]])
"""


def executing(store, script):
    """A process that runs a command on the snapshot `c`, which has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXECUTOR, store.root, f"echo begun; {script}"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_command_dies_with_imgdb(ready, tmp_path):
    """Nobody writes on into a snapshot that others may have by then."""
    with executing(ready, "while :; do date >> log; sleep 0.05; done") as process:
        process.kill()
    with ready.base_fs("c") as root:
        size = os.path.getsize(f"{root}/log")
        time.sleep(0.3)
        assert os.path.getsize(f"{root}/log") == size
    clear_up(ready, tmp_path)


def test_what_a_command_leaves_behind_keeps_the_snapshot(ready, tmp_path):
    """A process in the background that outlives both still has the lock."""
    with executing(ready, "setsid sh -c 'echo $$; exec sleep 30' & wait") as process:
        sleeper = int(process.stdout.readline())
        process.kill()
    try:
        with pytest.raises(BusyError, match="snapshot c is in use"):
            ready.commit_snapshot("d", "c")
    finally:
        os.kill(sleeper, signal.SIGKILL)
    with ready.base_fs("c", wait_s=10) as root:
        assert os.path.exists(root)
    clear_up(ready, tmp_path)


def clear_up(store, tmp_path=None):
    """Remove the empty directories of mounts of killed processes, and let their leases end."""
    for lease in store.leases():
        store.renew_lease(lease.id, 0.001)
    time.sleep(0.01)
    store.gc()
    assert store.leases() == []
    for place in (tmp_path / "places").iterdir() if tmp_path else ():
        place.rmdir()


def test_signals_are_handed_on(ready):
    """The command decides, and the mount ends after it."""
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    script = "trap 'echo caught; exit 7' TERM; while :; do sleep 0.05; done"
    assert run(ready, "sh", "-c", script) == (7, "caught\n")


def test_what_a_plain_user_could_not_set_is_recorded(home):
    """A line each, beside the layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("bin/su")
        info.mode = 0o4755
        tar.addfile(info)
        info = tarfile.TarInfo("dev/null")
        info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
        tar.addfile(info)
    archive = Image([Layer(out.getvalue())], HOST).oci_tar(home / "x.tar", NAME)

    def work():
        with ImageStore.open(home / "store", create=True, durable=False) as store:
            store.load(archive)
            store.unpack(NAME)
        return os.stat(home / "store/snapshots/1/fs/bin/su").st_mode

    mode = as_plain_user(work)
    assert mode & 0o7777 == 0o755  # no set-user-ID bit without its owner
    text = (home / "store/snapshots/1/skipped.jsonl").read_text("utf-8")
    records = {record["path"]: record for record in map(json.loads, text.splitlines())}
    assert records["bin/su"]["skipped"] == ["owner"]
    assert (records["bin/su"]["uid"], records["bin/su"]["mode"]) == (0, "4755")
    assert (records["dev/null"]["type"], records["dev/null"]["device"]) == ("char", [1, 3])
