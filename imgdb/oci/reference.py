"""Image names: parse, complete, shorten.

People write ``busybox``; a store keeps ``docker.io/library/busybox:latest``. Parsing turns the
first (the *familiar* form) into the second (the *canonical* form), and `Reference.familiar`
turns it back for display::

    reference = [domain/]path[:tag][@digest]

Names come from archives of strangers as well as from command lines, so every function here
takes any text and raises nothing but `InvalidArgumentError`. The patterns are possessive:
a match takes time proportional to the text, whatever the text.
Source: specification §1.1-1.3, 1.6, 1.7, 8.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from imgdb.errors import InvalidArgumentError
from imgdb.oci.digest import Digest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
MAX_PATH = 255

_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_DANGLING = "moby-dangling"

# As a repository each of these would make `sha256:abcd` name a tag and an ID alike.
_DIGEST_ALGORITHMS = frozenset({"sha256", "sha384", "sha512", "blake3"})

_HOST_PART = r"[a-zA-Z0-9]++(?:-++[a-zA-Z0-9]++)*+"
_DOMAIN = re.compile(rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*+|\[[a-fA-F0-9:]++\])(?::[0-9]++)?+")
_PATH_PART = r"[a-z0-9]++(?:(?:\.|__?+|-++)[a-z0-9]++)*+"
_PATH = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*+")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}+")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_SHORT_ID = re.compile(r"(?:sha256:)?+([a-f0-9]{4,64})")


@dataclass(frozen=True, slots=True)
class Reference:
    """A complete image name; made by the parsers of this module, which validate.

    Attributes:
        domain: registry host, with its port if it has one. Empty only for names such as
            ``my_host.example/app``, whose first part looks like a host but is none.
        path: repository within the domain, at most 255 characters.
        tag: up to 128 characters, or None.
        digest: of the manifest or index that is meant, or None.
    """

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """The repository in full: domain and path."""
        return f"{self.domain}/{self.path}" if self.domain else self.path

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: without ``docker.io/`` and ``library/``.

        What would be read back as another repository keeps its domain:
        ``docker.io/localhost/app`` is not ``localhost/app``.
        """
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        official = self.path.removeprefix(_OFFICIAL)
        if "/" not in official:
            return official
        unambiguous = _split_domain(self.path) == (DEFAULT_DOMAIN, self.path)
        return self.path if unambiguous else self.name

    @property
    def familiar(self) -> str:
        """The whole name for display: `familiar_name`, then tag and digest if present."""
        return self.familiar_name + self._suffix

    @property
    def canonical(self) -> str:
        """The whole name in full, as image records store it; `str` gives the same."""
        return self.name + self._suffix

    def __str__(self) -> str:
        return self.canonical

    @property
    def _suffix(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        digest = "" if self.digest is None else f"@{self.digest}"
        return tag + digest

    def with_tag(self, tag: str) -> Reference:
        """The same with another tag; a digest stays.

        Raises:
            InvalidArgumentError: `tag` is no valid tag.
        """
        if _TAG.fullmatch(tag) is None:
            raise InvalidArgumentError(f"invalid tag {tag[:80]!r}")
        return replace(self, tag=tag)

    def without_tag(self) -> Reference:
        """The same without a tag; a digest stays."""
        return replace(self, tag=None)

    def with_digest(self, digest: Digest) -> Reference:
        """The same with another digest; a tag stays."""
        return replace(self, digest=digest)

    def tag_or_latest(self) -> Reference:
        """The same, with ``:latest`` when there is neither tag nor digest."""
        bare = self.tag is None and self.digest is None
        return replace(self, tag=DEFAULT_TAG) if bare else self


def parse_normalized(text: str) -> Reference:
    """Read a familiar or canonical name; nothing is added but domain and ``library/``.

    Raises:
        InvalidArgumentError: empty, malformed, upper case in the repository, repository longer
            than 255 characters, a bare 64-digit ID, or a digest that is malformed or of an
            unknown algorithm; each with its own message.
    """
    if not text:
        raise InvalidArgumentError("invalid image name: it is empty")
    if _IDENTIFIER.fullmatch(text):
        raise _invalid(text, "64 hexadecimal digits are an image ID, not a name")
    name, at, digest = text.partition("@")
    domain, remainder = _split_domain(name)
    path, colon, tag = remainder.partition(":")
    domain, path = _check_repository(text, domain, path)
    if colon and _TAG.fullmatch(tag) is None:
        raise _invalid(text, f"malformed tag {tag[:80]!r}")
    return Reference(domain, path, tag if colon else None, _digest_in(text, digest) if at else None)


def parse_docker_ref(text: str) -> Reference:
    """Read an entry of RepoTags: a digest makes the tag void, neither means ``:latest``.

    Raises:
        InvalidArgumentError: as `parse_normalized`.
    """
    reference = parse_normalized(text)
    if reference.digest is not None:
        return reference.without_tag()
    return reference.tag_or_latest()


def parse_any(text: str) -> Reference | Digest:
    """Read a command line argument: a full image ID, with or without ``sha256:``, or a name.

    Raises:
        InvalidArgumentError: as `parse_normalized`.
    """
    if _IDENTIFIER.fullmatch(text):
        return Digest("sha256", text)
    try:
        return Digest.parse(text)
    except InvalidArgumentError:
        return parse_normalized(text)


def oci_ref_name(reference: Reference) -> str:
    """Value of ``org.opencontainers.image.ref.name``: the tag (and digest), else the full name."""
    if reference.tag is None:
        return reference.canonical
    return reference.canonical.removeprefix(f"{reference.name}:")


def check_taggable(reference: Reference) -> None:
    """Refuse names that no image may be given.

    Raises:
        InvalidArgumentError: the name carries a digest, or its repository is called like a
            digest algorithm.
    """
    if reference.digest is not None:
        raise InvalidArgumentError(f"cannot tag as {reference.familiar!r}: a new name may not carry a digest")
    if reference.familiar_name in _DIGEST_ALGORITHMS:
        raise InvalidArgumentError(
            f"cannot tag as {reference.familiar!r}: a repository called like a digest algorithm is ambiguous"
        )


def is_bare_tag(text: str) -> bool:
    """True when `text` can be a tag on its own, as OCI layouts carry it (``1.36``)."""
    return _TAG.fullmatch(text) is not None


def short_id_hex(text: str) -> str | None:
    """The 4 to 64 hex digits of an image ID, perhaps abbreviated; None when it is none."""
    match = _SHORT_ID.fullmatch(text)
    return match[1] if match else None


def dangling_name(digest: Digest) -> str:
    """Record name of an image without a name: it keeps `digest` alive."""
    return f"{_DANGLING}@{digest}"


def is_dangling(name: str, target_digest: Digest) -> bool:
    """True when the record `name` stands for its own target without a name."""
    return name == dangling_name(target_digest)


def familiar(name: str) -> str:
    """Display form of a stored record name; what is not canonical stays as it is.

    A shortened form of such a name would point at another record.
    """
    try:
        reference = parse_normalized(name)
    except InvalidArgumentError:
        return name
    return reference.familiar if reference.canonical == name else name


def match_reference_filter(pattern: str, reference: Reference) -> bool:
    """Docker's ``reference`` filter: a shell glob whose ``*`` does not cross ``/``.

    Tried on the familiar form, the familiar repository, the canonical form and the canonical
    repository. ``?``, ``[abc]``, ``[a-z]`` and ``[!a]`` (or ``[^a]``) never match ``/`` either; an
    unclosed ``[`` stands for itself.
    """
    globs = pattern.replace("[^", "[!").split("/")
    forms = (reference.familiar, reference.familiar_name, reference.canonical, reference.name)
    return any(_match_parts(globs, form.split("/")) for form in forms)


def _match_parts(globs: list[str], parts: list[str]) -> bool:
    return len(globs) == len(parts) and all(map(fnmatchcase, parts, globs))


def _split_domain(name: str) -> tuple[str, str]:
    """Docker's guess whether the first part is a host, and the completed rest."""
    first, slash, rest = name.partition("/")
    if not slash or not _looks_like_domain(first):
        domain, rest = DEFAULT_DOMAIN, name
    else:
        domain = DEFAULT_DOMAIN if first == _LEGACY_DOMAIN else first
    if domain == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return domain, rest


def _looks_like_domain(first: str) -> bool:
    return first == "localhost" or "." in first or ":" in first or first != first.lower()


def _check_repository(text: str, domain: str, path: str) -> tuple[str, str]:
    if _DOMAIN.fullmatch(domain) is None:
        # Then it can only be a part of the path; the grammar has `_` there and not in hosts.
        domain, path = "", f"{domain}/{path}"
    if _PATH.fullmatch(path) is None:
        is_case = _PATH.fullmatch(path.lower()) is not None
        raise _invalid(text, "repository name must be lowercase" if is_case else "malformed reference")
    if len(path) > MAX_PATH:
        raise _invalid(text, f"repository name must not be more than {MAX_PATH} characters")
    return domain, path


def _digest_in(text: str, digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except InvalidArgumentError as error:
        raise _invalid(text, str(error)) from None


def _invalid(text: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"invalid image name {text[:200]!r}: {why}")
