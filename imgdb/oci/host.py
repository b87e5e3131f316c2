"""The machine we run on, in the words of image platforms; all the I/O that `imgdb.oci` does.

Source: specification §2.8 (host platform, arm variant).
"""

from __future__ import annotations

import os
import sys

# uname speaks of machines, images of Go's architectures; the others have one name for both.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "aarch64": "arm64",
    "loongarch64": "loong64",
}
_LITTLE_ENDIAN = {"mips": "mipsle", "mips64": "mips64le"}
_NARROW = {"amd64": "386", "arm64": "arm"}


def read_host() -> tuple[str, str, str]:
    """Operating system, architecture and variant of this process.

    The variant is known for 32-bit arm only, and empty when nothing tells it. The CPU level of
    amd64 is left out on purpose: an export must give the same bytes on every amd64 machine.
    """
    uname = os.uname()
    cpuinfo = _read_cpuinfo() if uname.machine.startswith(("arm", "aarch64")) else ""
    narrow = sys.maxsize < 1 << 32
    return uname.sysname.lower(), *_architecture(uname.machine.lower(), cpuinfo, narrow=narrow)


def _architecture(machine: str, cpuinfo: str, *, narrow: bool) -> tuple[str, str]:
    architecture = "arm" if machine.startswith("armv") else _ARCHITECTURES.get(machine, machine)
    if narrow:  # 32-bit programs on a 64-bit kernel are usual on small arm boards
        architecture = _NARROW.get(architecture, architecture)
    if sys.byteorder == "little":
        architecture = _LITTLE_ENDIAN.get(architecture, architecture)
    return architecture, _arm_variant(machine, cpuinfo) if architecture == "arm" else ""


def _arm_variant(machine: str, cpuinfo: str) -> str:
    lines = [line.partition(":") for line in cpuinfo.lower().splitlines()]
    first_core = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    version = first_core.get("cpu architecture") or machine.removeprefix("armv")
    # A kernel quirk: ARMv6 boards such as the first Raspberry Pi report 7 here.
    if version == "7" and first_core.get("model name", "").startswith("armv6-compatible"):
        return "v6"
    if version == "aarch64":
        return "v8"
    return f"v{version[0]}" if version.startswith(("5", "6", "7", "8")) else ""


def _read_cpuinfo() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
