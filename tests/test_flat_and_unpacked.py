"""Two ways to the same tree: layers flattened as names, and layers unpacked into directories.

They share no code but the reader and the rules for names, so each is the other's oracle.
"""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import ExitStack

from hypothesis import event, given, settings
from hypothesis import strategies as st

from imgdb.archive.sink import StreamSink
from imgdb.errors import BadArchiveError
from imgdb.snapshots.archived import write_tree
from imgdb.snapshots.layer import apply_layer
from imgdb.snapshots.merged import Stack
from tests.archive.layers import flat_tar
from tests.archive.test_flatten_properties import ANY, PLAIN, answer, tar_of
from tests.trees import read_tar

HIDES = {"whiteout", "opaque"}


def unpacked_tar(layers):
    """The tar of the merged directories that layers are unpacked into; None where one is refused."""
    out = io.BytesIO()
    with ExitStack() as ends:
        top = ends.enter_context(tempfile.TemporaryDirectory())
        fds = []
        for number, data in enumerate(layers):
            os.mkdir(f"{top}/{number}")
            fd = os.open(f"{top}/{number}", os.O_RDONLY)
            ends.callback(os.close, fd)
            try:
                applied = apply_layer(io.BytesIO(data), fd, fds)
            except BadArchiveError:
                return None
            fds = [fd, *([] if applied.hides_all else fds)]
        write_tree(Stack(fds), StreamSink(out), lambda _count: None)
    return out.getvalue()


def flattened_tar(layers):
    """The tar of `flatten`, or None where it refuses."""
    try:
        return flat_tar(*layers)
    except BadArchiveError:
        return None


def both(layers):
    """The two answers."""
    made = [tar_of(entries) for entries in layers]
    flat, unpacked = flattened_tar(made), unpacked_tar(made)
    event("refused" if flat is None or unpacked is None else "applied")
    return flat, unpacked


@given(st.lists(st.lists(ANY, max_size=8), min_size=1, max_size=3))
@settings(deadline=None, max_examples=250)
def test_any_layers_with_whiteouts_first(layers):
    """As the specification wants them: the same tree, or both refuse."""
    ordered = [sorted(entries, key=lambda entry: entry[0] not in HIDES) for entries in layers]
    flat, unpacked = both(ordered)
    assert (flat and answer(flat)) == (unpacked and answer(unpacked))


@given(st.lists(st.lists(PLAIN, max_size=12), min_size=1, max_size=3))
@settings(deadline=None, max_examples=250)
def test_layers_without_links_in_any_order(layers):
    """What both accept is the same in all its attributes; unpacking, which can't look ahead, refuses more."""
    flat, unpacked = both(layers)
    if unpacked is not None:
        assert flat is not None
        assert read_tar(unpacked) == read_tar(flat)
