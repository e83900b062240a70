"""TriviaQA: questions without passages, Wikipedia part, all 7,993 of the validation split (RECIPE I.3). Held out.

No rendered oracle is at hand. The format follows RECIPE I.3; the five shots are the rows of the data set that OLMES names in
its shot source `OLMES:triviaqa`, in their order.
"""

from tasks.evaluation.benchmarks.olmes.task import DatasetRow, Document, Task, squad_score


def _read_row(row: DatasetRow, place: int) -> Document:
    """A row of `mandarjoshi/trivia_qa`, subset rc.wikipedia.nocontext."""
    answer = row["answer"]
    references = dict.fromkeys([*answer.get("aliases", ()), *answer.get("normalized_aliases", ())])
    # Normalised aliases are lower case; both kinds are accepted.
    accepted = tuple(references) or (answer["value"],)
    return Document(row["question_id"], f"Question: {row['question']}", answer["value"], references=accepted)


TASKS = (
    Task(
        name="triviaqa",
        dataset="mandarjoshi/trivia_qa",
        subset="rc.wikipedia.nocontext",
        split="validation",
        count=7993,
        read=_read_row,
        formats=("generate", "bits_per_byte"),
        shots=5,
        score=squad_score,
        primary="f1",
        max_new_tokens=50,
        stop=("\n\n", "Question:", "</s>", "<|im_end|>"),
        role="held_out",
    ),
)
