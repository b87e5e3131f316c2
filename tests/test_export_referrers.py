"""Signatures and attestations that hang on an image: they travel with it, and are no images."""

from __future__ import annotations

import pytest

from imgdb import ExportOptions, ImportOptions
from tests.builder import Archive, Artifact, Image, Index
from tests.looking import Members, digests, names, platforms, present

SUBJECT = "io.containerd.manifest.subject"
AMD64, ARM64 = Image(), Image(platform="linux/arm64")
INDEX = Index([AMD64, ARM64])


def about(subject, text, **options):
    """A referrer."""
    return Artifact({"text": text.encode()}, subject=subject, **options)


def export(store, tmp_path, *arguments, **options):
    """Export and read back."""
    store.export(arguments, str(tmp_path / "out.tar"), ExportOptions(**options))
    return Members(tmp_path / "out.tar")


def loaded(store, tmp_path, *nodes, without=()):
    """The first node under a name, the others without."""
    archive = Archive().add(nodes[0], "app:1")
    for node in nodes[1:]:
        archive.add(node)
    path = archive.oci_tar(tmp_path / "in.tar", without=without)
    store.load(path, ImportOptions(allow_incomplete=True))
    return store


def test_referrers_travel(store, new_store, tmp_path):
    """Of the index and of its manifests, and those of referrers; listed by digest after the images."""
    sbom, signature = about(INDEX, "sbom"), about(AMD64, "signature")
    of_sbom = about(sbom, "signature of the sbom", artifact_type="application/vnd.example.sig")
    loaded(store, tmp_path, INDEX, sbom, signature, of_sbom)
    members = export(store, tmp_path, "app:1")

    subjects = {sbom: INDEX, signature: AMD64, of_sbom: sbom}
    expected = sorted((node.digest, {SUBJECT: subject.digest}) for node, subject in subjects.items())
    assert members.annotations()[1:] == expected
    types = {entry["digest"]: entry.get("artifactType") for entry in members.index[1:]}
    assert types[of_sbom.digest] == "application/vnd.example.sig"
    assert members.digests == digests(INDEX, sbom, signature, of_sbom)

    other = new_store("other")
    other.load(str(tmp_path / "out.tar"))
    assert names(other) == names(store) == {"docker.io/library/app:1": INDEX.digest}
    assert present(other) == present(store)


def test_no_referrers(store, tmp_path):
    """Only what the image itself leads to."""
    loaded(store, tmp_path, AMD64, about(AMD64, "signature"))
    members = export(store, tmp_path, "app:1", referrers=False)
    assert (len(members.index), members.digests) == (1, digests(AMD64))


def test_referrers_of_what_does_not_travel(store, tmp_path):
    """With one platform asked for, only its own."""
    mine, others = about(AMD64, "mine"), about(ARM64, "other's")
    loaded(store, tmp_path, INDEX, mine, others)
    members = export(store, tmp_path, "app:1", platforms=platforms("linux/amd64"))
    assert members.digests == digests(AMD64, mine) | {INDEX.digest}


def test_a_referrer_that_is_not_complete(store, tmp_path):
    """Left behind in silence: the image is whole without it."""
    lacking, whole = about(AMD64, "lacking"), about(AMD64, "whole")
    loaded(store, tmp_path, AMD64, lacking, whole, without={lacking.below[1].digest})
    assert export(store, tmp_path, "app:1").digests == digests(AMD64, whole)


def test_a_referrer_that_was_asked_for(store, tmp_path):
    """Is an image of the list then, with its name, and not listed once more."""
    signature = about(AMD64, "signature")
    store.load(Archive().add(AMD64, "app:1").add(signature, "sig:1").oci_tar(tmp_path / "in.tar"))
    members = export(store, tmp_path, "app:1", "sig:1")
    assert [entry["digest"] for entry in members.index] == [AMD64.digest, signature.digest]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_a_referrer_inside_another(store, tmp_path, count):
    """What an index of signatures holds is reached through it, whichever digest comes first."""
    parts = [about(AMD64, f"part {n} of {count}") for n in range(count)]
    bundle = Index(parts, subject=AMD64)
    loaded(store, tmp_path, AMD64, bundle, *parts)
    members = export(store, tmp_path, "app:1")
    assert members.annotations()[1:] == [(bundle.digest, {SUBJECT: AMD64.digest})]
    assert members.digests == digests(AMD64, bundle)


def test_a_referrer_that_contains_its_subject(store, new_store, tmp_path):
    """A circle if both counted: `check_store` says what does; both travel, and once."""
    bundle = Index([AMD64, about(AMD64, "inner")], subject=AMD64)
    loaded(store, tmp_path, AMD64, bundle)
    members = export(store, tmp_path, "app:1")
    assert members.digests == digests(AMD64, bundle)
    other = new_store("other")
    other.load(str(tmp_path / "out.tar"))
    assert present(other) == present(store)


def test_a_referrer_of_something_absent(store, tmp_path):
    """An image of its own, until its subject is here; then it hangs on that."""
    signature = about(AMD64, "signature")
    loaded(store, tmp_path, signature)
    assert export(store, tmp_path, "app:1").annotations()[0][0] == signature.digest
    store.load(AMD64.oci_tar(tmp_path / "later.tar", "late:1"))
    assert export(store, tmp_path, "late:1").digests == digests(AMD64, signature)


def test_delta_of_a_signature(store, new_store, tmp_path):
    """A signature that comes alone finds the image that the store has."""
    signature = about(AMD64, "signature")
    store.load(AMD64.oci_tar(tmp_path / "image.tar", "app:1"))
    other = loaded(new_store("other"), tmp_path, AMD64, signature)
    other.export(["app:1"], str(tmp_path / "whole.tar"))
    store.load(Archive().add(signature).oci_tar(tmp_path / "sig.tar"))
    assert names(store) == {"docker.io/library/app:1": AMD64.digest}
    assert export(store, tmp_path, "app:1").bodies == Members(tmp_path / "whole.tar").bodies
