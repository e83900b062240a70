"""Generation speed on this machine's CPU against transformers' `generate`, same weights, same prompts, greedy.

Run alone: `python benchmarks/generate.py [--threads 2] [--repeats 5] [--peers dynamic,static,compiled,continuous]`. All
contestants run in this process, in turns, on the 11.0M model of `benchmarks/train.py`. The peer runs with its
dynamic cache (its default), its static cache, its static cache with the compiled step, and its continuous batching, which
gives a finished row the next prompt as ours does, each in fp32 and with bf16 weights (ours: fp32, and bf16 autocast). Ours
compiles nothing. Times include everything from ids to ids but compiling, which the peer does in a warm-up: preparing weights,
prefill, decoding. The figure is the best of the repeats. No answer ends early but in the case `refill`.

The last line is one JSON object. `ratio_batch1` and `ratio_batch32`: our tokens per second over those of the peer's
`generate` as it comes (dynamic cache), both fp32, prompts of 64 tokens; `ratio_fastest_...`: over the fastest of the
peer's modes; `..._bf16`: both in bf16; `..._unequal_batch32`: prompts of 16 to 112 tokens, which the peer pads;
`..._refill_batch32`: the only case in which answers end by themselves. 128 such prompts, 32 at a time, whose answers' lengths
are about exponentially distributed with a mean of 40 tokens, cut at 128; rates count the answers' tokens. But for continuous
batching the peer waits for the longest answer of each batch; `ratio_refilling_...` is over continuous batching alone.
`same_tokens`: share of equal answers in fp32 (two logits may be equal up to rounding). `of_limit_...`: our speed over what
the machine allows, counting only matmuls at the rate of the quickest large one measured, and reading weights and cache at the
rate measured for a sum.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import ModelConfig
from model.decoding.generate import Sampling, generate
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer

PROMPT_TOKENS, NEW_TOKENS = 64, 128
UNEQUAL_TOKENS = (16, 112)
ROWS, REFILL_PROMPTS, REFILL_CANDIDATES, REFILL_MEAN = 32, 128, 768, 40
PEERS = ("dynamic", "static", "compiled", "continuous")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Answers = list[list[int]]
Run = Callable[[], Any]


def build(
    d: int, layers: int, heads: int, mlp: int, ranks: int, eos_scale: float = 0.0
) -> tuple[Transformer, Tokenizer]:
    """A model with random weights whose vocabulary fits the tokenizer exactly. `eos_scale`: standard deviation of EOS's
    output row over that of the others.
    """
    tokenizer = Tokenizer(ranks)
    config = ModelConfig(
        d_model=d, n_layers=layers, n_heads=heads, n_kv_heads=heads, head_dim=d // heads, mlp_hidden=mlp,
        vocab_size=tokenizer.padded_vocab_size, max_sequence_length=512,
    )  # fmt: skip
    model = Transformer(config, seed=0)
    with torch.no_grad():  # a logit of 0 is never the largest: no answer ends early
        model.get_parameter("head.weight")[tokenizer.eos_id] *= eos_scale
    return model, tokenizer


def prompts(count: int, ranks: int, shortest: int = PROMPT_TOKENS, longest: int = PROMPT_TOKENS) -> Answers:
    random = np.random.default_rng(0)
    lengths = np.linspace(shortest, longest, count).astype(int)
    return [random.integers(0, ranks, size=length).tolist() for length in lengths]


def ours(model: Transformer, tokenizer: Tokenizer, batch: Answers, precision: str, **sampling: float) -> Answers:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        wanted = Sampling(NEW_TOKENS, **sampling)  # type: ignore[arg-type]
        answers = generate(model, tokenizer, batch, wanted, batch_size=min(len(batch), ROWS))
    return [answer.ids for answer in answers]


def refill_prompts(model: Transformer, tokenizer: Tokenizer) -> Answers:
    """Prompts whose greedy answers have the wanted lengths, found among random ones."""
    random = np.random.default_rng(0)
    candidates = prompts(REFILL_CANDIDATES, tokenizer.ranks, *UNEQUAL_TOKENS)
    lengths = np.array([len(answer) for answer in ours(model, tokenizer, candidates, "fp32")])
    chosen: Answers = []
    for wanted in np.minimum(random.exponential(REFILL_MEAN, REFILL_PROMPTS), NEW_TOKENS):
        nearest = int(np.abs(lengths - wanted).argmin())
        chosen.append(candidates[nearest])
        lengths[nearest] = 10 * NEW_TOKENS
    return chosen


def load_peer(model: Transformer, precision: str, eos_id: int | None = None) -> Any:
    """The same weights in transformers."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_hf(model, model.config, None, Path(folder))
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=TYPES[precision]).eval()
    peer.generation_config.eos_token_id = eos_id
    peer.generation_config.pad_token_id = 0
    return peer


def theirs(peer: Any, prompts: Answers, mode: str) -> Answers:
    """Batches of `ROWS` in the order given, padded on the left, as the peer wants them; or all, `ROWS` at a time."""
    if mode == "continuous":
        return their_stream(peer, prompts)
    return [
        answer for at in range(0, len(prompts), ROWS) for answer in their_batch(peer, prompts[at : at + ROWS], mode)
    ]


def their_stream(peer: Any, prompts: Answers) -> Answers:
    """Continuous batching: a row whose answer has ended takes the next prompt."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    ends = peer.generation_config.eos_token_id
    wanted = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1 if ends is None else ends, pad_token_id=0
    )
    longest = max(map(len, prompts)) + NEW_TOKENS
    how = ContinuousBatchingConfig(
        page_size=64,
        num_blocks=ROWS * -(-longest // 64),
        # Each step masks all it reads against all that is kept, so long prefills are cheaper in parts.
        max_batch_tokens=8 * PROMPT_TOKENS,
        max_requests_per_batch=ROWS,
        allow_block_sharing=False,
    )
    found = peer.generate_batch(prompts, generation_config=wanted, continuous_batching_config=how)
    # Requests are named in the order in which they were given.
    answers = sorted(found.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    return [list(answer.generated_tokens) for _, answer in answers]


def their_batch(peer: Any, batch: Answers, mode: str) -> Answers:
    from transformers import CompileConfig

    longest = max(map(len, batch))
    ids, mask = torch.zeros(2, len(batch), longest, dtype=torch.long)
    for row, prompt in enumerate(batch):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    how: dict[str, Any] = {}
    if mode != "dynamic":
        how = {"cache_implementation": "static", "disable_compile": mode == "static"}
    if mode == "compiled":
        # Their default compiles on GPUs only; the private switch is how their own tests compile elsewhere.
        how["compile_config"] = CompileConfig(mode="default", fullgraph=False)
        how["compile_config"]._compile_all_devices = True  # pyright: ignore[reportAttributeAccessIssue]
    out = peer.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, **how)
    eos_id = peer.generation_config.eos_token_id
    return [row[: row.index(eos_id) + 1] if eos_id in row else row for row in out[:, longest:].tolist()]


def best_seconds(contestants: dict[str, Run], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """The shortest time of each, run in turns so that other load on the machine meets all of them."""
    seconds = dict.fromkeys(contestants, float("inf"))
    for _ in range(repeats):
        for name, run in contestants.items():
            start = clock()
            run()
            seconds[name] = min(seconds[name], clock() - start)
    return seconds


def machine(clock: Callable[[], float]) -> dict[str, float]:
    """Rates that bound everything here: multiply-adds of the quickest large matmul (1/s), bytes read from memory (1/s)."""
    numbers = torch.randn(64_000_000)
    runs: dict[str, Run] = {"memory": numbers.sum}
    sizes = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024), (4096, 256, 1536))
    for precision, kind in TYPES.items():
        for rows, inner, columns in sizes:
            x, weight = torch.randn(rows, inner).to(kind), torch.randn(columns, inner).to(kind)
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            runs[f"{precision} {rows, inner, columns} packed"] = partial(
                torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], ""
            )
            runs[f"{precision} {rows, inner, columns}"] = partial(torch.mm, x, weight.T)
    with torch.inference_mode():
        seconds = best_seconds(runs, 5, clock)
    rates = {
        precision: max(
            math.prod(shape) / seconds[f"{precision} {shape}{how}"] for shape in sizes for how in ("", " packed")
        )
        for precision in TYPES
    }
    return rates | {"memory": numbers.numel() * 4 / seconds["memory"]}


def limit(config: ModelConfig, rows: int, precision: str, rates: dict[str, float]) -> float:
    """Tokens per second if matmuls and reading overlapped perfectly and nothing else took time."""
    d, width = config.d_model, TYPES[precision].itemsize
    block = config.n_layers * (d * d * 2 + 2 * d * config.n_kv_heads * config.head_dim + 3 * d * config.mlp_hidden)
    weights = block + d * config.vocab_size
    mean_length = PROMPT_TOKENS + NEW_TOKENS / 2
    cache = rows * mean_length * config.n_layers * 2 * config.n_kv_heads * config.head_dim
    step = max(rows * weights / rates[precision], (weights + cache) * width / rates["memory"])
    prefill = rows * PROMPT_TOKENS * block / rates[precision]
    return rows * NEW_TOKENS / (prefill + NEW_TOKENS * step)


@dataclass(frozen=True)
class Case:
    """A model and what it is asked."""

    model: Transformer
    tokenizer: Tokenizer
    prompts: Answers
    ends: bool = False
    """Whether EOS ends an answer."""


CASES = ("batch1", "batch32", "unequal_batch32", "refill_batch32")


def make_case(name: str) -> Case:
    shape = {"d": 256, "layers": 8, "heads": 4, "mlp": 768, "ranks": 8192 - 22}
    ending = name == "refill_batch32"
    model, tokenizer = build(**shape, eos_scale=2.4 if ending else 0.0)
    asked = {
        "batch1": lambda: prompts(1, tokenizer.ranks),
        "batch32": lambda: prompts(ROWS, tokenizer.ranks),
        "unequal_batch32": lambda: prompts(ROWS, tokenizer.ranks, *UNEQUAL_TOKENS),
        "refill_batch32": lambda: refill_prompts(model, tokenizer),
    }
    return Case(model, tokenizer, asked[name](), ends=ending)


def compare(
    case: Case, precision: str, modes: list[str], repeats: int, clock: Callable[[], float]
) -> tuple[dict[str, int], list[bool]]:
    """Tokens per second of ours and of each of the peer's modes; which answers of ours equal those of `dynamic`."""
    peer = load_peer(case.model, precision, case.tokenizer.eos_id if case.ends else None)
    contestants: dict[str, Run] = {"ours": partial(ours, case.model, case.tokenizer, case.prompts, precision)}
    contestants |= {mode: partial(theirs, peer, case.prompts, mode) for mode in modes}
    answers = {name: run() for name, run in contestants.items()}  # the warm-up
    seconds = best_seconds(contestants, repeats, clock)
    rate = {name: round(sum(map(len, answers[name])) / taken) for name, taken in seconds.items()}
    return rate, [a == b for a, b in zip(answers["ours"], answers["dynamic"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS), help="the peer's modes to run, dynamic among them")
    parser.add_argument("--precisions", default=",".join(TYPES), help="fp32, bf16 or both")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="processor: for one thread, where others work too",
    )
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    modes = arguments.peers.split(",")
    if "dynamic" not in modes or set(modes) - set(PEERS):
        parser.error(f"--peers {arguments.peers}: name dynamic, and any of {', '.join(PEERS)}")
    for option, known in (("cases", CASES), ("precisions", ("fp32", "bf16"))):
        if unknown := set(getattr(arguments, option).split(",")) - set(known):
            parser.error(f"--{option}: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    precisions = arguments.precisions.split(",")
    torch.set_num_threads(arguments.threads)
    cases, rates = {name: make_case(name) for name in arguments.cases.split(",")}, machine(clock)
    model = next(iter(cases.values())).model
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()), "threads": arguments.threads,
        "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "clock": arguments.clock, "load_average": os.getloadavg()[0],
        "machine": {name: float(f"{rate:.3g}") for name, rate in rates.items()},
    }  # fmt: skip
    same: list[bool] = []
    for precision in precisions:
        suffix = "" if precision == "fp32" else f"_{precision}"
        for name, case in cases.items():
            rate, equal = compare(case, precision, modes, arguments.repeats, clock)
            same += equal if precision == "fp32" else []
            fastest = max(modes, key=lambda mode: rate[mode])
            result[f"tokens_per_second_{name}{suffix}"] = rate | {"fastest_peer": fastest}
            result[f"ratio_{name}{suffix}"] = round(rate["ours"] / rate["dynamic"], 2)
            result[f"ratio_fastest_{name}{suffix}"] = round(rate["ours"] / rate[fastest], 2)
            if "continuous" in rate:
                result[f"ratio_refilling_{name}{suffix}"] = round(rate["ours"] / rate["continuous"], 2)
            if name in ("batch1", "batch32"):
                bound = limit(model.config, len(case.prompts), precision, rates)
                result[f"of_limit_{name}{suffix}"] = round(rate["ours"] / bound, 2)
            print(f"{precision} {name}: {rate}", file=sys.stderr)
    result["same_tokens"] = sum(same) / len(same) if same else None
    if "batch32" in cases and "fp32" in precisions:
        batch32 = cases["batch32"]
        sampled = partial(ours, batch32.model, batch32.tokenizer, batch32.prompts, "fp32", temperature=1.0)
        result["sampled_tokens_per_second_batch32"] = round(
            ROWS * NEW_TOKENS / best_seconds({"sampled": sampled}, arguments.repeats, clock)["sampled"]
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
