"""Fixtures for every test: sample archives, the corpus, and other projects' tools.

A test that uses a tool's fixture is marked `tools`; one that uses a daemon's is also put in that
daemon's xdist group, so that with `--dist loadgroup` each daemon is started by one worker only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests.tools import daemons
from tests.tools.sample import ROOT, make_sample_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ("tests.store_fixtures",)

DAEMONS = ("dockerd_graph", "dockerd_graph_new", "dockerd_containerd", "containerd", "podman")
TOOLS = ("skopeo", "umoci", "oci_image_tool")


@pytest.hookimpl(tryfirst=True)  # before -m deselects, and before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Mark what uses tools, and keep the users of one daemon together."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        engines = [name for name in DAEMONS if name in fixtures]
        if engines or any(name in fixtures for name in TOOLS):
            item.add_marker(pytest.mark.tools)
        if engines and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(engines[0]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A failed test shows the log of the daemons that it used."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, daemons.Engine):
                report.sections.append((f"log of {value.name}", value.log_tail()))
    return report


def absent(error: daemons.ToolMissingError) -> NoReturn:
    """Skip, saying why; but CI as root installs every tool, so there a missing one is a failure."""
    strict = os.environ.get("CI") == "true" and os.geteuid() == 0
    if strict and not isinstance(error, daemons.NotOfferedError):
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


def engine(start: Callable[[], daemons.Engine]) -> Iterator[daemons.Engine]:
    """One engine, from the first test that asks until the session ends."""
    try:
        started = start()
    except daemons.ToolMissingError as error:
        absent(error)
    try:
        yield started
    finally:
        started.close()


def tool(make: Callable[[], daemons.Tool]) -> daemons.Tool:
    """A command, or the skip that says why not."""
    try:
        return make()
    except daemons.ToolMissingError as error:
        absent(error)


@pytest.fixture(scope="session")
def dockerd_graph():
    """A private dockerd with its graph store: `daemons.Docker`."""
    yield from engine(lambda: daemons.Docker.start("graph"))


@pytest.fixture(scope="session")
def dockerd_graph_new():
    """The same from $IMGDB_DOCKER_TREE: a newer one, whose `save` writes an OCI layout too."""
    tree = daemons.docker_tree()
    if tree is None:
        pytest.skip("no tree with a newer Docker (scripts/test --deep makes one)")
    yield from engine(lambda: daemons.Docker.start("graph", tree))


@pytest.fixture(scope="session")
def dockerd_containerd():
    """A private dockerd with the containerd snapshotter: `daemons.Docker`; Docker 24 or later.

    Debian 12's is older, so a newer one from $IMGDB_DOCKER_TREE comes first where that was made.
    """
    yield from engine(lambda: daemons.Docker.start("containerd", daemons.docker_tree()))


@pytest.fixture(scope="session")
def containerd():
    """A private containerd: `daemons.Containerd`."""
    yield from engine(daemons.Containerd.start)


@pytest.fixture(scope="session")
def podman():
    """Podman with storage of its own: `daemons.Podman`."""
    yield from engine(daemons.Podman.start)


@pytest.fixture(scope="session")
def skopeo():
    """`skopeo("inspect", "oci-archive:…")` returns its output; `.run(…, check=False)` the process."""
    return tool(daemons.skopeo)


@pytest.fixture(scope="session")
def umoci():
    """`umoci("stat", "--image", "DIR:TAG")` returns its output."""
    return tool(daemons.umoci)


@pytest.fixture(scope="session")
def oci_image_tool():
    """`oci_image_tool("validate", …)` returns its output; directories only."""
    return tool(daemons.oci_image_tool)


@pytest.fixture(scope="session")
def corpus():
    """The collected archives: $IMGDB_CORPUS, or ../shared/corpus beside the checkout."""
    path = Path(os.environ.get("IMGDB_CORPUS", ROOT.parent / "shared" / "corpus"))
    if not (path / "corpus.json").is_file():
        pytest.skip(f"no corpus of archives at {path} (set IMGDB_CORPUS to the folder with corpus.json)")
    return path


@pytest.fixture(scope="session")
def sample_image(tmp_path_factory):
    """A two-platform OCI archive named `make_sample_image.NAME`."""
    path = tmp_path_factory.mktemp("sample") / "sample.oci.tar"
    make_sample_image.make_sample(path)
    return path


@pytest.fixture(scope="session")
def sample_docker_image(tmp_path_factory):
    """The same archive with a manifest.json beside its index.json, for graph stores, which read that."""
    path = tmp_path_factory.mktemp("sample") / "sample.docker.tar"
    make_sample_image.make_sample(path, docker=True)
    return path
