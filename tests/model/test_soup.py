"""Oracle: the mean in float64."""

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model.files.soup import average_weights


def states(count: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    return [{"a": torch.randn(5, 3), "b": torch.randn(4).bfloat16()} for _ in range(count)]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_soup_is_the_mean_in_fp32(count: int) -> None:
    given = states(count)
    first = given[0]["a"].clone()
    soup = average_weights(given)
    for name, value in soup.items():
        assert value.dtype == torch.float32
        wanted = torch.stack([state[name].double() for state in given]).mean(0)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-7)
    assert torch.equal(given[0]["a"], first)


def test_one_ingredient_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def given() -> Iterator[dict[str, Tensor]]:
        nonlocal most
        for state in (states(1)[0] for _ in range(4)):
            alive.append(weakref.ref(state["a"]))
            most = max(most, sum(tensor() is not None for tensor in alive))
            yield state
            del state

    average_weights(given())
    assert most <= 2  # the loop of the average still holds the one before while the next is made


def test_ingredients_that_differ_are_refused() -> None:
    one, two = states(2)
    with pytest.raises(ValueError, match="ingredient 2 differs from the first in b"):
        average_weights([one, {"a": two["a"]}])
    with pytest.raises(ValueError, match="ingredient 2 differs from the first in a"):
        average_weights([one, two | {"a": torch.zeros(5, 4)}])
    with pytest.raises(ValueError, match="no ingredients"):
        average_weights([])
