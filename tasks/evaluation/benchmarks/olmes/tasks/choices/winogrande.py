"""WinoGrande (xl): which of two words fills the blank, validation split (RECIPE I.2).

The cloze form puts each option into the blank and scores what comes after it, which is the same for both. Its shots are whole
sentences with the right option.
"""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task, plain_pairs, plain_shot

BLANK = "_"


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `allenai/winogrande`."""
    choices = (row["option1"], row["option2"])
    gold = int(row["answer"]) - 1
    # The blank occurs once; what follows it is scored after either word.
    before, _, after = row["sentence"].partition(BLANK)
    question = f"Fill in the blank: {row['sentence'].replace(BLANK, '___')}"
    details = {"before": before, "after": after.strip()}
    return Document(str(place), question, choices[gold], choices, gold, details=details)


def _shot(task: Task, document: Document, format: Format) -> str:
    """The whole sentence, or the lettered question with its answer."""
    if format == "multiple_choice":
        return plain_shot(task, document, format)
    return f"{document.details['before']}{document.answer} {document.details['after']}"


def _pairs(task: Task, document: Document, format: Format) -> list[tuple[str, str]]:
    """The sentence up to each option, and the rest of it."""
    if format == "multiple_choice":
        return plain_pairs(task, document, format)
    return [(f"{document.details['before']}{choice}", f" {document.details['after']}") for choice in document.choices]


TASKS = (
    Task(
        name="winogrande",
        dataset="allenai/winogrande",
        subset="winogrande_xl",
        split="validation",
        count=1267,
        read=_read_row,
        formats=("multiple_choice", "cloze", "bits_per_byte"),
        normalisation="raw",
        shots=5,
        shot=_shot,
        pairs=_pairs,
    ),
)
