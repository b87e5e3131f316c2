# ruff: noqa: D102  what the methods do is said once, in Engine
"""Private engines that tests hand archives to, and get archives from.

Each engine lives below one short temporary folder (a Unix socket's path ends at 108 bytes), starts
when the first test asks for it, and is stopped by the pid that was started here. Daemons run in mount,
pid and network namespaces of their own: what they mount, and what they leave running, ends with them,
they see no other engine's socket, and no archive makes them talk to a network.

Nothing here knows pytest, so scripts/bench uses it too. conftest.py makes fixtures of it.

    engine                 image_ids() are       save() writes      export() writes
    Docker (graph store)   config digests        docker save        flattened root file system
    Docker (containerd)    target digests        docker save        flattened root file system
    Podman                 config digests        podman save        flattened root file system
    Containerd             target digests        ctr images export  the same, ctr has no other word
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "oci-image-tool": "oci-image-tool",
    "podman": "podman",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "unshare": "util-linux",
    "xz": "xz-utils",
}
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
FIRST_WITH_CONTAINERD_STORE = 24  # earlier ones have it as an experiment, or not at all


class ToolMissingError(Exception):
    """The tool is not installed, or this user may not run it; the message says what to do."""


class NotOfferedError(ToolMissingError):
    """The tool is there, but this version of it can't do what is asked; installing it won't help."""


class ToolError(Exception):
    """A tool ran and failed; the message has its command line, exit code and last output."""


def find(tool: str) -> str:
    """The path of a tool, or ToolMissingError that names Debian's package."""
    path = shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    if path is None:
        package = PACKAGES.get(tool, tool)
        raise ToolMissingError(f"{tool} is not installed: apt-get install --no-install-recommends {package}")
    return path


def need_root(tool: str) -> None:
    """Daemons need namespaces, mounts and chown."""
    if os.geteuid() != 0:
        raise ToolMissingError(f"{tool} is only tested as root")


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    check: bool = True,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with `check` a failure is a ToolError that shows its output."""
    done = subprocess.run(
        [os.fspath(word) for word in argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        env=env,
        check=False,
    )
    if check and done.returncode != 0:
        words = " ".join(os.fspath(word) for word in argv)
        raise ToolError(f"exit {done.returncode}: {words}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


@functools.cache
def offline() -> tuple[str, ...]:
    """The prefix that cuts a command off from every network; nothing where that needs root."""
    if os.geteuid() != 0 or run([find("unshare"), "--net", "true"], check=False).returncode != 0:
        return ()
    return (find("unshare"), "--net", "--")


@functools.cache
def overlay_works() -> bool:
    """Whether the temporary folder can carry an overlay mount (not inside another container)."""
    with tempfile.TemporaryDirectory(prefix="imgdb-") as folder:
        for name in "luwm":
            os.mkdir(os.path.join(folder, name))
        mount = "cd $0 && mount -t overlay overlay -o lowerdir=l,upperdir=u,workdir=w m"
        return run([find("unshare"), "--mount", "sh", "-c", mount, folder], check=False).returncode == 0


class Tool:
    """A command without a daemon, as a callable: `skopeo("inspect", path)` is its standard output."""

    def __init__(self, name: str, *flags: str) -> None:
        self.name = name
        self.flags = flags
        self.path = find(name)
        self.prefix = offline()

    def run(
        self, *args: str | os.PathLike[str], check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it; with check=False a failure is for the caller to judge."""
        return run([*self.prefix, self.path, *self.flags, *args], check=check, stdin=stdin)

    def __call__(self, *args: str | os.PathLike[str]) -> str:
        """Run it and return its standard output; a failure is a ToolError."""
        return self.run(*args).stdout


def skopeo() -> Tool:
    """Skopeo, which asks no signature policy and no registry."""
    return Tool("skopeo", "--insecure-policy")


def umoci() -> Tool:
    """Umoci; knows layouts in directories only, and no multi-platform tag."""
    return Tool("umoci")


def oci_image_tool() -> Tool:
    """oci-image-tool; 1.0.0-rc1 validates directories only, in terms of image-spec 1.0."""
    return Tool("oci-image-tool")


# An empty /run hides the sockets of the machine's own engines, which daemons would join.
HERE = 'shift 2; mount -t tmpfs tmpfs /run && exec "$@"'
# In a tree of another Debian release only the engine's own folder is this machine's.
IN_TREE = """set -e
tree=$1 home=$2; shift 2
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
for dir in sys dev; do mount --rbind "/$dir" "$tree/$dir"; done
for dir in run tmp; do mount -t tmpfs tmpfs "$tree/$dir"; done
mkdir -p "$tree$home"
mount --bind "$home" "$tree$home"
exec chroot "$tree" "$@"
"""


class Service:
    """A daemon in its own namespaces, with its log in a file; with `tree`, in that root file system."""

    def __init__(
        self, argv: Sequence[str], log: Path, env: Mapping[str, str], tree: Path | None = None
    ) -> None:
        self.log = log
        inside = ("sh", "-c", IN_TREE if tree else HERE, "sh", str(tree), str(log.parent))
        namespaces = ("--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child")
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [find("unshare"), *namespaces, *inside, *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
            )

    @property
    def pid(self) -> int | None:
        """The daemon's own pid: the one child of the unshare that was started here."""
        unshare = self.process.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def peak_kib(self) -> int | None:
        """The daemon's largest resident size so far, in KiB; children of the daemon are not in it."""
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
            return int(found[1]) if found else None
        return None

    def wait(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Until `ready()`; a daemon that ends or stays silent is stopped and its log is in the error."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ToolError(f"{self.log.stem} did not start:\n{tail(self.log)}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Ask the daemon to end; after 15 s end its namespace, and with it all that it started."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def tail(path: Path, lines: int = 30) -> str:
    """The end of a log."""
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return ""


class Engine:
    """What all engines can do; `start` makes one, `close` ends it and removes its files."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="imgdb-", dir="/tmp"))  # short, for the socket
        self.service: Service | None = None
        self.env = {
            "HOME": str(self.home),
            "PATH": f"{os.environ.get('PATH', os.defpath)}:{SBIN}",
            "TMPDIR": str(self.home),
            "LC_ALL": "C.UTF-8",
        }

    @classmethod
    def start(cls, *args: Any) -> Self:
        """A running engine; ToolMissingError where the machine has none, ToolError where it won't run."""
        need_root(cls.name)
        engine = cls(*args)
        try:
            engine.begin()
        except BaseException:
            engine.close()
            raise
        return engine

    def begin(self) -> None:
        """Start the daemon, if there is one."""

    def command(self, *args: str | os.PathLike[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the engine's own client with any arguments."""
        return run([*self.client(), *args], check=check, env=self.env, timeout=900)

    def client(self) -> list[str]:
        """How the client is called."""
        raise NotImplementedError

    def version(self) -> str:
        """The engine's version."""
        raise NotImplementedError

    def load(self, path: str | os.PathLike[str], *flags: str) -> str:
        """Load an archive; returns what the client printed."""
        raise NotImplementedError

    def image_ids(self) -> set[str]:
        """What the engine calls its images' IDs, each `sha256:…`."""
        raise NotImplementedError

    def names(self) -> set[str]:
        """The names that the engine knows images by, as it prints them."""
        raise NotImplementedError

    def inspect(self, name: str) -> dict[str, Any]:
        """The engine's own record of one image."""
        raise NotImplementedError

    def save(self, names: str | Sequence[str], out: str | os.PathLike[str], *flags: str) -> None:
        """Write an image archive."""
        raise NotImplementedError

    def export(self, name: str, out: str | os.PathLike[str]) -> None:
        """Write the flattened root file system as a tar."""
        raise NotImplementedError

    def remove_all(self) -> None:
        """Forget every image."""
        raise NotImplementedError

    def log_tail(self) -> str:
        """The end of the daemon's log."""
        return tail(self.service.log) if self.service else ""

    def close(self) -> None:
        """Stop the daemon and remove what it kept."""
        if self.service:
            self.service.stop()
        shutil.rmtree(self.home, ignore_errors=True)


def listed(names: str | Sequence[str]) -> list[str]:
    """One name or several, as a list."""
    return [names] if isinstance(names, str) else list(names)


class DockerLike(Engine):
    """What docker and podman say alike."""

    def load(self, path: str | os.PathLike[str], *flags: str) -> str:
        return self.command("load", *flags, "-i", path).stdout

    def image_ids(self) -> set[str]:
        ids = self.command("image", "ls", "--all", "--quiet", "--no-trunc").stdout.split()
        return {"sha256:" + image_id.removeprefix("sha256:") for image_id in ids}

    def names(self) -> set[str]:
        lines = self.command("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
        return {line for line in lines if "<none>" not in line}

    def inspect(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.command("image", "inspect", name).stdout)
        return found[0]

    def save(self, names: str | Sequence[str], out: str | os.PathLike[str], *flags: str) -> None:
        self.command("save", *flags, "-o", out, *listed(names))

    def export(self, name: str, out: str | os.PathLike[str]) -> None:
        # The container is never started; a command is given since images may come without one.
        container = self.command("create", "--network", "none", name, "/none").stdout.strip()
        try:
            self.command("export", "-o", out, container)
        finally:
            self.command("rm", container)

    def remove_all(self) -> None:
        containers = self.command("ps", "--all", "--quiet", "--no-trunc").stdout.split()
        if containers:
            self.command("rm", "--force", *containers)
        while images := sorted(self.image_ids()):
            # Parents go only after their children: what is refused in one round goes in the next.
            self.command("rmi", "--force", *images, check=False)
            if sorted(self.image_ids()) == images:
                raise ToolError(f"{self.name} keeps {images}\n{self.log_tail()}")


class Docker(DockerLike):
    """A private dockerd, with its graph store or with the containerd snapshotter.

    `tree` is the root file system of another Debian release whose dockerd is run; the client is always
    this machine's.
    """

    name = "docker"

    def __init__(self, store: str = "graph", tree: Path | None = None) -> None:
        self.path = find("docker")
        self.daemon = "/usr/sbin/dockerd" if tree else find("dockerd")
        self.store, self.tree = store, tree
        asked = [find("chroot"), str(tree), self.daemon] if tree else [self.daemon]
        found = re.search(r"(\d+)\.\d+", run([*asked, "--version"]).stdout)
        self.major = int(found[1]) if found else 0
        if store == "containerd" and self.major < FIRST_WITH_CONTAINERD_STORE:
            raise NotOfferedError(
                f"Docker {self.major} has only the graph store, containerd's came with 24: "
                "scripts/test --deep makes a Debian tree with a newer one"
            )
        super().__init__()
        self.socket = self.home / "d.sock"
        self.env |= {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_CONFIG": str(self.home)}

    def begin(self) -> None:
        config = self.home / "daemon.json"  # never the machine's /etc/docker/daemon.json
        settings: dict[str, Any] = {"features": {"containerd-snapshotter": self.store == "containerd"}}
        if self.major < FIRST_WITH_CONTAINERD_STORE:
            settings = {"deprecated-key-path": str(self.home / "key.json")}  # else it is in /etc/docker
        config.write_text(json.dumps(settings))
        flags = {
            "--config-file": config,
            "--data-root": self.home / "data",
            "--exec-root": self.home / "exec",
            "--pidfile": self.home / "pid",
            "--host": self.env["DOCKER_HOST"],
            "--iptables": "false",
            "--ip6tables": "false",
            "--ip-forward": "false",
            "--bridge": "none",
        }
        if self.store == "graph":
            flags["--storage-driver"] = "overlay2" if overlay_works() else "vfs"
        argv = [self.daemon, *(f"{flag}={value}" for flag, value in flags.items())]
        self.service = Service(argv, self.home / "dockerd.log", self.env, self.tree)
        self.service.wait(lambda: self.command("version", check=False).returncode == 0)

    def client(self) -> list[str]:
        return [self.path]

    def version(self) -> str:
        return self.command("version", "--format", "{{.Server.Version}}").stdout.strip()


def docker_tree() -> Path | None:
    """A root file system with a newer dockerd, where scripts/test --deep made one."""
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    tree = Path(os.environ.get("IMGDB_DOCKER_TREE", os.path.join(cache, "imgdb", "docker-tree")))
    return tree if (tree / "usr/sbin/dockerd").exists() else None


class Podman(DockerLike):
    """Podman with storage of its own; it has no daemon."""

    name = "podman"

    def __init__(self) -> None:
        self.path = find("podman")
        super().__init__()

    def client(self) -> list[str]:
        folders = [
            word for flag in ("root", "runroot", "tmpdir") for word in (f"--{flag}", str(self.home / flag))
        ]
        drivers = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        return [*offline(), self.path, *folders, *drivers]

    def version(self) -> str:
        return self.command("version", "--format", "{{.Client.Version}}").stdout.strip()


class Containerd(Engine):
    """A private containerd, spoken to with ctr."""

    name = "containerd"
    namespace = "imgdb"

    def __init__(self) -> None:
        self.daemon, self.path = find("containerd"), find("ctr")
        super().__init__()
        self.socket = self.home / "c.sock"
        self.env["CONTAINERD_SNAPSHOTTER"] = "overlayfs" if overlay_works() else "native"

    def begin(self) -> None:
        unused = ["grpc.v1.cri", "snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper"]
        config = self.home / "config.toml"
        config.write_text(
            "version = 2\n"
            f'root = "{self.home}/root"\n'
            f'state = "{self.home}/state"\n'
            f"disabled_plugins = {json.dumps(['io.containerd.' + plugin for plugin in unused])}\n"
            f'[grpc]\naddress = "{self.socket}"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\npath = "{self.home}/opt"\n'
        )
        self.service = Service([self.daemon, "--config", str(config)], self.home / "containerd.log", self.env)
        self.service.wait(lambda: self.command("version", check=False).returncode == 0)

    def client(self) -> list[str]:
        return [self.path, "--address", str(self.socket), "--namespace", self.namespace]

    def version(self) -> str:
        lines = self.command("version").stdout.partition("Server:")[2].splitlines()
        return next(line.split()[-1] for line in lines if "Version" in line)

    def load(self, path: str | os.PathLike[str], *flags: str) -> str:
        return self.command("images", "import", *flags, path).stdout

    def rows(self) -> dict[str, tuple[str, str]]:
        """Name → media type and digest of what it points at."""
        lines = self.command("images", "ls").stdout.splitlines()[1:]
        return {(words := line.split())[0]: (words[1], words[2]) for line in lines}

    def image_ids(self) -> set[str]:
        return {digest for _, digest in self.rows().values()}

    def names(self) -> set[str]:
        return set(self.rows())

    def inspect(self, name: str) -> dict[str, Any]:
        """A row of ctr's table, with the document it points at (ctr 1.6 has no inspect)."""
        media_type, digest = self.rows()[name]
        return {"Name": name, "MediaType": media_type, "Digest": digest, "Document": self.document(digest)}

    def document(self, digest: str) -> dict[str, Any]:
        """A manifest, index or config by its digest."""
        value: dict[str, Any] = json.loads(self.command("content", "get", digest).stdout)
        return value

    def save(self, names: str | Sequence[str], out: str | os.PathLike[str], *flags: str) -> None:
        self.command("images", "export", *flags, out, *listed(names))

    def export(self, name: str, out: str | os.PathLike[str]) -> None:
        """The same as `save`: an image archive, since ctr has no word for a root file system."""
        self.save(name, out)

    def remove_all(self) -> None:
        names = sorted(self.names())
        if names:
            self.command("images", "rm", "--sync", *names)
