"""The repository's own scripts as modules: scripts/ is no package, so they are loaded by path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    """The module `scripts/NAME.py`, loaded once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"scripts/{name}.py can't be loaded")
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


make_sample_image = load_script("make_sample_image")
