"""What a process without the rights could not set, kept beside the layer for whoever needs it.

One JSON line an entry: path, what is missing, and the attributes that it should have had.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, BinaryIO, Self

from imgdb.snapshots.disk import SKIPPED

if TYPE_CHECKING:
    from collections import Counter

    from imgdb.snapshots.attributes import Skipped
    from imgdb.snapshots.disk import StagedSnapshot


class SkipLog:
    """Records what could not be set, a JSON line each, beside the layer."""

    def __init__(self, staged: StagedSnapshot, counts: Counter[str]) -> None:
        self._fd = staged.fd
        self._counts = counts
        self._file: BinaryIO | None = None

    def write(self, skipped: Skipped) -> None:
        """One entry."""
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = open(os.open(SKIPPED, flags, 0o600, dir_fd=self._fd), "wb")  # noqa: SIM115 - closed below
        self._counts.update(skipped.what)
        self._file.write(json.dumps(_skip_record(skipped)).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _skip_record(skipped: Skipped) -> dict[str, object]:
    wanted = skipped.attributes
    return {
        "path": os.fsdecode(skipped.path),
        "skipped": list(skipped.what),
        "type": skipped.kind,
        "mode": f"{wanted.mode:04o}",
        "uid": wanted.uid,
        "gid": wanted.gid,
        "device": list(skipped.device),
        "xattrs": {os.fsdecode(name): value.hex() for name, value in wanted.xattrs.items()},
    }
