"""Fixtures: a store without durability, and directories that everybody may enter."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager

import pytest

from imgdb.content.disk import DiskBlobStore


@pytest.fixture
def store(tmp_path):
    """A store on disk that does not wait for the disk."""
    return DiskBlobStore.create(str(tmp_path / "store"), durable=False)


@contextmanager
def _umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _unprivileged():
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def umask():
    """A context manager: inside, the process has the given umask."""
    return _umask


@pytest.fixture
def unprivileged():
    """A context manager: inside, the process can't override permissions."""
    return _unprivileged


@pytest.fixture
def public_path():
    """A directory that another user can enter and can't write (pytest's own are closed)."""
    path = tempfile.mkdtemp(prefix="imgdb-test-")
    os.chmod(path, 0o555)  # noqa: S103 - that is what it is for
    yield path
    os.chmod(path, 0o700)
    shutil.rmtree(path)
