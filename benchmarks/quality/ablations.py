"""Section 3.2 of the paper at toy scale: initialisation, weight decay of embeddings, growth through the depth.

Run alone: `python benchmarks/quality/ablations.py [--steps 2000] [--seeds 2] [--out docs/images]`. Each comparison changes one
thing of the OLMo-0424 baseline (pre-norm, no QK-norm, epsilon 1e-5), as the paper's did, and is drawn by the functions of
`olmo2 diagnose`:

* `ablation-init`: scaled against normal initialisation; spike score of the gradient norm (paper: 0.40 to 0.03).
* `ablation-embedding-decay`: weight decay with and without embeddings; gradient norm and embedding norm over the training
  (paper: spike score 0.16 to 0.092).
* `growth-exponents`: activations, layers' contributions and gradients at initialisation, four widths.

Deviations: models of 0.4 and 0.5M parameters, 512 tokens a step of the source text that Python carries, a constant learning rate
that is high for this size (the baseline is meant to be strained), and in the embedding comparison five times the published
decay, so that a run of some thousand steps is as many time constants 1 / (learning rate x decay) long as a real one. Logs
and scores are of every step, judged against the 200 values before it. The last line is one JSON object: per comparison both
values and whether the direction is the paper's. docs/ablations.md says what came of it.
"""

import argparse
import json
import shutil
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flows.inspection.stability import GROWTH, diagnose_initialisation, draw_curves, draw_lines, judged, series_of
from model.config import Compute, ModelConfig
from model.data.labels import next_token_labels
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from model.training.configs import LossConfig, OptimConfig
from model.training.loop import Course, Listeners, Logging, new_state, train
from model.training.losses import language_model_objective
from model.training.measuring.diagnostics import NormWatch
from model.training.schedule import ScheduleConfig

WIDTH, LAYERS, HEAD, HIDDEN = 64, 8, 32, 192
SEQUENCE, BATCH = 64, 8
RANKS = 490
LEARNING_RATE, WARMUP = 6e-3, 50
WINDOW = 200
"""The paper's 1,000 values are a small part of its runs; of these they would be half."""
NORMS_EVERY = 25
SMOOTHED = 101
"""Steps whose median stands for the gradient norm at their middle."""
GROWTH_WIDTHS, GROWTH_LAYERS = "128,256,512,1024", 8
GROWTH_VARIANTS = "olmo-0424,olmo-0424-normal-init,olmo2"


@dataclass(frozen=True)
class Variant:
    """One training: what differs from the OLMo-0424 baseline."""

    label: str
    model: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)


SHALLOWER: dict[str, Any] = {"init": "normal", "n_layers": 6}
INIT = (Variant("scaled init"), Variant("normal init", {"init": "normal"}))
DECAY = (
    Variant("embeddings decay", SHALLOWER, {"weight_decay": 0.5}),
    Variant("embeddings do not decay", SHALLOWER, {"weight_decay": 0.5, "decay": "all_but_embedding"}),
)


def text_windows(tokenizer: Tokenizer) -> np.ndarray:
    """Windows of the standard library's source."""
    folder = Path(sysconfig.get_path("stdlib"))
    ids: list[int] = []
    for path in sorted(folder.glob("*.py")):
        ids += [*tokenizer.encode(path.read_text(errors="ignore")), tokenizer.eos_id]
    count = len(ids) // SEQUENCE
    return np.array(ids[: count * SEQUENCE], dtype=np.uint32).reshape(count, SEQUENCE)


def train_variant(
    variant: Variant, seed: int, steps: int, windows: np.ndarray, vocab_size: int
) -> list[dict[str, float]]:
    """Metrics of every step of one training."""
    order = np.random.default_rng(seed).permutation(len(windows))
    shape: dict[str, Any] = {"n_layers": LAYERS, "variant": "olmo-0424"} | variant.model
    config = ModelConfig(
        d_model=WIDTH, n_heads=WIDTH // HEAD, n_kv_heads=WIDTH // HEAD, head_dim=HEAD, mlp_hidden=HIDDEN,
        vocab_size=vocab_size, max_sequence_length=SEQUENCE, **shape,
    )  # fmt: skip
    optim = OptimConfig.model_validate({"precision": "fp32", "variant": "olmo-0424"} | variant.optim)
    schedule = ScheduleConfig(kind="constant", unit="steps", learning_rate=LEARNING_RATE, warmup=WARMUP, length=0)
    rows: list[dict[str, float]] = []

    def batches(step: int) -> list[dict[str, np.ndarray]]:
        ids = windows[order[np.arange(step * BATCH, (step + 1) * BATCH) % len(order)]]
        return [{"ids": ids, "labels": next_token_labels(ids)}]

    model = Transformer(config, seed=seed)
    with NormWatch(model, NORMS_EVERY) as norms:
        train(
            new_state(model, optim, Compute(threads=1, compile="blocks")),
            Course(
                objective=language_model_objective(LossConfig(z_weight=0.0)),
                batches=norms.watching(batches),
                schedule=schedule,
                steps=steps,
                logging=Logging(every=1, facts=norms.metrics),
            ),
            Compute(threads=1, compile="blocks"),
            Listeners(record=lambda step, metrics: rows.append({"step": step} | metrics)),
        )
    return rows


def compare(
    variants: tuple[Variant, ...], seeds: int, steps: int, text: tuple[np.ndarray, int]
) -> list[dict[str, Any]]:
    """`judged` runs of every variant and seed, with their rows."""
    runs = []
    for seed in range(seeds):
        for variant in variants:
            began = time.process_time()
            rows = train_variant(variant, seed, steps, *text)
            run = {"label": variant.label, "id": f"seed {seed}", "rows": rows} | judged(series_of(rows), WINDOW)
            runs.append(run)
            spent = time.process_time() - began
            print(f"{variant.label}, seed {seed}: loss {rows[-1]['loss']:.3f}, gradient spikes "
                  f"{run['spikes']['grad_norm']:.3g} %, {spent:.0f} s of CPU", file=sys.stderr, flush=True)  # fmt: skip
    return runs


def median_norm(run: dict[str, Any], last: int) -> float:
    """Median gradient norm of the last steps of a run."""
    return float(np.median(run["series"]["grad_norm"][1][-last:]))


def mean_of(runs: list[dict[str, Any]], label: str, measure: Any) -> float:
    """Mean of a measure over the seeds of a variant."""
    return float(np.mean([measure(run) for run in runs if run["label"] == label]))


def init_ablation(text: tuple[np.ndarray, int], steps: int, seeds: int, out: Path) -> dict[str, Any]:
    runs = compare(INIT, seeds, steps, text)
    shown = [{name: value for name, value in run.items() if name != "rows"} for run in runs if run["id"] == "seed 0"]
    draw_curves(shown, out, "ablation-init")
    scores = {v.label: round(mean_of(runs, v.label, lambda run: run["spikes"]["grad_norm"]), 3) for v in INIT}
    losses = {
        v.label: round(mean_of(runs, v.label, lambda run: np.mean(run["series"]["loss"][1][-100:])), 3) for v in INIT
    }
    return {
        "spike_scores": scores, "losses": losses, "as_in_the_paper": scores["normal init"] < scores["scaled init"],
    }  # fmt: skip


def decay_ablation(text: tuple[np.ndarray, int], steps: int, seeds: int, out: Path) -> dict[str, Any]:
    runs = compare(DECAY, seeds, steps, text)
    smooth: dict[str, tuple[list[int], list[float]]] = {}
    embedding: dict[str, tuple[list[int], list[float]]] = {}
    for run in runs:
        if run["id"] == "seed 0":
            frames = np.lib.stride_tricks.sliding_window_view(np.array(run["series"]["grad_norm"][1]), SMOOTHED)[
                ::NORMS_EVERY
            ]
            places = range(SMOOTHED // 2 + 1, SMOOTHED // 2 + 1 + NORMS_EVERY * len(frames), NORMS_EVERY)
            smooth[run["label"]] = (list(places), np.median(frames, axis=1).tolist())
            watched = [row for row in run["rows"] if "param_norm/embedding" in row]
            embedding[run["label"]] = (
                [int(row["step"]) for row in watched],
                [row["param_norm/embedding"] for row in watched],
            )
    panels = {f"gradient norm, median of {SMOOTHED} steps": smooth, "norm of the embeddings": embedding}
    draw_lines(panels, out, "ablation-embedding-decay")
    norms = {v.label: round(mean_of(runs, v.label, lambda run: median_norm(run, steps // 5)), 4) for v in DECAY}
    scores = {v.label: round(mean_of(runs, v.label, lambda run: run["spikes"]["grad_norm"]), 3) for v in DECAY}
    return {
        "gradient_norms": norms, "spike_scores": scores,
        "as_in_the_paper": norms["embeddings do not decay"] < norms["embeddings decay"],
    }  # fmt: skip


def growth_ablation(_: tuple[np.ndarray, int], __: int, ___: int, out: Path) -> dict[str, Any]:
    found = diagnose_initialisation(GROWTH_VARIANTS, GROWTH_WIDTHS, GROWTH_LAYERS, out, "growth-exponents")["growth"]
    widest = max(row["width"] for row in found)
    at_widest = {
        row["variant"]: {what: round(row[what], 3) for what in GROWTH} for row in found if row["width"] == widest
    }
    scaled, normal = at_widest["olmo-0424"], at_widest["olmo-0424-normal-init"]
    return {
        "rows": found, "nearer_to_zero_at": widest,
        "as_in_the_paper": {what: abs(normal[what]) < abs(scaled[what]) for what in GROWTH},
    }  # fmt: skip


ABLATIONS = {"growth": growth_ablation, "init": init_ablation, "embedding_decay": decay_ablation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="updates of each training")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each variant; the figures show the first")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument("--only", default=",".join(ABLATIONS), help="comparisons to make, such as init,growth")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(ABLATIONS):
        parser.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(ABLATIONS)}")
    tokenizer = Tokenizer(RANKS)
    text = (text_windows(tokenizer), tokenizer.padded_vocab_size)
    result: dict[str, Any] = {"steps": options.steps, "seeds": options.seeds}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="ablations-") as folder:
            result[name] = ABLATIONS[name](text, options.steps, options.seeds, Path(folder))
            for picture in sorted(Path(folder).glob("*.png")):
                shutil.copy(picture, options.out)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
