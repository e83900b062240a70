"""Oracles: the training forward on whole sequences; counting of the tokens that a model reads."""

import itertools

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.decoding import kv_cache, prefix_tree, shared_prefix, tree_attention
from model.decoding.decoder import Decoder
from model.decoding.generate import Sampling, generate
from model.decoding.prepared_weights import Prepared
from model.decoding.shared_prefix import Admission
from model.kernels.library import COMPILED_KERNELS
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer

TOKENIZER = Tokenizer(300)


def toy(kv_heads: int = 2) -> Transformer:
    config = ModelConfig(
        d_model=32, n_layers=2, n_heads=4, n_kv_heads=kv_heads, head_dim=8, mlp_hidden=64, init_std=0.3,
        vocab_size=TOKENIZER.padded_vocab_size, max_sequence_length=256,
    )  # fmt: skip
    return Transformer(config, seed=0)


def prompts(seed: int = 0) -> list[list[int]]:
    """Two families with shots of their own, repeated prompts, one that is the beginning of others, and some alone."""
    random = np.random.default_rng(seed)

    def ids(n: int) -> list[int]:
        return random.integers(0, 300, n).tolist()

    first, second, alone = ids(90), ids(40), [ids(n) for n in (1, 20, 33)]
    found = [first + ids(n) for n in (5, 1, 9, 30, 2)] + [first] + [second + ids(n) for n in (3, 3, 17)] + alone
    found += [found[0]] * 3 + [second[:20]] * 2
    return [found[place] for place in random.permutation(len(found))]


@torch.inference_mode()
def naive(model: Transformer, prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]))[0, -1, : TOKENIZER.vocab_size].argmax()))
        if ids[-1] == TOKENIZER.eos_id:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", [None, kv_cache.BagCache, kv_cache.DenseCache], ids=["compiled", "bags", "dense"])
@pytest.mark.parametrize(("kv_heads", "batch", "row"), [(2, 64, 1_024), (4, 3, 7), (1, 1, 1_024), (2, 5, 64)])
def test_answers_after_shared_prefixes_equal_a_naive_full_forward(monkeypatch, kind, kv_heads, batch, row) -> None:
    monkeypatch.setattr(prefix_tree, "MAX_ROW_TOKENS", row)
    if kind is not None:
        monkeypatch.setenv(COMPILED_KERNELS, "0")
        monkeypatch.setattr("model.decoding.decoder.make_cache", kind)
    if kind is kv_cache.DenseCache:
        monkeypatch.setattr(tree_attention, "_attend", tree_attention._explicit)
    model, asked = toy(kv_heads), prompts()
    answers = generate(model, TOKENIZER, asked, Sampling(max_new_tokens=12), batch_size=batch)
    assert [answer.ids for answer in answers] == [naive(model, prompt, 12) for prompt in asked]


def test_samples_are_those_of_prompts_that_are_read_whole(monkeypatch) -> None:
    model, asked = toy(), prompts()
    sampling = Sampling(max_new_tokens=20, temperature=1.0, seed=5)
    together = generate(model, TOKENIZER, asked, sampling)
    monkeypatch.setattr(shared_prefix, "LEAST_SAVED", 2.0)
    whole = generate(model, TOKENIZER, asked, sampling)
    assert [one.ids for one in together] == [one.ids for one in whole]
    for one, other in zip(together, whole, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_shared_tokens_are_read_once(monkeypatch) -> None:
    read: list[int] = []
    blocks = Prepared.blocks

    def counted(self, ids, turns, attend, wanted=None):
        read.append(len(ids))
        return blocks(self, ids, turns, attend, wanted)

    monkeypatch.setattr(Prepared, "blocks", counted)
    random = np.random.default_rng(1)
    shots = random.integers(0, 300, 150).tolist()
    asked = [shots + random.integers(0, 300, 10).tolist() for _ in range(24)]
    generate(toy(), TOKENIZER, asked, Sampling(max_new_tokens=1), batch_size=8)
    assert 150 + 24 * 10 <= sum(read) <= 150 + 24 * 12


def test_one_prompt_asked_many_times_is_read_once(monkeypatch) -> None:
    """As in rollouts: by what reads prompts alone, so a first token's log-probability is that of a prompt asked once."""
    read: list[int] = []
    prefill = Decoder.prefill

    def counted(self, first_row, prompts):
        read.extend(map(len, prompts))
        return prefill(self, first_row, prompts)

    monkeypatch.setattr(Decoder, "prefill", counted)
    random = np.random.default_rng(4)
    asked = [random.integers(0, 300, n).tolist() for n in (20, 33, 20)]
    model, sampling = toy(), Sampling(max_new_tokens=9, temperature=1.0, seed=5)
    many = generate(model, TOKENIZER, [prompt for prompt in asked for _ in range(8)], sampling)
    assert sorted(read) == [20, 20, 33]
    alone = [generate(model, TOKENIZER, [prompt] * 8, sampling) for prompt in asked]
    assert [one.ids for one in many[:8]] == [one.ids for one in alone[0]]
    assert len({tuple(one.ids) for one in many[:8]}) > 4, "copies of a row sample for themselves"


def test_copies_of_a_prompt_with_shots_share_them_with_the_next() -> None:
    shots = list(range(100))
    admission = Admission([[*shots, 1]] * 4 + [[*shots, 2]] * 4)
    assert admission.take(4, 10_000) == ([0, 1, 2, 3], 100)


@pytest.mark.parametrize(("free", "most"), [(1, 1), (3, 64), (64, 100_000)])
def test_every_prompt_is_admitted_once_with_what_it_really_shares(free: int, most: int) -> None:
    asked = prompts(3)
    admission, seen = Admission(asked), []
    while admission.waiting:
        indices, shared = admission.take(free, most)
        assert 1 <= len(indices) <= free
        together = [asked[index] for index in indices]
        assert all(one[:shared] == other[:shared] for one, other in itertools.pairwise(together))
        copies = len(together) > 1 and all(one == together[0] for one in together)
        assert shared < min(map(len, together)) or (copies and shared == len(together[0]))
        assert len(indices) == 1 or len(indices) * (max(map(len, together)) - shared) <= most
        seen += indices
    assert sorted(seen) == list(range(len(asked)))


def test_prompts_that_share_little_keep_their_order() -> None:
    random = np.random.default_rng(2)
    asked = [random.integers(0, 300, 30).tolist() for _ in range(10)]
    assert Admission(asked).order == list(range(10))
    assert Admission(asked).take(4, 60) == ([0, 1], 0)
