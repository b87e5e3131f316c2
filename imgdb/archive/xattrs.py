"""Which extended attributes of a layer's members are kept. PURE.

The others mean something to the machine they came from only (SELinux labels, IMA hashes), or
are overlayfs's own language, in which a layer could hide and redirect what lies below it.
Source: reliability A17, A22; umoci and buildkit leave out the same.
"""

from __future__ import annotations

_CAPABILITY = b"security.capability"
_CAPABILITY_SIZES = (12, 20, 24)  # bytes of the kernel's three versions
_KEPT = frozenset({_CAPABILITY, b"system.posix_acl_access", b"system.posix_acl_default"})
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")


def is_kept(name: bytes, value: bytes) -> bool:
    """Whether an attribute is kept: ``user.*``, file capabilities and POSIX ACLs; never overlayfs's.

    Args:
        name: its full name, raw.
        value: of it; a capability that is none would be stored by the kernel and never given back.
    """
    if name == _CAPABILITY and len(value) not in _CAPABILITY_SIZES:
        return False
    return name in _KEPT or (name.startswith(b"user.") and not is_overlay(name))


def is_overlay(name: bytes) -> bool:
    """Whether an attribute is overlayfs's own, of which the user should hear when it is left out."""
    return name.startswith(_OVERLAY)
