"""The splitmix64 finaliser (Steele, Lea, Flood 2014), on which orders and sampling noise rest."""

import numpy as np
from jaxtyping import UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2**64 / golden ratio: the step of the splitmix64 sequence."""


def splitmix64(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """A bijection of 64-bit words in which every input bit flips about half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
