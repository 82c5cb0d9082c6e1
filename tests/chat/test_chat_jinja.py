"""Every filter, method, operator and tag that templates may use gives jinja2's own result, text or error."""


from __future__ import annotations

from collections.abc import Iterable

import plain_jinja
import pytest
from sterna.chat import ChatTemplate
from sterna.chat.callables import FUNCTIONS, TESTS
from sterna.chat.filters import FILTERS
from sterna.chat.sandbox import METHODS, PROPERTIES, STRING_METHODS
from sterna.errors import TemplateError

MESSAGES = [
    {"role": "system", "content": ' <b>Sei</b> nett & "froh".\n'},
    {"role": "user", "content": "  straße ǅ ŉ 'quoted' — the quick-brown {fox}\n\n\tjumps  ", "name": "Ann"},
    {"role": "assistant", "content": "<think>a</think>b<think>c</think>\r\nd", "n": 3, "x": None, "f": 2.5, "t": True},
    {"role": "user", "content": "%s {} {0} %(a)s", "list": [3, 1, 2], "dict": {"b": 1, "a": {"c": [1, "z"]}, "B": 2}},
]
PRELUDE = (
    "{% set u = messages[1].content %}{% set t = messages[2].content %}{% set s = messages[0].content %}"
    "{% set d = messages[3].dict %}{% set l = messages[3].list %}"
)
EXPRESSIONS = """
u|trim ; u|upper ; u|lower ; u|capitalize ; u|title ; u|center(90) ; 'ab'|center(7) ; u|length ; u|count ; u|wordcount
u|replace('q', '<Q>') ; u|replace('', '-') ; u|replace('e', 'E', 1) ; 3|replace('3', 'x') ; u|string ; 5|string ; none|string
u|indent ; u|indent(2, true) ; u|indent('> ', blank=true) ; u|indent(width=3, first=true, blank=true) ; (u|safe)|indent(2)
u|truncate(9) ; u|truncate(9, true) ; u|truncate(9, false, '!', 0) ; 'short'|truncate ; u|first ; u|last ; u|reverse
u|list|length ; u|list|join('.') ; u|escape ; u|e ; u|safe ; s|e|e ; (s|safe) + u ; u + (s|safe) ; (s|safe) ~ u ; (s|safe)|upper
(s|safe)|trim ; (s|safe).strip() ; (s|safe).replace('e', '<') ; (s|safe) % () ; ('<%s>'|safe) % u ; (s|safe) * 2 ; (s|safe)[2:5]
('<'|safe).join([s, 'x']) ; (s|safe).split('e')|join('|') ; [s|safe] ; (s|safe)|replace('<', '>') ; (s|safe) is escaped ; s is escaped
u|int ; '42'|int ; '4.7'|int ; 'ff'|int(0, 16) ; 'x'|int(7) ; '3.5'|float ; 'x'|float ; 2.567|round(1) ; 2.5|round ; 2.1|round(0, 'ceil')
2.19|round(1, 'floor') ; -3|abs ; l|sum ; l|max ; l|min ; l|sort ; l|sort(reverse=true) ; ['b', 'A', 'c']|sort ; [1, 1.0, 2]|unique|list
['b', 'A', 'c']|sort(case_sensitive=true) ; ['a', 'A', 'b']|unique|list ; messages|map(attribute='role')|join(',') ; l|map('string')|list
messages|selectattr('role', 'equalto', 'user')|list|length ; messages|rejectattr('name', 'defined')|map(attribute='role')|list
messages|selectattr('name')|map(attribute='name')|first ; l|select('odd')|list ; l|reject('gt', 1)|list ; l|select|list ; l|first ; l|last
messages|map(attribute='name', default='?')|join ; messages|groupby('role')|map('first')|list ; messages|sort(attribute='role')|map(attribute='role')|list
messages|groupby('role')|map(attribute='grouper')|join('+') ; messages|groupby('role')|map(attribute='list')|map('length')|list ; l|reverse|list
l|batch(2)|list ; l|batch(2, 0)|list ; l|slice(2)|list ; l|slice(2, 'x')|list ; d|dictsort ; d|dictsort(true) ; d|dictsort(by='value') ; d|items|list
d|tojson ; d|tojson(indent=2) ; d|tojson(separators=(',', ':')) ; d|tojson(sort_keys=true) ; u|tojson ; u|tojson(ensure_ascii=true) ; messages|tojson
{'k': 'v', 'n': [1, 2.5, none, true]}|tojson(indent=4) ; 'a'|tojson ; l|tojson(indent='--') ; d|length ; d|list ; d|join('-') ; d|string ; d ; l ; messages
missing|default('x') ; ''|default('x') ; ''|default('x', true) ; missing|d(u) ; missing ; missing|length ; missing|list ; missing|tojson ; missing.x ; missing()
'%s-%d' % (u, 3) ; '%s' % u ; '%5s|%-5s|%05d' % ('a', 'b', 42) ; '%(a)s %(b)s' % {'a': u, 'b': 1} ; '100%%' % () ; '%r' % u ; '%x' % 255 ; '%.2f' % 3.14159
'%*d' % (5, 3) ; '%s %s' % (1,) ; '%d' % 'x' ; '%s'|format(u) ; '%s %s'|format('a', u) ; '%(x)s'|format(x=u) ; '%c' % 65 ; '%a' % u ; '%s' % [u] ; '%%%s' % u
'{} {}'.format('a', u) ; '{0}{1}{0}'.format(u, 'x') ; '{a}-{b}'.format(a=1, b=u) ; '{{}}{}'.format(2) ; '{:>9}|{:<4}'.format('a', 'b') ; '{!r}'.format(u)
'{:{}}'.format(3, 5) ; '{0[0]}'.format(l) ; '{0.role}'.format(messages[0]) ; '{!s:>8}'.format('x') ; '{:.3f}'.format(2.5) ; '{x[b]}'.format(x=d) ; '{!a}'.format(u)
'{'.format() ; '{}'.format() ; '{0} {}'.format(1, 2) ; '{:d}'.format('x') ; '{:,}'.format(1234567) ; u.format(1) ; '{}'.format(l) ; '{}'.format(missing)
u.strip() ; u.lstrip() ; u.rstrip() ; u.strip(' \\n\\ts') ; u.split() ; u.split(' ', 2) ; u.split(none, 2) ; u.rsplit(none, 2) ; u.rsplit('e', 1) ; t.split('</think>')
t.split('</think>')[-1].lstrip('\\n') ; t.split('<think>')|last ; t.rsplit('</think>', 1)[0] ; t.partition('</think>') ; t.rpartition('</think>') ; t.splitlines()
u.splitlines() ; u.splitlines(true) ; u.title() ; u.swapcase() ; u.casefold() ; u.upper() ; u.capitalize() ; u.find('q') ; u.index('zz') ; u.count('e') ; u.rfind('q')
u.startswith('  s') ; u.endswith(('x', ' ')) ; 'a,b'.split(',') ; '-'.join(['a', u, 'c']) ; '-'.join([1]) ; 'x'.center(6, '*') ; 'x'.ljust(4, '.') ~ '|' ; 'x'.rjust(4)
'-7'.zfill(5) ; 'abc'.removeprefix('a') ; 'abc'.removesuffix('c') ; 'abc'.replace('b', u) ; 'a b'.isalpha() ; '12'.isdigit() ; 'ab'.islower() ; ' '.isspace()
u[2:9] ; u[::-1] ; u[3] ; u[-4] ; u[99] ; u[:0] ; u * 2 ; 2 * 'ab' ; 'ab' * -1 ; u + 'x' ; 'x' + 1 ; 'x' + none ; 1 + 'x' ; u ~ 1 ~ none ~ l ; l + [4] ; l * 2 ; l + (1,)
(1, 2) + (3,) ; (1, 2) * 2 ; l[1:] ; l[::-1] ; l[9] ; (1, 2)[0] ; (1, 2)[1:] ; d.b ; d['b'] ; d.zz ; d['zz'] ; d.a.c[1] ; d.items()|list ; d.keys()|list ; d.values()|list
d.get('b') ; d.get('q', 'dflt') ; d.items() ; d.keys() ; d.copy() ; d.pop('b') ; l.append(1) ; l.index(1) ; l.count(1) ; l.copy() ; d.update({}) ; d.setdefault('x')
1 + 2 * 3 ; 7 // 2 ; 7 / 2 ; 7 % 3 ; 2 ** 10 ; -5 % 3 ; 1 / 0 ; 2 ** -1 ; 10 - 3 - 2 ; 1.5 + 1 ; not true ; 1 < 2 < 3 ; 'a' < 'b' ; 1 < 'a' ; 'a' in 'cat' ; 9 in l ; 'b' in d
u == messages[1].content ; 'é' != 'e' ; l == [3, 1, 2] ; d == {} ; (1, 2) == (1, 2) ; none is none ; missing is defined ; u is string ; l is sequence ; d is mapping ; l is iterable
5 is number ; 5 is odd ; 5 is divisibleby(5) ; true is boolean ; 5 is integer ; 5.0 is float ; u is lower ; 'AB' is upper ; 3 is in l ; l is sameas l ; 5 is eq 5 ; 3 is ge 2
'upper' is filter ; 'nope' is filter ; 'odd' is test ; u is callable ; u.strip is callable ; d.items() is sequence ; l|map('string') is iterable ; l|map('string') is sequence
'y' if u else 'n' ; 'y' if missing ; ['a', u][1] ; {'a': u}['a'] ; {'a': u} ; (u, 'x') ; [u, ['x']] ; {'a': 1}.items() ; range(5)|list ; range(1, 9, 3)|join(',') ; range(3)
dict(a=1, b=u) ; dict([('a', 1)]) ; dict({'a': 1}, b=2) ; namespace(a=1).a ; namespace({'q': 2}).q ; cycler('a', 'b').next() ; joiner(', ')() ; strftime_now('%d %b %Y')
raise_exception('bad ' ~ u) ; raise_exception(5) ; u.nope ; u.__class__ ; u['__class__'] ; none.x ; 5.x ; loop ; u() ; u.strip(1) ; u|nofilter ; u is notest ; u|replace(1) ; [1]|join(1)
messages[0].role ; messages[-1]['role'] ; messages[1:]|length ; messages|length ; messages[9] ; messages[0].content[0] ; messages[2].n + 1 ; messages[2].x is none ; messages[2].f * 2
messages[2].t and 'yes' ; messages[2].n ~ 'x' ; true ; none ; 1.0 ; 1e20 ; 'a' 'b' ; 'tab\\tquote\\'' ; 'ß'.upper() ; 'İ'|lower ; 'ΑΣ'|lower ; ('ß' ~ u)|upper ; ('ŉ' ~ u)|title ; u|trim('s ')
l|map('upper')|list ; u|map('upper')|join ; u|sort|join ; u|select('in', 'aeiou')|join ; u|batch(9)|map('join')|list ; ''|first ; []|max ; []|first ; []|last ; {}|first
[[1, 2], [3]]|sum(start=[]) ; [1, 2]|sum(start=0.5) ; messages|sum(attribute='n') ; 'abc'|sum ; [{'v': 1}, {'v': 2}]|sum(attribute='v') ; (l|list).copy() ; [missing]|string ; [u|safe]|join
""".replace("\n", " ; ")
TEMPLATES = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.last }} {{ loop.revindex }} "
    "{{ loop.previtem.role }} {{ loop.nextitem.role }} {{ loop.cycle('a', 'b') }} {{ loop.changed(m.role) }}\n{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}none{% endfor %}{% for c in 'abc' %}{{ c }}{% if c == 'b' %}{% break %}{% endif %}{% endfor %}",
    "{% for i in range(5) %}{% if i is odd %}{% continue %}{% endif %}{{ i }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}[{{ loop(x) }}]{{ loop.depth }}{% else %}{{ x }}{% endif %}{% endfor %}",
    "{% set ns = namespace(x='', n=0) %}{% for m in messages %}{% set ns.x = ns.x ~ m.role %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.x }}{{ ns.n }}",
    "{% macro f(a, b='B') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(u) }}{{ f(1, 2, 3, z=4) }}{{ f.name }}{{ f.arguments }}",
    "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in {{ u }}{% endcall %}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(9) }}{{ f(3)|length }}",
    "{% set x %}a{{ u }}b{% endset %}{{ x }}{{ x|length }}{% set y | upper %}q{{ u }}{% endset %}{{ y }}",
    "{% filter upper %}a{{ u }}{% endfilter %}{% with a = 1, b = u %}{{ a }}{{ b }}{% endwith %}",
    "{% generation %}x{{ u }}{% set q = 1 %}{% endgeneration %}{{ q }}{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}",
    "  {%- if true %}\n  a\n  {%- endif %}\n  {# note #}\n  {% raw %}{{ raw }}{% endraw %}\n{{- '\\n' -}}\n z",
    "{% set a, b = (1, u) %}{{ b }}{{ a }}{% set _ = l.count(1) %}{% if a %}{% set a = 5 %}{% endif %}{{ a }}",
    "{% for m in messages %}{% set last = m %}{% endfor %}{{ last }}",
    "{% if messages[0].role == 'system' and messages|length > 1 or false %}y{% elif x %}z{% else %}n{% endif %}",
    "line\n{% if true %}\n  {{ u }}\n{% endif %}\n{{ missing.attribute }}",
    "{% for x in 5 %}{% endfor %}",
    "{% for a, b in [1, 2] %}{% endfor %}",
    "{% if %}",
    "{{ 'unclosed }}",
    "{% endfor %}",
    "{% set x.y = 1 %}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}",
]
CASES = [PRELUDE + "{{ " + e.strip() + " }}" for e in EXPRESSIONS.split(" ; ") if e.strip()]
CASES += [PRELUDE + t for t in TEMPLATES]


@pytest.mark.parametrize("source", CASES, ids=[str(i) for i in range(len(CASES))])
def test_equals_jinja2(source: str) -> None:
    try:
        wanted = plain_jinja.render(source, MESSAGES)
    except Exception as error:
        with pytest.raises(TemplateError) as found:
            _render(source)
        message = str(getattr(error, "message", None) or error)
        assert message in str(found.value)
    else:
        assert _render(source) == wanted, source


def _render(source: str) -> str:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    return template.render(MESSAGES, now=plain_jinja.NOW).text


def test_the_line_is_named() -> None:
    with pytest.raises(TemplateError, match="mine, line 3: no way"):
        ChatTemplate("a\n{% if true %}\n{{ raise_exception('no way') }}{% endif %}", name="mine").render("x")
    with pytest.raises(TemplateError, match="mine, line 2: "):
        ChatTemplate("a\n{% if %}", name="mine").render("x")


def test_everything_in_reach_is_listed() -> None:
    """A new name in any of these tables is a decision about the sandbox: make it here as well."""
    assert _words(FILTERS) == (
        "abs batch capitalize center count d default dictsort e escape first float format groupby indent int items join "
        "last length list lower map max min reject rejectattr replace reverse round safe select selectattr slice sort "
        "string sum title tojson trim truncate unique upper wordcount"
    )
    assert _words(TESTS) == (
        "!= < <= == > >= boolean callable defined divisibleby eq equalto escaped even false filter float ge greaterthan "
        "gt in integer iterable le lessthan lower lt mapping ne none number odd sameas sequence string test true "
        "undefined upper"
    )
    assert _words(FUNCTIONS) == "cycler dict joiner namespace raise_exception range"
    assert _words(STRING_METHODS) == (
        "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit islower "
        "isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix "
        "replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper "
        "zfill"
    )
    assert {kind.__name__: _words(names) for kind, names in METHODS.items()} == {
        "list": "copy count index",
        "tuple": "count index",
        "dict": "copy get items keys values",
        "LoopContext": "changed cycle",
        "Cycler": "next reset",
    }
    assert {kind.__name__: _words(names) for kind, names in PROPERTIES.items()} == {
        "tuple": "grouper list",
        "Macro": "arguments caller catch_kwargs catch_varargs name",
        "LoopContext": "depth depth0 first index index0 last length nextitem previtem revindex revindex0",
        "Cycler": "current",
    }


def _words(names: Iterable[str]) -> str:
    return " ".join(sorted(names))
