"""Oracle: torch.nn.functional.linear in float64."""

import pytest
import torch

from model.decoding.linear_kernels import product_maker


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most_rows", [1, 32])
@pytest.mark.parametrize("outputs", [(96,), (7, 13), (1,)])
def test_product_equals_linear_for_one_row_and_for_many(
    dtype: torch.dtype, most_rows: int, outputs: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(n, 40) for n in outputs]
    product = product_maker(dtype, torch.device("cpu"), most_rows)(*weights)
    for rows in (1, 5):
        x = torch.randn(rows, 40).to(dtype)
        expected = torch.nn.functional.linear(x.double(), torch.cat(weights).to(dtype).double())
        found = product(x)
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_columns_are_shared_among_threads_whatever_their_number() -> None:
    before = torch.get_num_threads()
    x, weight = torch.randn(1, 16), torch.randn(12, 16)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = product_maker(torch.float32, torch.device("cpu"), 1)(weight)(x)
            torch.testing.assert_close(found, x @ weight.T, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("most_rows", [1, 32])
@pytest.mark.parametrize("outputs", [(12,), (1,), (7, 13)])
def test_a_copy_outlives_its_weights(dtype: torch.dtype, most_rows: int, outputs: tuple[int, ...]) -> None:
    weights = [torch.randn(n, 16).to(dtype) for n in outputs]
    x, expected = torch.randn(1, 16).to(dtype), torch.cat(weights)
    product = product_maker(dtype, torch.device("cpu"), most_rows, copy=True)(*weights)
    for weight in weights:
        weight.fill_(torch.nan)
    torch.testing.assert_close(product(x), x @ expected.T, rtol=2e-2, atol=2e-2)


def test_other_dtypes_use_the_default_library() -> None:
    x, weight = torch.randn(1, 16, dtype=torch.float64), torch.randn(12, 16)
    product = product_maker(torch.float64, torch.device("cpu"), 1)(weight)
    torch.testing.assert_close(product(x), x @ weight.double().T)
