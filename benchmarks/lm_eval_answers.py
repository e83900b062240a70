"""Written answers of our tasks against lm-evaluation-harness's own of the same data sets, item by item: prompts and scores.

A part of `lm_eval_parity.py`. Both sides get the same answers to the same rows, each the gold answer in one of several forms, so
what is compared is how prompts are written and how answers are read. Each difference has a name; one without fails.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluation.benchmarks import load_items, make_requests, score_item
from tasks.evaluation.benchmarks.items import Generation
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark

Row = dict[str, Any]
FORMS = (
    " {}",
    " The answer is {}.",
    " So the answer is {}. I am sure.",
    " $\\boxed{{{}}}$",
    " It is {}\nQuestion: what?",
    " no idea",
)
"""How gold answers are said; the last one is wrong."""


def same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Written:
    """One task of lm-eval whose answers are written, and ours."""

    ours: str
    rows: str
    """Golden file or sample file with rows in the schema of the hub."""
    gold: Callable[[Row], str]
    metric: tuple[str, str]
    """Ours and lm-eval's metric."""
    prompts: str = ""
    """Name of the difference between prompts; empty where there is none."""
    rewrite: Callable[[str], str] = same
    """lm-eval's prompt as ours, after which both are the same."""
    scores: Mapping[str, str] | None = None
    """Names of differences between scores by the form of the answer; of any form under ""."""
    group: str = ""
    """The one subset of ours that is lm-eval's task."""
    filter: str = ""
    """Which of lm-eval's several ways of reading an answer."""


def nq_prompt(text: str) -> str:
    question = text.removeprefix("Answer these questions:\n\n").removeprefix("Q: ").removesuffix("?\nA:")
    return f"Question: {question}\nAnswer:"


CUT_SHORT = "lm-eval ends an answer at a comma, a full stop or a line break; OLMES at a label or a blank line"
WRITTEN = {
    "gsm8k_cot": Written(
        "gsm8k", "gsm8k__gold_bpb_5shot", lambda row: row["answer"].rpartition("#### ")[2], ("exact_match", "exact_match"),
        "lm-eval's labels are Q and A", lambda text: text.replace("Q: ", "Question: ", 1).replace("\nA:", "\nAnswer:"),
        filter="flexible-extract",
    ),
    "minerva_math_algebra": Written(
        "minerva_math", "minerva_math_algebra__gold_bpb_0shot",
        lambda row: row["solution"].partition("\\boxed{")[2].partition("}")[0], ("exact_match", "exact_match"),
        scores={
            "": "lm-eval reads the form 'Final Answer: The final answer is X. I hope it is correct.' alone; OLMES (flex) also "
            "the last box, the last mathematics and the whole answer"
        },
        group="algebra",
    ),
    "nq_open": Written(
        "naturalqs", "naturalqs_open__bpb_5shot", lambda row: row["answer"][0], ("exact_match", "exact_match"),
        "lm-eval has a description, and Q and A for labels", nq_prompt, {"": CUT_SHORT},
    ),
    "triviaqa": Written(
        "triviaqa", "mandarjoshi/trivia_qa/rc.wikipedia.nocontext/validation-00000-of-00001.parquet",
        lambda row: row["answer"]["aliases"][0], ("exact_match", "exact_match"), "lm-eval adds a question mark",
        lambda text: text.replace("?\nAnswer:", "\nAnswer:"), {"": CUT_SHORT},
    ),
    "bbh_cot_zeroshot_date_understanding": Written(
        "bbh", "lukaemon/bbh/date_understanding/test-00000-of-00001.parquet", lambda row: row["target"],
        ("exact_match", "exact_match"), group="date_understanding", filter="flexible-extract",
    ),
    "drop": Written(
        "drop", "EleutherAI/drop/data/validation-00000-of-00001.parquet", lambda row: row["answer"]["number"], ("f1", "f1"),
        "lm-eval has neither description nor labels", scores={"": CUT_SHORT},
    ),
}  # fmt: skip


def planted(task: Written, rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Every row once for each form, and the answers in their order."""
    pairs = [(row, form.format(task.gold(row))) for row in rows for form in FORMS]
    return [row for row, _ in pairs], [answer for _, answer in pairs]


def own_answers(task: Written, folder: Path, answers: Sequence[str]) -> list[tuple[str, float]]:
    """(prompt, our score) of every item, zero-shot, with the given answers."""
    fields = {"task": task.ours, "format": "generate", "shots": 0, "path": str(folder), "limit": 1_000_000}
    config = OlmesBenchmark.model_validate(fields).pinned()
    items = [item for item in load_items(config) if task.group in ("", item.data["group"])]
    found = []
    for item, wanted, answer in zip(items, make_requests(config, items, False), answers, strict=True):
        (request,) = (one for one in wanted if isinstance(one, Generation))
        score = score_item(config, item, [before(answer, request.stop)], False)
        found.append((request.prompt.text, score.metrics[task.metric[0]]))
    return found


def before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops, as a generator gives it."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


def compare_written(name: str, task: Written, mine: Sequence[tuple[str, float]], theirs: Sequence[Row]) -> Row:
    """Prompts and scores that are the same, those whose difference has a name, and the others."""
    row: Row = {
        "task": name,
        "items": len(mine),
        "same_prompts": 0,
        "named_prompts": 0,
        "same_scores": 0,
        "named_scores": 0,
        "unexplained": [],
        "why": [name for name in (task.prompts, *(task.scores or {}).values()) if name],
    }
    for place, ((prompt, score), other) in enumerate(zip(mine, theirs, strict=True)):
        ((context, _),) = other["pairs"]
        if context == prompt:
            row["same_prompts"] += 1
        elif task.prompts and (task.rewrite is same or task.rewrite(context) == prompt):
            row["named_prompts"] += 1
        else:
            row["unexplained"].append([place, "prompt", context[-200:], prompt[-200:]])
        their_score = float(other["metrics"][task.metric[1]])
        if their_score == score:
            row["same_scores"] += 1
        elif task.scores and ("" in task.scores or FORMS[place % len(FORMS)] in task.scores):
            row["named_scores"] += 1
        else:
            row["unexplained"].append([place, "score", FORMS[place % len(FORMS)], their_score, score])
    return row
