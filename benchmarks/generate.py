"""Generation speed on this machine's CPU against transformers' `generate`, same weights, same prompts,
greedy.

Run alone: `python benchmarks/generate.py [--threads 2] [--repeats 5]`. Both contestants run in this process,
in turns, on the 11.0M model of `benchmarks/train.py` in fp32, transformers in its default settings (sdpa
attention, dynamic cache). Times include everything from ids to ids: preparing weights, prefill, decoding. The
figure is the best of the repeats. No answer ends early and all prompts are equally long: continuous refill,
our advantage on real answers, plays no part in the ratios.

The last line is one JSON object; `ratio_batch1` and `ratio_batch32` are our tokens per second over theirs,
`same_tokens` the share of equal answers (two logits may be equal up to rounding), `toy_tokens_per_second`
ours alone at batch 64 on d 128, 4 layers.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import ModelConfig
from model.generate import Sampling, generate
from model.tokenizer import Tokenizer
from model.transformer import Transformer
from model.weights import save_hf

PROMPT_TOKENS, NEW_TOKENS = 64, 128

Answers = list[list[int]]


def build(d: int, layers: int, heads: int, mlp: int, ranks: int) -> tuple[Transformer, Tokenizer]:
    """A model with random weights whose vocabulary fits the tokenizer exactly."""
    tokenizer = Tokenizer(ranks)
    config = ModelConfig(
        d_model=d, n_layers=layers, n_heads=heads, n_kv_heads=heads, head_dim=d // heads, mlp_hidden=mlp,
        vocab_size=tokenizer.padded_vocab_size, max_sequence_length=512,
    )  # fmt: skip
    model = Transformer(config, seed=0)
    with torch.no_grad():  # a logit of 0 is never the largest: no answer ends early
        model.get_parameter("head.weight")[tokenizer.eos_id] = 0.0
    return model, tokenizer


def prompts(count: int, ranks: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, ranks, size=(count, PROMPT_TOKENS)).tolist()


def ours(model: Transformer, tokenizer: Tokenizer, batch: Sequence[list[int]], tokens: int) -> Answers:
    answers = generate(model, tokenizer, batch, Sampling(max_new_tokens=tokens), batch_size=len(batch))
    return [answer.ids for answer in answers]


def load_peer(model: Transformer) -> Any:
    """The same weights in transformers."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_hf(model, model.config, None, Path(folder))
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    return peer


def theirs(peer: Any, batch: Sequence[list[int]], tokens: int) -> Answers:
    ids = torch.tensor(batch)
    out = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return out[:, ids.shape[1] :].tolist()


def best_seconds(contestants: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """The shortest time of each, run in turns so that other load on the machine meets all of them."""
    seconds = [float("inf")] * len(contestants)
    for _ in range(repeats):
        for index, run in enumerate(contestants):
            start = time.perf_counter()
            run()
            seconds[index] = min(seconds[index], time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = build(d=256, layers=8, heads=4, mlp=768, ranks=8192 - 22)
    peer = load_peer(model)
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()), "threads": arguments.threads,
        "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "load_average": os.getloadavg()[0],
    }  # fmt: skip
    same = 0
    for size in (1, 32):
        batch = prompts(size, tokenizer.ranks)
        mine, their = ours(model, tokenizer, batch, NEW_TOKENS), theirs(peer, batch, NEW_TOKENS)
        same += sum(a == b for a, b in zip(mine, their, strict=True))
        pair = [lambda b=batch: ours(model, tokenizer, b, NEW_TOKENS), lambda b=batch: theirs(peer, b, NEW_TOKENS)]
        fast, slow = best_seconds(pair, arguments.repeats)
        result[f"ours_batch{size}"], result[f"transformers_batch{size}"] = (
            round(size * NEW_TOKENS / seconds) for seconds in (fast, slow)
        )
        result[f"ratio_batch{size}"] = round(slow / fast, 2)
        print(f"batch {size}: {result[f'ratio_batch{size}']} x", file=sys.stderr)
    result["same_tokens"] = same / 33
    toy, toy_tokenizer = build(d=128, layers=4, heads=4, mlp=512, ranks=640 - 22)
    batch = prompts(64, toy_tokenizer.ranks)
    seconds = best_seconds([lambda: ours(toy, toy_tokenizer, batch, NEW_TOKENS)], arguments.repeats)[0]
    result["toy_tokens_per_second"] = round(64 * NEW_TOKENS / seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
