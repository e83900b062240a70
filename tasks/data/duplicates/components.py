"""Connected components of a graph by star contraction (Kiveris et al. 2014, Connected Components in MapReduce and Beyond).

Large-star hangs every larger neighbour of a node on the smallest node it knows of, small-star the smaller ones; repeated in
turn they leave one star per component, around its smallest node. Each looks at one node's neighbours at a time, so that a
graph of any size is worked on in partitions of its nodes. Edges are given in both directions.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64

Nodes = UInt64[np.ndarray, " edges"]


class Edges(NamedTuple):
    """Parallel arrays of the two ends."""

    one: Nodes
    two: Nodes


def both_ways(edges: Edges) -> Edges:
    """Every edge in both directions, each once, sorted."""
    # Loops tell nothing and would be counted as neighbours.
    other = edges.one != edges.two
    one, two = edges.one[other], edges.two[other]
    return distinct(Edges(np.concatenate([one, two]), np.concatenate([two, one])))


def distinct(edges: Edges) -> Edges:
    """Every edge once, sorted."""
    order = np.lexsort((edges.two, edges.one))
    one, two = edges.one[order], edges.two[order]
    first = np.ones(len(one), dtype=bool)
    first[1:] = (one[1:] != one[:-1]) | (two[1:] != two[:-1])
    return Edges(one[first], two[first])


def large_star(edges: Edges) -> tuple[Edges, bool]:
    """Edges from each larger neighbour to the smallest of a node and its neighbours, one way; whether one is new.

    `edges` holds all edges of its nodes `one`, sorted.
    """
    one, two = edges
    if not len(one):
        return edges, False
    starts = _starts(one)
    least = np.minimum(np.minimum.reduceat(two, starts), one[starts])
    least = np.repeat(least, np.diff(np.append(starts, len(one))))
    larger = two > one
    # Edges to larger neighbours only: the smaller ones are small-star's part.
    return Edges(two[larger], least[larger]), bool((least < one)[larger].any())


def small_star(edges: Edges) -> tuple[Edges, bool]:
    """Edges from each node and its smaller neighbours to the smallest of these, one way; whether one is new."""
    smaller = edges.two < edges.one
    one, two = edges.one[smaller], edges.two[smaller]
    if not len(one):
        return Edges(one, two), False
    starts = _starts(one)
    counts = np.diff(np.append(starts, len(one)))
    least = np.minimum.reduceat(two, starts)
    spread = np.repeat(least, counts)
    other = two != spread
    return Edges(np.concatenate([one[starts], two[other]]), np.concatenate([least, spread[other]])), bool(other.any())


def stars(edges: Edges) -> Edges:
    """The star of every component of a graph that is here as a whole, both ways."""
    edges = both_ways(edges)
    changed = True
    while changed:
        found, large = large_star(edges)
        found, small = small_star(both_ways(found))
        edges, changed = both_ways(found), large or small
    return edges


def _starts(values: Nodes) -> np.ndarray:
    """Where runs of equal values begin."""
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
