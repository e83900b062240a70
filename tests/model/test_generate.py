"""Oracles: the training forward (`Transformer`) on whole sequences, a naive loop over it, transformers'
generate, and the definitions of the distributions.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import OLMO_0424, ModelConfig
from model.decoding.decoder import Decoder
from model.decoding.generate import Completion, Sampling, generate, log_likelihoods
from model.decoding.sampling import choose, uniform_noise
from model.kernels.library import COMPILED_KERNELS
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer

TOKENIZER = Tokenizer(300)


def toy(seed: int = 0, **changes: object) -> Transformer:
    fields: dict = {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "mlp_hidden": 64,
        "vocab_size": TOKENIZER.padded_vocab_size,
        "max_sequence_length": 64,
        "init_std": 0.3,
    }
    return Transformer(ModelConfig(**{**fields, **changes}), seed=seed)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 300, size=random.integers(1, 20)).tolist() for _ in range(count)]


@torch.inference_mode()
def naive_greedy(model: Transformer, prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        # The rows after the tokenizer's only pad the head.
        ids.append(int(model(torch.tensor([ids]))[0, -1, : TOKENIZER.vocab_size].argmax()))
        if ids[-1] == TOKENIZER.eos_id:
            break
    return ids[len(prompt) :]


@torch.inference_mode()
def forward_logprobs(model: Transformer, prompt: list[int], answer: list[int], temperature: float) -> Tensor:
    logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / (temperature or 1.0), -1).gather(-1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 4},
        {"norm_placement": "input", "qk_norm": "none"},
        {"norm_placement": "input"},
        OLMO_0424 | {"qkv_clip": 0.3},
        {"norm": "layer", "qkv_clip": 0.5},
    ],
    ids=["grouped", "full heads", "pre-norm", "pre-norm with qk-norm", "OLMo-0424", "layer norm with qk-norm"],
)
@pytest.mark.parametrize("compiled", ["1", "0"], ids=["compiled", "operations"])
def test_greedy_tokens_equal_a_naive_full_forward(
    changes: dict, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMPILED_KERNELS, compiled)
    model = toy(**changes)
    asked = prompts(13)
    answers = generate(model, TOKENIZER, asked, Sampling(max_new_tokens=15), batch_size=4)
    assert [answer.ids for answer in answers] == [naive_greedy(model, prompt, 15) for prompt in asked]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_equal_the_training_forward(temperature: float) -> None:
    model = toy()
    asked = prompts(9)
    sampling = Sampling(max_new_tokens=20, temperature=temperature, seed=3)
    for prompt, answer in zip(asked, generate(model, TOKENIZER, asked, sampling, batch_size=4), strict=True):
        expected = forward_logprobs(model, prompt, answer.ids, temperature)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampling", [Sampling(20, temperature=1.0, seed=5), Sampling(20, temperature=0.8, top_p=0.9)])
def test_samples_do_not_depend_on_the_batch(sampling: Sampling) -> None:
    model, asked = toy(), prompts(17)
    together = generate(model, TOKENIZER, asked, sampling, batch_size=64)
    for batch_size in (1, 3, 8):
        assert [a.ids for a in generate(model, TOKENIZER, asked, sampling, batch_size=batch_size)] == [
            a.ids for a in together
        ]


def test_as_many_rows_decode_together_as_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, sampling = toy(), prompts(9), Sampling(12, temperature=1.0, seed=5)
    expected = generate(model, TOKENIZER, asked, sampling)
    row_bytes = 2 * 2 * 2 * 8 * 4 * (max(map(len, asked)) + 12)  # keys and values, layers, heads, their width, fp32
    monkeypatch.setattr("model.decoding.decoder.free_bytes", lambda device: 4 * row_bytes)
    seen: list[int] = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, ids, at: (seen.append(len(ids)), step(self, ids, at))[1])
    assert [answer.ids for answer in generate(model, TOKENIZER, asked, sampling)] == [answer.ids for answer in expected]
    assert max(seen) == 3, "four would take all memory"


def test_a_part_of_the_prompts_is_answered_as_among_all() -> None:
    model, asked, sampling = toy(), prompts(9), Sampling(12, temperature=1.0, seed=5)
    together = generate(model, TOKENIZER, asked, sampling)
    apart = [generate(model, TOKENIZER, asked[at : at + 3], replace(sampling, first_prompt=at)) for at in (0, 3, 6)]
    assert [answer.ids for part in apart for answer in part] == [answer.ids for answer in together]


def test_the_same_prompt_gets_other_noise_at_another_index_and_seed() -> None:
    model, prompt = toy(init_std=0.05), [5, 6, 7]
    first, second = generate(model, TOKENIZER, [prompt, prompt], Sampling(12, temperature=1.0))
    other = generate(model, TOKENIZER, [prompt], Sampling(12, temperature=1.0, seed=1))[0]
    assert first.ids != second.ids
    assert first.ids != other.ids
    assert first.ids == generate(model, TOKENIZER, [prompt], Sampling(12, temperature=1.0))[0].ids


def biased(token: int, strength: float = 100.0) -> Transformer:
    """A model that wants `token` next, whatever came before."""
    model = toy(d_model=16, n_heads=2, n_kv_heads=2, n_layers=1)
    with torch.no_grad():
        model.get_parameter("head.weight").zero_()
        model.get_parameter("embedding.weight").fill_(1.0)
        hidden = model.hidden(torch.tensor([[0]]))[0, 0]
        model.get_parameter("head.weight")[token] = strength * hidden / hidden.square().sum()
    return model


def test_eos_ends_an_answer_and_stays_in_its_ids() -> None:
    answer = generate(biased(TOKENIZER.eos_id), TOKENIZER, [[1, 2]], Sampling(5))[0]
    assert answer == Completion([TOKENIZER.eos_id], "", answer.logprobs, "stop")
    assert answer.logprobs[0] == pytest.approx(0.0, abs=1e-6)


def test_a_prompt_that_holds_eos_is_no_reason_to_stop() -> None:
    answer = generate(biased(65), TOKENIZER, [[TOKENIZER.eos_id, 1]], Sampling(5))[0]
    assert (answer.ids, answer.finish) == ([65] * 5, "length")


def test_stop_texts_end_an_answer_and_are_cut_off() -> None:
    letter = TOKENIZER.encode("a")[0]
    answer = generate(biased(letter), TOKENIZER, [[1]], Sampling(9, stop=("zz", "aaa")))[0]
    assert (answer.ids, answer.text, answer.finish) == ([letter] * 3, "", "stop")
    assert generate(biased(letter), TOKENIZER, [[1]], Sampling(4, stop=("b",)))[0].text == "aaaa"
    answer = generate(biased(TOKENIZER.special("<|im_end|>")), TOKENIZER, [[1]], Sampling(9, stop=("<|im_end|>",)))[0]
    assert (len(answer.ids), answer.text, answer.finish) == (1, "", "stop")


def test_text_before_a_stop_inside_a_token_is_kept() -> None:
    token = TOKENIZER.encode("in")
    assert len(token) == 1
    answer = generate(biased(token[0]), TOKENIZER, [[1]], Sampling(9, stop=("ni",)))[0]
    assert (answer.ids, answer.text) == (token * 2, "i")


def test_answers_end_at_the_edge_of_the_window() -> None:
    model, prompt = toy(max_sequence_length=16), list(range(12))
    answer = generate(model, TOKENIZER, [prompt], Sampling(50))[0]
    assert (len(answer.ids), answer.finish) == (4, "length")
    assert answer.ids == naive_greedy(model, prompt, 4)


def test_progress_counts_every_prompt_once() -> None:
    told: list[int] = []
    generate(toy(), TOKENIZER, prompts(11), Sampling(6, temperature=1.0), batch_size=3, progress=told.append)
    assert sum(told) == 11
    assert min(told) > 0


def test_no_prompts_give_no_answers() -> None:
    assert generate(toy(), TOKENIZER, [], Sampling(4)) == []


def test_wrong_arguments_are_explained() -> None:
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        generate(toy(), TOKENIZER, [[1], []], Sampling(4))
    for wrong_id, said in ((322, "322"), (-1, "-1"), (10**9, "1,000,000,000")):
        with pytest.raises(ValueError, match=f"prompt 1 has the id {said}; the vocabulary has ids 0 to 321"):
            generate(toy(), TOKENIZER, [[1], [1, wrong_id]], Sampling(4))
    with pytest.raises(ValueError, match="between 1 and 63"):
        generate(toy(), TOKENIZER, [[1] * 64], Sampling(4))
    with pytest.raises(ValueError, match="use the tokenizer that the model was trained with"):
        generate(toy(vocab_size=512), TOKENIZER, [[1]], Sampling(4))
    with pytest.raises(ValueError, match="batch_size=0"):
        generate(toy(), TOKENIZER, [[1]], Sampling(4), batch_size=0)
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"stop": ("",)}, {"stop": "abc"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**{"max_new_tokens": 4, **wrong})  # type: ignore[arg-type]


def test_autocast_decodes_in_its_precision() -> None:
    model, asked = toy(), prompts(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers = generate(model, TOKENIZER, asked, Sampling(10))
        expected = [forward_logprobs(model, p, a.ids, 0.0) for p, a in zip(asked, answers, strict=True)]
    for answer, logprobs in zip(answers, expected, strict=True):
        torch.testing.assert_close(torch.tensor(answer.logprobs), logprobs.float(), atol=0.1, rtol=0.02)


# --- sampling -----------------------------------------------------------------------------------------------
# --------------


@settings(max_examples=30)
@given(seed=st.integers(0, 2**63), count=st.integers(1, 50))
def test_noise_is_a_function_of_its_key_and_lies_inside_the_unit_interval(seed: int, count: int) -> None:
    indices = np.arange(count)
    noise = uniform_noise(seed, indices, indices * 3)
    assert noise.min() > 0
    assert noise.max() < 1
    alone = [uniform_noise(seed, indices[i : i + 1], indices[i : i + 1] * 3)[0] for i in range(count)]
    np.testing.assert_array_equal(noise, alone)


def test_noise_is_uniform_and_uncorrelated() -> None:
    prompt, position = (axis.ravel() for axis in np.meshgrid(np.arange(300), np.arange(300), indexing="ij"))
    noise = uniform_noise(0, prompt, position).reshape(300, 300)
    counts = np.histogram(noise, bins=50, range=(0, 1))[0]
    assert ((counts - 1_800) ** 2 / 1_800).sum() < 95  # chi-square, 49 degrees of freedom, p about 1e-4
    for other in (np.roll(noise, 1, 0), np.roll(noise, 1, 1), uniform_noise(1, prompt, position).reshape(300, 300)):
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.015


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_tokens_are_drawn_with_their_probability(temperature: float, top_p: float) -> None:
    logits = torch.tensor([0.1, 2.0, -1.0, 1.5, 0.0, -5.0])
    count = 40_000
    noise = uniform_noise(7, np.arange(count), np.zeros(count, dtype=np.int64))
    tokens, logprobs = choose(logits.expand(count, -1), temperature, top_p, noise, ids=6)
    probabilities = torch.softmax(logits / temperature, -1)
    torch.testing.assert_close(logprobs, probabilities.log()[tokens])
    if top_p < 1:
        probabilities = torch.where(torch.isin(torch.arange(6), torch.tensor([1, 3])), probabilities, 0.0)
        probabilities /= probabilities.sum()  # 0.50 and 0.30: the two together are the first to reach 0.6
    frequencies = torch.bincount(tokens, minlength=6) / count
    torch.testing.assert_close(frequencies, probabilities, atol=0.012, rtol=0)


def test_the_most_likely_token_survives_the_smallest_top_p() -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    noise = uniform_noise(0, np.arange(64), np.zeros(64, dtype=np.int64))
    assert torch.equal(choose(logits, 1.0, 1e-6, noise, ids=100)[0], logits.argmax(-1))


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.9)])
def test_rows_without_a_token_are_never_chosen_but_count_in_the_log_probability(
    temperature: float, top_p: float
) -> None:
    """Oracle: a training, whose log-probabilities are over all rows of the head."""
    logits = torch.zeros(2_000, 384)
    logits[:, 322:] = 1.0
    before = logits.clone()
    noise = uniform_noise(3, np.arange(2_000), np.zeros(2_000, dtype=np.int64))
    tokens, logprobs = choose(logits, temperature, top_p, noise, ids=322)
    assert torch.equal(logits, before)
    assert int(tokens.max()) <= 321
    assert len(tokens.unique()) == 1 if temperature == 0 else len(tokens.unique()) > 200
    torch.testing.assert_close(logprobs, torch.log_softmax(before, -1)[:, 0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_untrained_head_generates_tokens_only(temperature: float) -> None:
    """384 rows, 322 tokens; equal logits but for a bias towards the rows between."""
    model = toy()
    with torch.no_grad():
        model.head.weight[:322] *= 1e-3
    sampling = Sampling(max_new_tokens=20, temperature=temperature)
    found = generate(model, TOKENIZER, prompts(20), sampling)
    assert max(id for completion in found for id in completion.ids) < TOKENIZER.vocab_size


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_output_that_is_not_finite_is_refused(temperature: float, top_p: float) -> None:
    model = toy()
    with torch.no_grad():
        model.head.weight[5, 3] = torch.nan
    with pytest.raises(FloatingPointError, match="after prompt 0 and 0 tokens of its answer is not finite"):
        generate(model, TOKENIZER, prompts(3), Sampling(max_new_tokens=4, temperature=temperature, top_p=top_p))


# --- log-likelihoods
# ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def naive_log_likelihood(model: Transformer, context: list[int], continuation: list[int]) -> float:
    ids = (context + continuation)[-(model.config.max_sequence_length + 1) :]
    logprobs = torch.log_softmax(model(torch.tensor([ids[:-1]]))[0].double(), -1)[-len(continuation) :]
    return float(logprobs.gather(-1, torch.tensor(continuation)[:, None]).sum())


@pytest.mark.parametrize("batch_tokens", [1, 64, 16_384])
def test_log_likelihoods_equal_single_forwards(batch_tokens: int) -> None:
    model = toy()
    requests = [(a, b) for a, b in zip(prompts(12), prompts(12, seed=1), strict=True)]
    requests.append(([3] * 200, [4, 5]))  # loses context on the left
    told: list[int] = []
    scores = log_likelihoods(model, requests, batch_tokens=batch_tokens, progress=told.append)
    assert sum(told) == len(requests)
    for score, request in zip(scores, requests, strict=True):
        assert score == pytest.approx(naive_log_likelihood(model, *request), abs=1e-4)


def test_log_likelihoods_refuse_what_has_no_score() -> None:
    with pytest.raises(ValueError, match="request 0 has an empty context"):
        log_likelihoods(toy(), [([], [1])])
    with pytest.raises(ValueError, match="request 1 has an empty continuation"):
        log_likelihoods(toy(), [([1], [1]), ([1], [])])
    with pytest.raises(ValueError, match="continuation of 65 tokens"):
        log_likelihoods(toy(), [([1], [1] * 65)])
    assert log_likelihoods(toy(), []) == []


# --- parity -------------------------------------------------------------------------------------------------
# --------------


@pytest.mark.parity
def test_greedy_tokens_equal_transformers_generate() -> None:
    import transformers

    model = toy()
    config = model.config
    theirs = transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.mlp_hidden,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_sequence_length,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            eos_token_id=TOKENIZER.eos_id,
            bos_token_id=None,
            pad_token_id=TOKENIZER.pad_id,
        )
    ).eval()
    theirs.load_state_dict({_hf_name(name): value for name, value in model.state_dict().items()})
    asked = prompts(6)
    settings = {
        "max_new_tokens": 20,
        "do_sample": False,
        "suppress_tokens": list(range(TOKENIZER.vocab_size, config.vocab_size)),
    }
    for prompt, answer in zip(asked, generate(model, TOKENIZER, asked, Sampling(20)), strict=True):
        ids = torch.tensor([prompt])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert out[0, len(prompt) :].tolist() == answer.ids


def _hf_name(name: str) -> str:
    """RECIPE A.6, written independently of model/files/weights.py."""
    for ours, published in (
        ("embedding.", "model.embed_tokens."),
        ("blocks.", "model.layers."),
        ("attention.q_norm", "self_attn.q_norm"),
        ("attention.k_norm", "self_attn.k_norm"),
        ("attention_norm", "post_attention_layernorm"),
        ("feed_forward_norm", "post_feedforward_layernorm"),
        *((f"attention.{part}.", f"self_attn.{part}_proj.") for part in "qkv"),
        ("attention.out", "self_attn.o_proj"),
        *((f"feed_forward.{part}", f"mlp.{part}_proj") for part in ("gate", "up", "down")),
        ("head.", "lm_head."),
    ):
        name = name.replace(ours, published)
    return "model.norm.weight" if name == "norm.weight" else name
