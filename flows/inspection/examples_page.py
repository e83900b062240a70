"""Dropped documents as one HTML page to browse: what each rule matched is marked in the whole text.

The page needs no other file and no network. Texts come from anywhere, so every value is escaped and the page's policy allows no
script, however a text may be written.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from flows.inspection.documents import DroppedDocument

SHOWN_CHARACTERS = 50_000
"""Of a text; a longer one is shown around its first match."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Dropped by {{ reason }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1.5rem; color: #222; background: #fff }
h1 { font-size: 1.3rem } a { color: #1a5fb4 } ol { padding-left: 1.6rem }
article { border-top: 1px solid #ccc; padding: .8rem 0 } h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere }
.detail { color: #8a4b00; overflow-wrap: anywhere } .place { color: #666 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; padding: .8rem; max-height: 30rem; overflow: auto }
mark { background: #ffd54a; outline: 1px solid #c77800 }
</style></head><body>
<h1>{{ rows|length }} documents that were dropped by {{ reason }}</h1>
<ol>
{%- for row in rows %}
<li><a href="#d{{ loop.index }}">{{ row.source }} {{ row.id }}</a> <span class="place">{{ row.detail[:120] }}</span></li>
{%- endfor %}
</ol>
{%- for row in rows %}
<article id="d{{ loop.index }}">
<h2>{{ loop.index }}. {{ row.source }} {{ row.id }}</h2>
<div class="place">{{ row.step }}{% if row.url %}, {{ row.url }}{% endif %}, {{ "{:,}".format(row.text|length) }} characters,
{{ row.spans|length }} matched</div>
<div class="detail">{{ row.reason }}: {{ row.detail }}</div>
<pre>{{ row.marked }}</pre>
</article>
{%- endfor %}
</body></html>
"""


def write_page(path: Path, reason: str, documents: Sequence[DroppedDocument]) -> None:
    """Write the page of documents that were dropped for a reason."""
    shown = [{**asdict(document), "marked": marked(document.text, document.spans)} for document in documents]
    # Texts come from the web: escaping is on for every value.
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    path.write_text(environment.from_string(_PAGE).render(reason=reason, rows=shown), encoding="utf-8")


def marked(text: str, spans: Sequence[tuple[int, int]]) -> Markup:
    """A text with `<mark>` around its spans, escaped; spans that overlap become one."""
    # Around the first match, so that a text of megabytes does not fill the page.
    first = max(0, spans[0][0] - SHOWN_CHARACTERS // 2) if spans and len(text) > SHOWN_CHARACTERS else 0
    last = min(len(text), first + SHOWN_CHARACTERS)
    parts, place = [Markup("… ") if first else Markup("")], first
    # Sorted, so that an overlap begins where the span before it has ended.
    for start, end in sorted(spans):
        start, end = max(start, place), min(end, last)
        if start < end:
            parts += [escape(text[place:start]), Markup("<mark>"), escape(text[start:end]), Markup("</mark>")]
            place = end
    return Markup("").join([*parts, escape(text[place:last]), Markup(" …") if last < len(text) else Markup("")])
