"""Texts that are read by a language of their own: chat templates, front matter, answers with tool calls."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from benchmarks.faults.content import Content
from benchmarks.faults.mutators.kinds import STRINGS, Mutator

TEMPLATES = (
    "{{ 1/0 }}",
    "{{ 1 % 0 }}",
    "{% for i in range(1000000000) %}x{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{{ [0] * 300000000 }}",
    "{{ range(300000000) | list }}",
    "{{ 10 ** 10 ** 8 }}",
    "{{ '%2000000000d' % 1 }}",
    "{{ '{:2000000000}'.format(1) }}",
    "{{ 'x'.center(2000000000) }}",
    "{{ 'x' | indent(1000000000) }}",
    "{{ lipsum(n=100000) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
    "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context }}",
    "{{ messages[99].content }}",
    "{{ messages[0]['no'].thing }}",
    "{{ none.x }}",
    "{{ nothing() }}",
    "{{ 'a' + 1 }}",
    "{{ 1 < 'a' }}",
    "{{ messages | sort }}",
    "{{ messages | tojson(indent='x') }}",
    "{{ dict | tojson }}",
    "{{ messages | tojson | safe }}",
    "{{ raise_exception('no\\nnewline') }}",
    "{{ raise_exception(1) }}",
    "{{ raise_exception('x' * 100000) }}",
    "{{ strftime_now(1) }}",
    "{{ strftime_now('%Y\\0') }}",
    "{{ strftime_now('\ud83d') if false }}",
    "{{ dict([1]) }}",
    "{{ dict.fromkeys(1) }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends '/etc/passwd' %}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% generation %}x{% endgeneration %}",
    "{% raw %}",
    "{% break %}",
    "{# ",
    "{{",
    "{%",
    "}}",
    "{% if %}",
    "{% set x %}",
    "{{ x." + "a." * 5000 + "b }}",
    "{{ " + "(" * 3000 + ")" * 3000 + " }}",
    "{{ " + "not " * 20000 + "x }}",
    "{{ " + "[" * 150 + "]" * 150 + " }}",
    "{% if x %}" * 120,
    "{{ '\\ud800' }}",
    "{{ '\\N{nope}' }}",
    "{{ '\\x0' }}",
    "{{ 9" + "9" * 6000 + " }}",
    "{{ 'a' | no_such_filter }}",
    "{{ 'a' is no_such_test }}",
    "{{ ('a' * 100000) | wordwrap(1) | replace('a', 'b' * 100000) }}",
    "{{ messages | map(attribute='content') | sum }}",
    "{{ messages | batch(0) | list }}",
    "{{ range(0, 10, 0) }}",
    "{{ [1, 2] | random }}",
)

#: Seven anchors of ten times the one before: a text of ten million words in a few lines.
_DOUBLINGS = "\n".join(
    ["a: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)), "tags: *a7"]
)

FRONT_MATTER = (
    _DOUBLINGS,
    "tags: &t [*t]",
    "license: &l {x: *l}",
    "x: &x\n  <<: *x",
    "license: !!python/object/apply:os.system ['id']",
    "license: !!python/name:os.system",
    "license: !!binary aGVsbG8=",
    "license: !!set {a, b}",
    "license: !nope x",
    "license: 2024-01-01",
    "license: 12:30:45",
    "license: 2024-99-99",
    "license: 1e400",
    "license: .nan",
    "license: 0x" + "f" * 3000,
    "license: 1_000_" + "0" * 5000,
    "license: ~",
    "license: [a, b]",
    "license: {a: b}",
    "license: 'a\n\n  b'",
    'license: "\\x1b[31m"',
    'license: "\\ud800"',
    "license: |\n  many\n  lines",
    "license_name: <script>",
    "license_link: ../outside/secret.txt",
    "license_link: javascript:alert(1)",
    "language: no",
    "language: [1, 2.5, true, null, [a]]",
    "language: {en: de}",
    "tags: 5",
    "tags: true",
    "tags: {a: b}",
    "tags: [[a], {b: c}, null, 2024-01-01]",
    "tags: [a, a, a]",
    "base_model: [a, b]",
    "base_model: {x: y}",
    "base_model: 7",
    "base_model: 'x y](http://e)'",
    "base_model: [null]",
    "? [complex]\n: key",
    "? {a: b}\n: key",
    "1: 2",
    "null: null",
    "a: " + "[" * 2000,
    "a: " + "[" * 500 + "]" * 500,
    "a: " + "{a: " * 400 + "1" + "}" * 400,
    "\n".join(" " * i + "a:" for i in range(600)),
    "- a\n- b",
    "just text",
    "\ttabs: 1",
    "a: b: c",
    "license: mit\nlicense: apache-2.0",
    "%YAML 9.9",
    "---",
    "...",
    "--- !!map",
    "#",
    "license: *nowhere",
    "a: @x",
    "a: `x`",
)

ANSWERS = (
    "[f(a=1)]",
    "f(a=1), g()",
    "[f(a=1), g(b='x')]",
    "[send(from='a@x')]",
    "[f(zip=01234)]",
    "[resolve-id(q='x')]",
    "[say(text='it's fine')]",
    "[f(a='x\ny')]",
    "[f(a=[1, {'b': None}], c={1, 2}, d=(3,), e=-4.5, g=1e400, h=true, i=null)]",
    "[f(a=" + "[" * 300 + "]" * 300 + ")]",
    "[f(a=" + "-" * 5000 + "1)]",
    "[f(a=" + "(" * 190 + ")" * 190 + ")]",
    "[f(a=" + "1+" * 4000 + "1)]",
    "[" + "a." * 4000 + "f(x=1)]",
    "[f(a=9" + "9" * 5000 + ")]",
    "[f(a={**x})]",
    "[f(*x)]",
    "[f(**x)]",
    "[f(a=1, a=2)]",
    "[f(a=lambda: 0)]",
    "[f(a=[x for x in y])]",
    "[f(a=f'{x}')]",
    "[f(a=__import__('os').system('id'))]",
    "[f(a=b'x')]",
    "[f(a=...)]",
    "[f(a={[]: 1})]",
    "[f(a={1: 2, {}: 3})]",
    "[f(a=1j)]",
    "[f(a=(yield))]",
    "[f(a=x if y else z)]",
    "[f(a='\\ud800')]",
    "[f(a='\\N{nope}')]",
    "[f(a='\0')]",
    '{"name": "f", "arguments": {"a": 1}}',
    '[{"name": "f", "arguments": "x"}]',
    "f",
    "1",
    "",
    "[]",
    "[[f()]]",
    "f()()",
    "x[0](a=1)",
    "import os",
    "[f(a=\u2028)]",
    "[f(\uff41=1)]",
    "[f(a='" + "x" * 200_000 + "')]",
    "[" + "f(a=1), " * 5000 + "]",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_call_start|>" * 2000,
    "\x1b[31m",
)


def _inserts(snippets: Sequence[str], borders: re.Pattern[str]) -> Mutator:
    """A snippet at one of the places where the text may be cut."""

    def mutate(data: bytes, dice: random.Random) -> tuple[Content, str]:
        text = data.decode("utf-8", "surrogateescape")
        places = [found.start() for found in borders.finditer(text)] or [0]
        at, put = dice.choice(places), dice.choice(snippets)
        return _content(text[:at] + put + text[at:]), f"{put[:60]!r} at {at}"

    return mutate


def _replaces(snippets: Sequence[str], before: str, after: str) -> Mutator:
    """A snippet in place of the whole text."""

    def mutate(data: bytes, dice: random.Random) -> tuple[Content, str]:
        put = dice.choice(snippets)
        return _content(before + put + after), f"only {put[:60]!r}"

    return mutate


def _drops(borders: re.Pattern[str]) -> Mutator:
    """The text without what stands between two of its borders."""

    def mutate(data: bytes, dice: random.Random) -> tuple[Content, str]:
        text = data.decode("utf-8", "surrogateescape")
        places = [found.start() for found in borders.finditer(text)] or [0]
        start, stop = sorted((dice.choice(places), dice.choice(places)))
        return _content(text[:start] + text[stop:]), f"[{start}, {stop}) gone"

    return mutate


def _joins(strings: Sequence[str], borders: re.Pattern[str]) -> Mutator:
    """Several strange strings at once."""

    def mutate(data: bytes, dice: random.Random) -> tuple[Content, str]:
        text = data.decode("utf-8", "surrogateescape")
        places = [found.start() for found in borders.finditer(text)] or [0]
        put = [(dice.choice(places), dice.choice(strings)) for _ in range(dice.choice((1, 2, 3)))]
        for at, piece in sorted(put, reverse=True):
            text = text[:at] + piece + text[at:]
        return _content(text), ", ".join(f"{piece[:20]!r} at {at}" for at, piece in put)

    return mutate


def _content(text: str) -> Content:
    return Content(text.encode("utf-8", "surrogateescape") if _escapes(text) else text.encode("utf-8", "surrogatepass"))


def _escapes(text: str) -> bool:
    """Whether `text` can be written with bytes that were no UTF-8 put back."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


_TAGS = re.compile(r"\{[{%#]|[}%#]\}|\n|$")
_LINES = re.compile(r"(?<=\n)|$")
_TOKENS = re.compile(r"\W|$")

TEMPLATE: dict[str, Mutator] = {
    "insert": _inserts(TEMPLATES, _TAGS),
    "only": _replaces(TEMPLATES, "", ""),
    "drop": _drops(_TAGS),
    "strings": _joins(STRINGS, _TAGS),
}
YAML: dict[str, Mutator] = {
    "insert": _inserts([f"{snippet}\n" for snippet in FRONT_MATTER], _LINES),
    "only": _replaces(FRONT_MATTER, "---\n", "\n---\n\n# A model\n"),
    "drop": _drops(_LINES),
    "strings": _joins(STRINGS, _TOKENS),
}
ANSWER: dict[str, Mutator] = {
    "insert": _inserts(ANSWERS, _TOKENS),
    "only": _replaces(ANSWERS, "<|tool_call_start|>", "<|tool_call_end|>"),
    "drop": _drops(_TOKENS),
    "strings": _joins((*STRINGS, "'", '"', "(", ")", "[", "]", ",", "=", "\\", "#", ";", ":="), _TOKENS),
}
