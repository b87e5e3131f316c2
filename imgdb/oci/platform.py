"""Platforms: what an image runs on, and which of several images suits a machine best.

A platform is written ``os[(version+feature+feature)]/architecture[/variant]``, for example
``linux/arm64``, ``linux/arm/v7``, ``windows(10.0.20348.169)/amd64``. Many spellings mean the same
(``aarch64``, ``arm64/v8``): values keep the spelling they came with, and comparing normalises.

Three questions are asked of them: does a candidate suit what was asked for (`matches`), what else
can a machine run (`only`), and which of several is best for it (`preference_key`).
Source: specification §2.8; OCI image-spec 1.1 (the platform of a descriptor and of a config).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from imgdb.errors import InvalidArgumentError
from imgdb.oci.host import read_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_KNOWN_OS = frozenset(
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd "  # noqa: SIM905 - a table
    "plan9 solaris windows zos".split()
)
_KNOWN_ARCHITECTURES = frozenset(
    "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle "  # noqa: SIM905 - a table
    "mips64 mips64le mips64p32 mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm".split()
)

_MAX_PARTS = 3
_OS_PART = re.compile(r"([A-Za-z0-9_-]++)(?:\(([A-Za-z0-9_.%-]*+)((?:\+[A-Za-z0-9_.%-]++)*+)\))?")
_PART = re.compile(r"[A-Za-z0-9_.-]++")
_WINDOWS_VERSION = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})(?:\..*)?", re.DOTALL)
_ESCAPED = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*+")

_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
_WITH_VARIANT = {"i386": ("386", ""), "armhf": ("arm", "v7"), "armel": ("arm", "v6")}
_VARIANTS = {
    "amd64": {"v1": ""},
    "arm64": {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"},
    "arm": {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"},
}
_ARM64_LAST_MINOR = {"v8": 9, "v9": 7}

# Builds since which Windows Server runs containers of every build from the previous one on.
_WINDOWS_LTS = (20348, 26100)


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on; strings as they were found, or `normalized`.

    Attributes:
        os: such as ``linux``.
        architecture: Go's name, such as ``amd64``.
        variant: of the CPU, such as ``v7``; empty for the usual one.
        os_version: used for Windows only.
        os_features: what the image needs of the operating system.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: object) -> Platform:
        """Read the ``platform`` of a descriptor, or an image config, which has the same keys.

        Other keys are ignored; absent and null fields are empty.

        Raises:
            InvalidArgumentError: no object, or a field is of a wrong type.
        """
        if not isinstance(value, dict):
            raise InvalidArgumentError("platform is not an object")
        return cls(
            os=_text(value, "os"),
            architecture=_text(value, "architecture"),
            variant=_text(value, "variant"),
            os_version=_text(value, "os.version"),
            os_features=_texts(value, "os.features"),
        )

    def to_json(self) -> dict[str, Any]:
        """The object for a descriptor, in Go's field order; empty fields are left out."""
        value = {
            "architecture": self.architecture,
            "os": self.os,
            "os.version": self.os_version,
            "os.features": list(self.os_features),
            "variant": self.variant,
        }
        return {key: field for key, field in value.items() if field}

    def normalized(self) -> Platform:
        """The one spelling of this platform; an empty OS becomes the host's."""
        architecture, variant = _normalize_architecture(self.architecture, self.variant)
        return Platform(
            os=_normalize_os(self.os) if self.os else host_platform().os,
            architecture=architecture,
            variant=variant,
            os_version=self.os_version,
            os_features=tuple(sorted(set(self.os_features))),
        )

    @property
    def is_unknown(self) -> bool:
        """True for ``unknown/unknown``, which attestations carry instead of a platform."""
        return self.os == self.architecture == "unknown"

    def __str__(self) -> str:
        """The specifier that `parse` reads; ``unknown`` without an OS."""
        if not self.os:
            return "unknown"
        features = "".join(f"+{_escape(feature)}" for feature in sorted(set(self.os_features)) if feature)
        options = _escape(self.os_version) + features
        head = f"{self.os}({options})" if options else self.os
        return "/".join(part for part in (head, self.architecture, self.variant) if part)


def parse(specifier: str, host: Platform | None = None) -> Platform:
    """Read a specifier; what it leaves out comes from the host.

    Args:
        specifier: ``os``, ``architecture``, ``os/architecture`` or ``os/architecture/variant``; the
            OS may be followed by ``(version+feature+feature)``, with ``%2B`` and the like inside.
        host: the machine to complete from; `host_platform` by default.

    Raises:
        InvalidArgumentError: malformed, a wildcard, more than three parts, or a single word
            that is no known operating system or architecture.
    """
    if "*" in specifier:
        raise _invalid(specifier, "wildcards are not supported")
    first, *rest = specifier.split("/", _MAX_PARTS)
    if len(rest) >= _MAX_PARTS:
        raise _invalid(specifier, "more than three parts")
    match = _OS_PART.fullmatch(first)
    if match is None or not all(_PART.fullmatch(part) for part in rest):
        raise _invalid(specifier, "expected os[(version+feature)]/architecture[/variant]")
    system = Platform(
        os=_normalize_os(match[1]),
        architecture="",
        os_version=_unescape(match[2] or "", specifier),
        os_features=tuple(_unescape(text, specifier) for text in (match[3] or "").split("+")[1:]),
    )
    if not rest:
        return _complete(system, specifier, (host or host_platform()).normalized())
    architecture, variant = _parse_architecture(*rest)
    return replace(system, architecture=architecture, variant=variant)


def parse_list(texts: Iterable[str]) -> tuple[Platform, ...]:
    """Read a repeatable option, each value of which may be a list with commas.

    Returns:
        the platforms in their order, each once.

    Raises:
        InvalidArgumentError: as `parse`, also for an empty item.
    """
    items = [item.strip() for text in texts for item in text.split(",")]
    return tuple(dict.fromkeys(parse(item) for item in items))


def matches(wanted: Platform, candidate: Platform) -> bool:
    """True when `candidate` is what was asked for, in whatever spelling.

    OS, architecture and variant are equal, the candidate needs no OS feature that is not
    wanted, and a Windows version fits. ``linux/arm64`` does not match ``linux/arm/v7``: for what
    else a machine can run see `only`.
    """
    wanted, candidate = wanted.normalized(), candidate.normalized()
    return _machine(wanted) == _machine(candidate) and _system_fits(wanted, candidate)


def only(host: Platform) -> tuple[Platform, ...]:
    """What a machine can run, best first; normalised. Empty for an unknown arm64 variant."""
    host = host.normalized()
    if host.architecture == "amd64":
        return (
            host,
            *(_with_cpu(host, "amd64", v) for v in _lower_variants(host.variant, 1)),
            _with_cpu(host, "386"),
        )
    if host.architecture == "arm":
        return (host, *(_with_cpu(host, "arm", v) for v in _lower_variants(host.variant, 5)))
    if host.architecture == "arm64":
        return _only_arm64(host)
    return (host,)


def preference_key(host: Platform) -> Callable[[Platform | None], tuple[int, int]]:
    """A sort key for candidates: the smallest is best for `host`.

    First by the order of `only`, then more OS features first. What `host` cannot run, and None
    (a manifest of unknown platform), sort last and equal; `sorted` and `min` keep their order.
    """
    host = host.normalized()
    ranks = {_machine(platform): rank for rank, platform in enumerate(only(host))}
    worst = (len(ranks), 0)

    def key(candidate: Platform | None) -> tuple[int, int]:
        if candidate is None:
            return worst
        candidate = candidate.normalized()
        rank = ranks.get(_machine(candidate))
        if rank is None or not _system_fits(host, candidate):
            return worst
        return rank, -len(candidate.os_features)

    return key


@functools.cache
def host_platform() -> Platform:
    """The platform of this process, normalised; without OS version and features."""
    return Platform(*read_host()).normalized()


def _normalize_os(name: str) -> str:
    name = name.lower()
    return "darwin" if name == "macos" else name


def _normalize_architecture(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    if architecture in _WITH_VARIANT:
        return _WITH_VARIANT[architecture]
    architecture = _ARCHITECTURES.get(architecture, architecture)
    return architecture, _VARIANTS.get(architecture, {}).get(variant, variant)


def _parse_architecture(architecture: str, variant: str | None = None) -> tuple[str, str]:
    """As written by hand: arm without a variant stays so, though it means v7."""
    name, normal = _normalize_architecture(architecture, variant or "")
    if variant is None and (name, normal) == ("arm", "v7"):
        return name, ""
    if variant is not None and (name, normal) == ("arm64", ""):
        return name, "v8"
    return name, normal


def _complete(system: Platform, specifier: str, host: Platform) -> Platform:
    """Fill up a single word, which is an operating system or an architecture."""
    if system.os in _KNOWN_OS:
        is_rare_arm = host.architecture == "arm" and host.variant != "v7"
        return replace(system, architecture=host.architecture, variant=host.variant if is_rare_arm else "")
    architecture, variant = _parse_architecture(specifier)
    if architecture in _KNOWN_ARCHITECTURES:
        return Platform(host.os, architecture, variant)
    raise _invalid(specifier, "unknown operating system or architecture")


def _machine(platform: Platform) -> tuple[str, str, str]:
    return platform.os, platform.architecture, platform.variant


def _system_fits(wanted: Platform, candidate: Platform) -> bool:
    needs = set(candidate.os_features)
    if wanted.os == "windows":
        needs.discard("win32k")  # stores used to ignore it, so it says nothing
        if not _windows_version_fits(wanted.os_version, candidate.os_version):
            return False
    return needs.issubset(wanted.os_features)


def _windows_version_fits(wanted: str, candidate: str) -> bool:
    host, image = _windows_version(wanted), _windows_version(candidate)
    if host is None or not candidate:
        return True
    if image is None or host[:2] != image[:2]:
        return False
    if host[2] < _WINDOWS_LTS[0]:
        return host[2] == image[2]
    oldest = max((build for build in _WINDOWS_LTS if build < host[2]), default=_WINDOWS_LTS[0])
    return oldest <= image[2] <= host[2]


def _windows_version(text: str) -> tuple[int, int, int] | None:
    """Major, minor and build of ``10.0.20348.169``; None when there are no such three."""
    match = _WINDOWS_VERSION.fullmatch(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _with_cpu(host: Platform, architecture: str, variant: str = "") -> Platform:
    return replace(host, architecture=architecture, variant=variant).normalized()


def _lower_variants(variant: str, lowest: int) -> list[str]:
    """``v4`` → ``v3``, ``v2``, ``v1``. Levels have one digit, so nobody can ask for a billion."""
    level = variant.removeprefix("v")
    if len(level) != 1 or level not in "123456789":
        return []
    return [f"v{lower}" for lower in range(int(level) - 1, lowest - 1, -1)]


def _only_arm64(host: Platform) -> tuple[Platform, ...]:
    major, dot, digit = (host.variant or "v8").partition(".")
    minors = [str(minor) for minor in range(_ARM64_LAST_MINOR.get(major, -1) + 1)]
    digit = digit if dot else "0"
    if digit not in minors:
        return ()
    minor = int(digit)
    variants = []
    if major == "v9":
        variants = [f"v9.{lower}" for lower in range(minor, -1, -1)]
        minor = min(minor + 5, _ARM64_LAST_MINOR["v8"])  # 9.x has what 8.(x+5) has
    variants += [f"v8.{lower}" for lower in range(minor, -1, -1)]
    arm = [_with_cpu(host, "arm", variant) for variant in ("v8", "v7", "v6", "v5")]
    return (*(_with_cpu(host, "arm64", variant) for variant in variants), *arm)


def _escape(option: str) -> str:
    """Percent-encode all that `parse` does not take as it is."""
    return quote(option, safe="", errors="surrogatepass").replace("~", "%7E")


def _unescape(option: str, specifier: str) -> str:
    if _ESCAPED.fullmatch(option) is None:
        raise _invalid(specifier, f"malformed escape in {option[:80]!r}")
    try:
        return unquote(option, errors="strict")
    except UnicodeDecodeError:
        raise _invalid(specifier, f"{option[:80]!r} is no UTF-8 text") from None


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"platform: {key} is not a string")
    return text


def _texts(value: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = value.get(key)
    if texts is None:
        return ()
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidArgumentError(f"platform: {key} is not a list of strings")
    return tuple(texts)


def _invalid(specifier: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"invalid platform {specifier[:80]!r}: {why}")
