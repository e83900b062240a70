"""The hash below orders and noise. Oracle: the first outputs of the reference generator (Vigna's splitmix64.c) for state 0."""

import numpy as np

from model.data.splitmix import GOLDEN, splitmix64

FIRST_OUTPUTS = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]


def test_the_sequence_is_the_reference_generators() -> None:
    states = np.arange(1, 5, dtype=np.uint64) * GOLDEN
    assert [int(value) for value in splitmix64(states)] == FIRST_OUTPUTS
