"""Reading files: YAML 1.2, what is no YAML, what is no file; each with its place."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from lbdr.config.load import load, parse
from lbdr.config.yaml12 import Source
from lbdr.config.yaml_errors import MAX_DEPTH
from lbdr.errors import ConfigError, Problem
from lbdr.model import (
    AddressProbe,
    Configuration,
    Director,
    Forwarding,
    GratuitousArp,
    MarkRange,
    Persistence,
    PortRange,
    Ports,
    Protocol,
    RealServer,
    Role,
    Timeouts,
    VirtualService,
)

CONFIGS = Path(__file__).parent / "configs"
EXAMPLES = Path(__file__).parents[2] / "examples"

MINIMAL = """\
real_servers:
  web1: {address: 10.0.0.1}
virtual_services:
  WEB: {address: 10.0.0.9, ports: [80], real_servers: [web1]}
"""


def problems(content: str | bytes) -> list[Problem]:
    """What is wrong with a file's content, which must be wrong."""
    data = content.encode() if isinstance(content, str) else content
    with pytest.raises(ConfigError) as caught:
        parse(data, "f.yaml")
    return caught.value.problems


def only(content: str | bytes) -> Problem:
    """The one thing that is wrong."""
    found = problems(content)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


SYNTAX = [
    ("a: b: c\n", 1, 5, "a key and its `:` cannot stand here"),
    ("a: 1\n b: 2\n", 2, 3, "a key and its `:` cannot stand here"),
    ("a: 1\n\tb: 2\n", 2, 1, "a tab cannot indent YAML"),
    ("a:\n\t- b\n", 2, 1, "a tab cannot indent YAML"),
    ("{a: 1\n", 2, 1, "`,` or `}` was expected here"),
    ("a: [1, 2\nb: 3\n", 2, 2, "`,` or `]` was expected here"),
    ("a: 'x\n", 2, 1, "a quoted text is not closed before the end of the file"),
    ("a: 'x\n---\n", 2, 1, "a quoted text is not closed before the end of the document"),
    ('a: "x\\q"\n', 1, 6, 'an unknown escape (\\) inside "double quotes"'),
    ("a: *x\n", 1, 4, "an alias (*name) without its anchor (&name) before it"),
    ("a: &x 1\nb: &x 2\n", 2, 4, "the same anchor (&name) twice: first at line 1, column 4"),
    ("a: 1\n---\nb: 2\n", 2, 1, "a second document begins here"),
    ("- a\nb: c\n", 2, 1, "a list item (`- `) was expected here"),
    ("a: @x\n", 1, 4, "text cannot begin with `@` in YAML"),
    ("a: `x`\n", 1, 4, "text cannot begin with ``` in YAML"),
    ("a: %x\n", 1, 4, "text cannot begin with `%` in YAML"),
    ("key: - a\n", 1, 6, "a list item (`- `) cannot stand here"),
    ("a: 1\nbc\n", 3, 1, "the line before is no `key: value`"),
    ("a:\n  b: 1\n c: 2\n", 3, 2, "a key was expected here"),
    ("a: }\n", 1, 4, "a value was expected here"),
    ("%YAML 9.9\n---\na: 1\n", 1, 1, "a %YAML line of another version"),
    ("%foo\n", 1, 5, "no YAML: found unknown directive name"),
    ("a: b\n%TAG ! x\n", 3, 1, "the document has ended before this line"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), SYNTAX)
def test_syntax_error_has_place_and_words(text: str, line: int, column: int, message: str) -> None:
    problem = only(text)
    assert (problem.line, problem.column) == (line, column)
    assert problem.message.startswith(message)
    assert problem.hint
    assert problem.file == "f.yaml"


def test_an_unclosed_bracket_names_where_it_was_opened() -> None:
    assert only("a: [1, 2\nb: 3\n").hint.endswith("(opened at line 1, column 4)")


BYTES = [
    (b"", 1, 1, "the file holds no configuration"),
    (b"# only a comment\n", 1, 1, "the file holds no configuration"),
    (b"--- \n", 1, 1, "the file holds no configuration"),
    (b"- a\n", 1, 1, "expected a mapping with virtual_services, found a list"),
    (b"text\n", 1, 1, "expected a mapping with virtual_services, found `text`"),
    (b"a: 1\nb: x\x00y\n", 2, 5, "the character U+0000 is not allowed in YAML"),
    (b"a: \x07\n", 1, 4, "the character U+0007 is not allowed in YAML"),
    (b"a: 1\r\nb: caf\xe9\r\n", 2, 7, "the byte 0xe9 is not UTF-8"),
    ("a: 1\n".encode("utf-16"), 1, 1, "the file is UTF-16, not UTF-8"),
    ("a: 1\u2028\n".encode(), 1, 5, "the character U+2028 is not allowed in YAML"),
]


@pytest.mark.parametrize(("content", "line", "column", "message"), BYTES)
def test_content_that_is_no_configuration(
    content: bytes, line: int, column: int, message: str
) -> None:
    problem = only(content)
    assert (problem.line, problem.column, problem.message) == (line, column, message)


def test_a_byte_order_mark_at_the_start_is_allowed() -> None:
    marked = parse(b"\xef\xbb\xbf" + MINIMAL.encode(), "f.yaml")
    assert marked == parse(MINIMAL.encode(), "f.yaml")


def test_windows_line_ends_are_allowed() -> None:
    loaded = parse(MINIMAL.replace("\n", "\r\n").encode(), "f.yaml")
    assert loaded.place(("virtual_services", "WEB", "ports")) == (4, 35)


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 100_000])
def test_deep_nesting_is_one_clear_error(text: str) -> None:
    assert only(text).message == f"values are nested more than {MAX_DEPTH} deep"


def test_an_alias_inside_itself_is_one_clear_error() -> None:
    problem = only("a: &a [*a]\n")
    assert "nested more than" in problem.message
    assert "alias" in problem.hint


def test_an_alias_bomb_is_one_clear_error() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        before = ", ".join([f"*l{level - 1}"] * 10)
        lines.append(f"l{level}: &l{level} [{before}]")
    assert only("\n".join(lines)).message.startswith("aliases (*name) stand for more than")


def test_too_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbdr.config.yaml12.MAX_VALUES", 10)
    assert only("[a, b, c, d, e, f, g, h, i, j]").message == "the file has more than 10 values"


def test_merge_keys_are_refused_and_anchors_work() -> None:
    text = MINIMAL.replace("WEB: {", "WEB: &web {")
    problem = only(text + "  WEB2: {<<: *web, address: 10.0.0.8}\n")
    assert (problem.line, problem.column) == (5, 10)
    assert problem.message.startswith("merge keys (<<) belong to YAML 1.1")


def test_an_alias_stands_for_a_whole_value() -> None:
    text = MINIMAL.replace("real_servers: [web1]", "real_servers: &servers [web1]")
    loaded = parse(
        f"{text}  TLS: {{address: 10.0.0.9, ports: [443], real_servers: *servers}}\n".encode(), "f"
    )
    assert [s.real_servers[0].name for s in loaded.configuration.virtual_services] == ["web1"] * 2


def test_a_problem_inside_an_alias_is_placed_where_the_value_stands() -> None:
    text = MINIMAL.replace("[web1]", "&servers [wub1]")
    text += "  TLS: {address: 10.0.0.9, ports: [443], real_servers: *servers}\n"
    assert [(p.line, p.column) for p in problems(text)] == [(4, 65), (4, 65)]


def test_duplicate_keys_name_both_places_and_the_rest_is_judged() -> None:
    found = problems("director: {name: a, name: b}\n" + MINIMAL.replace("80", "0"))
    assert [(p.line, p.column, p.message) for p in found] == [
        (1, 21, "`name` stands here twice: first at line 1, column 12"),
        (
            5,
            36,
            "`ports`: expected a port from 1 to 65535, or a range such as 4001-4005, found `0`",
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("director: {name: !env NAME}\n", "the tag !env has no meaning here"),
        ("director: !!python/object:os.system {}\n", "the tag !!python/object:os.system"),
        ("director: !!set {}\n", "the tag !!set has no meaning here"),
        ("? [a]\n: b\n", "a key must be a plain name"),
    ],
)
def test_what_yaml_has_and_a_configuration_has_not(text: str, message: str) -> None:
    assert only(text + MINIMAL).message.startswith(message)


def test_a_text_tag_is_allowed() -> None:
    assert parse(f"director: {{name: !!str 17}}\n{MINIMAL}".encode(), "f").configuration == (
        parse(f"director: {{name: '17'}}\n{MINIMAL}".encode(), "f").configuration
    )


SCALARS = [
    ("no", "no"),
    ("on", "on"),
    ("Yes", "Yes"),
    ("12:30", "12:30"),
    ("1_000", "1_000"),
    ("0o17", 15),
    ("017", 17),
    ("0x1F", 31),
    ("0b1", "0b1"),
    ("-5", -5),
    ("+5", 5),
    ("1.5", 1.5),
    (".5", 0.5),
    ("1e3", 1000.0),
    ("-.INF", float("-inf")),
    ("2001-01-01", "2001-01-01"),
    ("True", True),
    ("FALSE", False),
    ("tRUE", "tRUE"),
    ("~", None),
    ("Null", None),
    ("", None),
    ("'5'", "5"),
    ('"true"', "true"),
    ("10.0.0.1", "10.0.0.1"),
    ("9" * 5000, "9" * 5000),
    ("=", "="),
    (".", "."),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_read_the_yaml_1_2_way(text: str, value: object) -> None:
    found = Source(f"a: {text}\n", "f").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file"):
        load(tmp_path / "none.yaml")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a directory, not a file"):
        load(tmp_path)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root reads everything
    with pytest.raises(ConfigError, match="cannot be read: permission denied"):
        load(tmp_path / "x")


@pytest.mark.parametrize("name", ["a\0b", "n" * 5000])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ConfigError, match="the file cannot be read"):
        load(name)


def test_an_endless_file_is_too_large() -> None:
    with pytest.raises(ConfigError, match="larger than 16 MiB"):
        load("/dev/zero")


def test_load_reads_what_parse_reads(tmp_path: Path) -> None:
    file = tmp_path / "lbdr.yaml"
    file.write_text(MINIMAL)
    loaded = load(file)
    assert loaded.file == os.fspath(file)
    assert loaded.real_servers == {"web1": ip_address("10.0.0.1")}


def test_place_of_values_and_of_what_is_not_there() -> None:
    loaded = load(EXAMPLES / "demo.yaml")
    web = ("virtual_services", "WEB")
    text = (EXAMPLES / "demo.yaml").read_text().splitlines()

    def at(path: tuple[str | int, ...]) -> str:
        line, column = loaded.place(path)
        return text[line - 1][column - 1 :]

    assert at(web) == "WEB:"
    assert at((*web, "address")).startswith("10.77.0.10")
    assert at((*web, "real_servers", 1)) == "web2]"
    assert at((*web, "real_servers", 1, "server")) == "web2]"
    assert at((*web, "interface")) == "WEB:"
    assert at((*web, "real_servers", 7)) == "[web1, web2]"
    assert at(("real_servers", "web1")) == "{address: 10.77.0.21}"
    assert loaded.place(()) == (2, 1)


def test_every_key_reaches_the_model() -> None:
    loaded = load(CONFIGS / "full.yaml")
    first, second = ip_address("2001:db8::31"), ip_address("2001:db8::32")
    spare = ip_address("2001:db8::33")
    assert loaded.configuration == Configuration(
        director=Director(
            name="lb 1",
            role=Role.STANDBY,
            address_probe=AddressProbe(count=3, interval=0.1),
            gratuitous_arp=GratuitousArp(repeat=4, delay=0.0, refresh=90.0, refresh_repeat=2),
            timeouts=Timeouts(tcp=7200, tcp_fin=0, udp=30),
            drift_check=2.0,
            marks=MarkRange(0x100, 0x1FF),
        ),
        virtual_services=(
            VirtualService(
                name="ALL",
                address=ip_address("2001:db8::50"),
                protocol=Protocol.SCTP,
                forwarding=Forwarding.DR,
                scheduler="mh",
                scheduler_flags=frozenset({"mh-port", "mh-fallback"}),
                persistence=Persistence(300, 64),
                interface="eth0",
                real_servers=(
                    RealServer(first, 0, 0, upper_threshold=9, lower_threshold=8, name="rs1"),
                    RealServer(second, 0, name="rs2"),
                ),
                sorry_server=RealServer(spare, 0, name="rs3"),
            ),
            VirtualService(
                name="DNS",
                address=ip_address("2001:db8::50"),
                protocol=Protocol.UDP,
                ports=Ports((PortRange(53, 53),)),
                one_packet=True,
                interface="eth0",  # a VIP is on one interface: named once, it counts for all
                real_servers=(RealServer(first, 53, 5, name="rs1"),),
            ),
            VirtualService(
                name="REST",
                address=ip_address("2001:db8::51"),
                ports=Ports((PortRange(104, 104), PortRange(4001, 4005))),
                persistence=Persistence(60, 128),
                real_servers=(RealServer(second, 0, name="rs2"),),
            ),
        ),
    )


def test_what_is_left_out_is_the_models_default() -> None:
    loaded = parse(MINIMAL.encode(), "f")
    assert loaded.configuration == Configuration(
        virtual_services=(
            VirtualService(
                name="WEB",
                address=ip_address("10.0.0.9"),
                ports=Ports((PortRange(80, 80),)),
                real_servers=(RealServer(ip_address("10.0.0.1"), 80, name="web1"),),
            ),
        )
    )


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_examples_are_valid(file: Path) -> None:
    assert load(file).configuration.virtual_services


def test_an_ugly_file_shows_all_of_it_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse((CONFIGS / "ugly.yaml").read_bytes(), "ugly.yaml")
    found = "".join(f"{problem}\n" for problem in caught.value.problems)
    assert found == (CONFIGS / "ugly.txt").read_text()
