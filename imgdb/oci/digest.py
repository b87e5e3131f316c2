"""Digests: the names of blobs.

A digest is ``algorithm:hex``. imgdb accepts the algorithms that it can verify itself:
sha256 and sha512 (OCI image-spec 1.1) and blake3 (image-spec main, no release yet).
Source: specification §1.1, ecosystem §5.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blake3 import blake3

from imgdb.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

_HEX_LENGTH = {"sha256": 64, "sha512": 128, "blake3": 64}
_HEX_DIGITS = frozenset("0123456789abcdef")


class Hasher(Protocol):
    """What hashlib's and blake3's hash objects have in common."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Feed bytes."""

    def hexdigest(self) -> str:
        """Lower-case hexadecimal digest of everything fed so far."""


_HASHERS: dict[str, Callable[[], Hasher]] = {
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "blake3": blake3,
}


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A validated digest; only these are ever turned into paths.

    Attributes:
        algorithm: ``sha256``, ``sha512`` or ``blake3``.
        hex: lower-case hexadecimal, of exactly the algorithm's length.
    """

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Read ``algorithm:hex``.

        Raises:
            InvalidArgumentError: no string, unknown algorithm, wrong length, not lower-case hex.
        """
        if not isinstance(text, str):
            raise InvalidArgumentError(f"malformed digest {text!r}")
        algorithm, colon, hexdigits = text.partition(":")
        if not colon or len(text) > 256:  # noqa: PLR2004 - nothing we know is half as long
            raise InvalidArgumentError(f"malformed digest {text[:80]!r}")
        length = _HEX_LENGTH.get(algorithm)
        if length is None:
            raise InvalidArgumentError(f"unsupported digest algorithm in {text[:80]!r}")
        if len(hexdigits) != length or not _HEX_DIGITS.issuperset(hexdigits):
            raise InvalidArgumentError(f"malformed digest {text[:80]!r}")
        return cls(algorithm, hexdigits)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """Digest of bytes in memory."""
        hasher = new_hasher(algorithm)
        hasher.update(data)
        return cls(algorithm, hasher.hexdigest())

    @property
    def short(self) -> str:
        """First twelve hex digits, as docker prints image IDs."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def new_hasher(algorithm: str) -> Hasher:
    """A fresh hash object.

    Raises:
        InvalidArgumentError: the algorithm is not one of sha256, sha512, blake3.
    """
    try:
        return _HASHERS[algorithm]()
    except KeyError:
        raise InvalidArgumentError(f"unsupported digest algorithm {algorithm[:40]!r}") from None
