# ruff: noqa: D103  the names of the tests say it
"""What is shipped works by itself: the wheel, in an empty environment, away from the checkout."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.tools.sample import ROOT, make_sample_image

NO_NETWORK = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|Temporary failure in name")
OLDEST = (3, 11)
FOREIGN = ("PYTHON", "IMGDB", "VIRTUAL")

pytestmark = pytest.mark.xdist_group("wheel")  # so that it is built once


def run(*argv, cwd, **env):
    """A command with nothing of this checkout in its environment."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    done = subprocess.run(
        list(map(str, argv)),
        cwd=cwd,
        env=kept | env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0 and NO_NETWORK.search(done.stderr) and kept.get("CI") != "true":
        pytest.skip("pip can't reach a package index")
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def version_of(python):
    """(major, minor) of an interpreter that can make environments, else None."""
    asked = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return None
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None


def newest_other():
    """The newest interpreter on this machine of another version than ours; skips where there is none."""
    paths = [path for minor in (14, 13, 12, 11) if (path := shutil.which(f"python3.{minor}"))]
    paths += map(str, Path.home().glob(".pyenv/versions/3.*/bin/python"))
    found = {version: path for path in reversed(paths) if (version := version_of(path))}
    others = [version for version in found if version >= OLDEST and version != sys.version_info[:2]]
    if not others:
        pytest.skip("this machine has one Python of 3.11 or later only")
    return found[max(others)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT, cwd=out)
    (path,) = out.glob("imgdb-*.whl")
    return path


def test_the_wheel_holds_the_migrations_and_nothing_foreign(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "imgdb/py.typed" in names
    assert "imgdb/migrations/env.py" in names
    assert [name for name in names if re.fullmatch(r"imgdb/migrations/versions/\w+\.py", name)]
    tops = {name.split("/")[0] for name in names}
    assert [top for top in tops if top != "imgdb" and not top.endswith(".dist-info")] == []
    assert [name for name in names if name.endswith("/licenses/LICENSE")]
    assert [name for name in names if "__pycache__" in name] == []


def blobs_of(archive):
    """Digest → bytes of an OCI archive's blobs, and its index.json."""
    with tarfile.open(archive) as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar if info.isfile()}
    blobs = {name.split("/")[2]: data for name, data in files.items() if name.startswith("blobs/sha256/")}
    return blobs, json.loads(files["index.json"])


@pytest.mark.parametrize("which", ["this", "newest"])
def test_the_wheel_works_away_from_the_checkout(which, wheel, sample_image, tmp_path):
    python = sys.executable if which == "this" else newest_other()
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    run(python, "-m", "venv", venv, cwd=empty)
    run(venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=empty)
    imgdb = (venv / "bin/imgdb", "--store", tmp_path / "store")

    assert run(*imgdb, "import", sample_image, cwd=empty) == f"Loaded image: {make_sample_image.NAME}\n"
    run(*imgdb, "export", make_sample_image.NAME, "-o", tmp_path / "out.tar", cwd=empty)
    listing = (venv / "bin/python", "-m", "imgdb", "images", "--format", "json")
    assert make_sample_image.NAME in run(*listing, cwd=empty, IMGDB_STORE=str(tmp_path / "store"))

    assert list(empty.iterdir()) == []
    before, index = blobs_of(sample_image)
    after, exported = blobs_of(tmp_path / "out.tar")
    assert after == before
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in after.items())
    assert exported["manifests"][0]["digest"] == index["manifests"][0]["digest"]
