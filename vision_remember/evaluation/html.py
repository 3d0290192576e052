"""The few pieces of HTML a report is made of, and its stylesheet: light, one column, the reader's own fonts, nothing fetched.

Every function takes plain text and escapes it; what it returns is a `Markup`, so text and markup cannot be mixed up by accident.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLESHEET = """
:root { --ink: #1d2126; --soft: #5b6470; --line: #e3e5e8; --paper: #fdfdfc; --tint: #f5f6f7; --right: #0b6b4f; --wrong: #b3261e;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 18px/1.58 var(--serif); text-rendering: optimizeLegibility; }
main { max-width: 46rem; margin: 0 auto; padding: 4.5rem 1.25rem 6rem; }
.kicker { font: 600 .74rem/1.4 var(--sans); letter-spacing: .09em; text-transform: uppercase; color: var(--soft); margin: 0 0 .7rem; }
h1 { font-size: 2.45rem; line-height: 1.14; letter-spacing: -.015em; font-weight: 600; margin: 0 0 1.1rem; text-wrap: balance; }
h2 { font-size: 1.38rem; line-height: 1.3; font-weight: 600; margin: 3.4rem 0 .8rem; }
p { margin: 0 0 1rem; hanging-punctuation: first; }
main > ul { padding-left: 1.1rem; } main > ul li { margin: 0 0 .4rem; }
.standfirst { font-size: 1.2rem; line-height: 1.5; color: #343a42; text-wrap: pretty; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1.4rem 1.8rem;
  margin: 2.2rem 0 0; padding: 1.3rem 0 0; border-top: 1px solid var(--ink); }
.numbers div { font: .8rem/1.4 var(--sans); color: var(--soft); }
.numbers b { display: block; font: 600 2.1rem/1.1 var(--sans); letter-spacing: -.02em; color: var(--ink);
  font-variant-numeric: tabular-nums; margin-bottom: .35rem; }
figure { margin: 2rem 0 2.4rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption, .caption { font: .84rem/1.5 var(--sans); color: var(--soft); margin-top: .8rem; }
figcaption b, .caption b { color: var(--ink); font-weight: 600; }
.wide { overflow-x: auto; margin: 1.8rem 0 .6rem; }
table { border-collapse: collapse; width: 100%; font: .82rem/1.35 var(--sans); font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .55rem; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 8.5rem; }
thead th { font-weight: 500; color: var(--soft); border-bottom: 1px solid var(--ink); vertical-align: bottom; white-space: normal; }
tbody td { border-bottom: 1px solid var(--line); }
tbody td small { display: block; color: var(--soft); font-size: .72rem; }
.swatch { display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .5em; }
.page { display: grid; grid-template-columns: 17rem 1fr; gap: 1.6rem; padding: 1.6rem 0; align-items: start;
  border-top: 1px solid var(--line); }
.page .sheet { position: relative; margin: 0; border: 1px solid var(--line); background: #fff; line-height: 0; }
.page img { width: 100%; height: auto; }
.page .evidence { position: absolute; outline: 2px solid #0072b2; outline-offset: 2px; border-radius: 1px; }
.page h3 { font: 600 .74rem/1.4 var(--sans); letter-spacing: .07em; text-transform: uppercase; color: var(--soft); margin: 0 0 .35rem; }
.page .question { font-size: 1.08rem; line-height: 1.4; margin: 0 0 .15rem; }
.page .gold { font: .86rem/1.4 var(--sans); color: var(--soft); margin: 0 0 .9rem; }
.page ul { list-style: none; margin: 0; padding: 0; font: .86rem/1.4 var(--sans); }
.page li { display: grid; grid-template-columns: 1.2em 1fr auto; gap: .5em; padding: .36rem 0; border-top: 1px solid var(--line); }
.page li q { quotes: none; font-family: var(--mono); font-size: .84em; text-align: right; overflow-wrap: anywhere; }
.right q, .right i { color: var(--right); } .wrong q, .wrong i { color: var(--wrong); }
.page li i { font-style: normal; font-weight: 700; }
dl { font: .86rem/1.5 var(--sans); display: grid; grid-template-columns: 9.5rem 1fr; gap: .45rem 1rem; margin: 1.2rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font: .82em/1.5 var(--mono); }
pre { background: var(--tint); padding: .9rem 1.1rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .page { grid-template-columns: 1fr; } dl { grid-template-columns: 1fr; gap: .1rem; }
  dd { margin-bottom: .6rem; }  h1 { font-size: 1.9rem; } }
@media print { body { font-size: 11pt; background: #fff; } main { padding: 0; max-width: none; } .page, figure { break-inside: avoid; } }
"""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escape anything that is not markup yet."""
    return value if isinstance(value, Markup) else Markup(escape(str(value), quote=True))


def element(tag: str, *children: object, css: str = "", style: str = "") -> Markup:
    """Return `<tag class style>children</tag>`; children are escaped unless they are markup."""
    attributes = (f' class="{escape(css)}"' if css else "") + (f' style="{escape(style)}"' if style else "")
    return Markup(f"<{tag}{attributes}>{joined(children)}</{tag}>")


def joined(parts: Iterable[object]) -> Markup:
    """Return the parts side by side, escaped where they are text."""
    return Markup("".join(text(part) for part in parts))


def table(head: Sequence[object], body: Sequence[Sequence[object]]) -> Markup:
    """Return a table that scrolls sideways on a narrow screen."""
    header = element("tr", *(element("th", cell) for cell in head))
    rows = [element("tr", *(element("td", cell) for cell in row)) for row in body]
    return element("div", element("table", element("thead", header), element("tbody", *rows)), css="wide")


def definitions(pairs: Iterable[tuple[object, object]]) -> Markup:
    """Return a list of terms and what they mean."""
    return element("dl", *(joined((element("dt", term), element("dd", meaning))) for term, meaning in pairs))


def png(data: bytes, alt: str) -> Markup:
    """Return an image that carries its own bytes."""
    return Markup(
        f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{escape(alt, quote=True)}">'
    )


def document(title: str, *sections: Markup) -> str:
    """Return the whole file; its policy lets a browser load nothing but what it carries."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLESHEET}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )
