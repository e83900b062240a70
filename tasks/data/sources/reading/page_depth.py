"""How deep a page's elements are inside each other, in the tree that a browser builds of it.

Extraction takes time with the square of the depth of blocks: 9 s at 20,000. Elements of text (`<a>`, `<font>`, `<b>`) do not
count: pages leave thousands of them open, and extraction passes through them in linear time.
"""

import re
from collections import Counter

from resiliparse.parse.html import HTMLTree, NodeType

MAX_DEPTH = 512
"""Blocks inside each other beyond which a page is kept aside: Chromium builds no deeper trees."""
_TEXT_ELEMENTS = (
    *(
        "a",
        "abbr",
        "b",
        "bdi",
        "bdo",
        "big",
        "cite",
        "code",
        "data",
        "del",
        "dfn",
        "em",
        "font",
        "i",
        "ins",
        "kbd",
        "label",
    ),
    *("mark", "nobr", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var"),
)
_CLOSED_BY_OTHERS = (
    *(
        "area",
        "base",
        "br",
        "col",
        "dd",
        "dt",
        "embed",
        "hr",
        "img",
        "input",
        "li",
        "link",
        "meta",
        "optgroup",
        "option",
    ),
    *("p", "param", "source", "tbody", "td", "tfoot", "th", "thead", "tr", "track", "wbr"),
)
_UNCOUNTED = frozenset(_TEXT_ELEMENTS + _CLOSED_BY_OTHERS)
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
_SUSPECT = MAX_DEPTH // 8
"""Tags left open from which the tree is asked. A real level may be up to five elements (a cell's table, body, row and what is
in it) of which one is counted, so no deep page stays below."""


def is_too_deep(html: str, tree: HTMLTree) -> bool:
    """Whether a page's tree is deeper than MAX_DEPTH. The tree is walked only where the tags make it possible."""
    return _may_be_deep(html) and _is_deep(tree)


def _may_be_deep(html: str) -> bool:
    # Fewer tags than the limit cannot nest deeper.
    if html.count("<") <= MAX_DEPTH:
        return False
    left_open: Counter[str] = Counter()
    depth = 0
    for end, name in _TAG.findall(html):
        tag = name.lower()
        # End tags without a start, and elements that close themselves, do not deepen a tree.
        if tag in _UNCOUNTED:
            continue
        if not end:
            left_open[tag] += 1
            depth += 1
        elif left_open[tag]:
            left_open[tag] -= 1
            depth -= 1
        if depth > _SUSPECT:
            return True
    return False


def _is_deep(tree: HTMLTree) -> bool:
    """Walk the tree in order, as far as a place that is too deep."""
    node, above, depth = tree.document, [], 0
    while node is not None:
        child = node.first_child
        if child is not None:
            counts = node.type == NodeType.ELEMENT and node.tag not in _TEXT_ELEMENTS
            above.append((node, counts))
            depth += counts
            if depth > MAX_DEPTH:
                return True
            node = child
            continue
        while node.next is None:
            if not above:
                return False
            node, counts = above.pop()
            depth -= counts
        node = node.next
    return False
