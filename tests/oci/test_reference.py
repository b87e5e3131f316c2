"""Image names: every row of specification §1.1-1.3, and whatever text Hypothesis invents."""

import contextlib
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgdb.errors import InvalidArgumentError
from imgdb.oci.digest import Digest
from imgdb.oci.reference import (
    Reference,
    check_taggable,
    dangling_name,
    familiar,
    is_bare_tag,
    is_dangling,
    match_reference_filter,
    oci_ref_name,
    parse_any,
    parse_docker_ref,
    parse_normalized,
    short_id_hex,
)

HEX = "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a"
SHA = f"sha256:{HEX}"
DIGEST = Digest.parse(SHA)

COMPLETED = [
    # what is typed, canonical, familiar
    ("busybox", "docker.io/library/busybox", "busybox"),
    ("docker.io/busybox:1", "docker.io/library/busybox:1", "busybox:1"),
    ("index.docker.io/fooo/bar", "docker.io/fooo/bar", "fooo/bar"),
    ("index.docker.io/debian", "docker.io/library/debian", "debian"),
    ("docker.io/library/foo/bar", "docker.io/library/foo/bar", "library/foo/bar"),
    ("library/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
    ("test_com/foo", "docker.io/test_com/foo", "test_com/foo"),
    ("localhost/debian", "localhost/debian", "localhost/debian"),
    ("localhost", "docker.io/library/localhost", "localhost"),
    ("LOCALDOMAIN/debian", "LOCALDOMAIN/debian", "LOCALDOMAIN/debian"),
    ("Docker/docker", "Docker/docker", "Docker/docker"),
    ("127.0.0.1:5000/library/debian", "127.0.0.1:5000/library/debian", "127.0.0.1:5000/library/debian"),
    ("[fc00::1]:5000/docker", "[fc00::1]:5000/docker", "[fc00::1]:5000/docker"),
    ("192.168.0.1", "docker.io/library/192.168.0.1", "192.168.0.1"),
    ("192.168.0.1:80", "docker.io/library/192.168.0.1:80", "192.168.0.1:80"),
    ("test.com:tag", "docker.io/library/test.com:tag", "test.com:tag"),
    ("test:5000/repo:tag", "test:5000/repo:tag", "test:5000/repo:tag"),
    (f"docker.io/{HEX}", f"docker.io/library/{HEX}", HEX),
    ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com/myimage:xn--n3h.com"),
    (f"a:b@{SHA}", f"docker.io/library/a:b@{SHA}", f"a:b@{SHA}"),
    (f"x.io/a@{SHA}", f"x.io/a@{SHA}", f"x.io/a@{SHA}"),
    # Not shortened, for each would be read back as an image of another registry.
    ("docker.io/localhost/a", "docker.io/localhost/a", "docker.io/localhost/a"),
    ("docker.io/quay.io/a:1", "docker.io/quay.io/a:1", "docker.io/quay.io/a:1"),
    ("docker.io/docker.io/a", "docker.io/docker.io/a", "docker.io/docker.io/a"),
    # A host may not have an underscore, a path may.
    ("my_host.example/app:1", "my_host.example/app:1", "my_host.example/app:1"),
]

VALID = [
    "docker/docker",
    "d/docker",
    "jess/t",
    "dock__er/docker",
    "docker---rules/docker",
    "Docker/docker",
    "DOCKER/docker",
    "ab-c.de:443/a/b-c_d__e.f:V1",
    "[::1]/repo",
    "[2001:db8:1:2:3:4:5:6]/repo:tag",
    "b.gcr.io/test.example.com/my-app:test.example.com",
    "lowercase:Uppercase",
    "thisisthesongthatneverendsitgoesonandonandonthisisthesongthatnev",
    "a:" + "t" * 128,
    "a" * (255 - len("library/")),
    "example.com/" + "a" * 255 + ":tag",
    "a/" * 127 + "a:tag-puts-this-over-max",
    "x@sha512:" + "f" * 128,
    "x@blake3:" + "f" * 64,
]

INVALID = [
    ("", "it is empty"),
    ("https://github.com/docker/docker", "malformed reference"),
    ("docker/Docker", "must be lowercase"),
    ("Uppercase:tag", "must be lowercase"),
    ("test:5000/Uppercase/lowercase:tag", "must be lowercase"),
    ("docker.io/docker/Docker", "must be lowercase"),
    ("My_host/app", "must be lowercase"),
    ("-docker", "malformed reference"),
    ("-docker/docker", "malformed reference"),
    ("-docker.io/docker/docker", "malformed reference"),
    ("docker///docker", "malformed reference"),
    ("docker-/docker", "malformed reference"),
    ("docker/", "malformed reference"),
    ("/docker", "malformed reference"),
    ("dock..er/x", "malformed reference"),
    ("dock_.er/x", "malformed reference"),
    ("dock-.er/x", "malformed reference"),
    ("dock___er/x", "malformed reference"),
    ("____/____", "malformed reference"),
    ("_docker/_docker", "malformed reference"),
    ("[fc00::1]", "malformed reference"),
    ("[fc00::1]:5000", "malformed reference"),
    ("fc00::1:5000/debian", "malformed reference"),
    ("[fe80::1%eth0]:5000/x", "malformed reference"),
    ("[2001:db8:3:4::192.0.2.33]:5000/debian", "malformed reference"),
    ("aa/asdf$$^/aa", "malformed reference"),
    ("../../etc/x:1", "malformed reference"),
    (":justtag", "malformed reference"),
    (f"@{SHA}", "malformed reference"),
    ("busybox ", "malformed reference"),
    ("busybox\n", "malformed reference"),
    ("busybox:1\n", "malformed tag"),
    ("büsybox", "malformed reference"),
    ("busybox:\u0661", "malformed tag"),
    ("\ud800", "malformed reference"),
    ("a:", "malformed tag"),
    ("a:b:c", "malformed tag"),
    ("a:.b", "malformed tag"),
    ("a:" + "t" * 129, "malformed tag"),
    (HEX, "an image ID, not a name"),
    ("a" * (256 - len("library/")), "must not be more than 255 characters"),
    ("x.io/" + "a" * 256, "must not be more than 255 characters"),
    ("repo@sha256:" + "f" * 34, "malformed digest"),
    ("repo@sha256:" + "F" * 64, "malformed digest"),
    ("repo@", "malformed digest"),
    (f"repo@{SHA}@{SHA}", "malformed digest"),
    ("repo@invalid:" + "f" * 64, "unsupported digest algorithm"),
    ("repo@sha384:" + "f" * 96, "unsupported digest algorithm"),
]

_component = st.from_regex(r"[a-z0-9]{1,4}(?:(?:[._]|__|-{1,3})[a-z0-9]{1,3}){0,2}", fullmatch=True)
_domain = st.from_regex(
    r"(?:[a-zA-Z0-9]{1,3}(?:[.-][a-zA-Z0-9]{1,3}){0,2}|\[:[a-fA-F0-9:]{0,8}\])(?::[0-9]{1,5})?",
    fullmatch=True,
)
_path = st.lists(
    _component | st.sampled_from(["library", "localhost", "docker.io"]), min_size=1, max_size=4
).map("/".join)
_tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)


@st.composite
def names(draw):
    """Names that mostly parse, with and without domain, tag and digest."""
    domain = draw(st.none() | st.sampled_from(["docker.io", "index.docker.io", "localhost"]) | _domain)
    text = draw(_path) if domain is None else f"{domain}/{draw(_path)}"
    if (tag := draw(st.none() | _tag)) is not None:
        text += f":{tag}"
    return text + draw(st.sampled_from(["", f"@{SHA}"]))


def parsed(text):
    """The reference, or None where the text is refused in the one allowed way."""
    try:
        return parse_normalized(text)
    except InvalidArgumentError as error:
        message = str(error)
    assert "\n" not in message
    return None


@pytest.mark.parametrize(("text", "canonical", "short"), COMPLETED)
def test_completes_and_shortens(text, canonical, short):
    """The canonical form is complete, the familiar one as people write it."""
    reference = parse_normalized(text)

    assert canonical == str(reference) == reference.canonical
    assert short == reference.familiar
    assert short == familiar(canonical)


@pytest.mark.parametrize("text", VALID)
def test_accepts(text):
    """Valid examples parse and contain what was typed."""
    assert str(parse_normalized(text)).endswith(text)


@pytest.mark.parametrize(("text", "message"), INVALID)
def test_refuses(text, message):
    """Each kind of failure has its own message."""
    with pytest.raises(InvalidArgumentError, match=message):
        parse_normalized(text)


def test_parts():
    """A parsed reference gives its parts."""
    reference = parse_normalized(f"test:5000/a/b:v1@{SHA}")

    assert Reference("test:5000", "a/b", "v1", DIGEST) == reference
    assert reference.name == "test:5000/a/b"
    assert reference.familiar_name == "test:5000/a/b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        (f"busybox@{SHA}", f"docker.io/library/busybox@{SHA}"),
        (f"busybox:1@{SHA}", f"docker.io/library/busybox@{SHA}"),
    ],
)
def test_docker_ref(text, expected):
    """RepoTags: a digest makes the tag void, neither means latest."""
    assert expected == str(parse_docker_ref(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEX, DIGEST),
        (SHA, DIGEST),
        ("sha512:" + "a" * 128, Digest("sha512", "a" * 128)),
        ("busybox", Reference("docker.io", "library/busybox")),
        ("sha256:defcab", Reference("docker.io", "library/sha256", "defcab")),
        (HEX[:63], Reference("docker.io", f"library/{HEX[:63]}")),
    ],
)
def test_any(text, expected):
    """Command line arguments are IDs when complete, else names."""
    assert expected == parse_any(text)


@pytest.mark.parametrize("text", ["", "Docker", f"sha256:{HEX} "])
def test_any_refuses(text):
    """What is neither ID nor name is refused like a name."""
    with pytest.raises(InvalidArgumentError):
        parse_any(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("busybox:latest", "latest"),
        (f"busybox:tag@{SHA}", f"tag@{SHA}"),
        ("busybox", "docker.io/library/busybox"),
        (f"busybox@{SHA}", f"docker.io/library/busybox@{SHA}"),
        ("host:5000/a:1", "1"),
    ],
)
def test_oci_ref_name(text, expected):
    """The short annotation is the tag, or the full name where there is none."""
    assert expected == oci_ref_name(parse_normalized(text))


def test_tag_and_digest_are_replaced_apart():
    """Changing one of tag and digest leaves the other."""
    bare = parse_normalized("a")

    assert str(bare.tag_or_latest()) == "docker.io/library/a:latest"
    assert str(bare.with_tag("1").tag_or_latest()) == "docker.io/library/a:1"
    assert str(bare.with_digest(DIGEST).tag_or_latest()) == f"docker.io/library/a@{SHA}"
    assert str(bare.with_tag("1").with_digest(DIGEST)) == f"docker.io/library/a:1@{SHA}"
    assert str(bare.with_digest(DIGEST).with_tag("1").without_tag()) == f"docker.io/library/a@{SHA}"


@pytest.mark.parametrize("tag", ["", ".a", "a/b", "a:b", "a\n", "é", "t" * 129])
def test_with_tag_refuses(tag):
    """A tag is validated wherever it comes from."""
    with pytest.raises(InvalidArgumentError, match="invalid tag"):
        parse_normalized("a").with_tag(tag)


@pytest.mark.parametrize("text", ["a", "a:1", "x.io/sha256:1", "me/sha512", "sha1:abcd"])
def test_taggable(text):
    """Ordinary names may be given to images."""
    check_taggable(parse_normalized(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a@{SHA}", "digest"),
        (f"a:1@{SHA}", "digest"),
        ("sha256:abcd", "ambiguous"),
        ("docker.io/library/sha384:x", "ambiguous"),
        ("sha512", "ambiguous"),
        ("blake3:1", "ambiguous"),
    ],
)
def test_not_taggable(text, message):
    """Names that would be confused with IDs are refused."""
    with pytest.raises(InvalidArgumentError, match=message):
        check_taggable(parse_normalized(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.36", True),
        ("latest", True),
        ("", False),
        ("a/b", False),
        ("a:1", False),
        ("a@b", False),
        ("a\n", False),
    ],
)
def test_bare_tag(text, expected):
    """A bare tag is a tag and nothing else."""
    assert expected is is_bare_tag(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abcd", "abcd"),
        ("sha256:abcd", "abcd"),
        (HEX, HEX),
        (SHA, HEX),
        ("abc", None),
        ("sha256:abc", None),
        ("sha512:abcd", None),
        ("ABCD", None),
        ("abcd\n", None),
        (HEX + "0", None),
        ("sha256:sha256:abcd", None),
    ],
)
def test_short_id(text, expected):
    """Four to 64 lower-case hex digits may be an ID."""
    assert expected == short_id_hex(text)


def test_dangling():
    """Only a record whose own target is in its name is dangling."""
    other = Digest("sha256", "0" * 64)

    assert dangling_name(DIGEST) == f"moby-dangling@{SHA}"
    assert is_dangling(f"moby-dangling@{SHA}", DIGEST)
    assert not is_dangling(f"moby-dangling@{SHA}", other)
    assert not is_dangling("docker.io/library/a:1", DIGEST)


@pytest.mark.parametrize(
    "name", ["", "NOT A NAME", "busybox:latest", "docker.io/busybox:1", f"moby-dangling@{SHA}"]
)
def test_familiar_keeps_what_is_not_canonical(name):
    """A record name that is not canonical is shown raw."""
    assert name == familiar(name)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("busybox", "busybox:1", True),
        ("busybox:1", "busybox:1", True),
        ("busy*", "busybox:1", True),
        ("busybox:*", "busybox:1", True),
        ("*", "busybox:1", True),
        ("*", "me/busybox:1", False),
        ("*/*", "me/busybox:1", True),
        ("*/*", "busybox:1", False),
        ("*/*/*", "busybox:1", True),
        ("docker.io/library/*", "busybox:1", True),
        ("docker.io/library/busybox", "busybox:1", True),
        ("docker.io/*", "busybox:1", False),
        ("localhost:*/app", "localhost:5000/app:1", True),
        ("busybo?", "busybox:1", True),
        ("me?busybox", "me/busybox:1", False),
        ("busybox:[0-9]", "busybox:1", True),
        ("busybox:[!0-9]", "busybox:1", False),
        ("busybox:[^0-9]", "busybox:1", False),
        ("busybox:[^a-z]", "busybox:1", True),
        ("me[/]busybox", "me/busybox:1", False),
        ("[[]::1]/*", "[::1]/app:1", True),
        ("BUSYBOX", "busybox:1", False),
        ("box", "busybox:1", False),
        ("[", "busybox:1", False),
        ("", "busybox:1", False),
        ("a:1", f"a:1@{SHA}", False),
        ("a:1@*", f"a:1@{SHA}", True),
    ],
)
def test_reference_filter(pattern, text, expected):
    """A star stays within one part; four forms of the name are tried."""
    assert expected is match_reference_filter(pattern, parse_normalized(text))


@given(names() | st.text() | st.text(alphabet="aA0._-/:@[]%", max_size=30))
@example("docker.io/docker.io/a")
@example("index.docker.io/index.docker.io/a")
@example("A_/a")
def test_any_text_parses_or_is_refused(text):
    """Canonical and familiar forms of whatever parses are read back as the same reference."""
    reference = parsed(text)

    if reference is not None:
        assert reference == parse_normalized(str(reference))
        assert len(reference.path) <= 255
        assert str(reference).isascii()
        if short_id_hex(reference.familiar) is None:
            assert reference == parse_any(reference.familiar)
        assert match_reference_filter(str(reference).replace("[", "[[]"), reference)


@given(names())
def test_names_of_the_grammar_parse(text):
    """Everything that the grammar allows is accepted, but for a bare ID or a long path."""
    assert parsed(text) is not None or short_id_hex(text) is not None


@given(st.text())
def test_helpers_take_any_text(text):
    """Nothing but InvalidArgumentError ever comes out."""
    for parse in (parse_any, parse_docker_ref):
        with contextlib.suppress(InvalidArgumentError):
            parse(text)
    familiar(text)
    is_bare_tag(text)
    short_id_hex(text)
    match_reference_filter(text, parse_normalized("a:1"))


@pytest.mark.parametrize(
    "text", ["a-" * 200_000, "a." * 200_000 + "/b", "[" + ":" * 400_000, "a_" * 200_000 + "!"]
)
def test_hostile_names_take_linear_time(text):
    """Long near-misses do not make the patterns backtrack."""
    started = time.process_time()

    assert parsed(text) is None
    assert time.process_time() - started < 1


def test_hostile_globs_take_little_time():
    """Many stars do not make the filter backtrack."""
    reference = parse_normalized("a" * 200)
    started = time.process_time()

    assert not match_reference_filter("*a" * 60 + "b", reference)
    assert time.process_time() - started < 1
