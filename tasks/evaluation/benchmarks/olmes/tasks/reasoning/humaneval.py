"""HumanEval and HumanEval+: 164 functions to complete, pass@10 of 20 samples at temperature 0.8 (RECIPE I.4).

Completions run with the tests in a sandbox (`tasks.verifiers.sandbox`). A chat model completes the same text, so its scores
are those of a completion. A fenced block in an answer is taken out of it. HumanEval+ has its own rows, with more tests.
"""

import re

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task
from tasks.verifiers.sandbox import run_program

_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""What begins after a function's end (Chen et al. 2021)."""
FENCE = re.compile(r"```(?:python)?\n(.*?)(?:```|$)", re.S)
ANNOUNCED = "Here is the completed function:\n\n```python\n"
SECONDS_PLUS = 10.0


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `openai/openai_humaneval` or `evalplus/humanevalplus`."""
    details = {name: row[name] for name in ("prompt", "test", "entry_point")}
    return Document(row["task_id"], row["prompt"], row["canonical_solution"], details=details)


def _query(document: Document, format: Format) -> str:
    """The signature and the docstring; before gold bits the rendered requests announce the answer too."""
    return document.question + (ANNOUNCED if format == "bits_per_byte" else "")


def _pairs(task: Task, document: Document, format: Format) -> list[tuple[str, str]]:
    """The gold completion, whose own indentation is all that stands before it."""
    return [(_query(document, format), document.answer)]


def program(document: Document, text: str) -> str:
    """The completed function with its tests."""
    found = FENCE.search(text)
    code = found[1] if found else text
    # A chat model may repeat the signature; a completion goes on from it.
    whole = code if f"def {document.details['entry_point']}(" in code else f"{document.details['prompt']}{code}"
    # `check` is the name that the data set's tests define.
    return f"{whole}\n{document.details['test']}\ncheck({document.details['entry_point']})\n"


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Whether the completed function passes its tests."""
    ran = run_program(program(document, text), seconds=SECONDS_PLUS)
    return {"passed": float(ran.passed)}, ran.detail


TASKS = tuple(
    Task(
        name=name,
        dataset=dataset,
        split="test",
        count=164,
        read=_read_row,
        formats=("generate", "bits_per_byte"),
        query=_query,
        pairs=_pairs,
        score=_score,
        primary="pass_at_10",
        max_new_tokens=1024,
        stop=_STOP,
        temperature=0.8,
        top_p=0.95,
        samples=20,
        max_context=4096,
    )
    for name, dataset in (("humaneval", "openai/openai_humaneval"), ("humaneval_plus", "evalplus/humanevalplus"))
)
