"""MATH: 7 types, test split, four Minerva shots (RECIPE I.3); of chats, 4-shot turns with "flex" matching (RECIPE I.4).

The score is the mean over types. One shot's inner blank line is repaired, as in OLMES's shot source `Minerva:MATH:fixed`; a
shot is written out with its final answer. `math_500` is the sample of Lightman et al. (2023).
"""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task
from tasks.verifiers import verify
from tasks.verifiers.competition_math import last_boxed

TYPES = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_STOP = ("Problem:", "\n\n")


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `EleutherAI/hendrycks_math`."""
    # Local copies have the answer in a field of its own; the hub's rows have it boxed.
    gold = row.get("answer") or last_boxed(row["solution"]) or row["solution"]
    return Document(str(place), f"Problem:\n{row['problem']}", row["solution"], references=(gold,))


def _query(document: Document, format: Format) -> str:
    """The problem and the cue "Solution:"."""
    return f"{document.question}\n\nSolution:"


def _score(document: Document, text: str) -> tuple[dict[str, float], str]:
    """Whether any extracted candidate equals the gold answer ("flex")."""
    verdict = verify("math", text, document.references[0], rules="published")
    return {"exact_match": float(verdict.correct)}, verdict.extracted


_SHARED = {
    "split": "test",
    "read": _read_row,
    "formats": ("generate", "bits_per_byte"),
    "shots": 4,
    "query": _query,
    "score": _score,
    "max_new_tokens": 1024,
    "stop": _STOP,
    "role": "held_out",
    "chat": "turns",
    "chat_query": lambda document: f"{document.question}\n\nSolution:",
}
TASKS = (
    Task(
        name="minerva_math",
        dataset="EleutherAI/hendrycks_math",
        subset="{group}",
        groups=TYPES,
        average="macro",
        count=5000,
        **_SHARED,
    ),
    Task(name="math_500", dataset="HuggingFaceH4/MATH-500", count=500, **_SHARED),
)
