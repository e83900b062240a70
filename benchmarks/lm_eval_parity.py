"""Our tasks against lm-evaluation-harness's own of the same data sets, item by item, zero-shot, one exported model.

Ranked answers are compared here, written ones by `lm_eval_answers.py`.

`python benchmarks/lm_eval_parity.py [--lm-eval-python P]`; the peer gets an environment of its own, made when missing. Rows are
those of the golden files and samples, in the schemas of the hub. Where both render one prompt, log-likelihoods must be equal to
1e-3. Where prompts or scores differ, the table names the difference. Fails where one has no name.
"""

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from lm_eval_answers import WRITTEN, compare_written, own_answers, planted
from peers.environment import peer_python

from model.config import ModelConfig
from model.files.weights import load_hf, save_hf
from model.network.transformer import Transformer
from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks import load_items, make_requests
from tasks.evaluation.benchmarks.asking import ask, local_scorer
from tasks.evaluation.benchmarks.items import Likelihood, LikelihoodAnswer
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.benchmarks.olmes.tasks import find_task

LM_EVAL = ("lm-eval[hf,math]>=0.4.13,<0.5",)
ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "olmes"
SAMPLES = ROOT / "tests" / "samples" / "hub"
PEER = Path(__file__).parent / "peers" / "lm_eval_tasks.py"


@dataclass(frozen=True)
class Ranked:
    """One task of lm-eval whose answers are ranked, and ours."""

    ours: str
    """Task and format; cloze where it says none."""
    rows: str
    """Golden file or sample file with rows in the schema of the hub."""
    difference: str = ""
    """Name of the difference between prompts; empty where there is none."""
    rewrite: Callable[[str, str], tuple[str, str]] = lambda context, continuation: (context, continuation)
    """A prompt of lm-eval as ours, after which both are the same."""
    group: str = ""
    """The one subset or subject of ours that is lm-eval's task."""
    shots: int = 0
    """Worked examples that lm-eval's own prompt has."""


def letters_after_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Options that begin with a space."""
    return re.sub(r"\n([A-J])\. ", r"\n \1. ", context), continuation


def mmlu(context: str, continuation: str) -> tuple[str, str]:
    """The label of the question, and options that begin with a space."""
    head, _, rest = context.partition("\n\n")
    return letters_after_spaces(f"{head}\n\nQuestion: {rest}", continuation)


def agi_eval(context: str, continuation: str) -> tuple[str, str]:
    """One option a line, and letters for answers."""
    found = re.fullmatch(r"Q: (.*) Answer Choices: (.*)\nA: Among A through \w, the answer is", context, re.S)
    assert found, context
    options = re.split(r"\s*\(([A-J])\)", found[2])[1:]
    lines = "".join(f" {letter}. {text}\n" for letter, text in zip(options[::2], options[1::2], strict=True))
    return f"Question: {found[1]}\n{lines}Answer:", f" {continuation.strip()[1]}"


TASKS = {
    "arc_easy": Ranked("arc_easy", "arc_easy__test_rc_5shot"),
    "arc_challenge": Ranked("arc_challenge", "arc_challenge__test_rc_5shot"),
    "boolq": Ranked("boolq", "boolq__val_rc_5shot", "choices in another order: lm-eval no, yes; OLMES yes, no"),
    "commonsense_qa": Ranked(
        "csqa:multiple_choice", "csqa__val_mc_5shot", "options begin with a space in OLMES", letters_after_spaces
    ),
    "hellaswag": Ranked("hellaswag", "hellaswag__rc_5shot"),
    "openbookqa": Ranked(
        "openbookqa", "openbookqa__test_rc_5shot", "OLMES has labels: Question and Answer",
        lambda context, continuation: (f"Question: {context}\nAnswer:", continuation),
    ),
    "piqa": Ranked(
        "piqa", "piqa__val_rc_5shot", "OLMES's label is Goal",
        lambda context, continuation: (context.replace("Question: ", "Goal: ", 1), continuation),
    ),
    "social_iqa": Ranked(
        "socialiqa", "socialiqa__val_rc_5shot", "lm-eval's labels are Q and A",
        lambda context, continuation: (
            context.replace("Q: ", "Question: ", 1).replace("\nA:", "\nAnswer:"), continuation,
        ),
    ),
    "winogrande": Ranked("winogrande", "winogrande__val_rc_5shot"),
    "mmlu_anatomy": Ranked(
        "mmlu:multiple_choice", "cais/mmlu/all/test-00000-of-00001.parquet",
        "OLMES has the label Question, and options begin with a space", mmlu, "anatomy",
    ),
    "agieval_aqua_rat": Ranked(
        "agi_eval:multiple_choice",
        "dmayhem93/agieval-aqua-rat/data/test-00000-of-00001.parquet",
        "OLMES has one option a line and ranks letters; lm-eval ranks the options' texts", agi_eval, "aqua-rat",
    ),
    "truthfulqa_mc2": Ranked(
        "truthfulqa", "truthfulqa/truthful_qa/multiple_choice/validation-00000-of-00001.parquet", shots=6
    ),
    "lambada_openai": Ranked("lambada:bits_per_byte", "lambada__bpb_0shot"),
}  # fmt: skip
"""By lm-eval's name."""


def rows_of(file: str, group: str) -> list[dict[str, Any]]:
    """Rows of a golden or a sample file; of one subject where the file has several."""
    if file.endswith(".parquet"):
        rows = pq.read_table(SAMPLES / file).to_pylist()
        return [row for row in rows if row.get("subject", group) == group]
    return json.loads(gzip.decompress((GOLDEN / f"{file}.json.gz").read_bytes()))["rows"]


def copy(folder: Path, task: str, rows: list[dict[str, Any]], group: str) -> str:
    """A local copy of a task's data set with these rows for its group; the group's file. Other groups get one row each."""
    facts, written = find_task(task), ""
    for name, dataset, subset in facts.sources():
        place = folder / (dataset.rpartition("/")[2] if "{group}" in facts.dataset else "") / subset
        place.mkdir(parents=True, exist_ok=True)
        file = place / f"{facts.split}.jsonl"
        own = name in ("", group)
        file.write_text("".join(json.dumps(row) + "\n" for row in (rows if own else rows[:1])))
        written = str(file) if own else written
    return written


def ours(name: str, folder: Path, model: Transformer, tokenizer: Tokenizer) -> list[list[tuple[str, str, float]]]:
    """(context, continuation, log-likelihood) of every choice of every item."""
    wanted = TASKS[name]
    task, _, format = wanted.ours.partition(":")
    fields = {
        "task": task, "format": format or "cloze", "shots": wanted.shots, "path": str(folder / name), "normalisation": "raw",
        "limit": 1_000_000,
    }  # fmt: skip
    config = OlmesBenchmark.model_validate(fields).pinned()
    items = [item for item in load_items(config) if wanted.group in ("", item.data["group"])]
    found = []
    for requests in make_requests(config, items, False):
        likelihoods = [one for one in requests if isinstance(one, Likelihood)]
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
    """What a task's items have in common. `unexplained` holds choices whose difference has no name."""
    wanted = TASKS[name]
    row: dict[str, Any] = {
        "task": name,
        "items": len(mine),
        "same_prompts": 0,
        "explained": 0,
        "unexplained": [],
        "largest": 0.0,
        "why": wanted.difference,
    }
    for own, other in zip(mine, theirs, strict=True):
        known = {(context, continuation): value for context, continuation, value in own}
        for (context, continuation), value in zip(other["pairs"], other["answers"], strict=True):
            if (context, continuation) in known:
                row["same_prompts"] += 1
                row["largest"] = max(row["largest"], abs(known[context, continuation] - value))
            elif wanted.difference and wanted.rewrite(context, continuation) in known:
                row["explained"] += 1
            else:
                row["unexplained"].append([context[-200:], continuation])
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
        ranked = {name: copy(folder / name, task.ours.partition(":")[0], rows_of(task.rows, task.group), task.group)
                  for name, task in TASKS.items()}  # fmt: skip
        said = {name: planted(task, rows_of(task.rows, task.group)) for name, task in WRITTEN.items()}
        written = {name: copy(folder / name, task.ours, said[name][0], task.group) for name, task in WRITTEN.items()}
        job = folder / "job.json"
        content = {
            "folder": str(folder / "model"),
            "tasks": ranked | written,
            "answers": {name: answers for name, (_, answers) in said.items()},
            "filters": {name: task.filter for name, task in WRITTEN.items() if task.filter},
        }
        job.write_text(json.dumps(content))
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
        answered = [
            compare_written(name, task, own_answers(task, folder / name, said[name][1]), theirs[name])
            for name, task in WRITTEN.items()
        ]
    for row in rows:
        print(
            f"{row['task']:18} {row['items']:2} items  same prompt {row['same_prompts']:3}  largest difference "
            f"{row['largest']:.1e}  explained {row['explained']:3}  unexplained {len(row['unexplained']):3}  {row['why']}"
        )
    for row in answered:
        prompts = f"prompts: same {row['same_prompts']:2}, named {row['named_prompts']:2}"
        scores = f"scores: same {row['same_scores']:2}, named {row['named_scores']:2}"
        print(
            f"{row['task']:36} {row['items']:2} items  {prompts}  {scores}  unexplained {len(row['unexplained']):2}  "
            f"{'; '.join(row['why'])}"
        )
    print(json.dumps({"rows": rows, "written": answered}))
    if any(row["unexplained"] for row in [*rows, *answered]) or any(row["largest"] > 1e-3 for row in rows):
        sys.exit("some differences have no name, or log-likelihoods differ")


if __name__ == "__main__":
    main()
