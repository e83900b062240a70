"""Oracles: PyTorch's operations over the same weights (the path without a compiler), and fp64 products."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import OLMO_0424, ModelConfig
from model.decoding.compiled_step import CompiledStep
from model.decoding.decoder import Decoder
from model.decoding.generate import Sampling, generate
from model.decoding.linear_kernels import PackedProduct
from model.decoding.sampling import choose, uniform_noise
from model.kernels import library
from model.kernels.library import COMPILED_KERNELS, Kernels, compiled, instruction_sets, kernels_for
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.compiler
CPU = torch.device("cpu")
SHAPES = {
    "grouped": {"n_kv_heads": 2},
    "one key head, wide heads": {"d_model": 160, "n_heads": 2, "n_kv_heads": 1, "head_dim": 80},
    "odd widths": {"d_model": 54, "mlp_hidden": 70, "n_heads": 3, "n_kv_heads": 3, "head_dim": 18},
    "pre-norm": {"norm_placement": "input", "qk_norm": "none"},
    "pre-norm with qk-norm": {"norm_placement": "input"},
    "OLMo-0424": OLMO_0424 | {"qkv_clip": 0.3},
    "layer norm with qk-norm": {"norm": "layer", "qkv_clip": 0.5},
}


def toy(**changes: object) -> Transformer:
    fields: dict = {
        "d_model": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "mlp_hidden": 96, "vocab_size": 333,
        "max_sequence_length": 256, "init_std": 0.2,
    }  # fmt: skip
    return Transformer(ModelConfig(**{**fields, **changes}), seed=1)


def kernels(dtype: torch.dtype = torch.float32) -> Kernels:
    if not instruction_sets():
        pytest.skip("this processor has no AVX2")
    found = kernels_for(dtype, CPU)
    assert found is not None, "decode.cpp does not compile here, or computes wrongly; the warning in the log says which"
    return found


def prompts(lengths: list[int]) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(0, 300, size=length).tolist() for length in lengths]


@torch.inference_mode()
def decoded(model: Transformer, lengths: list[int], steps: int, dtype: torch.dtype) -> tuple[Decoder, list[Tensor]]:
    """Logits after the prompts and after each step; in the middle the first row ends and the last takes its place."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        decoder = Decoder(model, len(lengths), max(lengths) + steps)
        logits, used = [decoder.prefill(0, prompts(lengths))], list(lengths)
        for step in range(steps):
            if step == steps // 2 and len(used) > 1:
                last = used.pop()
                decoder.move(len(used), 0, last)
                used[0] = last
            logits.append(decoder.step([step + row for row in range(len(used))], used))
            used = [length + 1 for length in used]
    return decoder, logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("longest", [0, 512], ids=["after prefill by operations", "after compiled prefill"])
@pytest.mark.parametrize("lengths", [[70], [3, 60, 17, 129, 64]], ids=["one row", "five rows"])
def test_logits_equal_those_of_operations(
    shape: str, lengths: list[int], longest: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels(dtype)
    monkeypatch.setattr("model.decoding.decoder.LONGEST_PROMPT", longest)
    model = toy(**SHAPES[shape])
    decoder, found = decoded(model, lengths, 9, dtype)
    assert isinstance(decoder.cache, CompiledStep)
    monkeypatch.setenv(COMPILED_KERNELS, "0")
    decoder, expected = decoded(model, lengths, 9, dtype)
    assert not isinstance(decoder.cache, CompiledStep)
    ours, theirs = torch.cat(found), torch.cat(expected)
    if dtype == torch.float32:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        return
    # No further from fp32 than the operations are in bf16. Logits of one step err together, so all steps are taken.
    exact = torch.cat(decoded(model, lengths, 9, torch.float32)[1])
    assert (ours - exact).square().mean() < 1.5 * (theirs - exact).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_has_the_same_bytes_in_every_batch_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    kernels(dtype)
    model, before = toy(n_kv_heads=2), torch.get_num_threads()
    lengths, logits = [5, 66, 5, 129, 5, 40, 5, 5, 5, 5, 5, 5, 5, 5, 5], []
    try:
        for threads, rows in ((1, 1), (1, 3), (2, 15), (3, 2), (5, 1)):
            torch.set_num_threads(threads)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                decoder = Decoder(model, rows, 140)
                # Prompts of other lengths next to the row's own.
                steps = [decoder.prefill(0, [[7, 8, 9], *([5] * (1 + 5 * row) for row in range(rows - 1))])]
                steps += [decoder.step([step] * rows, [3 + step] * rows) for step in range(70)]
                # The other rows are at other positions by now, and leave before the last steps.
                steps.append(decoder.step([1] * rows, [73, *lengths[1:rows]]))
                logits.append([step[0].clone() for step in [*steps, decoder.step([2], [74])]])
    finally:
        torch.set_num_threads(before)
    for other in logits[1:]:
        assert all(torch.equal(a, b) for a, b in zip(logits[0], other, strict=True))


PRODUCTS = [(2, (1,)), (34, (7, 26)), (64, (32,)), (130, (300, 5, 40)), (4096, (70,))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("inputs", "outputs"), PRODUCTS)
def test_products_equal_fp64(dtype: torch.dtype, inputs: int, outputs: tuple[int, ...]) -> None:
    check_product(kernels(dtype), dtype, inputs, outputs)


def test_products_by_matrix_tiles_equal_fp64(tmp_path: Path) -> None:
    """The loops are those of processors with AMX; what its instructions do is written out in the source."""
    kernels()
    emulated = Kernels(compiled(["g++"], (*instruction_sets()[0], "-DOLMO2_EMULATE_AMX"), tmp_path))
    for inputs, outputs in [*PRODUCTS, (32, (32,)), (96, (5, 70))]:
        check_product(emulated, torch.bfloat16, inputs, outputs)


def check_product(kernels: Kernels, dtype: torch.dtype, inputs: int, outputs: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, inputs, generator=generator) for n in outputs]
    product = PackedProduct(kernels, dtype, weights)
    whole = torch.cat(weights).to(dtype).double()
    for rows in (1, 2, 3, 5, 8, 12, 13, 16, 17, 31, 200):
        x = torch.randn(rows, inputs, generator=generator).to(dtype)
        tolerance = 2e-5 if dtype == torch.float32 else 1e-2
        found = product(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), x.double() @ whole.T, rtol=tolerance, atol=tolerance * inputs**0.5)


def test_weights_of_bf16_are_packed_as_they_are() -> None:
    weight = torch.randn(40, 16).bfloat16()
    identity = torch.eye(16, dtype=torch.bfloat16)
    assert torch.equal(PackedProduct(kernels(torch.bfloat16), torch.bfloat16, [weight])(identity), weight.T)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_choices_equal_those_of_operations(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    logits = 3 * torch.randn(2_000, 517, generator=torch.Generator().manual_seed(0))
    logits[:, 511] = 9.0  # rows that pad the head may hold the largest
    noise = uniform_noise(1, np.arange(2_000), np.zeros(2_000, dtype=int))
    tokens, logprobs = choose(logits, temperature, 1.0, noise, 510)
    monkeypatch.setenv(COMPILED_KERNELS, "0")
    expected, expected_logprobs = choose(logits, temperature, 1.0, noise, 510)
    # A draw at the border of two tokens may fall to the other by rounding.
    assert (tokens != expected).sum() <= (0 if temperature == 0 else 1)
    same = tokens == expected
    torch.testing.assert_close(logprobs[same], expected_logprobs[same], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_has_no_weight_is_never_chosen_and_what_is_no_number_is_told(temperature: float) -> None:
    kernels()
    logits = torch.full((3, 300), -torch.inf)
    logits[0, 7], logits[1, 299] = 1.0, 2.0
    logits[2] = torch.nan
    tokens, logprobs = choose(logits, temperature, 1.0, np.array([0.5, 1 - 2**-53, 0.5]), 300)
    assert tokens[:2].tolist() == [7, 299]
    assert logprobs[:2].tolist() == [0.0, 0.0] and logprobs[2].isnan()


def test_without_a_compiler_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    tokenizer = Tokenizer(300)
    model = toy(vocab_size=tokenizer.padded_vocab_size)
    asked = prompts([3, 9, 20, 5, 40])
    found = generate(model, tokenizer, asked, Sampling(12), batch_size=2)
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    library._kernels.cache_clear()
    try:
        assert kernels_for(torch.float32, CPU) is None
        expected = generate(model, tokenizer, asked, Sampling(12), batch_size=2)
    finally:
        library._kernels.cache_clear()
    assert [answer.ids for answer in found] == [answer.ids for answer in expected]


def test_a_library_that_computes_wrongly_or_breaks_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels()
    source = tmp_path / "small.cpp"
    monkeypatch.setattr(library, "SOURCES", (source,))
    for body in ("return 1;", "__builtin_trap();"):
        source.write_text(f'extern "C" int olmo2_check() {{ {body} }}')
        with pytest.raises(subprocess.CalledProcessError):
            compiled(["g++"], (), tmp_path / "kernels")
        assert not list((tmp_path / "kernels").glob("*.so"))
    with pytest.raises(OSError, match=r"failed before .*once .*failed is removed"):
        compiled(["g++"], (), tmp_path / "kernels")
    source.write_text('extern "C" int olmo2_check() { return 0; }')
    found = compiled(["g++"], (), tmp_path / "kernels")
    made = found.stat().st_mtime_ns
    assert compiled(["g++"], (), tmp_path / "kernels") == found and found.stat().st_mtime_ns == made
    assert compiled(["g++"], ("-O1",), tmp_path / "kernels") != found, "other flags are another library"


def test_a_compiler_that_fails_is_told_once_and_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    kernels()
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library._kernels.cache_clear()
    try:
        assert kernels_for(torch.float32, CPU) is None and kernels_for(torch.float32, CPU) is None
    finally:
        library._kernels.cache_clear()
    (record,) = caplog.records
    assert "set CXX to another compiler" in record.getMessage()


def test_a_smaller_instruction_set_is_taken_where_the_best_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with a compiler older than the processor: it does not know the flag."""
    kernels()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    best = instruction_sets()[0]
    monkeypatch.setattr(library, "instruction_sets", lambda: [(*best, "-mno-such-instructions"), best])
    library._kernels.cache_clear()
    try:
        found = kernels_for(torch.float32, CPU)
        assert found is not None
        check_product(found, torch.float32, 34, (7, 26))
        assert len(list(tmp_path.rglob("*.failed"))) == 1
        assert len(list(tmp_path.rglob("*.so"))) == 1
    finally:
        library._kernels.cache_clear()


def test_a_library_that_was_cut_off_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernels()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = library._own_folder()
    # Other flags than this process has loaded already.
    flags = (*instruction_sets()[-1], "-DCUT_OFF")
    made = compiled(["g++"], flags, folder)
    made.unlink()
    made.write_bytes(b"\x7fELF")
    check_product(library._loaded(["g++"], flags, folder), torch.float32, 34, (7, 26))


@pytest.mark.parametrize("harm", ["others can write", "relative", "no home"])
def test_code_is_loaded_from_a_folder_of_the_users_own_only(
    harm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if harm == "others can write":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        library._own_folder().chmod(0o777)
        with pytest.raises(PermissionError, match="chmod 700"):
            library._own_folder()
    elif harm == "relative":
        for given in ("", "here"):
            monkeypatch.setenv("XDG_CACHE_HOME", given)
            assert library._own_folder() == tmp_path / "home/.cache/olmo2/kernels"
    else:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
        with pytest.raises(OSError, match="Set XDG_CACHE_HOME"):
            library._own_folder()


def test_a_broken_prompt_does_not_reach_another_through_the_cache() -> None:
    """In bf16 two positions lie together, and an odd prompt reads what an older row left behind its last."""
    kernels(torch.bfloat16)
    model = toy()
    with torch.no_grad():
        model.embedding.weight[299] = torch.nan
    asked = [[1] * 9, [2] * 9, [3] * 9 + [299, 4, 5]]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(FloatingPointError, match="after prompt 2 and 0 tokens"),
    ):
        generate(model, Tokenizer(300), asked, Sampling(4), batch_size=1)


def test_the_same_holds_with_avx2_only() -> None:
    kernels()
    if instruction_sets()[0] == library._AVX2:
        pytest.skip("these tests run with AVX2 already")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "equal or bytes"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3_000:]
    assert "skipped" not in done.stdout
