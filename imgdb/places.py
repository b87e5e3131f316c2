"""Where stores are when nobody says."""

from __future__ import annotations

import os

_OF_ROOT = "/var/lib/imgdb"
_OF_OTHERS = ".local/share/imgdb"


def default_root() -> str:
    """``$IMGDB_STORE``, else /var/lib/imgdb for root, else the user's data directory."""
    if root := os.environ.get("IMGDB_STORE"):
        return root
    if os.geteuid() == 0:
        return _OF_ROOT
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(data, "imgdb")


def has_store(root: str) -> bool:
    """Whether there is a store in a directory, as far as can be seen."""
    return os.path.lexists(os.path.join(root, "store.json"))


def other_store(root: str | None) -> str | None:
    """A store in the place that is the default of the others: root's, or of the user behind sudo.

    Args:
        root: the store in use, if there is one.
    """
    user = os.environ.get("SUDO_USER", "")
    other = os.path.join(os.path.expanduser(f"~{user}"), _OF_OTHERS) if os.geteuid() == 0 else _OF_ROOT
    # Root's directory can't be looked into; that it is there is all that others can see.
    hidden = os.path.isdir(other) and not os.access(other, os.X_OK)
    return other if (hidden or has_store(other)) and other != root else None
