"""Every error that imgdb raises on purpose, and the exit code that goes with it.

The tree (exit code in brackets; a class without one has its parent's)::

    ImgdbError [1]
    ├── InvalidArgumentError [2]        what the caller said makes no sense
    ├── NotFoundError [1]               image, blob, platform, store
    │   ├── NothingToUnpackError        no manifest of the host's, or the asked, platform
    │   └── CommandNotFoundError [127]  what was to be run on a root file system, as shells say it
    ├── NotSupportedError [1]           something that imgdb does not know
    ├── NoImageError [1]                the input is no image archive at all
    ├── BadArchiveError [3]             an image archive that is damaged or forbidden
    ├── DataLossError [3]               a blob of the store is lost or fails its digest
    ├── RefusedError [4]                policy or state says no; retrying changes nothing
    │   ├── AlreadyExistsError
    │   ├── ConflictError
    │   ├── FailedPreconditionError
    │   ├── CommandRefusedError [126]   it can't be executed
    │   └── SchemaError                 the database's schema is not one we can use
    ├── CannotMountError [1]            this kernel, user or file system mounts nothing
    └── BusyError [75]                  somebody holds a lock; try again later

Messages are one line: what failed, which input, what to do. They may hold bytes that came
from an archive, so whoever prints them escapes control characters.
"""

from __future__ import annotations


class ImgdbError(Exception):
    """Root of all errors raised on purpose by imgdb."""

    exit_code = 1


class InvalidArgumentError(ImgdbError):
    """An argument does not parse or contradicts another one."""

    exit_code = 2


class NotFoundError(ImgdbError):
    """The named image, blob, platform or store does not exist here."""


class NothingToUnpackError(NotFoundError):
    """The image has no manifest for this host, or for the platform that was asked for."""


class CommandNotFoundError(NotFoundError):
    """The command to be run on a root file system does not exist."""

    exit_code = 127


class NotSupportedError(ImgdbError):
    """A kind of thing, or a combination, that imgdb does not know."""


class NoImageError(ImgdbError):
    """The input is not an image archive: a root file system, a web page, random bytes."""


class BadArchiveError(ImgdbError):
    """The input is an image archive, but damaged, ambiguous, hostile or too old."""

    exit_code = 3


class DataLossError(ImgdbError):
    """A blob that the store should have is missing, or its bytes fail their digest."""

    exit_code = 3


class RefusedError(ImgdbError):
    """A policy, or the state of the store, forbids the operation."""

    exit_code = 4


class AlreadyExistsError(RefusedError):
    """The thing to be created exists."""


class ConflictError(RefusedError):
    """Another reference or another owner is in the way."""


class FailedPreconditionError(RefusedError):
    """The object is not in the state that the operation needs."""


class CommandRefusedError(RefusedError):
    """The command to be run on a root file system can't be executed."""

    exit_code = 126


class SchemaError(RefusedError):
    """The database has no imgdb schema, or one of another version."""


class BusyError(ImgdbError):
    """A lock could not be had in time; the same call may succeed later (EX_TEMPFAIL)."""

    exit_code = 75


class CannotMountError(ImgdbError):
    """This kernel, process or file system mounts nothing; a copy may do."""
