"""Where attacks are played. What judges them is no test module, and is to show its values all the same."""

from __future__ import annotations

import itertools
import os
import tempfile

import pytest

pytest.register_assert_rewrite("tests.snapshots.attack")

from tests.snapshots.attack import NOBODY, World, Worlds  # noqa: E402 - rewritten, so after that


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Where this process attacks."""
    return Worlds(lambda: World(tmp_path_factory.mktemp("attacked") / "world"))


@pytest.fixture
def world(worlds):
    """A world without layers below."""
    with worlds.fresh() as world:
        yield world


@pytest.fixture(scope="module")
def public_worlds():
    """Where another user attacks: he can reach it, unlike pytest's own folders, and it is his."""
    with tempfile.TemporaryDirectory(prefix="imgdb-plain-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)  # noqa: S103 - to be reached
        numbers = itertools.count()
        yield Worlds(lambda: World(os.path.join(folder, f"world-{next(numbers)}"), owner=NOBODY))
