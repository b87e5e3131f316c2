"""Snapshots: prepare, view, commit, remove, usage; rules and errors of containerd's suite.

Of its tests these have a counterpart here, under their names: Basic, StatActive, StatComitted,
TransitivityTest, PreareViewFailingtest, Remove, RemoveIntermediateSnapshot, Walk, LayerFileupdate,
RemoveDirectoryInLowerLayer, Chown, DirectoryPermissionOnCommit, DeletedFilesInChildSnapshot,
MoveFileFromLowerLayer, ViewReadonly, StatInWalk, RootPermission, Rename, 128LayersMount, and of the
metadata store GetInfo, GetSnapshot, CreateActive, Commit, Remove and ParentIDs in all their forms.
Not: CloseTwice (nothing to be closed), Update (labels are given at prepare and commit), Rebase.
Source: specification §7.2.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from imgdb.errors import (
    AlreadyExistsError,
    BusyError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tests.builder import Image
from tests.test_unpack import HOST

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="overlayfs and owners need root")


def write(store, key, files):
    """Change an active snapshot: contents by path; None removes."""
    with store.base_fs(key) as root:
        for path, body in files.items():
            target = f"{root}/{path}"
            if body is None:
                subprocess.run(["rm", "-rf", "--", target], check=True)
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "w", encoding="utf-8") as file:
                file.write(body)


def layered(store, *layers, name="top"):
    """Committed snapshots on top of each other; the last one is called `name`."""
    parent = None
    for number, files in enumerate(layers):
        store.prepare("making", parent)
        write(store, "making", files)
        parent = name if number == len(layers) - 1 else f"{name}-{number}"
        store.commit_snapshot(parent, "making")
    return parent


def read(store, parent):
    """Contents by path of what a view of a committed snapshot shows."""
    store.view("looking", parent)
    try:
        with store.base_fs("looking") as root:
            paths = [Path(folder, file) for folder, _, files in os.walk(root) for file in files]
            return {str(path.relative_to(root)): path.read_text("utf-8") for path in paths}
    finally:
        store.remove_snapshot("looking")


def test_basic(store):
    """Prepare, write, commit; the key disappears and the name appears."""
    made = store.prepare("first", labels={"a": "1"})
    assert (made.kind, made.parent, dict(made.labels)) == ("active", None, {"a": "1"})
    write(store, "first", {"foo": "foo\n", "a/b/c": "c"})
    committed = store.commit_snapshot("done", "first")
    assert (committed.kind, committed.key, dict(committed.labels)) == ("committed", "done", {})
    with pytest.raises(NotFoundError, match="no snapshot first"):
        store.snapshot("first")
    store.prepare("second", "done")
    write(store, "second", {"bar": "bar\n", "a/b/c": None})
    store.commit_snapshot("done2", "second")
    assert store.snapshot("done2").parent == "done"
    assert read(store, "done2") == {"foo": "foo\n", "bar": "bar\n"}
    assert read(store, "done") == {"foo": "foo\n", "a/b/c": "c"}


def test_labels_at_commit_replace_those_of_prepare(store):
    """As containerd has it."""
    store.prepare("a", labels={"old": "1"})
    assert dict(store.commit_snapshot("b", "a", labels={"new": "2"}).labels) == {"new": "2"}


def test_stat_active_and_committed(store):
    """What is recorded about each; the size of an active one is not, for it changes."""
    store.prepare("a")
    write(store, "a", {"x": "1" * 10_000})
    active = store.snapshot("a")
    assert (active.kind, active.usage_bytes, active.usage_inodes) == ("active", None, None)
    assert store.snapshot_usage("a").inodes == 2
    committed = store.commit_snapshot("c", "a")
    usage = store.snapshot_usage("c")
    assert (committed.usage_bytes, committed.usage_inodes) == (usage.bytes, usage.inodes)
    assert usage.inodes == 2
    assert usage.bytes >= 10_000


def test_usage_is_without_parents(store):
    """And counts a file with two names once."""
    layered(store, {"big": "1" * 100_000})
    store.prepare("a", "top")
    with store.base_fs("a") as root:
        with open(f"{root}/x", "wb") as file:
            file.write(bytes([1]) * 8192)
        os.link(f"{root}/x", f"{root}/y")
    usage = store.snapshot_usage("a")
    assert usage.inodes == 2
    assert usage.bytes < 50_000


def test_transitivity(store):
    """Each sees what is below it, through all of them."""
    layered(store, {"a": "1"}, {"b": "2"}, {"c": "3", "a": None}, {"d": "4"})
    assert read(store, "top") == {"b": "2", "c": "3", "d": "4"}
    assert [record.parent for record in store.snapshots()] == [None, "top-0", "top-1", "top-2"]


def test_prepare_and_view_fail_on_what_is_not_committed(store):
    """An active snapshot or a view is nobody's parent."""
    layered(store, {"a": "1"})
    store.prepare("active", "top")
    store.view("view", "top")
    for parent in ("active", "view"):
        for make in (store.prepare, store.view):
            with pytest.raises(InvalidArgumentError, match=rf"snapshot {parent} is (a )?{parent}"):
                make("new", parent)
    assert len(store.snapshots()) == 3


@pytest.mark.parametrize("verb", ["prepare", "view"])
def test_prepare_refuses(store, verb):
    """Keys that are taken or empty, parents that are not there."""
    make = getattr(store, verb)
    store.prepare("taken")
    with pytest.raises(AlreadyExistsError, match="snapshot taken exists"):
        make("taken")
    with pytest.raises(NotFoundError, match="no snapshot and no image nowhere to be the parent of new"):
        make("new", "nowhere")
    with pytest.raises(InvalidArgumentError, match="not empty"):
        make("")


def test_commit_refuses(store):
    """What is not there, not active, or a name that is taken; the active one stays."""
    layered(store, {"a": "1"})
    store.view("view", "top")
    store.prepare("active")
    with pytest.raises(NotFoundError, match="no snapshot nothing"):
        store.commit_snapshot("new", "nothing")
    with pytest.raises(FailedPreconditionError, match="snapshot view is a view"):
        store.commit_snapshot("new", "view")
    with pytest.raises(FailedPreconditionError, match="snapshot top is committed"):
        store.commit_snapshot("new", "top")
    with pytest.raises(AlreadyExistsError, match="snapshot top exists"):
        store.commit_snapshot("top", "active")
    with pytest.raises(InvalidArgumentError, match="not empty"):
        store.commit_snapshot("", "active")
    assert store.snapshot("active").kind == "active"


def test_commit_refuses_what_is_in_use(store):
    """While a callback runs on it nobody knows what is whole."""
    store.prepare("a")
    with store.base_fs("a"), pytest.raises(BusyError, match="in use"):
        store.commit_snapshot("b", "a")
    store.commit_snapshot("b", "a")


def test_remove(store):
    """Children first; what is gone is gone from the disk, too."""
    layered(store, {"a": "1"}, {"b": "2"})
    with pytest.raises(FailedPreconditionError, match="has children, top among them"):
        store.remove_snapshot("top-0")
    with pytest.raises(NotFoundError, match="no snapshot nothing"):
        store.remove_snapshot("nothing")
    store.remove_snapshot("top")
    store.remove_snapshot("top-0")
    assert store.snapshots() == []
    assert os.listdir(f"{store.root}/snapshots") == ["empty"]


def test_remove_refuses_what_is_in_use(store):
    """A callback's files don't vanish under it."""
    store.prepare("a")
    with store.base_fs("a") as root, pytest.raises(BusyError, match="in use"):
        store.remove_snapshot("a")
    assert not os.path.exists(root)
    store.remove_snapshot("a")


def test_active_snapshots_and_views_are_roots(store, tmp_path):
    """A collection leaves them and what is below them, whatever became of the image."""
    store.load(Image([{"a": b"1"}], HOST).oci_tar(tmp_path / "x.tar", "app:1"))
    store.unpack("app:1")
    store.prepare("c", "app:1")
    store.remove("app:1")
    assert len(store.gc().snapshots) == 0
    write(store, "c", {"b": "2"})
    store.remove_snapshot("c")
    assert len(store.gc().snapshots) == 1
    assert store.snapshots() == []


def test_a_committed_snapshot_of_nobody_is_garbage(store):
    """As containerd has it; a child keeps it."""
    layered(store, {"a": "1"}, {"b": "2"})
    store.view("v", "top-0")
    assert len(store.gc().snapshots) == 1
    assert [record.key for record in store.snapshots()] == ["top-0", "v"]


def test_a_parent_by_the_name_of_an_image(store, tmp_path):
    """When it is unpacked; else the command that does it is named."""
    store.load(Image([{"a": b"1"}], HOST).oci_tar(tmp_path / "x.tar", "app:1"))
    with pytest.raises(FailedPreconditionError, match="app:1 is not unpacked: imgdb unpack app:1"):
        store.prepare("c", "app:1")
    key = store.unpack("app:1")[0].snapshot
    assert store.prepare("c", "app:1").parent == key


def test_layer_file_update(store):
    """The topmost writing of a file counts, in each of several rounds."""
    layered(store, *({"foo": f"{n}", f"own-{n}": "x"} for n in range(5)))
    assert read(store, "top") == {"foo": "4"} | {f"own-{n}": "x" for n in range(5)}


def test_remove_directory_in_lower_layer(store):
    """And make another one of the same name, which is empty."""
    layered(store, {"d/1": "1", "d/e/2": "2"})
    store.prepare("a", "top")
    write(store, "a", {"d": None})
    write(store, "a", {"d/3": "3"})
    store.commit_snapshot("new", "a")
    assert read(store, "new") == {"d/3": "3"}


@root_only
def test_chown_and_directory_permission_on_commit(store):
    """Survive a commit, on directories that lower layers have, too."""
    layered(store, {"d/1": "1", "d/2": "2"})
    store.prepare("a", "top")
    with store.base_fs("a") as root:
        os.chown(f"{root}/d", 12, 34)
        os.chmod(f"{root}/d", 0o1770)  # noqa: S103 - in a tree of the test
        os.chown(f"{root}/d/1", 56, 78)
    store.commit_snapshot("b", "a")
    store.prepare("c", "b")
    with store.base_fs("c") as root:
        status = os.stat(f"{root}/d")
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o1770)
        assert (os.stat(f"{root}/d/1").st_uid, os.stat(f"{root}/d/2").st_uid) == (56, 0)


@root_only
def test_root_permission(store):
    """What a callback does to the root itself is what children start from."""
    store.prepare("a")
    with store.base_fs("a") as root:
        assert stat.S_IMODE(os.stat(root).st_mode) == 0o755
        os.chmod(root, 0o700)
        os.chown(root, 5, 6)
    store.commit_snapshot("b", "a")
    store.prepare("c", "b")
    with store.base_fs("c") as root:
        status = os.stat(root)
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (5, 6, 0o700)


def test_deleted_files_in_child(store):
    """Are not there in what is prepared on it."""
    layered(store, {"a": "1", "b": "2"}, {"a": None})
    store.prepare("c", "top")
    with store.base_fs("c") as root:
        assert os.listdir(root) == ["b"]


def test_move_and_rename(store):
    """A file of a lower layer under another name; a directory by what mv does where rename can't."""
    layered(store, {"a": "1", "d/x/1": "1", "d/x/2": "2"})
    store.prepare("c", "top")
    with store.base_fs("c") as root:
        os.rename(f"{root}/a", f"{root}/b")
        subprocess.run(["mv", f"{root}/d/x", f"{root}/y"], check=True)
    store.commit_snapshot("new", "c")
    assert read(store, "new") == {"b": "1", "y/1": "1", "y/2": "2"}


def test_view_is_read_only(store):
    """For root, too."""
    layered(store, {"a": "1"})
    store.view("v", "top")
    with store.base_fs("v") as root, pytest.raises(OSError, match="Read-only"):
        Path(root, "a").write_text("x", "utf-8")


def test_a_view_of_nothing(store):
    """Is an empty file system."""
    store.view("v")
    with store.base_fs("v") as root:
        assert os.listdir(root) == []


def test_stat_while_listing(store):
    """Neither call holds a transaction for the other."""
    layered(store, {"a": "1"}, {"b": "2"})
    for record in store.snapshots():
        assert store.snapshot(record.key).id == record.id


@root_only
@pytest.mark.parametrize("count", [128, 500, 510])
def test_many_layers(store, tmp_path, count):
    """As many as overlayfs takes, and more than that, which are copied."""
    layers = [
        {f"file-{n}": b""} if n % 16 else {f"d/{n}": b"", "last": str(n).encode()} for n in range(count)
    ]
    store.load(Image(layers, HOST).oci_tar(tmp_path / "x.tar", "many:1"))
    assert store.unpack("many:1")[0].new_layers == count
    store.prepare("c", "many:1")
    with store.base_fs("c") as root:
        changed = len(range(0, count, 16))
        assert len(os.listdir(f"{root}/d")) == changed
        assert len(os.listdir(root)) == count - changed + 2
        assert Path(root, "last").read_text("utf-8") == str(16 * (changed - 1))
        os.unlink(f"{root}/d/0")
    with store.base_fs("c") as root:
        assert len(os.listdir(f"{root}/d")) == changed - 1
    if count > 500:
        assert store.snapshot("c").is_standalone
