"""Leases and pins: how users say what must stay.

::

    with store.lease(labels={"job": "42"}) as lease:
        lease.add("busybox", digest)
        ...                      # neither is collected, however long this takes

    store.pin("busybox")         # and nobody removes or moves the name

A lease protects until it expires; that of a ``with`` block also as long as its process runs,
which the kernel knows and no clock. Expiry is compared with the clock of the machine that has
the store. Source: specification §3; design §3, §4.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from imgdb import pair
from imgdb.db import images, leases, pins
from imgdb.db.leases import CONTENT, HOLD, PIN, LeaseRecord, Resource
from imgdb.db.sql import now_us
from imgdb.errors import ImgdbError, InvalidArgumentError, NotFoundError, RefusedError
from imgdb.oci.digest import Digest
from imgdb.renewal import Renewer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from sqlalchemy import Connection

    from imgdb.access import Access

Thing: TypeAlias = str | Digest | Resource
"""What a lease can be given: a digest, a resource, or what a user calls an image."""

DAY_S = 24 * 3600.0
# Microseconds since the epoch must fit an INTEGER; this is 31 000 years.
_MAX_S = 1e12

_log = logging.getLogger("imgdb")


class Leasing:
    """The part of `imgdb.store.ImageStore` that makes leases and pins."""

    def _access(self) -> Access:
        raise NotImplementedError

    def create_lease(
        self,
        id: str | None = None,  # noqa: A002 - what it is called everywhere else
        *,
        expires_s: float | None = None,
        flat: bool = False,
        labels: Mapping[str, str] | None = None,
        owner: tuple[str, str] | None = None,
    ) -> LeaseRecord:
        """Make a lease, which protects nothing yet; see `add_to_lease`.

        Args:
            id: chosen, not empty; None for a random one.
            expires_s: seconds from now; None for never.
            flat: protect only what is added, not what that leads to.
            labels: at most 4096 bytes each with its value; those without a value are not stored.
            owner: kind and id of what keeps it alive beyond its expiry.

        Raises:
            InvalidArgumentError: an id, label, time or owner that can't be.
            AlreadyExistsError: the id is taken.
        """
        if owner is not None and (owner[0] == HOLD or not all(owner)):
            raise InvalidArgumentError(f"owner {':'.join(owner)!r}: give KIND:ID; {HOLD} is imgdb's own kind")
        return _create(self._access(), id, expires_s, flat=flat, labels=labels or {}, owner=owner)

    def leases(
        self, *, ids: Collection[str] = (), labels: Mapping[str, str | None] | None = None
    ) -> list[LeaseRecord]:
        """Leases by id, pins among them.

        Args:
            ids: only these.
            labels: only those that have all of these; None for any value.
        """
        now = now_us()
        found = [
            record
            for record in self._access().read(leases.listing)
            if (not ids or record.id in ids) and _has_labels(record, labels or {})
        ]
        living = _living(self._access(), found, now)
        return [replace(record, expired=record.is_dead(now, living)) for record in found]

    def lease_resources(self, lease_id: str) -> list[Resource]:
        """What a lease protects: content, images, snapshots, each by key.

        Raises:
            NotFoundError: there is no such lease.
        """
        found: list[Resource] = self._access().read(partial(leases.resources, lease_id=lease_id))
        return found

    def add_to_lease(self, lease_id: str, things: Iterable[Thing]) -> list[Resource]:
        """Let a lease protect more; adding twice is fine.

        Args:
            lease_id: of a lease that is no pin.
            things: digests and resources need not exist; any other text is resolved as an
                image in the same transaction, and its target added.

        Returns:
            What was added.

        Raises:
            NotFoundError: no such lease, or no such image.
            InvalidArgumentError: no digest, no name, or an empty key.
            NotSupportedError: a type that leases don't know.
            RefusedError: the lease is a pin.
        """
        wanted = list(things)

        def work(connection: Connection) -> list[Resource]:
            leases.changeable(connection, lease_id)
            found = [leases.check_resource(_resource(connection, thing)) for thing in wanted]
            leases.add(connection, lease_id, found)
            return found

        added: list[Resource] = self._access().write(work, raises_generation=False)
        return added

    def remove_from_lease(self, lease_id: str, things: Iterable[Thing]) -> None:
        """Let go of digests or resources; they need not be listed. Images are not resolved here.

        Raises:
            NotFoundError: there is no such lease.
            InvalidArgumentError, NotSupportedError: see `add_to_lease`.
            RefusedError: the lease is a pin.
        """
        wanted = [t if isinstance(t, Resource) else Resource(CONTENT, str(t)) for t in things]

        def work(connection: Connection) -> None:
            leases.changeable(connection, lease_id)
            for resource in wanted:
                leases.drop(connection, lease_id, resource)

        self._access().write(work, raises_generation=False)

    def renew_lease(self, lease_id: str, expires_s: float | None) -> LeaseRecord:
        """Let a lease expire that many seconds from now; None for never.

        One that has expired lives again, as long as gc has not removed it.

        Raises:
            NotFoundError: there is no such lease.
            InvalidArgumentError: a time that can't be.
            RefusedError: the lease is a pin.
        """
        life = _life_us(expires_s)

        def work(connection: Connection) -> LeaseRecord:
            record = leases.changeable(connection, lease_id)
            expires_at = None if life is None else now_us() + life
            leases.renew(connection, lease_id, expires_at)
            return replace(record, expires_at=expires_at)

        renewed: LeaseRecord = self._access().write(work, raises_generation=False)
        return renewed

    def remove_lease(self, lease_id: str) -> None:
        """End a lease; what only it protected is garbage for the next gc.

        Raises:
            NotFoundError: there is no such lease.
            RefusedError: it is a pin, or belongs to a command that is running.
        """
        access = self._access()
        record = access.read(partial(leases.changeable, lease_id=lease_id))
        if record.owner_kind == HOLD and record.owner_id in access.files.living_holds():
            raise RefusedError(f"lease {lease_id} is that of a running command, and ends with it")
        if not access.write(partial(leases.remove, lease_id=lease_id), raises_generation=False):
            raise NotFoundError(f"no lease {lease_id}")

    @contextmanager
    def lease(
        self,
        id: str | None = None,  # noqa: A002 - what it is called everywhere else
        *,
        expires_s: float = DAY_S,
        flat: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Lease]:
        """A lease for the time of a ``with`` block.

        It can't expire while this process runs: a hold owns it, and it renews itself. After
        the block it is gone, even when the block raised; after a crash it expires. A forked
        child may add to it, and leaves it alone at its own end.

        Args:
            id: chosen, not empty; None for a random one.
            expires_s: seconds that it survives a crash.
            flat: see `create_lease`.
            labels: see `create_lease`.

        Raises:
            InvalidArgumentError, AlreadyExistsError: see `create_lease`.
            RefusedError: the store can't be written.
        """
        access, process = self._access(), os.getpid()
        pair.check_owner(access.root)
        with access.files.hold() as hold:
            owner = (HOLD, hold.name)
            made = _create(access, id, expires_s, flat=flat, labels=labels or {}, owner=owner)
            renewer = Renewer(lambda: self.renew_lease(made.id, expires_s), made.id, expires_s / 2)
            try:
                renewer.start()
                yield Lease(made.id, self)
            finally:
                if os.getpid() == process:
                    renewer.stop()
                    _end(access, made.id)

    def pin(self, *arguments: str) -> list[str]:
        """Keep names and their images until they are unpinned; all of them, or none.

        Args:
            arguments: names, or IDs of images that have one name.

        Returns:
            The canonical names.

        Raises:
            NotFoundError: no such image.
            InvalidArgumentError: no name and no ID.
            FailedPreconditionError: an ID of an image without a name.
            ConflictError: an ID of an image with several names.
        """
        return self._for_each(pins.pin, arguments)

    def unpin(self, *arguments: str) -> list[str]:
        """End pins; all of them, or none. Arguments, result and errors as `pin`.

        Raises:
            NotFoundError: not pinned.
        """
        return self._for_each(pins.unpin, arguments)

    def pinned(self) -> list[str]:
        """Canonical names that are pinned, sorted."""
        return sorted(self._access().read(pins.pinned))

    def _for_each(self, change: Callable[..., str], arguments: Collection[str]) -> list[str]:
        # The mirror holds pins too, so the generation rises as it does for names.
        names: list[str] = self._access().write(
            lambda connection: [change(connection, a, at=now_us()) for a in dict.fromkeys(arguments)],
            changes=lambda changed: changed,
        )
        return names


class Lease:
    """The lease of a ``with`` block; see `Leasing.lease`.

    Attributes:
        id: by which everybody sees it.
    """

    def __init__(self, lease_id: str, store: Leasing) -> None:
        self.id = lease_id
        self._store = store

    def add(self, *things: Thing) -> None:
        """Protect digests, resources, or the targets of images; see `Leasing.add_to_lease`."""
        self._store.add_to_lease(self.id, things)

    @property
    def resources(self) -> list[Resource]:
        """What it protects."""
        return self._store.lease_resources(self.id)


def _create(
    access: Access,
    lease_id: str | None,
    expires_s: float | None,
    *,
    flat: bool,
    labels: Mapping[str, str],
    owner: tuple[str, str] | None,
) -> LeaseRecord:
    if PIN in labels:
        raise InvalidArgumentError(f"the label {PIN} is imgdb's own; see imgdb pin")
    chosen = leases.random_id() if lease_id is None else lease_id
    life = _life_us(expires_s)

    def work(connection: Connection) -> LeaseRecord:
        now = now_us()
        return leases.create(
            connection,
            chosen,
            created_at=now,
            expires_at=None if life is None else now + life,
            flat=flat,
            labels=labels,
            owner=owner,
        )

    made: LeaseRecord = access.write(work, raises_generation=False)
    return made


def _life_us(expires_s: float | None) -> int | None:
    if expires_s is None:
        return None
    if not 0 < expires_s <= _MAX_S:  # true of NaN as well
        raise InvalidArgumentError(f"a lease can't expire in {expires_s} s; give a time above 0, or none")
    return round(expires_s * 1e6)


def _end(access: Access, lease_id: str) -> None:
    """It would expire by itself: a full disk must not turn good work into a failure."""
    try:
        access.write(partial(leases.remove, lease_id=lease_id), raises_generation=False)
    except (ImgdbError, OSError) as error:
        _log.warning("lease %s was not deleted and will expire: %s", lease_id, error)


def _resource(connection: Connection, thing: Thing) -> Resource:
    if isinstance(thing, Resource):
        return thing
    if isinstance(thing, Digest):
        return Resource(CONTENT, str(thing))
    try:
        digest = Digest.parse(thing)
    except InvalidArgumentError:
        digest = images.resolve(connection, thing)[0].target.digest
    return Resource(CONTENT, str(digest))


def _has_labels(record: LeaseRecord, labels: Mapping[str, str | None]) -> bool:
    return all(
        key in record.labels and (value is None or record.labels[key] == value)
        for key, value in labels.items()
    )


def _living(access: Access, records: Iterable[LeaseRecord], now: int) -> Collection[str]:
    """Living holds, asked for only when an expired lease depends on one.

    Who may not lock the store's files can't ask; for them every owner lives.
    """
    owners = [r.owner_id for r in records if r.owner_kind == HOLD and r.owner_id and r.is_dead(now, ())]
    if not owners:
        return ()
    try:
        return access.files.living_holds()
    except OSError:
        return owners
