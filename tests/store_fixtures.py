"""Stores for tests: copies of one that was made by migrations once, each checked after its test."""

from __future__ import annotations

import shutil

import pytest

from imgdb.store import ImageStore
from tests.integrity import check_store


@pytest.fixture(scope="session")
def store_template(tmp_path_factory):
    """An empty store's directory; to be copied, never opened."""
    root = tmp_path_factory.mktemp("template") / "store"
    with ImageStore.open(root, create=True, durable=False):
        pass
    return root


@pytest.fixture
def new_store(store_template, tmp_path):
    """A function that makes an open, empty store; all are checked and closed after the test.

    `check_store` keywords given to it say what the test leaves behind on purpose.
    """
    made = []

    def make(name="store", **expected):
        root = shutil.copytree(store_template, tmp_path / name)
        store = ImageStore.open(root, durable=False)
        made.append((store, expected))
        return store

    yield make
    try:
        for store, expected in made:
            check_store(store, **expected)
    finally:
        for store, _ in made:
            store.close()


@pytest.fixture
def store(new_store):
    """One open, empty store."""
    return new_store()
