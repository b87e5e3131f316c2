"""All attacks, by name."""

from __future__ import annotations

from tests.snapshots.attacks_containerd import CONTAINERD
from tests.snapshots.attacks_hardlinks import HARDLINKS
from tests.snapshots.attacks_lowers import LOWERS
from tests.snapshots.attacks_names import NAMES
from tests.snapshots.attacks_nodes import NODES_AND_ATTRIBUTES
from tests.snapshots.attacks_symlinks import SYMLINKS
from tests.snapshots.attacks_whiteouts import WHITEOUTS

TABLES = (NAMES, SYMLINKS, HARDLINKS, LOWERS, WHITEOUTS, NODES_AND_ATTRIBUTES, CONTAINERD)
ATTACKS = {name: attack for table in TABLES for name, attack in table.items()}
