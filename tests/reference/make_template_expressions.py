"""What Jinja makes of single expressions, set up as transformers' apply_chat_template does: expressions.json in tests/data/text/templates.

    python make_template_expressions.py

One row per expression, `[expression, text]`; `text` is null if Jinja or Python refuses it. A row that begins with a brace is a whole template.
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = Path(__file__).parent.parent / "data" / "text" / "templates" / "expressions.json"
VARIABLES = {
    "messages": [
        {"role": "user", "content": "It's \"one\""},
        {"role": "assistant", "content": "Two\n", "tool_calls": [{"name": "f", "arguments": {"x": 1.0, "y": None}}]},
    ],
    "tools": None,
    "add_generation_prompt": True,
    "d": {"b": 1, "a": [True, None, 0.5], "it's": "x\n"},
    "s": " Ab cd-ef\nGH \t",
    "n": 7, "z": 0, "w": 6,
}
EXPRESSIONS = r"""
# The text of values.
'%s' % d
'%s' % [d]
d ~ ''
'' ~ [1, 'a', none, 1.5]
none ~ true ~ 1.0 ~ 1e20
messages[::-1]
messages[:1]
messages[1:] ~ '!'
[1, 2, 3, 4][::-2]
[1, 2, 3, 4][3:0:-1]
'abcdef'[4:1:-1]
'abcdef'[:-2]
(1, 2)
(1,)
()
(1, 'a', [2])[1:]
((1, 2), [3, (4,)])
[(1, 'a'), (2, "it's")]
(1 + 2) * 3
(n)
(1, 2) ~ ''
[1, 2, 3, 4, 5][-2:]
[1, 2, 3, 4, 5][:-2]
[1, 2, 3, 4, 5][10:]
[1, 2, 3, 4, 5][-10:2]
[1, 2, 3, 4, 5][::2]
[1, 2, 3, 4, 5][1:4:2]
[1, 2, 3, 4, 5][-2::-1]
[1, 2, 3, 4, 5][10::-3]
[1, 2, 3, 4, 5][:1:-1]
[1, 2, 3, 4, 5][3:1]
'héllo'[1:3]
messages[1:][0].role
messages[1:] | length
messages[n % 2:n // 3][0]['role'][:2]
(messages[1:] + messages[:1])[1].role
d.a[1:] ~ d['a'][:1][0]
(1, 2) | list
(1, 2) | length
(1, 2)[0]
2 in (1, 2)
messages[0].role in ('user', 'system')
d.items()
d.keys()
d.values()
d.items() | list
d | items | list
d | dictsort
d | dictsort(by='value') | length
{'b': 1, 'A': 2, 'c': 0} | dictsort
{'b': 1, 'A': 2, 'c': 0} | dictsort(true)
{'b': 1, 'A': 2, 'c': 0} | dictsort(by='value')
{'b': 1, 'A': 2, 'c': 0} | dictsort(reverse=true)
{'b': 1, 'a': 2} | dictsort(false, 'value', true)
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'abc'.partition('=')
[undefined_name]
['\u200b', '\x7f', '\xa0', '\ufeff', 'é', 'e\u0301', '\\', '"', '\'"']
['a\r\n\tb', '\x00', '\x1b', '\x85', '\u2028', '\U000e0001', '😀']
{'a': ('b', 1)}
[1e16, 1e15, 1e-4, 1e-5, 1e300, -0.0, 100.0, 1.5e-7]
[d, d] | string
d | string
[1, 2] | string ~ '!'
messages | map(attribute='role') | list
messages | map(attribute='role') | join('-') ~ '.'
['\v\f\a\b', '\0', '\033', '\U0001F600', '\u00e9', '\xe9', '\q', '\'', "\"", '\\n']
1, 2
# Arithmetic.
0 and 1
'' or 0
0 or ''
1 and 'x'
[] and 1
0 and 1 or 2
none and 1
z and 1
not 0 and 0
7 % -3
-7 % 3
-7 % -3
7.5 % 2
-7.5 % 2
7 // -2
-7 // 2
7 // 2
7.5 // 2
-7.5 // 2
n % 4
n % 4 * 2
2 * n % 4
n - 1 % 4
n * 3 // 2 % 5
1 + 2 ~ 3 + 4
1 ~ 2 * 3 ~ 4
'a' ~ n % 2 ~ 'b'
2 ** -1
2 ** 3
2 ** 3 ** 2
-2 ** 2
2 ** 0.5
2.0 ** 3
4 ** -2
-n
-n ~ ''
- n % 4
+n
-7 | abs
-d.b
3 - -2
n-1
n -1
-messages | length
7 / 2
6 / 2
[1] * 3
'ab' * 2
[1] + [2]
1 == 1.0
1 < 2 < 3
n % 2 == 1
loop is defined and loop.index0 % 2
(n % 2 == 0) != (z % 2 == 0)
'a' if n % 2 else 'b'
n is divisibleby 7
n is divisibleby(3 + 4) ~ ''
n % 2 is odd
'%d' % n is string
'a' 'b' ~ 'c'
'a' 'b%s' % 1
messages[n % 2].role
messages[n % 2]['content'] | length % 4
[n % 2, n // 2, 'a' ~ n]
{'k' ~ n: n % 4}
dict(a=n % 4, b='x' ~ n)
range(n % 4) | list
d.get('b' ~ '', 0)
d['b' ~ ''] ~ d.a[n % 2]
not n % 7
n in [n % 8]
'%' in '50%'
'a%b' ~ '%'
# Formats.
'%s and %s' % ('a', 1)
'%s' % ('a',)
'%r' % 'a'
'%r %s' % ("it's", none)
'%s' % (n % 4)
'%s' % messages[0].role | upper
'%(a)s-%(b)d' % {'a': 1, 'b': 2}
'%(b)s' % d
'%d' % 3.7
'%d' % -3.7
'%i|%5d|%-5d|%05d|%+d|% d' % (1, 2, 3, 4, 5, 6)
'%*d' % (5, 3)
'%-*d|' % (5, 3)
'%.*f' % (2, 3.14159)
'%x %X %o %#x %#o' % (255, 255, 8, 255, 8)
'%e %E %.2e' % (12345.678, 0.00012, 5)
'%g %g %g %g %g' % (0.00001, 123456789, 1.5, 100000, 1e6)
'%.3g|%8.3f|%-8.2f|%08.2f|%+.1f' % (3.14159, 3.14159, 2.5, -2.5, 1)
'%c%c' % ('a', 98)
'%5s|%-5s|%.2s|%5.1s' % ('ab', 'ab', 'abc', 'xyz')
'100%%' % ()
'%d%%' % 50
'%s %s' % (1,)
'%s' % (1, 2)
'%d' % 'a'
'%s' | format(1)
'%s %s' | format('a', [1])
'%(x)s' | format(x=1)
'%s' % true
'%d' % true
'%5.1f' % 2
'{} {}'.format('a', 1)
'{0} {1} {0}'.format('a', 1)
'{x} {y}'.format(x=1, y=[2])
'{!r}'.format('a')
'{!s:>5}|'.format('a')
'{0!r:>6}|'.format('a')
'{:%}'.format(0.25)
'{:.1%}'.format(0.1234)
'{:>{w}}|'.format('a', w=5)
'{:>{}}|'.format('a', 5)
'{:>5}|{:<5}|{:^5}|{:*^6}|{:5}|{:5}'.format('a', 'b', 'c', 'd', 'e', 6)
'{:05d} {:+d} {: d} {:x} {:#x} {:o} {:b} {:#b} {:X}'.format(42, 42, 42, 255, 255, 8, 5, 5, 255)
'{:,} {:_} {:,.2f} {:010,}'.format(1234567, 1234567, 1234567.891, 1234)
'{:.2f} {:8.3f} {:e} {:g} {:.3} {}'.format(3.14159, 2.5, 1234.5, 0.00001, 2.0, 1e20)
'{:=+7}|{:=7}|{:07}'.format(3, -3, -3)
'{:.2}|{:5.1}|'.format('abc', 'xyz')
'{{}} {}'.format(1)
'{a.role} {a[content]} {0[1]}'.format([1, 2], a=messages[0])
'{}'.format(d)
'{}'.format(none)
'{} {}'.format(1)
'{x}'.format_map({'x': 1})
'{:d}'.format(3.5)
'{:c}'.format(97)
'{:5}|{:<5}|'.format(true, 1.5)
# Methods of strings.
s.strip()
[s.strip(), s.lstrip(), s.rstrip()]
['\x1ca\x1f '.strip(), '\x1ca\x1f'.lstrip(), 'a\x1f'.rstrip(), 'xxaxx'.strip('x'), 'abcba'.strip('ab'), '\u3000a\x85'.strip()]
'\x1ca ' | trim
'xxaxx' | trim('x')
'x'.strip(none)
'a b  c'.split()
'a b  c'.split(' ')
'a b  c'.split(maxsplit=1)
' a b  c '.split(none, 1)
'a b  c'.split(' ', maxsplit=1)
'a b  c'.split(sep=' ')
'a,b,c'.split(',', 1)
'a,b,c'.split(',', -1)
'a b c'.rsplit(none, 1)
' a b  c '.rsplit(none, 1)
'a b c'.rsplit(maxsplit=1)
'a,b,c'.rsplit(',', 1)
'a,b,c'.rsplit(',')
' a b '.rsplit()
'a\x1cb'.split()
''.split()
''.split(',')
'a'.split('')
'a\nb\r\nc\rd\x0be\x0cf\x1cg\x1dh\x1ei\x85j\u2028k\u2029l'.splitlines()
'a\n\nb\n'.splitlines()
'a\nb\r\n'.splitlines(true)
'a\n'.splitlines(keepends=true)
'abcabc'.find('c')
'abcabc'.find('c', 3)
'abcabc'.find('c', 3, 5)
'abcabc'.find('b', -2)
'abcabc'.find('x')
'abc'.find('', 4)
'éabc'.find('b', 1)
'abcabc'.rfind('b')
'abcabc'.rfind('b', 0, 4)
'abcabc'.index('c', 3)
'abcabc'.index('x')
'abcabc'.rindex('c', 0, 4)
'abcabc'.count('b')
'abcabc'.count('b', 2)
'abcabc'.count('')
'aaaa'.count('aa')
'abcabc'.startswith('abc', 3)
'abcabc'.startswith('bc', 1, 3)
'abcabc'.startswith(('x', 'a'))
'abcabc'.endswith('bc')
'abcabc'.endswith('ab', 0, 5)
'abcabc'.endswith(('x', 'bc'))
'abc'.startswith('')
'aXbX'.replace('X', '-')
'aXbX'.replace('X', '-', 1)
'aXbX'.replace('X', '-', -1)
'abc'.replace('', '-')
'abc'.replace('', '-', 2)
['ab'.isalpha(), 'é中'.isalpha(), 'a1'.isalpha(), ''.isalpha(), 'Ⅷ'.isalpha(), 'ª'.isalpha()]
['12'.isdigit(), '²'.isdigit(), '½'.isdigit(), '٣'.isdigit(), 'Ⅷ'.isdigit(), '①'.isdigit(), ''.isdigit(), '1.5'.isdigit()]
['12'.isdecimal(), '²'.isdecimal(), '½'.isdecimal(), '٣'.isdecimal(), '①'.isdecimal()]
['万億'.isnumeric(), '人'.isnumeric(), '\uf96b\uf9d3'.isnumeric(), '\U0002f890𠄡'.isnumeric()]
['12'.isnumeric(), '²'.isnumeric(), '½'.isnumeric(), 'Ⅷ'.isnumeric(), 'a'.isnumeric(), '一'.isnumeric()]
['a1'.isalnum(), 'a_'.isalnum(), '²'.isalnum(), ' '.isalnum()]
[' \t\n'.isspace(), '\x1c'.isspace(), ''.isspace(), '\u3000'.isspace(), '\u200b'.isspace()]
['ab'.islower(), 'aB'.islower(), 'a1'.islower(), '1'.islower(), 'ªb'.islower()]
['AB'.isupper(), 'Ab'.isupper(), 'A1'.isupper(), ''.isupper()]
['Ab Cd'.istitle(), 'Ab cd'.istitle(), 'AB'.istitle(), ''.istitle(), '1A'.istitle()]
['a b'.isprintable(), 'a\n'.isprintable(), ''.isprintable(), '\u200b'.isprintable(), 'e\u0301'.isprintable()]
['a_1'.isidentifier(), '1a'.isidentifier(), ''.isidentifier(), 'é'.isidentifier(), 'a b'.isidentifier()]
['ab'.isascii(), 'é'.isascii(), ''.isascii()]
["it's o'clock x-ray".title(), 'hELLO'.capitalize(), 'aBc'.swapcase(), 'Straße'.casefold(), 'straße'.upper(), '中a b1c'.title()]
['ΑΣ'.lower(), 'İ'.lower(), 'ŉ'.upper(), 'ß'.capitalize()]
['a'.center(4, '*'), 'ab'.center(5), 'a'.ljust(3) ~ '|', 'a'.rjust(3, '0'), '-7'.zfill(4), '+7'.zfill(1), 'a'.zfill(3)]
'a\tb\n\tc'.expandtabs()
'a\tbc\td'.expandtabs(4)
'a\tb'.expandtabs(tabsize=2)
['prefix-x'.removeprefix('prefix-'), 'x'.removeprefix('y'), 'x.json'.removesuffix('.json')]
', '.join(['a', 'b'])
', '.join(messages | map(attribute='role'))
'-'.join('abc')
'-'.join(d)
'-'.join([1, 2])
'a'.upper().lower().title()
'a-b_c'.replace('-', ' ').split(' ', 1)[1]
'abc'.nonsense()
# Lists and dictionaries.
[1, 2, 1].count(1)
[1, 2, 1].index(1, 1)
(1, 2, 1).count(1)
(1, 2).index(2)
[1].index(2)
d.get('x')
d.get('x', 5)
d.get('b')
d.copy()
'b' in d.keys()
1 in d.values()
d.values() | first
(d.items() | list)[0][1]
d.keys() | sort
d.items() | length
d.keys() | join(',')
(1, 2) == (1, 2)
(1, 2) != (2, 1)
(1, 2) + (3,) | list
not (1, 2)
not ()
[] or (1,)
(1, 2) | first
(2, 1) | sort
(1, 2) is iterable
(1, 2) | map('string') | join
{'a': (1, 2)} | tojson
messages | map(attribute='content') | map('trim') | list
messages | selectattr('role', 'in', ('user', 'system')) | map(attribute='role') | list
messages[0].content.split()[0][:-2] ~ messages[-1]['content'][0]
(messages | length - 1) % 2
messages | length - 1
messages | length % 2 == 0 and messages[-1].role != 'user'
-1 ** 2
(-1) ** 2
2 * -n
n if n > 5 and n % 2 else none
[n, -n, +n, not n]
{'x': -1, 'y': n - 1}['y']
dict(d, x=1)
{'items': 1}.items()
{'items': 1}['items']
d.b
d['a'][2]
[1].append(2)
d.update({'c': 1})
# Filters.
undefined_name | length
undefined_name | count
messages[0].tool_calls | length
messages[1].tool_calls | length
tools | length
5 | length
undefined_name | list
undefined_name | join
undefined_name | upper
undefined_name ~ 'x'
undefined_name | default('d')
undefined_name or 'd'
'x' | int(7)
'12' | int
'12.7' | int
'x' | int
none | int
none | int(3)
'ff' | int(0, 16)
'0x1F' | int(0, 16)
'101' | int(base=2)
' 12 ' | int
'1_000' | int
true | int
3.9 | int
-3.9 | int
'x' | int(default=2)
'1.5' | float
'x' | float
'x' | float(2.5)
'1e3' | float
'inf' | float
'nan' | float
3 | float
'aXbX' | replace('X', '-')
'aXbX' | replace('X', '-', 1)
'aXbX' | replace('X', '-', count=1)
1.0 | replace('.', ',')
'a' | center(5)
('a' | center(6)) ~ '|'
'one two three' | truncate(9)
'one two three four' | truncate(9)
'one two three four' | truncate(9, true)
'one two three four' | truncate(9, true, '~', 0)
'one two three four' | truncate(length=12, end='…', leeway=0)
'onetwothreefour five' | truncate(8)
'one, two-three. four_five' | wordcount
'' | wordcount
"it's" | wordcount
'a b' | title
"it's o'clock x-ray (a) 1b" | title
'hELLO wORLD' | capitalize
true | lower
none | upper
'<a href="x">&\'</a>' | e
'<' | escape ~ '>'
['<'] | e
'<b>' | safe
'<b>' | forceescape
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2)
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, true, true)
'a\nb' | indent(width=1, first=true)
'a\nb' | indent('>> ')
'a\nb\n' | indent(2)
2.5 | round
3.14159 | round(2)
3.14159 | round(1, 'ceil')
3.19 | round(1, 'floor')
1234.5 | round(-2)
5 | round
-2.5 | abs
[3, 1, 2] | sort
[3, 1, 2] | sort(reverse=true)
['b', 'A', 'c'] | sort
['b', 'A', 'c'] | sort(case_sensitive=true)
messages | sort(attribute='role') | map(attribute='role') | list
['a', 'B', 'A', 'b'] | unique | list
[1, 2, 3] | sum
[1.5, 2] | sum
[1, 2, 3] | first
[] | first
[1, 2, 3] | last
'abc' | first
[3, 1] | min
[3, 1] | max
['b', 'A'] | min
[1, 2, 3, 4, 5] | batch(2) | list
[1, 2, 3, 4, 5] | batch(2, 0) | list
[1, 2, 3, 4, 5] | slice(2) | list
[1, 2, 3] | reverse | list
'abc' | reverse
'abc' | list
d | list
[1, 2, 3] | select('odd') | list
[1, 2, 3] | reject('odd') | list
[1, none, 2] | select | list
messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first
messages | selectattr('tool_calls') | list | length
messages | rejectattr('tool_calls', 'defined') | list | length
messages | selectattr('role', 'in', ['user', 'x']) | list | length
['a', 'b'] | map('upper') | list
['a', 'b'] | map('replace', 'a', 'x') | join
[{'a': 1}, {}] | map(attribute='a', default=0) | list
[[1, 2], [3]] | map('length') | list
[['b', 1], ['a', 2]] | map('first') | list
d | attr('x') is defined
d | length
messages | groupby('role') | map('first') | list
'a' | default('d')
none | default('d')
none | default('d', true)
none | d('d', boolean=true)
[1, 2] | join(', ')
[1, none, 'a'] | join
messages | join(', ', attribute='role')
'abc' | join('-')
{'a': 1, 'b': [1.0, none, true]} | tojson
d | tojson(indent=2)
(1, 2) | tojson
[1, 'é', '<&>'] | tojson
[] | tojson(indent=2)
d | string | length
# Tests.
(1, 2) is sequence
d is mapping
d.items() is iterable
'a' is iterable
n is iterable
true is number
1 is integer
1.0 is float
true is integer
true is boolean
none is none
range is callable
d is callable
'a' is in ['a']
'a' is in 'abc'
1 is sameas 1
'A' is upper
'a' is lower
n is eq 7
n is gt(3)
n is not number
x is undefined
messages[5] is defined
messages[0].x is defined
messages[0]['x'] is not defined
d.b is defined and d.b is number
'tojson' is filter
# Whole templates.
{% autoescape true %}{{ '<' }}{{ '<' | safe }}{% endautoescape %}{{ '<' }}
{% autoescape true %}{{ "'\"&" }}{{ d }}{% endautoescape %}
{% autoescape false %}{{ '<' }}{% endautoescape %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for (k, v) in d | dictsort %}{{ k }}={{ v }};{% endfor %}
{% for k, v in [(1, 'a'), (2, 'b')] %}{{ k ~ v }}{% endfor %}
{% for x in range(9) if x % 3 == 1 %}{{ x % 2 }}{% endfor %}
{% for m in messages[::-1] %}{{ m.role }}{{ loop.index0 % 2 }}{% endfor %}
{% set a, b = 7 % 4, 'x' ~ 1 %}{{ a }}{{ b }}
{% set a = (1, 2) %}{{ a }}{{ a[1] }}
{% set (a, b) = (1, 2) %}{{ a + b }}
{% set a = 1, 2 %}{{ a }}
{% set x = 'a' if n % 2 else 'b' %}{{ x }}
{% set ns = namespace(i=0, t=('a', 'b')) %}{% set ns.i = ns.i + 7 % 4 %}{{ ns.i }}{{ ns.t }}
{% set x | upper %}a{{ 'b' ~ 1 }}{% endset %}{{ x }}
{% set x %}<{{ d }}>{% endset %}{{ x }}
{% macro m(a, b=(1, 2), c='x' ~ 1) %}{{ a % 4 }}{{ b }}{{ c }}{% endmacro %}{{ m(7) }} {{ m(5, b=2) }}
{% macro m(a) %}{{ a }}{{ caller('x', 2) }}{% endmacro %}{% call(x, y) m(7 % 4) %}{{ x ~ y }}{% endcall %}
{% if n % 2 %}odd{% elif n // 2 == 1 %}x{% else %}even{% endif %}
{% if (n % 2 == 1) and not (n % 5) %}a{% else %}b{% endif %}
{% with a = n % 4, b = 'x' ~ 2 %}{{ a }}{{ b }}{% endwith %}
{% filter upper %}a{{ 'b' ~ n }}{% endfilter %}
{% raw %}{{ a ~ b }} {% if x % 2 %}{% endraw %}!
{%- raw -%} {{ a % b }} {%- endraw -%} !
{{- 'a' ~ 1 -}} x {{- 5 % 3 -}}
{%- if n % 2 -%} a {%- endif -%}
{{ '}}' ~ "{{" ~ '%}' }}
{# a ~ b #}{{ 'x' }}
{% block b %}{{ n % 4 }}{% endblock %}
{{ messages[0]
   ['content'] ~
   n % 4 }}
{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ loop.revindex }}{{ loop.last }}{% endfor %}
{% for m in messages recursive %}{{ m.role ~ '!' }}{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x % 2 }}{% endfor %}
{% for x in undefined_name %}a{% else %}b{% endfor %}
{% generation %}{{ n % 4 }}{% endgeneration %}
{% do d.get('a') %}
"""


def main() -> None:
    expressions = []
    for line in EXPRESSIONS.strip().split("\n"):
        # A line that begins with blanks continues the template.
        if line.startswith(" "):
            expressions[-1] += "\n" + line
        elif not line.startswith("#"):
            expressions.append(line)
    rows = []
    for expression in expressions:
        template = expression if expression.startswith(("{{", "{%", "{#")) else "{{ " + expression + " }}"
        try:
            text = _compile_jinja_template(template).render(**VARIABLES)
        except Exception:
            text = None
        rows.append(json.dumps([expression, text]))
    # As a text, which keeps the order of the keys.
    variables = json.dumps(json.dumps(VARIABLES))
    OUT.write_text('{"variables": ' + variables + ',\n"rows": [\n' + ",\n".join(rows) + "\n]}\n")


if __name__ == "__main__":
    main()
