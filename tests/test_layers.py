"""Imports point down only; the order of LAYERS is the architecture (design §2)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "imgdb"

# Low to high. What stands in one line must not import each other. A folder's modules may import
# each other as FOLDERS says, where it says something, else freely.
LAYERS = (
    "errors",
    "progress",
    "oci",
    "content archive",
    "db",
    "importer exporter",
    "describe pair mirror",
    "store",
    "cli",
)
FOLDERS = {"oci": ("digest jsontext host", "platform reference", "spec")}

# The package's own name holds only its version, and __main__ only calls the command line.
ABOVE_ALL = ("__init__", "__main__")
# Who may change the file system how: blobs by content/disk.py alone.
REMOVERS = {
    "content/disk.py": {"rename", "unlink", "rmdir"},
    "content/holds.py": {"unlink"},  # its own hold files
    "exporter/write.py": {"rename", "unlink", "rmtree"},  # what the user asked to be written
}
REMOVING = {
    *("rename", "renames", "replace", "unlink", "remove", "removedirs", "rmdir", "rmtree", "move", "truncate")
}
WRITERS = {
    "store.py": {"run_write"},
    "db/engine.py": {"begin", "commit", "rollback"},
    "db/schema.py": {"begin", "commit", "rollback"},
}
TRANSACTION = {"begin", "begin_nested", "commit", "rollback", "run_write"}
# The driver and the toolkit: who may know SQL. `pair` and `mirror` are handed values.
SQL = {"sqlalchemy", "sqlite3", "alembic"}


def ranks(lines):
    """Name to rank, low to high."""
    return {name: rank for rank, line in enumerate(lines) for name in line.split()}


def modules():
    """Every module as its path below the package."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def tree_of(module):
    """Its syntax tree."""
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def imports(tree, package):
    """Every dotted name that is imported, also inside functions and below TYPE_CHECKING.

    `from a import b` gives `a.b`: whether b is a module or a name in one, its layer is the same.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield node.args[0].value if isinstance(node.args[0], ast.Constant) else "imgdb.?"


def imported(module):
    """What a module of the package imports."""
    package = ".".join(["imgdb", *Path(module).parent.parts])
    return list(imports(tree_of(module), package))


def layer(module):
    """The name in LAYERS that stands for a module's path."""
    return Path(module).parts[0].removesuffix(".py")


def upward(module, names, order, folders):
    """Those of the imported names that are not below the module."""
    mine, inner = layer(module), Path(module).stem
    found = []
    for name in names:
        parts = name.split(".")
        if parts[0] != "imgdb" or parts[1:] == ["__version__"]:
            continue
        target = parts[1]
        if target == mine:
            inside = ranks(folders.get(mine, ()))
            if (
                len(parts) > 2
                and inside
                and inside.get(parts[2], sys.maxsize) >= inside.get(inner, sys.maxsize)
            ):
                found.append(name)
        elif order.get(target, sys.maxsize) >= order[mine]:
            found.append(name)
    return found


def calls(tree):
    """Names of what is called: `f` of `f(…)` and of `x.f(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", None) or getattr(node.func, "id", "")


def test_every_module_has_a_layer():
    """A new module, or one that is gone, must be told to the order."""
    assert {layer(module) for module in modules()} - set(ABOVE_ALL) == set(ranks(LAYERS))
    for folder, lines in FOLDERS.items():
        there = {Path(m).stem for m in modules() if layer(m) == folder} - {"__init__"}
        assert there == set(ranks(lines)), folder


@pytest.mark.parametrize("module", [m for m in modules() if layer(m) not in ABOVE_ALL])
def test_imports_point_down(module):
    """No module imports from its own line or from above it."""
    assert upward(module, imported(module), ranks(LAYERS), FOLDERS) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("db/x.py", "from imgdb.content.disk import f", []),
        ("db/x.py", "from imgdb.store import f", ["imgdb.store.f"]),
        ("db/x.py", "import imgdb.cli.main", ["imgdb.cli.main"]),
        ("db/x.py", "from imgdb import store", ["imgdb.store"]),
        ("db/x.py", "from imgdb import __version__", []),
        ("db/x.py", "def f():\n    from imgdb.exporter import plan", ["imgdb.exporter.plan"]),
        ("db/x.py", "if TYPE_CHECKING:\n    from imgdb.pair import f", ["imgdb.pair.f"]),
        ("db/x.py", "from ..store import f", ["imgdb.store.f"]),
        ("db/x.py", "from . import y\nfrom .y import f", []),
        ("archive/x.py", "from imgdb.content.disk import f", ["imgdb.content.disk.f"]),
        ("content/x.py", "from imgdb.archive import tar", ["imgdb.archive.tar"]),
        ("importer/x.py", "import imgdb.exporter.walk as w", ["imgdb.exporter.walk"]),
        ("pair.py", "from imgdb.mirror import f", ["imgdb.mirror.f"]),
        ("errors.py", "from imgdb.progress import f", ["imgdb.progress.f"]),
        ("oci/digest.py", "from imgdb.oci.platform import f", ["imgdb.oci.platform.f"]),
        ("oci/digest.py", "from imgdb.oci import jsontext", ["imgdb.oci.jsontext"]),
        ("oci/spec.py", "from imgdb.oci.digest import f\nfrom imgdb.errors import E", []),
        ("store.py", "import importlib\nimportlib.import_module('imgdb.cli.main')", ["imgdb.cli.main"]),
        ("store.py", "import importlib\nimportlib.import_module(name)", ["imgdb.?"]),
        ("store.py", "from imgdb.unheard_of import f", ["imgdb.unheard_of.f"]),
    ],
)
def test_upward_imports_are_seen(module, source, wrong):
    """The check above finds what it is for, however it is written."""
    package = ".".join(["imgdb", *Path(module).parent.parts])
    assert upward(module, imports(ast.parse(source), package), ranks(LAYERS), FOLDERS) == wrong


@pytest.mark.parametrize("module", [m for m in modules() if layer(m) in {"errors", "progress", "oci"}])
def test_the_core_is_pure(module):
    """No files, no SQL, no processes: only host.py asks the machine."""
    tops = {name.split(".")[0] for name in imported(module)}
    impure = {
        "os",
        "sys",
        "io",
        "pathlib",
        "shutil",
        "subprocess",
        "socket",
        "tempfile",
        "fcntl",
        "time",
    } | SQL
    assert tops & impure == ({"os", "sys"} if module == "oci/host.py" else set())
    assert "open" not in set(calls(tree_of(module))) or module == "oci/host.py"


@pytest.mark.parametrize("module", modules())
def test_sql_stays_in_its_layers(module):
    """Blobs and tars know no SQL, and the command line asks the store."""
    tops = {name.split(".")[0] for name in imported(module)}
    if layer(module) in {"content", "archive", "cli", "pair", "mirror"}:
        assert tops & SQL == set()
    if layer(module) != "db":
        assert tops & {"sqlite3", "alembic"} == set()


@pytest.mark.parametrize("module", modules())
def test_nobody_uses_tarfile(module):
    """Python's tarfile must not touch bytes from strangers, and ours come from them too."""
    assert [name for name in imported(module) if name.split(".")[0] == "tarfile"] == []


def test_who_removes_files():
    """Blobs are renamed and unlinked by content/disk.py alone; the others touch their own files."""
    found = {module: set(calls(tree_of(module))) & REMOVING for module in modules()}
    # str.replace and dataclasses.replace, which are most of the calls of that name, change no file.
    for module, names in found.items():
        if "replace" in names and not os_calls(tree_of(module), "replace"):
            names.discard("replace")
        if "remove" in names and not os_calls(tree_of(module), "remove"):
            names.discard("remove")
    assert {module: names for module, names in found.items() if names} == REMOVERS


def os_calls(tree, name):
    """Whether `os.NAME` or `shutil.NAME` is used, or imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == name:
            if getattr(node.value, "id", "") in {"os", "shutil"}:
                return True
        elif isinstance(node, ast.ImportFrom) and node.module in {"os", "shutil"}:
            if name in {alias.name for alias in node.names}:
                return True
    return False


def test_who_begins_and_commits():
    """Transactions belong to store.py; the engine and the migrations are its tools."""
    found = {module: set(calls(tree_of(module))) & TRANSACTION for module in modules()}
    assert {module: names for module, names in found.items() if names} == WRITERS
