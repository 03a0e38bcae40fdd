"""No word of a user's becomes configuration: it arrives as it is, or is refused by name."""

from __future__ import annotations

import string
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbdr.errors import ConfigError
from lbdr.haproxy.check import problems
from lbdr.haproxy.matching import (
    Condition,
    HeaderMatch,
    QueryMatch,
    Redirect,
    Rule,
    ToBackend,
    ToServer,
)
from lbdr.haproxy.model import (
    HeaderAction,
    HeaderEdit,
    PersistenceKind,
    Pool,
    ProxyConfiguration,
    ProxyPersistence,
    ProxyProtocol,
    ProxyServer,
    ProxyService,
    Rewrite,
    ServerTls,
)
from lbdr.haproxy.render.text import formatted, line, quote
from lbdr.haproxy.render.whole import render
from tests import haproxy_samples as samples

T = TypeVar("T")

NASTY = (
    "%[src]", "%%[src]", "$HOME", '"${HOME}"', "' # ", "\\", "a\\", "\\'", "}", "{", "{{}}", "--",
    "-f", "-m", "/x -f /etc/passwd", "or", "||", "if", "unless", "!", "a,b", "a)b", "a(b", "x\ny",
    "x\r\nSet-Cookie: a=b", "\0", "\x7f", "\u2028", "\u00e9", " ", "", "a b", "%", "%T",
    "\\1", "\\9x",
    "'", "''", '"', "#", "a#b", "a'b\"c\\d#e$f%g", "]", "[", "*.", "*", "..", "x" * 2000,
    "\\n", "\\x41", "`id`", "$(id)", "/a\tb", ",lower", "(?i)a|b", "^/(.*)$",
)  # fmt: skip
ALPHABET = string.ascii_letters + string.digits + string.punctuation + " \t\n\r\0\x1b\u00e9\u2028"
HOSTILE = st.sampled_from(NASTY) | st.text(ALPHABET, max_size=12)
FREE = (3, 5, 8, 9, 10, 11, 14, 15, 17)
LIKELY = st.text("ab019" + string.punctuation, min_size=1, max_size=12)


def words(text: str) -> list[str]:
    """The words of a line, read as configuration.txt 2.2 says, and by none of our own code."""
    found: list[str] = []
    word: list[str] = []
    inside, quoting, at = False, "", 0
    while at < len(text):
        character = text[at]
        if quoting == "'":
            quoting, word = ("", word) if character == "'" else (quoting, [*word, character])
        elif character == "\\":
            at += 1
            word.append(text[at])
            inside = True
        elif character in "'\"":
            quoting = "" if quoting == character else character
            inside = True
        elif character == "#" and not quoting:
            break
        elif character == " " and not quoting:
            if inside:
                found.append("".join(word))
            word, inside = [], False
        else:
            assert character != "$", "an environment variable"
            word.append(character)
            inside = True
        at += 1
    return [*found, "".join(word)] if inside else found


@given(st.lists(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "))))
def test_words_arrive(given_words: list[str]) -> None:
    assert words(line(*given_words)) == given_words


@given(LIKELY)
def test_plain_words_stay_readable(word: str) -> None:
    safe = set(word) <= set(string.ascii_letters + string.digits + "/.-_:@")
    assert (quote(word) == word) or not safe


@given(st.text(string.printable))
def test_a_format_says_what_was_written(text: str) -> None:
    """Every % is doubled, unless a placeholder brought it."""
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert formatted(escaped).replace("%%", "\0").count("%") == 0
    assert formatted(escaped).replace("%%", "%") == text


def test_placeholders() -> None:
    assert formatted("{client_address} 100% {{host}}") == "%[src] 100%% {host}"


@st.composite
def services(draw: st.DrawFn) -> ProxyConfiguration:
    """A service in which hostile words stand wherever a word can stand: one at a time, or many."""
    share = draw(st.sampled_from((0, 0, 0, 0, 3)))

    def some(good: str) -> str:
        if draw(st.integers(0, 9)) < share:
            return draw(HOSTILE)
        return good

    # Half of them where almost any word may stand, and of a kind that is taken there.
    place = draw(st.sampled_from(FREE) | st.integers(0, 18))
    text = draw(LIKELY if place in FREE and draw(st.booleans()) else HOSTILE)
    if place in {3, 4}:
        text = text.replace("{", "{{").replace("}", "}}")
    elif place in {8, 9}:
        text = f"/{text}".replace(" ", "+")

    def at(number: int, good: str) -> str:
        return text if place == number else some(good)

    server = ProxyServer(
        at(0, "s1"), at(1, "pacs.example.org") if place == 1 else samples.PACS1, 80
    )
    edits = (
        HeaderEdit(HeaderAction.SET, at(2, "X-A"), at(3, "b")),
        HeaderEdit(HeaderAction.REPLACE, "X-B", at(4, "c"), at(5, "d.*"), response=True),
    )
    persistence = ProxyPersistence(PersistenceKind.COOKIE, cookie=at(6, "SERVERID"))
    tls = ServerTls(verify=False, name=at(7, "pacs.example.org"))
    when = Condition(
        path=(at(8, "/a"),),
        path_prefix=(at(9, "/"),),
        path_suffix=(at(10, "a"),),
        path_regex=(at(11, "a"),),
        host=(at(12, "example.org"),),
        headers=(HeaderMatch(at(13, "X-C"), (at(14, "e"),), (at(15, "f"),)),),
        query=(QueryMatch(at(16, "g"), (at(17, "h"),)),),
        method=(at(18, "GET"),),
    )
    rewrites = (Rewrite(some("^/x"), some("/y")),)
    pool = Pool((server,), persistence=persistence, headers=edits, rewrites=rewrites, tls=tls)
    action = draw(st.sampled_from((None, Redirect(some("/z")), ToServer(server.name))))
    service = ProxyService(
        some("PORTAL"),
        (ip_address("192.0.2.1"),),
        samples.ports(80),
        pool,
        ProxyProtocol.HTTP,
        rules=(Rule(when, action),),
    )
    return ProxyConfiguration(services=(service,))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configuration=services())
def test_taken_by_haproxy_or_refused_by_us(
    configuration: ProxyConfiguration, tmp_path: Path
) -> None:
    """And what is taken has the lines of a harmless service: no line more, no word more."""
    samples.need_haproxy()
    around = samples.surroundings(tmp_path)
    if problems(configuration):
        with pytest.raises(ConfigError, match=r"^[A-Za-z'\"]"):
            render(configuration, around)
        return
    text = render(configuration, around).text
    said = samples.checked(text, tmp_path)
    # PCRE and Python read a few expressions differently: HAProxy's words then are the answer, and
    # lbdr gives them before anything changes.
    assert said == "" or "regex" in said, said
    plain = render(harmless(configuration), around).text
    for ours, other in zip(text.splitlines(), plain.splitlines(), strict=True):
        assert len(words(ours)) == len(words(other)), ours
        assert words(ours)[:1] == words(other)[:1]


def harmless(configuration: ProxyConfiguration) -> ProxyConfiguration:
    """The same service with plain words."""
    (service,) = configuration.services
    (server,) = service.pool.servers
    address = "a.example.org" if isinstance(server.address, str) else server.address
    (rule,) = service.rules
    host = "*.b" if rule.when.host[0].startswith("*.") else "b"
    action = rule.action
    if isinstance(action, Redirect):
        action = Redirect("/q")
    elif isinstance(action, ToServer):
        action = ToServer("s")
    when = Condition(
        path=("/a",), path_prefix=("/a",), path_suffix=("a",), path_regex=("a",), host=(host,),
        headers=(HeaderMatch("X", ("a",), ("a",)),), query=(QueryMatch("a", ("a",)),),
        method=("GET",),
    )  # fmt: skip
    edits = tuple(
        replace(edit, name="X", value="a", pattern="a" if edit.pattern else "")
        for edit in service.pool.headers
    )
    pool = replace(
        service.pool,
        servers=(replace(server, name="s", address=address),),
        headers=edits,
        rewrites=(Rewrite("a", "a"),),
        persistence=replace(samples_persistence(service), cookie="a"),
        tls=ServerTls(verify=False, name="a" if service.pool.tls and service.pool.tls.name else ""),
    )
    plain = replace(service, name="P", pool=pool, rules=(Rule(when, action),))
    return ProxyConfiguration(services=(plain,))


def samples_persistence(service: ProxyService) -> ProxyPersistence:
    assert service.pool.persistence is not None
    return service.pool.persistence


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "a\x7fb", "a\u2028b"])
def test_refusals_name_the_place(value: str, tmp_path: Path) -> None:
    when = Condition(path_prefix=(f"/{value}",))
    service = ProxyService(
        "PORTAL",
        (ip_address("192.0.2.1"),),
        samples.ports(80),
        Pool((ProxyServer("s1", samples.PACS1),)),
        ProxyProtocol.HTTP,
        rules=(Rule(when, ToBackend("PORTAL")),),
    )
    with pytest.raises(ConfigError, match=r"PORTAL: rule 1: path_prefix: '/a\\.*cannot be printed"):
        render(ProxyConfiguration(services=(service,)), samples.surroundings(tmp_path))
