"""imgdb: an OCI image store kept in SQLite, with its blobs on disk.

::

    from imgdb import ImageStore

    with ImageStore.open("/var/lib/imgdb", create=True) as store:
        store.load("busybox.tar")
        store.export(["busybox"], "copy.tar")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["ExportOptions", "ImageStore", "ImgdbError", "ImportOptions", "Reporter", "__version__"]

if TYPE_CHECKING:
    from imgdb.errors import ImgdbError
    from imgdb.exporter.plan import ExportOptions
    from imgdb.importer.plan import ImportOptions
    from imgdb.progress import Reporter
    from imgdb.store import ImageStore

_WHERE = {
    "ExportOptions": "imgdb.exporter.plan",
    "ImageStore": "imgdb.store",
    "ImgdbError": "imgdb.errors",
    "ImportOptions": "imgdb.importer.plan",
    "Reporter": "imgdb.progress",
}


def __getattr__(name: str) -> Any:
    """Load on first use: the command line's help and completion need none of it."""
    if name not in _WHERE:
        raise AttributeError(f"module 'imgdb' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - see above

    return getattr(import_module(_WHERE[name]), name)
