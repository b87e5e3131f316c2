"""Imports point down only; the order of LAYERS is the architecture (design §2)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "imgdb"

# Low to high. What stands in one line must not import each other: blobs, tars and rows meet in the
# walks. A folder's modules may import each other as FOLDERS says, where it says something, else freely.
LAYERS = (
    "errors places",
    "progress renewal",
    "oci",
    "content archive db",
    "snapshots",
    "access pair mirror importer exporter",
    "holding",
    "describe gc results setup leasing check unpacker mounting",
    "df prune upkeep rootfs",
    "looking keeping filesystems",
    "store rebuild",
    "cli",
)
FOLDERS = {"oci": ("digest jsontext host", "platform reference", "spec")}

# The package's own name holds only its version, and __main__ only calls the command line.
ABOVE_ALL = ("__init__", "__main__")
# Who may change the file system how: blobs by content/disk.py alone.
REMOVERS = {
    "content/disk.py": {"rename", "unlink"},
    "content/ingest.py": {"unlink", "rmdir"},  # its own directory
    "content/reserve.py": {"truncate"},  # the reserve file
    "content/files.py": {"rename", "unlink"},  # small files, replaced in one step
    "content/holds.py": {"unlink"},  # its own hold files
    "snapshots/disk.py": {"rename"},  # its own directories, into place and into the trash
    "snapshots/directories.py": {"unlink"},  # a whiteout of the layer being made
    "snapshots/extract.py": {"unlink"},  # likewise
    "snapshots/mount.py": {"rmdir"},  # the empty place of a mount
    "snapshots/trees.py": {"rename", "unlink", "rmdir"},  # trees that nobody needs
    "exporter/write.py": {"rename", "unlink", "rmdir", "rmtree"},  # what the user asked to be written
    "gc.py": {"truncate"},  # gc-run.lock
}
# These are nothing else, whoever's method they are.
UNMISTAKABLE = {"rename", "renames", "unlink", "removedirs", "rmdir", "rmtree"}
REMOVING = {*UNMISTAKABLE, "replace", "remove", "move", "truncate"}
WRITERS = {
    "store.py": {"run_write"},
    "setup.py": {"run_write"},
    "upkeep.py": {"run_write"},
    "rebuild.py": {"run_write"},
    "db/engine.py": {"begin", "commit", "rollback"},
    "db/schema.py": {"begin", "commit", "rollback"},
}
TRANSACTION = {"begin", "begin_nested", "commit", "rollback", "run_write"}
SQL = {"sqlalchemy", "sqlite3", "alembic"}
# What may be named elsewhere, for values that are handed on.
HANDED = {"sqlalchemy.Connection", "sqlalchemy.Engine", "sqlalchemy.URL"}
NO_SQL = {
    "errors",
    "places",
    "progress",
    "renewal",
    "oci",
    "content",
    "archive",
    "snapshots",
    "pair",
    "mirror",
    "results",
    "cli",
}
IMPURE = SQL | {"os", "sys", "io", "pathlib", "shutil", "subprocess", "socket", "tempfile", "fcntl", "time"}


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
    """What is called: `f` for `f(…)`, `x.f` for `x.f(…)`, `.f` where it is a method of something longer."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield f"{getattr(node.func.value, 'id', '')}.{node.func.attr}"


def test_every_module_has_a_layer():
    """A new module, or one that is gone, must be told to the order."""
    assert {layer(module) for module in modules()} - set(ABOVE_ALL) == set(ranks(LAYERS))
    for folder, lines in FOLDERS.items():
        there = {Path(m).stem for m in modules() if layer(m) == folder} - {"__init__"}
        assert there == set(ranks(lines)), folder


def test_imports_point_down():
    """No module imports from its own line or from above it."""
    wrong = {
        m: upward(m, imported(m), ranks(LAYERS), FOLDERS) for m in modules() if layer(m) not in ABOVE_ALL
    }
    assert {module: names for module, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("db/x.py", "from imgdb.oci import spec", []),
        ("db/x.py", "from imgdb.content.disk import f", ["imgdb.content.disk.f"]),
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


def tops(module):
    """The outermost names of what a module imports."""
    return {name.partition(".")[0] for name in imported(module)}


def test_the_core_is_pure():
    """No files, no SQL, no processes: only host.py asks the machine."""
    core = [module for module in modules() if layer(module) in {"errors", "progress", "oci"}]
    assert {m: tops(m) & IMPURE for m in core if tops(m) & IMPURE} == {"oci/host.py": {"os", "sys"}}
    assert [m for m in core if "open" in calls(tree_of(m))] == ["oci/host.py"]


def test_sql_stays_in_its_layers():
    """Statements are made in db/; the walks hand connections on, and the rest knows none of it."""
    outside = [module for module in modules() if layer(module) != "db"]
    found = {m: {n for n in imported(m) if n.partition(".")[0] in SQL} - HANDED for m in outside}
    assert {module: names for module, names in found.items() if names} == {}
    assert [m for m in outside if layer(m) in NO_SQL and tops(m) & SQL] == []


def test_nobody_uses_tarfile():
    """Python's tarfile must not touch bytes from strangers, and ours come from them too."""
    assert [module for module in modules() if "tarfile" in tops(module)] == []


def removers(tree):
    """Calls that rename or remove files, by the names of os, shutil and pathlib."""
    found = set()
    for name in calls(tree):
        owner, _, function = name.rpartition(".")
        if function in REMOVING and (owner in {"os", "shutil"} or function in UNMISTAKABLE):
            found.add(function)
    return found


def test_who_removes_files():
    """Blobs are renamed and unlinked by content/disk.py alone; the others touch their own files."""
    found = {module: removers(tree_of(module)) for module in modules()}
    assert {module: names for module, names in found.items() if names} == REMOVERS


def transactions(tree):
    """Methods that begin or end one, and `run_write`; a function that is called commit is none."""
    names = {name.rpartition(".")[::2] for name in calls(tree) if "." in name or name == "run_write"}
    return {function for _, function in names if function in TRANSACTION}


def test_who_begins_and_commits():
    """Transactions belong to the façade and to what makes databases; the engine is their tool."""
    found = {module: transactions(tree_of(module)) for module in modules()}
    assert {module: names for module, names in found.items() if names} == WRITERS


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("os.rename(a, b)", {"rename"}),
        ("os.replace(a, b)", {"replace"}),
        ("text.replace('a', 'b')", set()),
        ("shutil.rmtree(a)", {"rmtree"}),
        ("from os import unlink\nunlink(a)", {"unlink"}),
        ("Path(a).unlink()", {"unlink"}),
        ("names.remove(a)", set()),
        ("os.remove(a)", {"remove"}),
    ],
)
def test_removers_are_seen(source, names):
    """The check above finds what it is for, and not the methods of strings and lists."""
    assert removers(ast.parse(source)) == names
