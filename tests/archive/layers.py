"""Layers in a line, by the standard library's tarfile, so that nothing of imgdb makes what it is tested with.

::

    layer(folder("d", mode=0o700), file("d/f", b"body"), whiteout("d/gone"), opaque("d2"))
"""

from __future__ import annotations

import io
import os
import tarfile

from imgdb.archive.flatten import flatten
from imgdb.archive.tar import MemberKind, TarReader

TIME = 1_000_000_000


def entry(name, flag, body=b"", **fields):
    """One member: a TarInfo and its body."""
    info = tarfile.TarInfo(name if isinstance(name, str) else os.fsdecode(name))
    info.type, info.size, info.mode, info.mtime = flag, len(body), 0o644, TIME
    for field, value in fields.items():
        setattr(info, field, value)
    return info, body


def file(name, body=b"", **fields):
    """A regular file."""
    return entry(name, tarfile.REGTYPE, body, **fields)


def folder(name, **fields):
    """A directory."""
    return entry(name, tarfile.DIRTYPE, **{"mode": 0o755} | fields)


def symlink(name, target, **fields):
    """A symbolic link."""
    return entry(name, tarfile.SYMTYPE, linkname=target, **{"mode": 0o777} | fields)


def hardlink(name, target, **fields):
    """A hard link."""
    return entry(name, tarfile.LNKTYPE, linkname=target, **fields)


def fifo(name, **fields):
    """A named pipe."""
    return entry(name, tarfile.FIFOTYPE, **fields)


def device(name, major=1, minor=3, **fields):
    """A character device."""
    return entry(name, tarfile.CHRTYPE, devmajor=major, devminor=minor, **fields)


def beside(path, base):
    """The name `base` in the directory of a path."""
    directory, _, last = path.rpartition("/")
    return f"{directory}/{base}{last}" if directory else base + last


def whiteout(path, **fields):
    """What hides a path."""
    return file(beside(path, ".wh."), **fields)


def opaque(path):
    """What hides everything in a directory."""
    return file(f"{path}/.wh..wh..opq" if path else ".wh..wh..opq")


def xattr(**values):
    """Extended attributes for `entry`; two underlines are a dot."""
    return {"pax_headers": {f"SCHILY.xattr.{k.replace('__', '.')}": v for k, v in values.items()}}


def layer(*entries):
    """The bytes of a layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, body in entries:
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


class Openings:
    """Opens one layer as often as it is asked to, and counts."""

    def __init__(self, data, *, seekable=True):
        self.data = data
        self.seekable = seekable
        self.opened = self.closed = 0

    def __call__(self):
        """A reader from the beginning."""
        self.opened += 1
        outer = self

        class Stream(io.BytesIO):
            def seekable(self):
                return outer.seekable

            def close(self):
                outer.closed += not self.closed
                super().close()

        return Stream(self.data)


def flat_tar(*layers, **options):
    """The tar that `flatten` makes of layers, lowest first."""
    out = io.BytesIO()
    flatten([Openings(data) for data in layers], out, **options)
    return out.getvalue()


def members(archive):
    """Every member with its body, in order, read by our own reader."""
    reader = TarReader(io.BytesIO(archive))
    return [(one, reader.read(one.size)) for one in reader]


def flat(*layers, **options):
    """What is in the flattened tar, short: `name` to what it is.

    A directory is its mode, a file its body, a symbolic link `-> target`, a hard link `== name`,
    anything else its kind.
    """
    found = {}
    for one, body in members(flat_tar(*layers, **options)):
        name = os.fsdecode(one.name)
        assert name not in found
        match one.kind:
            case MemberKind.DIRECTORY:
                found[name] = one.mode
            case MemberKind.FILE:
                found[name] = body
            case MemberKind.SYMLINK:
                found[name] = f"-> {os.fsdecode(one.linkname)}"
            case MemberKind.HARDLINK:
                found[name] = f"== {os.fsdecode(one.linkname)}"
            case _:
                found[name] = one.kind.value
    return found
