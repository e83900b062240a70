"""Stage: maths problems and solutions that a language model writes for personas (paper §4.4.1, Figures 24-25; RECIPE C.7).

TuluMath: 191.58M tokens of persona maths, 21.80M for grade school, 19.74M of intermediate algebra, by GPT-4o. A persona
gives one problem, asked for with a fixed leading phrase; the problem gives one solution, asked for with a last line in
Minerva's form. Both are checked. Deviation: the prompts are ours, and the personas are any rows with a text.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from infra.language_models.protocol import Answer, Request
from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Documents
from tasks.data.documents.dolma_files import Row
from tasks.data.documents.numbered_files import Drafts
from tasks.data.sources.rows import RowSource, read_rows
from tasks.prompting import LanguageModelConfig, check_prompt, fill_template, prompt_text, unusable

Subject = Literal["mathematics", "grade_school", "algebra"]

LEAD = "Math problem:"
"""How a problem must begin, so that chatter around it is noticed."""

_FINAL_ANSWER = re.compile(r"^Final Answer: The final answer is \$?(.+?)\$?\. I hope it is correct\.?$")
"""Last line of a solution (RECIPE C.7, I.3: the form of Minerva's exemplars)."""


class PersonasConfig(Config):
    """Personas, subject and model of one source."""

    kind: Literal["personas"] = "personas"
    name: str = "personas"
    """Source name of the documents."""
    personas: RowSource = RowSource(dataset="proj-persona/PersonaHub", subset="persona", limit=200_000)
    """Rows with a description of a person each."""
    field: str = "persona"
    """Field of the description."""
    subject: Subject = "mathematics"
    """What is asked for; its prompt is used unless another one is given."""
    writer: LanguageModelConfig = LanguageModelConfig(model="gpt-4o-2024-08-06")
    """Who writes problems and solutions (the paper: GPT-4o)."""
    problem_prompt: str = ""
    """Jinja template with {{ persona }}; the subject's is filled in."""
    solution_prompt: str = ""
    """Jinja template with {{ problem }}; the default is filled in."""
    max_dropped: float = Field(default=0.2, ge=0, le=1)
    """The stage fails when a larger share of personas gives no usable document."""

    @model_validator(mode="before")
    @classmethod
    def _fill_prompts(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        subject = data.get("subject", "mathematics")
        return data | {
            "problem_prompt": data.get("problem_prompt") or prompt_text(f"problem_{subject}"),
            "solution_prompt": data.get("solution_prompt") or prompt_text("solution"),
        }

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        check_prompt(self.problem_prompt, "persona")
        check_prompt(self.solution_prompt, "problem")
        return self

    def pinned(self) -> Self:
        """The config with its personas pinned."""
        return self.model_copy(update={"personas": self.personas.pinned()})

    def made(self, label: str) -> Documents:
        """The documents, of a stage with this label."""
        return personas.labelled(label)(self)


def write_persona_problems(ws: Workspace, config: PersonasConfig) -> Documents:
    """A problem and its solution per persona, in the order of the personas; unusable ones in `dropped/` with the reason.

    Raises ValueError when too many answers cannot be used, EndpointError when the model does not answer.
    """
    with (
        Drafts(ws) as drafts,
        ws.endpoint(config.writer.model) as endpoint,
        ws.progress(f"write {config.name}", config.personas.limit, "documents") as bar,
    ):
        # Both steps are lazy: solutions are asked for while problems still come in.
        problems = endpoint.ask_each(problem_requests(config, drafts))
        for row, answer in endpoint.ask_each(solution_requests(problems, config, drafts)):
            reason, solution, result = read_solution(answer)
            if reason:
                drafts.drop(row, reason, answer.refused or answer.text)
            else:
                metadata = row["metadata"] | {"answer": result}
                drafts.keep({**row, "text": f"{row['text']}\n\n{solution}", "metadata": metadata})
            bar.advance()
        ws.note(endpoint=endpoint.facts())
    return drafts.finish(config.max_dropped)


def problem_requests(config: PersonasConfig, drafts: Drafts) -> Iterator[tuple[Row, Request]]:
    """A row without text, and the request for its problem, per persona."""
    for number, (place, row) in enumerate(read_rows(config.personas)):
        persona = None if row is None else row.get(config.field)
        made = {
            "id": f"{config.name}-{number:08d}",
            "source": config.name,
            "text": "",
            "metadata": {"subject": config.subject, "model": config.writer.model, "origin": "generated"},
        }
        if not isinstance(persona, str) or not persona.strip():
            drafts.drop(made, "no persona", place)
            continue
        # Recorded with the document, so that a reader can see what it was written for.
        made["metadata"]["persona"] = persona.strip()
        yield made, config.writer.request(fill_template(config.problem_prompt, persona=persona.strip()))


def solution_requests(
    problems: Iterator[tuple[Row, Answer]], config: PersonasConfig, drafts: Drafts
) -> Iterator[tuple[Row, Request]]:
    """The row with its problem as text, and the request for the solution, per usable problem."""
    for row, answer in problems:
        problem = answer.text.strip()
        reason = unusable(answer) or ("" if problem.startswith(LEAD) else "no leading phrase")
        # The phrase is asked for and then cut off: it proves that the text is a problem and no chatter.
        problem = problem.removeprefix(LEAD).strip()
        if reason or not problem:
            drafts.drop(row, f"problem: {reason or 'empty'}", answer.refused or answer.text)
            continue
        yield {**row, "text": problem}, config.writer.request(fill_template(config.solution_prompt, problem=problem))


def read_solution(answer: Answer) -> tuple[str, str, str]:
    """(reason why it cannot be used or "", the solution, its final answer)."""
    if reason := unusable(answer):
        return f"solution: {reason}", "", ""
    solution = answer.text.strip()
    # Only the last line counts: a solution may mention other values on its way.
    found = _FINAL_ANSWER.match(solution.splitlines()[-1].strip())
    if found is None or not found[1].strip(". "):
        return "solution: no final answer", "", ""
    return "", solution, found[1].strip()


personas = stage(write_persona_problems, name="personas", version=2, waits=True)
