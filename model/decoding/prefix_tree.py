"""Arranges token sequences as a tree of shared prefixes, and the order in which a model reads each token once.

Example: sequences [5, 6, 7] and [5, 6, 8, 9] make the node [5, 6] with the children [7] and [8, 9]. A model then reads 5
tokens instead of 7. `rows` flattens a small subtree into one row, in which a mask lets every token see its own ancestors
only. `schedule` names the long prefixes whose keys and values are computed once and kept while needed.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

MAX_ROW_TOKENS = 1_024
"""Most tokens of a row, and of a node: longer stretches are read in pieces, so that scores of attention stay bounded."""


@dataclass(eq=False, slots=True)
class Node:
    """A stretch of tokens that its sequences share after the parent's."""

    tokens: Sequence[int]
    start: int
    """Position of the first token in its sequences, from 0."""
    parent: "Node | None"
    children: "list[Node]" = field(default_factory=list)
    size: int = 0
    """Tokens of the subtree."""
    targets: dict[int, dict[int, int]] = field(default_factory=dict)
    """Scored places: offset in `tokens`, then the id expected next, then the number of the score."""


@dataclass(frozen=True, slots=True)
class Step:
    """Nodes that a model reads together: subtrees as rows after one prefix, or one node whose keys and values are kept."""

    prefix: Node | None
    """The node after which they stand; its keys and values, and those before it, have been kept."""
    rows: list[list[Node]]
    """Each a subtree, parents before children."""
    keeps: bool
    """Whether children of the single node follow in later steps."""


def build(sequences: Sequence[Sequence[int]]) -> tuple[list[Node], list[Node]]:
    """All nodes, parents first, and for every sequence the node in which it ends.

    Sequences are non-empty, distinct and in ascending order. Raises ValueError for an empty one.
    """
    nodes: list[Node] = []
    ends: list[Node | None] = [None] * len(sequences)
    # A stack instead of recursion: shared prefixes can nest deeper than Python's limit on calls.
    pending: list[tuple[int, int, int, Node | None]] = [(0, len(sequences), 0, None)]
    while pending:
        low, high, depth, parent = pending.pop()
        while low < high:
            first = sequences[low]
            if len(first) <= depth:
                raise ValueError(f"sequence {low} of {len(first)} tokens is empty or given twice")
            # Sequences are sorted, so those that continue with the same token are one range, which bisection finds.
            end = bisect_right(sequences, first[depth], low, high, key=lambda ids: ids[depth])
            # The first and last of a sorted range share the least, so their common prefix is that of all.
            shared = _common(first, sequences[end - 1], depth + 1)
            node = parent
            for start in range(depth, shared, MAX_ROW_TOKENS):
                child = Node(first[start : min(shared, start + MAX_ROW_TOKENS)], start, node)
                if node is not None:
                    node.children.append(child)
                nodes.append(child)
                node = child
            if len(first) == shared:
                ends[low] = node
                low += 1
            pending.append((low, end, shared, node))
            low = end
    # Parents stand before children, so going backwards every child's size is known.
    for node in reversed(nodes):
        node.size = len(node.tokens) + sum(child.size for child in node.children)
    return nodes, [end for end in ends if end is not None]


def _common(first: Sequence[int], last: Sequence[int], known: int) -> int:
    """Length of the common prefix of two sequences that share `known` tokens."""
    if first is last:
        return len(first)
    most = min(len(first), len(last))
    return next((place for place in range(known, most) if first[place] != last[place]), most)


def schedule(nodes: Sequence[Node], batch_tokens: int) -> Iterator[Step]:
    """Steps in which a model reads every node once, each after what it needs.

    Subtrees of at most `MAX_ROW_TOKENS` become rows, batched longest first up to `batch_tokens` padded tokens. A larger one
    is read node by node, depth first, so that only the prefixes of one path are kept.
    """
    roots = [node for node in nodes if node.parent is None]
    yield from _subtrees(None, roots, batch_tokens)
    pending = _large(roots)
    while pending:
        node = pending.pop()
        yield Step(node.parent, [[node]], keeps=True)
        yield from _subtrees(node, node.children, batch_tokens)
        pending += _large(node.children)


def _large(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.size > MAX_ROW_TOKENS]


def _subtrees(prefix: Node | None, tops: Sequence[Node], batch_tokens: int) -> Iterator[Step]:
    """The small ones of the subtrees that follow a prefix, as rows, longest first, so that padding stays small."""
    batch: list[list[Node]] = []
    for top in sorted((top for top in tops if top.size <= MAX_ROW_TOKENS), key=lambda top: -top.size):
        if batch and (len(batch) + 1) * batch[0][0].size > batch_tokens:
            yield Step(prefix, batch, keeps=False)
            batch = []
        batch.append(preorder(top))
    if batch:
        yield Step(prefix, batch, keeps=False)


def preorder(top: Node) -> list[Node]:
    """A subtree's nodes, parents before children."""
    found, pending = [], [top]
    while pending:
        node = pending.pop()
        found.append(node)
        pending += node.children
    return found


def sees(row: Sequence[Node], width: int) -> Bool[np.ndarray, "width width"]:
    """Which tokens of a flattened subtree each token sees: its ancestors within the row and itself. Padding sees itself."""
    # A padded place must see something: softmax over nothing is NaN.
    mask = np.eye(width, dtype=bool)
    ends: dict[int, int] = {}
    start = 0
    for node in row:
        end = start + len(node.tokens)
        if node.parent is not None and id(node.parent) in ends:
            mask[start:end, :start] = mask[ends[id(node.parent)] - 1, :start]
        mask[start:end, start:end] = np.tri(end - start, dtype=bool)
        ends[id(node)] = start = end
    return mask
