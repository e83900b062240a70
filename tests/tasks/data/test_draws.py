"""Draws of documents. Oracles: the same draws written out for one document, and the binomial error of a sample's size."""

from hashlib import blake2b

from tasks.data.documents.document_random import draw


def test_a_draw_is_the_first_64_bits_of_a_hash_of_its_arguments():
    digest = blake2b(b"7\x00web\x00doc-1", digest_size=8).digest()
    assert draw(7, "web", "doc-1") == int.from_bytes(digest, "little") / 2**64


def test_draws_are_even_and_change_with_the_seed():
    ids = [f"doc-{number}" for number in range(20_000)]
    one, two = ({id for id in ids if draw(seed, id) < 0.3} for seed in (0, 1))
    # Four standard errors: 259.
    assert abs(len(one) - 6000) < 260
    assert abs(len(one & two) - 1800) < 170
