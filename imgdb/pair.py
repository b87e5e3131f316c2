"""Store and database are a pair: the same id and generation in both.

``store.json`` remembers which database belongs to a store and how far that database had come.
A database from last week's backup, another one, or an empty one is noticed before anything is
written, since its garbage collector would take most of the blobs for garbage.
Source: design §4.10.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from imgdb.content.disk import DiskBlobStore
from imgdb.content.files import write_durably
from imgdb.content.holds import locked
from imgdb.errors import DataLossError, ImgdbError, NotFoundError, RefusedError

if TYPE_CHECKING:
    from imgdb.db.schema import Meta

FORMAT = 1
_NAME = "store.json"
WAY_OUT = "run imgdb db rebuild to make them fit again"


@dataclass(frozen=True, slots=True)
class StoreFile:
    """The store's half of the pair.

    Attributes:
        database: path or URL of the database; None for ``imgdb.db`` inside the store.
    """

    store_id: str
    format: int
    generation: int
    database: str | None = None


def new_store(database: str | None) -> StoreFile:
    """The half of a store that is about to be made."""
    return StoreFile(str(uuid.uuid4()), FORMAT, 0, database)


def exists(root: str) -> bool:
    """Whether there is a store in a directory.

    Raises:
        RefusedError: it is closed to us, so nobody can say.
    """
    try:
        os.lstat(os.path.join(root, _NAME))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise _refusal(root) from None
    return True


def read(root: str) -> StoreFile:
    """Read ``store.json``.

    Raises:
        NotFoundError: there is no store.
        RefusedError: it is somebody else's, or of a newer format.
        DataLossError: the file is damaged.
    """
    path = os.path.join(root, _NAME)
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        found = StoreFile(
            str(value["store_id"]), int(value["format"]), int(value["generation"]), value.get("database")
        )
    except FileNotFoundError:
        raise NotFoundError(_absent(root)) from None
    except PermissionError:
        raise _refusal(root) from None
    except OSError as error:
        raise ImgdbError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise DataLossError(f"{path} is damaged; imgdb db rebuild writes it anew") from None
    if found.format > FORMAT:
        raise RefusedError(f"the store in {root} has format {found.format}; upgrade imgdb to use it")
    return found


def write(root: str, store: StoreFile, *, durable: bool = True) -> None:
    """Replace ``store.json``."""
    value: dict[str, Any] = {
        "store_id": store.store_id,
        "format": store.format,
        "generation": store.generation,
    }
    if store.database is not None:
        value["database"] = store.database
    write_durably(os.path.join(root, _NAME), json.dumps(value).encode() + b"\n", durable=durable)


def advance(root: str, generation: int, *, durable: bool = True) -> None:
    """After a commit: set the file's generation, never lower. Call under `index_lock`."""
    store = read(root)
    if generation > store.generation:
        write(root, replace(store, generation=generation), durable=durable)


def index_lock(root: str) -> Any:
    """The lock under which ``store.json`` and the mirror are written, as a context manager."""
    return locked(os.path.join(root, "index.lock"), fcntl.LOCK_EX)


def owner(root: str) -> str:
    """Name of the user a store belongs to."""
    uid = os.stat(root).st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _refusal(root: str) -> RefusedError:
    try:
        name = owner(root)
    except PermissionError:
        return RefusedError(f"{root}: permission denied; use sudo -u and its owner, or another --store")
    return RefusedError(f"the store in {root} belongs to {name}; use sudo -u {name}")


def check_owner(root: str) -> None:
    """Writing as another user would leave files that the store's owner can't read.

    Raises:
        RefusedError: the store is another user's; the message names the command to use.
    """
    if os.stat(root).st_uid != os.geteuid():
        raise _refusal(root)


def check_writable(root: str, store: StoreFile, meta: Meta | None) -> None:
    """Refuse to write when the halves don't fit; `store` was read before `meta`.

    Args:
        root: the store's directory, for messages.
        store: the file's half.
        meta: the database's half; None when it has none.

    Raises:
        RefusedError: the database is another one, an older one, or an empty one.
    """
    if meta is None:
        raise RefusedError(f"the database of {root} was emptied, as by a reset of its host; {WAY_OUT}")
    if store.store_id != meta.store_id:
        raise RefusedError(f"the database belongs to another store than {root}; {WAY_OUT}")
    if meta.generation < store.generation:
        raise RefusedError(
            f"the database is older than the store in {root} (generation {meta.generation} < "
            f"{store.generation}), as after restoring a backup; {WAY_OUT}"
        )


def check_new(root: str) -> None:
    """Refuse to pair a new, empty database with blobs that are there already.

    Raises:
        RefusedError: ``blobs/`` is filled; the first garbage collection would empty it.
    """
    if _has_blobs(root):
        raise RefusedError(f"{root}/blobs is filled, but there is no database for it; {WAY_OUT}")


def _has_blobs(root: str) -> bool:
    return next(DiskBlobStore(root).walk(), None) is not None


def _absent(root: str) -> str:
    with contextlib.suppress(OSError):
        if _has_blobs(root):
            return f"{root} has blobs but no {_NAME}; {WAY_OUT}"
    return f"there is no store in {root} yet; imgdb import makes one"
