"""imgdb.cli.template: the templates that docker's users write, and a clear no to the others."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgdb.cli.template import Template
from imgdb.cli.values import value_text
from imgdb.errors import InvalidArgumentError

RECORD = {
    "Repository": "docker.io/library/busybox",
    "Tag": "latest",
    "tag": "lower",
    "size": 1234567,
    "pinned": True,
    "parent": None,
    "tags": ["a", "b"],
    "none": [],
    "labels": {"org.example/name": "n", "b": "2", "a": "1"},
    "Config": {"Env": ["PATH=/bin", "A=1"], "User": "", "Labels": None},
    "layers": [{"digest": "sha256:aa", "size": 1}, {"digest": "sha256:bb", "size": 2}],
    "evil": "\x1b[31m\n\u202e",
    "ratio": 1.5,
}


def render(text, record=RECORD):
    """Compile and render at once."""
    return Template.compile(text).render(record)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # fields
        ("{{.Repository}}:{{.Tag}}", "docker.io/library/busybox:latest"),
        ("{{ .Config.User }}|{{.Config.Env}}", "|[PATH=/bin A=1]"),
        ("{{.tag}} {{.TAG}} {{.REPOSITORY}}", "lower latest docker.io/library/busybox"),
        ("{{.config.env}}", "[PATH=/bin A=1]"),
        ("{{.size}} {{.pinned}} {{.ratio}} {{.parent}}.", "1234567 true 1.5 ."),
        ("{{.Config.Labels.anything}}.", "."),
        ("{{.labels}}", "map[a:1 b:2 org.example/name:n]"),
        # text
        ("no action", "no action"),
        ("", ""),
        (r"{{.tag}}\t{{.tag}}\n", "lower\tlower\n"),
        ("}} { {{.tag}} }", "}} { lower }"),
        (r'{{"\n"}}{{"}}"}}{{`\n`}}', "\n}}\\n"),
        ('{{""}}x', "x"),
        # functions
        ("{{json .tags}}{{json .parent}}{{json .size}}", '["a","b"]null1234567'),
        ("{{upper .Tag}} {{lower .Repository}} {{upper .tags}}", "LATEST docker.io/library/busybox [A B]"),
        ("{{len .tags}}{{len .labels}}{{len .Tag}}{{len .parent}}", "2360"),
        ('{{join .tags ", "}}|{{join .none ","}}|{{join .parent ","}}', "a, b||"),
        (r'{{join .tags "\n"}}', "a\nb"),
        ("{{println .Tag}}{{println .Tag .size}}{{println}}", "latest\nlatest 1234567\n\n"),
        ('{{index .tags 1}}{{index .labels "org.example/name"}}{{index .labels "x"}}', "bn"),
        ('{{index .Config "Env" 0}}{{index .parent "x"}}', "PATH=/bin"),
        # blocks
        ("{{range .tags}}<{{.}}>{{end}}", "<a><b>"),
        (r"{{range .layers}}{{.digest}}\t{{.size}}\n{{end}}", "sha256:aa\t1\nsha256:bb\t2\n"),
        ("{{range .labels}}{{.}}{{end}}", "12n"),
        ("{{range .none}}x{{else}}empty{{end}}{{range .parent}}x{{end}}", "empty"),
        ("{{if .pinned}}P{{else}}-{{end}}{{if .parent}}P{{else}}-{{end}}", "P-"),
        ("{{if .none}}x{{end}}{{if .Config.User}}x{{end}}{{if len .tags}}y{{end}}", "y"),
        ("{{range .layers}}{{if .size}}{{range .}}{{.}} {{end}}{{end}}{{end}}", "sha256:aa 1 sha256:bb 2 "),
        ("{{ range .tags }}{{ . }}{{ end }}", "ab"),
    ],
)
def test_renders(text, shown):
    """Each form of the subset gives what docker would print."""
    assert render(text) == shown


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{{printf .Tag}}", "printf .Tag"),
        ("{{.Tag | json}}", ".Tag | json"),
        ("{{$x := .Tag}}", "$x := .Tag"),
        ("{{- .Tag}}", "- .Tag"),
        ("{{if eq .Tag .tag}}x{{end}}", "if eq .Tag .tag"),
        ("{{if .a}}{{else if .b}}{{end}}", "else if .b"),
        ("{{with .Tag}}x{{end}}", "with .Tag"),
        ("{{json (len .Tag)}}", "json (len .Tag)"),
        ("{{}}", "{{}}"),
        ("{{..Tag}}", "..Tag"),
        ("{{.Tag.}}", ".Tag."),
        ("{{Tag}}", "Tag"),
        ("{{json upper}}", "json upper"),
        ("{{.Tag .tag}}", ".Tag .tag"),
        ("{{json}}", "wrong number of arguments for json"),
        ("{{json .Tag .tag}}", "wrong number of arguments for json"),
        ("{{join .tags}}", "wrong number of arguments for join"),
        ("{{range}}{{end}}", "range"),
        ("{{else}}", "nothing is open"),
        ("{{end}}", "nothing is open"),
        ("{{if .a}}{{else}}{{else}}{{end}}", "nothing is open"),
        ("{{if .a}}", "{{end}} is missing"),
        ("a {{.Tag", "}} is missing"),
        ('{{join .tags "}}', "}} is missing"),
        (r'{{join .tags "\q"}}', r"unknown escape \q"),
        ("{{/* note */}}", "/* note */"),
        ("{{__import__}}", "__import__"),
    ],
)
def test_refuses(text, named):
    """What lies outside of the subset is named, and so is the subset; no record is needed."""
    with pytest.raises(InvalidArgumentError) as caught:
        Template.compile(text)
    assert named in str(caught.value)
    assert "supported: {{.Field}}, {{json .X}}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{.Nope}}", "no field .Nope; fields here: .Repository, .Tag"),
        ("{{.Config.Nope}}", "no field .Nope; fields here: .Env, .User"),
        ("{{.Tag.Sub}}", "text has no field .Sub"),
        ("{{range .tags}}{{.Sub}}{{end}}", "text has no field .Sub"),
        ("{{.tags.Sub}}", "a list has no field .Sub"),
        ("{{.__class__}}", "no field .__class__"),
        ("{{index .tags 2}}", "index 2 is out of range, the length is 2"),
        ("{{index .tags -1}}", "index -1 is out of range"),
        ('{{index .tags "x"}}', "index can't look up 'x' in a list"),
        ("{{index .Tag 0}}", "index can't look up 0 in text"),
        ("{{index .labels 0}}", "index can't look up 0 in a map"),
        ("{{index .labels .Config}}", "in a map"),
        ("{{len .size}}", "not a number"),
        ("{{len .pinned}}", "not a boolean"),
        ('{{join .Tag ","}}', "join needs a list, not text"),
        ('{{join .labels ","}}', "join needs a list, not a map"),
        ("{{range .Tag}}{{end}}", "range needs a list or a map, not text"),
    ],
)
def test_fails_on_the_record(text, why):
    """A template that asks for what the record has not says so in one line."""
    template = Template.compile(text)
    with pytest.raises(InvalidArgumentError) as caught:
        template.render(RECORD)
    assert why in str(caught.value)


def test_json_of_everything():
    """`{{json .}}` is the record."""
    assert json.loads(render("{{json .}}")) == RECORD


def test_values_are_escaped_and_the_template_is_not():
    """Hostile values can't steer the terminal; the user's own text may."""
    shown = "\\x1b[31m\\n\\u202e"
    assert render("\x1b[1m{{.evil}}\n") == f"\x1b[1m{shown}\n"
    assert render("{{println .evil}}") == f"{shown}\n"
    assert render("{{range .l}}{{.}}{{end}}{{.l}}", {"l": ["\x1b"]}) == "\\x1b[\\x1b]"
    assert render('{{join .l "\\t"}}{{index .l 0}}{{lower .l}}', {"l": ["\x1b"]}) == "\\x1b\\x1b[\\x1b]"
    assert render("{{.}}", {"\x9b": "\x07"}) == "map[\\x9b:\\x07]"
    assert json.loads(render("{{json .evil}}")) == RECORD["evil"]


@given(st.dictionaries(st.sampled_from("abc"), st.text(st.characters(exclude_categories=[])), min_size=3))
def test_no_function_lets_controls_through(record):
    """Whatever the values, every way of showing them is harmless."""
    text = '{{.}}{{.a}}{{json .}}{{lower .b}}{{upper .c}}{{println .a}}{{index . "b"}}{{range .}}{{.}}{{end}}'
    shown = render(text, record).replace("\n", "")
    assert all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in shown)


@given(
    st.lists(
        st.sampled_from(
            [
                "{{",
                "}}",
                ".a",
                "index ",
                "join ",
                " ",
                '"',
                "`",
                "\\",
                "end",
                "else",
                "if ",
                "range ",
                "json ",
            ]
        )
    ).map("".join)
)
def test_parsing_never_crashes(text):
    """Any text compiles and renders, or is refused as an argument."""
    try:
        outcome = render(text, {"a": ["x"]})
    except InvalidArgumentError as error:
        outcome = str(error)
    assert outcome.startswith("template: ") or "{{" not in text or "}}" in text


def test_deep_nesting_is_refused():
    """Blocks may be nested, but not without bound; no recursion limit is ever met."""
    fine = "{{if .a}}" * 64 + "x" + "{{end}}" * 64
    assert render(fine, {"a": 1}) == "x"
    with pytest.raises(InvalidArgumentError, match="more than 64 nested blocks"):
        Template.compile("{{if .a}}" * 100_000)


def test_deep_values_are_cut():
    """A document that is nested deeply is shown in part."""
    value = "x"
    for _ in range(500):
        value = {"k": [value]}
    assert value_text(value).count("k:") == 16
    assert "…" in render("{{.k}}", value)


def test_compiled_once_rendered_often():
    """A template has no state."""
    template = Template.compile("{{range .l}}{{.}}{{end}}")
    assert [template.render({"l": items}) for items in (["a"], [], ["b", "c"])] == ["a", "", "bc"]


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (r"table {{.ID}}\t{{.CreatedSince}}\t{{.Size}}", "IMAGE ID\tCREATED SINCE\tSIZE"),
        ("table {{.id}} {{.expires_at}}", "IMAGE ID EXPIRES AT"),
        ("table   {{json .Config.RepoDigests}} ", "REPO DIGESTS"),
        ("table {{range .tags}}{{.}},{{end}} {{if .pinned}}yes{{end}}", "TAGS PINNED"),
        ('table {{.}}|{{println "x"}}|{{join .tags ","}}', "||TAGS"),
    ],
)
def test_header(text, header):
    """`table ` gives a header from the fields that the template asks for."""
    template = Template.compile(text)
    assert template.table
    assert template.header({"ID": "IMAGE ID"}) == header


def test_without_table():
    """Only the word and a blank make a table."""
    assert not Template.compile("tables {{.Tag}}").table
    assert not Template.compile("{{.Tag}} table ").table
