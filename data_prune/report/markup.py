"""Headings, texts, tables and tiles -> the HTML of one self-contained page."""

from __future__ import annotations

import html
from typing import Any

STYLE = """
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:76rem;
margin:1.5rem auto;padding:0 clamp(.7rem,3vw,1.5rem);overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .2rem}
h2{font-size:1.15rem;line-height:1.3;margin:0 0 .3rem}
.lead{color:#444;margin:0 0 1.2rem}
.cards{columns:28rem;column-gap:1.2rem}
section{border:1px solid #ddd;border-radius:8px;padding:1rem clamp(.7rem,3vw,1.2rem);
margin:0 0 1.2rem;break-inside:avoid;overflow-x:auto}
section p{color:#444;margin:.2rem 0 .6rem;font-size:.92rem}
section>img{width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:.22rem .4rem;border-bottom:1px solid #eee;vertical-align:middle}
td:first-child,.settings td{overflow-wrap:anywhere;min-width:3rem}
td.n,th.n{text-align:right}
td img{display:block;width:3.4rem;height:auto;image-rendering:pixelated}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(9.5rem,100%),1fr));gap:.8rem;
margin-bottom:1.4rem}
.tile{border:1px solid #ddd;border-radius:8px;padding:.6rem .9rem;min-width:0}
.tile b{display:block;font-size:1.35rem;line-height:1.3}.tile span{color:#555;font-size:.9rem}
.warn{border-left:5px solid #D55E00;background:#fdf1ea;padding:.6rem 1rem;margin:0 0 1.2rem}
@media(max-width:30rem){.tiles{grid-template-columns:1fr 1fr}.tile b{font-size:1.15rem}
td,th{padding:.2rem .22rem;font-size:.8rem}td img{width:2.4rem}}
"""


class Html(str):
    """Text that is HTML already."""


def table_of(header: list[str], rows: list[list[Any]], kind: str = "") -> str:
    """Return rows of text, numbers and HTML as a table; what is not text stands to the right."""

    def cell(value: Any, tag: str, right: bool) -> str:
        shown = value if isinstance(value, Html) else html.escape(str(value))
        return f"<{tag}{' class=n' if right else ''}>{shown}</{tag}>"

    right = [i > 0 and not isinstance(v, Html) for i, v in enumerate(rows[0] if rows else header)]
    head = "".join(cell(v, "th", r) for v, r in zip(header, right, strict=True))
    body = "".join(
        "<tr>" + "".join(cell(v, "td", r) for v, r in zip(row, right, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def whole_page(
    title: str,
    lead: str,
    notices: str,
    tiles: list[tuple[str, str]],
    sections: list[tuple[str, str, str]],
) -> str:
    """Return the page; notices and the content of sections are HTML already."""
    heading = html.escape(title)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{heading}</title><style>{STYLE}</style></head><body><h1>{heading}</h1>"
        f"<p class=lead>{html.escape(lead)}</p>{notices}<div class=tiles>"
        + "".join(f"<div class=tile><b>{b}</b><span>{s}</span></div>" for b, s in tiles)
        + "</div><div class=cards>"
        + "".join(f"<section><h2>{h}</h2><p>{p}</p>{c}</section>" for h, p, c in sections)
        + "</div></body></html>\n"
    )
