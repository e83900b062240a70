"""Random numbers that belong to a document: the same in whatever shard, worker or order it is met."""

import hashlib


def draw(seed: int, *parts: str) -> float:
    """A number in [0, 1) that is random but for its arguments."""
    # NUL between the parts: ("a", "bc") and ("ab", "c") draw differently.
    digest = hashlib.blake2b("\0".join([str(seed), *parts]).encode(), digest_size=8).digest()
    # Eight bytes make a number that is uniform in [0, 1) to 64 bits.
    return int.from_bytes(digest, "little") / 2**64
