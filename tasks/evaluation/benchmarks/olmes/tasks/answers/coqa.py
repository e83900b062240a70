"""CoQA: a conversation about a passage, validation split, one document per turn: 7,983 (RECIPE I.3).

Every turn shows the passage's earlier gold answers. No shots. All turns are asked. `group` is the passage, whose turns are
not independent.
"""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Format, Task, squad_score

_DESCRIPTION = (
    "Below is a passage followed by a conversation so far, where each turn in the conversation contains a question and an "
    "answer. Please answer the final question by referring to the passage and the previous questions.\n\n"
)


def _read_row(row: DatasetRow, place: int) -> list[Document]:
    """The turns of a row of `EleutherAI/coqa`. The first answer and the additional ones are accepted."""
    questions, answers = row["questions"]["input_text"], row["answers"]["input_text"]
    others = [extra["input_text"] for extra in (row.get("additional_answers") or {}).values()]
    documents = []
    for turn, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        history = "".join(
            f"Question: {asked}\nAnswer: {given}\n\n"
            for asked, given in zip(questions[:turn], answers[:turn], strict=True)
        )
        text = f"Passage: {row['story']}\n\n"
        # The first turn has no preceding questions, and the header is left out with them.
        text += f"Preceding questions:\n\n{history}" if history else ""
        text += f"Final question:\n\nQuestion: {question}"
        # Additional annotators answered turn by turn, so the place is the same.
        accepted = (answer, *(extra[turn] for extra in others))
        documents.append(Document(f"{row['id']}_turn{turn}", text, answer, references=accepted, group=row["id"]))
    return documents


def _query(document: Document, format: Format) -> str:
    """The passage, the conversation so far and the question."""
    return f"{document.question}\nAnswer:"


TASKS = (
    Task(
        name="coqa",
        dataset="EleutherAI/coqa",
        split="validation",
        count=7983,
        read=_read_row,
        formats=("generate", "bits_per_byte"),
        description=lambda group: _DESCRIPTION,
        query=_query,
        score=squad_score,
        primary="f1",
        max_new_tokens=50,
        stop=("\n\n",),
    ),
)
