"""Small inputs that once gave a wrong score: oracles are the answers that anyone would give by hand."""

import json
import random
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from model.tokens.tokenizer import Tokenizer
from tasks.evaluation.benchmarks import BenchmarkConfig, load_items, make_requests, score_item
from tasks.evaluation.benchmarks.asking import encode_pairs
from tasks.evaluation.benchmarks.items import Likelihood, estimate_mean
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark
from tasks.evaluation.comparing.comparison import compare
from tasks.evaluation.scoring.answering import questions_of

TOKENIZER = Tokenizer(2_000)
DROP = {
    "query_id": "q",
    "section_id": "s",
    "passage": "The 2001 census counted 10 villages.",
    "question": "How many villages?",
    "answer": {"number": "10", "spans": [], "date": {"day": "", "month": "", "year": ""}},
    "validated_answers": {},
}
FUNCTION = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
    "entry_point": "double",
}


def asked(tmp_path: Path, row: dict[str, Any], **fields: Any) -> tuple[OlmesBenchmark, Any]:
    (tmp_path / "data").mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        (tmp_path / f"data/{split}.jsonl").write_text(json.dumps(row) + "\n")
    config = OlmesBenchmark.model_validate({"path": str(tmp_path), "shots": 0, **fields}).pinned()
    (item,) = load_items(config)
    return config, item


@pytest.mark.parametrize("text", ["10", " 10\n\nPassage: The 2011 census", "10 Question: 3", "10\n\n7 11"])
def test_a_drop_answer_ends_at_its_stops(tmp_path, text):
    config, item = asked(tmp_path, DROP, task="drop")
    assert score_item(config, item, [text], False).metrics == {"f1": 1.0, "exact_match": 1.0}
    assert score_item(config, item, ["11"], False).metrics["f1"] == 0.0


@pytest.mark.parametrize("boundary", ["lm_eval", "in_loop"])
def test_white_space_before_code_is_encoded_as_the_named_rule_says(tmp_path, boundary):
    config, item = asked(tmp_path, FUNCTION, task="humaneval", format="bits_per_byte", boundary=boundary)
    ((request,),) = make_requests(config, [item], False)
    assert isinstance(request, Likelihood)
    ((context, continuation),) = encode_pairs(TOKENIZER, [request], ["one"])
    moved = "\n" if boundary == "lm_eval" else ""
    assert request.prompt.text.endswith("```python\n")
    assert TOKENIZER.decode(continuation) == moved + FUNCTION["canonical_solution"]
    assert TOKENIZER.decode(context) + TOKENIZER.decode(continuation) == request.prompt.text + request.continuation


def test_an_empty_choice_is_named_when_a_benchmark_is_loaded(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"q": f"Which {n}?", "choices": ["a", "b" if n < 3 else ""], "gold": 0}) + "\n" for n in range(5)
        )
    )
    fields = {
        "kind": "template",
        "name": "mine",
        "rows": {"paths": [str(tmp_path / "rows.jsonl")]},
        "format": "cloze",
        "prompt": "{{ q }}",
        "choices": "choices",
        "gold": "gold",
    }
    config = TypeAdapter(BenchmarkConfig).validate_python(fields).pinned()
    with pytest.raises(ValueError, match=r"row [45] of benchmark 'mine' .*choice 1 is empty"):
        questions_of(config, False)


@pytest.mark.parametrize(("changed", "least", "most"), [(2, 9.5, 10.5), (12, 4, 4.2), (50, 1.9, 2.1)])
def test_a_perturbed_copy_has_a_small_paired_error(changed, least, most):
    """Independent errors are twice to ten times the paired one here, the more the models agree."""
    draw = random.Random(changed)
    first = {str(item): float(item % 2) for item in range(400)}
    flipped = draw.sample(sorted(first), changed)
    second = first | {item: 1.0 - first[item] for item in flipped}
    found = compare(first, second)
    independent = sqrt(sum(estimate_mean(list(scores.values())).stderr ** 2 for scores in (first, second)))
    assert found.discordant == changed
    assert least < independent / found.stderr < most
