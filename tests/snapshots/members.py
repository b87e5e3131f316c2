"""Members of layers in a word each, byte for byte as any writer could make them.

Names may hold `WORLD`: the absolute path, without its first slash, of the folder that an attack
wants to get out to; it is put in when a layer is rendered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.archive import rawtar

WORLD = "@WORLD@"

_FIELD = 100  # bytes of a header's name
_SMALL = 0o7777777  # the largest owner in octal


def as_bytes(text):
    """Text as UTF-8; bytes as they are."""
    return text.encode() if isinstance(text, str) else text


def placed(text, world):
    """A name or target with the world's path in it."""
    return as_bytes(text).replace(WORLD.encode(), world)


@dataclass(frozen=True)
class Item:
    """One member.

    Attributes:
        xattrs: name to value, written as PAX records.
        records: further PAX records.
        raw: fields of the header as they are to be, whatever the other attributes say.
    """

    flag: bytes
    name: str | bytes
    body: bytes = b""
    link: str | bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: str = "1000000000"
    device: tuple = (0, 0)
    xattrs: dict = field(default_factory=dict)
    records: tuple = ()
    raw: dict = field(default_factory=dict)

    def render(self, world=b""):
        """Its bytes, with a PAX header where ustar's fields are too small."""
        name, link = placed(self.name, world), placed(self.link, world)
        records = [(b"SCHILY.xattr." + as_bytes(key), value) for key, value in self.xattrs.items()]
        records += self.records
        fields = self._numbers(records)
        for key, value in ((b"path", name), (b"linkpath", link)):
            if len(value) > _FIELD:
                records.append((key, value))
        fields |= {"linkname": link[:_FIELD], **self.raw}
        return (rawtar.pax(*records) if records else b"") + rawtar.member(
            name[:_FIELD], self.body, self.flag, **fields
        )

    def _numbers(self, records):
        fields = {"mode": rawtar.octal(self.mode, 8)}
        for key in ("uid", "gid"):
            number = getattr(self, key)
            if number > _SMALL:
                records.append((key.encode(), b"%d" % number))
            else:
                fields[key] = rawtar.octal(number, 8)
        if self.mtime.isdigit() and int(self.mtime) < 8**11:
            fields["mtime"] = rawtar.octal(int(self.mtime), 12)
        else:
            records.append((b"mtime", self.mtime.encode()))
        for key, number in zip(("devmajor", "devminor"), self.device, strict=True):
            small = number <= _SMALL
            fields[key] = rawtar.octal(number, 8) if small else rawtar.base256(number, 8)
        return fields


def file(name, body=b"new", **more):
    """A regular file."""
    return Item(b"0", name, body, **more)


def directory(name, mode=0o755, **more):
    """A directory."""
    return Item(b"5", name, mode=mode, **more)


def symlink(name, target, mode=0o777, **more):
    """A symbolic link."""
    return Item(b"2", name, link=target, mode=mode, **more)


def hardlink(name, target, **more):
    """A hard link."""
    return Item(b"1", name, link=target, **more)


def fifo(name, **more):
    """A named pipe."""
    return Item(b"6", name, **more)


def character(name, major=1, minor=3, **more):
    """A character device."""
    return Item(b"3", name, device=(major, minor), **more)


def block(name, major=8, minor=0, **more):
    """A block device."""
    return Item(b"4", name, device=(major, minor), **more)


def whiteout(name, **more):
    """What hides a path of lower layers."""
    parent, slash, base = as_bytes(name).rpartition(b"/")
    return file(parent + slash + b".wh." + base, b"", **more)


def opaque(folder="", **more):
    """What hides everything that lower layers have in a directory."""
    return file(f"{folder}/.wh..wh..opq" if folder else ".wh..wh..opq", b"", **more)


def layer(items, world=b""):
    """A layer of members, which may be raw bytes too."""
    return b"".join(i if isinstance(i, bytes) else i.render(world) for i in items) + rawtar.END
