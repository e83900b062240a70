"""Our tasks against lm-evaluation-harness's own of the same data sets, item by item, zero-shot, one exported model.

`python benchmarks/lm_eval_parity.py [--lm-eval-python P]`; the peer gets an environment of its own, made when missing. Rows are
those of the golden files, in the schemas of the hub. Where both render one prompt, log-likelihoods must be equal to 1e-3 and the
accuracies the same; where prompts differ, the table names the difference. Fails where one has no name.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers.environment import peer_python

from model.config import ModelConfig
from model.files.weights import load_hf, save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks import load_items, make_requests
from tasks.evaluation.benchmarks.asking import ask, local_scorer
from tasks.evaluation.benchmarks.items import Likelihood, LikelihoodAnswer
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark

LM_EVAL = ("lm-eval[hf]>=0.4.13,<0.5",)
ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "olmes"
PEER = Path(__file__).parent / "peers" / "lm_eval_tasks.py"

TASKS = {
    "arc_easy": ("arc_easy", "arc_easy__test_rc_5shot", "ARC-Easy/test.jsonl"),
    "arc_challenge": ("arc_challenge", "arc_challenge__test_rc_5shot", "ARC-Challenge/test.jsonl"),
    "boolq": ("boolq", "boolq__val_rc_5shot", "boolq/validation.jsonl"),
    "commonsense_qa": ("csqa:multiple_choice", "csqa__val_mc_5shot", "validation.jsonl"),
    "hellaswag": ("hellaswag", "hellaswag__rc_5shot", "validation.jsonl"),
    "openbookqa": ("openbookqa", "openbookqa__test_rc_5shot", "main/test.jsonl"),
    "piqa": ("piqa", "piqa__val_rc_5shot", "validation.jsonl"),
    "social_iqa": ("socialiqa", "socialiqa__val_rc_5shot", "validation.jsonl"),
    "winogrande": ("winogrande", "winogrande__val_rc_5shot", "winogrande_xl/validation.jsonl"),
}
"""lm-eval's task: ours (cloze unless it says otherwise), the golden file with rows, the split's file in a local copy."""


def same(text: str) -> str:
    return text


DIFFERENCES: dict[str, tuple[str, Callable[[str], str]]] = {
    "boolq": ("choices in another order: lm-eval no, yes; OLMES yes, no", same),
    "commonsense_qa": (
        "options begin with a space in OLMES", lambda text: text.replace("\nA. ", "\n A. ").replace("\nB. ", "\n B. ")
        .replace("\nC. ", "\n C. ").replace("\nD. ", "\n D. ").replace("\nE. ", "\n E. "),
    ),
    "openbookqa": ("OLMES has labels: Question and Answer", lambda text: f"Question: {text}\nAnswer:"),
    "piqa": ("OLMES's label is Goal", lambda text: text.replace("Question: ", "Goal: ", 1)),
    "social_iqa": (
        "lm-eval's labels are Q and A",
        lambda text: text.replace("Q: ", "Question: ", 1).replace("\nA:", "\nAnswer:"),
    ),
}  # fmt: skip
"""How a prompt of lm-eval becomes ours, with the difference's name; after it, prompts must be the same."""


def copies(folder: Path) -> dict[str, str]:
    """A file per task with the golden rows; returns them by lm-eval's name."""
    files = {}
    for name, (_, golden, place) in TASKS.items():
        rows = json.loads(gzip.decompress((GOLDEN / f"{golden}.json.gz").read_bytes()))["rows"]
        path = folder / name / place
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(path)
    return files


def ours(name: str, folder: Path, model: Transformer, tokenizer: Tokenizer) -> list[list[tuple[str, str, float]]]:
    """(context, continuation, log-likelihood) of every choice of every item, zero-shot."""
    task, _, format = TASKS[name][0].partition(":")
    fields = {"task": task, "format": format or "cloze", "shots": 0, "path": str(folder / name), "normalisation": "raw"}
    config = OlmesBenchmark.model_validate(fields).pinned()
    found = []
    for wanted in make_requests(config, load_items(config), False):
        likelihoods = [one for one in wanted if isinstance(one, Likelihood)]
        asked = ask(
            tokenizer, likelihoods, generator=no_generator, scorer=local_scorer(model), max_context=2048,
            progress=lambda n: None,
        )  # fmt: skip
        answers = [answer.logprob for answer in asked.answers if isinstance(answer, LikelihoodAnswer)]
        found.append([(r.prompt.text, r.continuation, a) for r, a in zip(likelihoods, answers, strict=True)])
    return found


def no_generator(prompts: Any, sampling: Any, progress: Any = None) -> Any:
    raise AssertionError("likelihoods need no generation")


def compare(name: str, mine: list[list[tuple[str, str, float]]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """What a task's items have in common. `unexplained` counts choices whose difference has no name."""
    reason, rewrite = DIFFERENCES.get(name, ("", same))
    row = {
        "task": name,
        "items": len(mine),
        "same_prompts": 0,
        "explained": 0,
        "unexplained": 0,
        "largest": 0.0,
        "why": reason,
    }
    for own, other in zip(mine, theirs, strict=True):
        known = {(context, continuation): value for context, continuation, value in own}
        for (context, continuation), value in zip(other["pairs"], other["answers"], strict=True):
            if (context, continuation) in known:
                row["same_prompts"] += 1
                row["largest"] = max(row["largest"], abs(known[context, continuation] - value))
            elif (rewrite(context), continuation) in known:
                row["explained"] += 1
            else:
                row["unexplained"] += 1
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm-eval-python", help="Python of an environment that has lm-eval")
    arguments = parser.parse_args()
    python = peer_python("lm-eval", LM_EVAL, arguments.lm_eval_python)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, tokenizer = Path(name), Tokenizer()
        config = ModelConfig(size="30M", vocab_size=tokenizer.padded_vocab_size, max_sequence_length=2048)
        save_hf(Transformer(config, seed=0), config, tokenizer, folder / "model")
        model, _ = load_hf(folder / "model")
        files = copies(folder)
        job = folder / "job.json"
        job.write_text(json.dumps({"folder": str(folder / "model"), "tasks": files}))
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(
            [python, str(PEER), str(job)], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        theirs = json.loads(done.stdout.splitlines()[-1])
        rows = [compare(task, ours(task, folder, model.eval(), tokenizer), theirs[task]) for task in TASKS]
    for row in rows:
        print(
            f"{row['task']:16} {row['items']:2} items  same prompt {row['same_prompts']:3}  largest difference "
            f"{row['largest']:.1e}  explained {row['explained']:3}  unexplained {row['unexplained']:3}  {row['why']}"
        )
    print(json.dumps({"rows": rows}))
    if any(row["unexplained"] or row["largest"] > 1e-3 for row in rows):
        sys.exit("some differences have no name, or log-likelihoods differ")


if __name__ == "__main__":
    main()
