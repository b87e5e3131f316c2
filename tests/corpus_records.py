"""What corpus.json says about an archive, in the words of `ImageStore`; see tests/test_corpus.py."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

from imgdb.errors import InvalidArgumentError
from imgdb.oci.reference import is_bare_tag, parse_docker_ref
from tests.tools.sample import ROOT

CORPUS = Path(os.environ.get("IMGDB_CORPUS", ROOT.parent / "shared" / "corpus"))
IMAGE_CONFIGS = {
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.config.v1+json",
}
LAYERS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
)
# The records' maker stopped here; nested indexes go on below.
DEPTH = 9
NO_ARCHIVE = {"bare-tar", "not-a-tar", "git-lfs-pointer", "dir-transport", "docker-archive under top/"}
# "bare" and "not a tar" by what the maker's tools saw; by its names or its damage each was meant as an image.
DAMAGED = {"edge/d-bomb-outer.tar.gz", "edge/d-gz-in-gz.tar.gz", "edge/d-truncated-in-layer.tar"}
# index.json wins over the manifest.json beside it, so that the name in the latter goes nowhere.
IGNORED_NAMES = {"edge/o-both-disagree.tar": {"edge/other:1"}}
# The maker's reader gave up on the junk behind the stream, and so recorded nothing of what is before it.
UNREAD = {"edge/d-gz-trailing-garbage.tar.gz": {"docker.io/edge/x:1"}}
# Its second entry says it is a "descriptor": an unknown type is a leaf whatever its bytes are
# (specification §2.10), so the config that tells its platform is not stored.
OTHERWISE = {
    "public/google+go-containerregistry/pkg/v1/layout/testdata/test_index": {
        "platforms": ["linux/amd64", "none"]
    }
}


def load_records():
    """All records; none where there is no corpus."""
    file = CORPUS / "corpus.json"
    return json.loads(file.read_text()) if file.is_file() else []


def exit_code(record):
    """What a refused archive ends with: 1 where it is no image archive at all, else 3."""
    return 1 if record["kind"] in NO_ARCHIVE and record["path"] not in DAMAGED else 3


def names(record):
    """Canonical names that the archive's images get: bare tags and what is no reference name nothing."""
    given = set(record["names"]) - IGNORED_NAMES.get(record["path"], set())
    if "indexes" in record and record["top"]:
        given = {name for name in given if not is_bare_tag(name)}
    found = UNREAD.get(record["path"], set()).copy()
    for name in given:
        try:
            reference = parse_docker_ref(name)
        except InvalidArgumentError:
            continue
        found.add(str(reference))
    return found


def contents(record):
    """The counts of a layout's record, lists sorted."""
    keys = ("indexes", "images", "attestations", "artifacts", "referrers")
    lists = {key: sorted(record[key]) for key in ("platforms", "layers")}
    return {key: record[key] for key in keys} | lists | OTHERWISE.get(record["path"], {})


def index_json(record):
    """The descriptors that the archive's own index.json lists."""
    return json.loads(_member(CORPUS / record["path"], "index.json"))["manifests"] or []


def _member(path, name):
    if path.is_dir():
        return (path / name).read_bytes()
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        info = next(info for info in tar if os.path.normpath(info.name) == name)
        return tar.extractfile(info).read()


class Walk:
    """Counts what is below some descriptors as the records' maker did, reading from a store.

    A manifest counts once for each platform that descriptors give it. Beside the counts, `kinds` has
    what imgdb should call each manifest that is here.
    """

    def __init__(self, store, tops):
        self.store = store
        self.present = {str(blob.digest) for blob in store.blobs() if blob.present}
        self.counts = dict.fromkeys(("indexes", "images", "attestations", "artifacts", "referrers"), 0)
        self.platforms = []
        self.layers = []
        self.kinds = {}
        self.was_cut = False
        self._seen = set()
        pending = [(top, 1) for top in reversed(tops)]
        while pending:
            pending += self._visit(*pending.pop())

    def contents(self):
        """In the form of a record."""
        lists = {"platforms": sorted(self.platforms), "layers": sorted(self.layers)}
        return self.counts | lists

    @functools.cache  # noqa: B019 - lives as long as its test
    def document(self, digest):
        """A document of the store, parsed."""
        with self.store.open_blob(digest) as file:
            return json.loads(file.read())

    def _visit(self, descriptor, depth):
        key = descriptor["digest"], json.dumps(descriptor.get("platform"))
        self.was_cut = self.was_cut or depth > DEPTH
        if key in self._seen or depth > DEPTH:
            return []
        self._seen.add(key)
        if descriptor["digest"] not in self.present:
            self.platforms.append(f"{platform_text(descriptor.get('platform', {}))}(absent)")
            return []
        document = self.document(descriptor["digest"])
        self.counts["referrers"] += "subject" in document
        if document.get("manifests") is not None or "index" in document.get("mediaType", ""):
            self.counts["indexes"] += 1
            return [(child, depth + 1) for child in reversed(document["manifests"] or [])]
        self._count(descriptor, document)
        return []

    def _count(self, descriptor, document):
        kind = self._kind(descriptor, document)
        self.counts[f"{kind}s"] += 1
        self.kinds[descriptor["digest"]] = kind_in_imgdb(kind, descriptor, document)
        if kind == "image":
            config = document["config"]["digest"]
            known = self.document(config) if config in self.present else {}
            self.platforms.append(platform_text(known) or "none")
            self.layers.append(len(document.get("layers") or []))

    @staticmethod
    def _kind(descriptor, document):
        is_unknown = descriptor.get("platform", {}).get("os") == "unknown"
        if is_unknown or "vnd.docker.reference.type" in descriptor.get("annotations", {}):
            return "attestation"
        is_image = document.get("config", {}).get("mediaType") in IMAGE_CONFIGS
        return "image" if is_image and "artifactType" not in document else "artifact"


def kind_in_imgdb(kind, descriptor, document):
    """Where imgdb's words differ from the records', by specification §6.6."""
    if kind == "attestation":
        return kind
    # cosign writes image configs; only the descriptor's annotation tells. And see `OTHERWISE`.
    is_leaf = "manifest" not in (descriptor.get("mediaType") or "manifest")
    kind_of_cosign = descriptor.get("annotations", {}).get("kind", "").partition("cosignproject.cosign/")[2]
    if kind_of_cosign in {"sigs", "atts", "sboms"} or is_leaf:
        return "artifact"
    # What decides is the config and the layers: a squashfs is no layer, and an artifactType changes nothing.
    if document.get("config", {}).get("mediaType") not in IMAGE_CONFIGS:
        return "artifact"
    layers = document.get("layers") or []
    return "image" if all(layer["mediaType"].startswith(LAYERS) for layer in layers) else "artifact"


def platform_text(keys):
    """`os/architecture/variant`, as far as they are there."""
    return "/".join(filter(None, (keys.get("os"), keys.get("architecture"), keys.get("variant"))))
