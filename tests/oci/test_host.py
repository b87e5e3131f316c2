"""What the machine calls itself, in the words of images."""

import os
import sys
from types import SimpleNamespace

import pytest

from imgdb.oci import host

PI_ZERO = "processor\t: 0\nmodel name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n"
CORTEX_A7 = "processor\t: 0\nmodel name\t: ARMv7 Processor rev 3 (v7l)\nCPU architecture: 7\n"
CORTEX_A53 = "processor\t: 0\nCPU architecture: 8\n\nprocessor\t: 1\nCPU architecture: 8\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "narrow", "expected"),
    [
        ("x86_64", "", False, ("amd64", "")),
        ("x86_64", "", True, ("386", "")),
        ("i686", "", True, ("386", "")),
        ("aarch64", CORTEX_A53, False, ("arm64", "")),
        ("aarch64", CORTEX_A53, True, ("arm", "v8")),
        ("aarch64", "", True, ("arm", "v8")),
        ("armv8l", "", True, ("arm", "v8")),
        ("armv7l", CORTEX_A7, True, ("arm", "v7")),
        ("armv7l", "vendor_id: GenuineIntel\n", True, ("arm", "v7")),
        ("armv6l", PI_ZERO, True, ("arm", "v6")),
        ("armv6l", "CPU architecture: 6TEJ\n", True, ("arm", "v6")),
        ("armv5tejl", "", True, ("arm", "v5")),
        ("armv7l", "CPU architecture: AArch64\n", True, ("arm", "v8")),
        ("armv4tl", "", True, ("arm", "")),
        ("loongarch64", "", False, ("loong64", "")),
        ("riscv64", "", False, ("riscv64", "")),
        ("s390x", "", False, ("s390x", "")),
    ],
)
def test_architecture(machine, cpuinfo, narrow, expected):
    """The machine of uname becomes Go's architecture; cpuinfo tells the arm variant."""
    assert expected == host._architecture(machine, cpuinfo, narrow=narrow)


@pytest.mark.parametrize(("order", "expected"), [("little", "mips64le"), ("big", "mips64")])
def test_byte_order(monkeypatch, order, expected):
    """MIPS has one machine name for both byte orders."""
    monkeypatch.setattr(sys, "byteorder", order)

    assert (expected, "") == host._architecture("mips64", "", narrow=False)


def test_arm_reads_cpuinfo(monkeypatch):
    """Only on arm is cpuinfo asked."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(sysname="Linux", machine="armv7l"))
    monkeypatch.setattr(host, "_read_cpuinfo", lambda: PI_ZERO)

    assert host.read_host() == ("linux", "arm", "v6")


def test_cpuinfo_may_be_absent(monkeypatch):
    """Without /proc the machine's name has to do."""

    def refuse(*_args, **_kwargs):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)

    assert host._read_cpuinfo() == ""


def test_read_host():
    """The host has a system and an architecture."""
    system, architecture, _ = host.read_host()

    assert system == sys.platform
    assert architecture
    assert isinstance(host._read_cpuinfo(), str)
