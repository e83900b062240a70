"""Evaluation speed against lm-evaluation-harness and a plain transformers loop that reuses prefixes, same weights, same texts.

Run alone: `python benchmarks/evaluation.py [--items 300] [--problems 32] [--lm-eval-python P]`; the peer gets an environment
of its own (.venv-lm-eval), made when missing. The 30M model with random weights and V = 100,352 answers items in the shape of
ARC-C with 5 shots, as cloze and as multiple choice, and problems in the shape of GSM8K with 8 shots (greedy, 64 tokens).
Contestants run one after the other, each in a process of its own with one thread, which reports its CPU seconds from texts
to scores; other load on the machine hardly enters them. lm-eval runs with each batch size of `BATCH_SIZES`; its best counts.

The last line is one JSON object. `ratio_cloze`, `ratio_multiple_choice`, `ratio_gsm8k`: our requests per CPU second over
lm-eval's; `ratio_prefix_cloze`, `ratio_prefix_multiple_choice`: over the loop's. `of_limit`: our speed on cloze over what the
machine allows if every distinct token were read once, and every scored place met the head once, at the rate measured for
large fp32 matmuls. `largest_difference`: between our log-likelihoods and each peer's, nats.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.environment import peer_python
from peers.evaluation_texts import ranked_requests, worked_problems

from infra.processor import processor_name
from model.config import ModelConfig
from model.decoding.generate import Sampling, generate
from model.decoding.prefix_tree import build
from model.decoding.prepared_weights import Prepared
from model.files.weights import load_hf, save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks.asking import Asked, ask, encode_pair, local_scorer
from tasks.evaluation.benchmarks.items import Likelihood, Prompt

LM_EVAL = ("lm-eval[hf]>=0.4.11,<0.5",)
BATCH_SIZES = (1, 8)
NEW_TOKENS = 64
KINDS = ("cloze", "multiple_choice")
PEER = Path(__file__).parent / "peers" / "lm_eval_scores.py"


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def make_model(folder: Path) -> None:
    tokenizer = Tokenizer()
    config = ModelConfig(size="30M", vocab_size=tokenizer.padded_vocab_size, max_sequence_length=2048)
    save_hf(Transformer(config, seed=0), config, tokenizer, folder)


def ours(job: dict[str, Any]) -> tuple[float, list[Any]]:
    """CPU seconds and answers."""
    model, _ = load_hf(Path(job["folder"]))
    tokenizer = Tokenizer.load(Path(job["folder"]))
    if job["kind"] == "generate_until":
        sampling = Sampling(NEW_TOKENS, stop=("Question:",))

        def answer(requests: list[Any]) -> list[Any]:
            prompts = [tokenizer.encode(text) for text, _ in requests]
            return [c.text for c in generate(model, tokenizer, prompts, sampling)]
    else:

        def answer(requests: list[Any]) -> list[Any]:
            likelihoods = [Likelihood(Prompt(text=context), text) for context, text in requests]
            asked: Asked = ask(
                tokenizer, likelihoods, generator=no_generator, scorer=local_scorer(model), max_context=2048,
                progress=lambda n: None,
            )  # fmt: skip
            return [one.logprob for one in asked.answers if not isinstance(one, str)]

    answer(job["requests"][:4])
    begun = cpu_seconds()
    answers = answer(job["requests"])
    return cpu_seconds() - begun, answers


def no_generator(prompts: Any, sampling: Any, progress: Any = None) -> Any:
    raise AssertionError("likelihoods need no generation")


def run(who: str, python: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"who": who}))
    command = [sys.executable, __file__, "--job", str(path)] if who == "ours" else [python, str(PEER), str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def product_speed(model: Transformer) -> float:
    """Floating-point operations per second of large fp32 matmuls with one thread: the best of the model's own shapes."""
    prepared = Prepared(model, 128, 1)
    x = torch.randn(1024, model.config.d_model)
    best = 0.0
    for product, width in (
        (prepared.layers[0].gate_up, 2 * model.config.mlp_hidden),
        (prepared.head[0], model.config.vocab_size),
    ):
        rows = x if width < 10_000 else x[:128]
        for _ in range(5):
            begun = cpu_seconds()
            for _ in range(10):
                product(rows)
            best = max(best, 10 * 2 * len(rows) * model.config.d_model * width / (cpu_seconds() - begun))
    return best


def least_seconds(model: Transformer, requests: list[tuple[str, str]], speed: float) -> float:
    """Time of the matmuls with each distinct token once, and with the head once per scored place."""
    tokenizer, config = Tokenizer(), model.config
    pairs = [encode_pair(tokenizer, Likelihood(Prompt(text=c), t)) for c, t in requests]
    sequences = sorted({(*context, *continuation[:-1]) for context, continuation in pairs})
    tokens = sum(len(node.tokens) for node in build(sequences)[0])
    places = {tuple(context + continuation[:n]) for context, continuation in pairs for n in range(len(continuation))}
    blocks = sum(p.numel() for block in model.blocks for p in block.parameters())
    return 2 * (tokens * blocks + len(places) * config.vocab_size * config.d_model) / speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--peer-items", type=int, help="items that lm-eval answers, for its rate; all by default")
    parser.add_argument("--lm-eval-python", help="Python of an environment that has lm-eval")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.job:
        seconds, answers = ours(json.loads(Path(arguments.job).read_text()))
        print(json.dumps({"seconds": seconds, "answers": answers}))
        return
    python = peer_python("lm-eval", LM_EVAL, arguments.lm_eval_python)
    print(f"processor: {processor_name()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        print(json.dumps(compare(folder, python, arguments.items, arguments.problems, arguments.peer_items)))


def compare(folder: Path, python: str, items: int, problems: int, peer_items: int | None) -> dict[str, Any]:
    """All contestants on all kinds; prints a line for each. lm-eval shares nothing between items: its rate needs fewer."""
    results: dict[str, Any] = {"processor": processor_name(), "largest_difference": 0.0}
    model, _ = load_hf(folder / "model")
    for kind in KINDS:
        requests = ranked_requests(kind, items)
        job = {"folder": str(folder / "model"), "kind": "loglikelihood", "requests": requests}
        mine = run("ours", python, job, folder)
        asked = requests[: 4 * (peer_items or items)]
        theirs = [run("lm_eval", python, job | {"batch_size": size, "requests": asked}, folder) for size in BATCH_SIZES]
        loop = run("prefix_loop", python, job, folder)
        best = min(theirs, key=lambda one: one["seconds"])
        rates = {
            label: len(one["answers"]) / one["seconds"]
            for label, one in (("ours", mine), ("lm-eval", best), ("prefix loop", loop))
        }
        for label, one in (("ours", mine), ("lm-eval", best), ("prefix loop", loop)):
            print(f"{kind:16} {label:12} {rates[label]:9.1f} requests per CPU second", flush=True)
            difference = float(np.abs(np.subtract(one["answers"], mine["answers"][: len(one["answers"])])).max())
            results["largest_difference"] = max(results["largest_difference"], difference)
        results[f"ratio_{kind}"] = rates["ours"] / rates["lm-eval"]
        results[f"ratio_prefix_{kind}"] = rates["ours"] / rates["prefix loop"]
        results[f"per_second_{kind}"] = rates["ours"]
        limit = least_seconds(model, requests, product_speed(model))
        results["of_limit" if kind == "cloze" else f"of_limit_{kind}"] = limit / mine["seconds"]
    if problems:
        stops = {"until": ["Question:"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
        requests = [(text, stops) for text in worked_problems(problems)]
        job = {"folder": str(folder / "model"), "kind": "generate_until", "requests": requests}
        mine = run("ours", python, job, folder)
        theirs = [run("lm_eval", python, job | {"batch_size": size}, folder) for size in BATCH_SIZES]
        best = min(theirs, key=lambda one: one["seconds"])
        print(f"gsm8k ours {problems / mine['seconds']:.2f}, lm-eval {problems / best['seconds']:.2f} per CPU second")
        results["ratio_gsm8k"] = best["seconds"] / mine["seconds"]
        same = sum(a == b for a, b in zip(mine["answers"], best["answers"], strict=True))
        results["same_gsm8k_answers"] = same / problems
    return results


if __name__ == "__main__":
    main()
