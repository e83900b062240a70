"""Stage: prompts with verifiable answers (RECIPE H.1): {id, messages, ground_truth, dataset} per row.

Synthetic prompts come from a split of their own, so that preference data and reinforcement see problems which finetuning
has not. `dataset` names the verifier, and a row whose ground truth that verifier cannot use is set aside with its reason.
Prompts for a language-model judge need no ground truth: such rows have `ground_truth` null and dataset "unverified".
Prompts are not cut here: the training stages drop those that are too long for them. Prompts that a source's `filter` leaves out,
or that repeat an earlier one where `duplicates` says so, are kept, by their place, in `dropped/prompts.jsonl.zst`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from infra.stage import stage
from infra.workspace import Workspace
from model.config import Config
from tasks.artifacts import Prompts
from tasks.data.documents.dolma_files import LineWriter, Row
from tasks.data.filters.chats.chat_filters import PromptFilterConfig, last_below_caps, over_cap, unwanted_prompt
from tasks.data.filters.chats.repeated import Duplicates, RepeatedRows
from tasks.data.sources.rows import RowSource, check_share, read_rows
from tasks.synthetic import KindConfig, generate_mixed
from tasks.verifiers.ground_truth import usable_truth

UNVERIFIED = "unverified"
"""Dataset of a prompt whose answers no verifier judges."""
_GroundTruth = Literal["required", "optional"]
_ROLES = ("system", "user", "assistant")


class SyntheticPrompts(Config):
    """Problems of one split, each once; `dataset` is their kind."""

    kind: Literal["synthetic"] = "synthetic"
    name: str = "synthetic_math"
    """Source name, the beginning of the ids."""
    split: Literal["preference", "rlvr"]
    """Which held-apart problems to use."""
    problems: tuple[KindConfig, ...]
    """Kinds of problem, mixed by their weights."""
    count: int = Field(ge=1)
    """Prompts to make."""
    distinct: bool = True
    """No problem twice; a narrow range may hold too few for that."""
    seed: int = 6198


class PromptRows(Config):
    """Rows of the published RLVR format."""

    kind: Literal["rows"] = "rows"
    name: str
    """Source name, the beginning of the ids."""
    rows: RowSource
    field: str = "messages"
    """Field with the messages, or with the text of a single question."""
    last_answer: Literal["cut_off", "refuse"] = "cut_off"
    """Of a row that ends with the assistant: its last answer is cut off, or the file is refused at the first such row."""
    filter: PromptFilterConfig = Field(
        default=PromptFilterConfig(), exclude_if=lambda value: value == PromptFilterConfig()
    )
    """Which usable prompts to leave out."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows above which the stage fails."""

    def pinned(self) -> Self:
        """The source with its rows pinned."""
        return self.model_copy(update={"rows": self.rows.pinned()})


PromptSource = Annotated[SyntheticPrompts | PromptRows, Field(discriminator="kind")]


class PromptsConfig(Config):
    """The prompt mix: the sources one after another; training shuffles."""

    sources: tuple[PromptSource, ...] = (
        PromptRows(name="rlvr_mix", rows=RowSource(dataset="allenai/RLVR-GSM-MATH-IF-Mixed-Constraints")),
    )
    ground_truth: _GroundTruth = "required"
    """`optional` keeps rows that no verifier can judge; a recipe says so itself where a language model judges."""
    duplicates: Duplicates = Field(default="keep", exclude_if=lambda value: value == "keep")
    """Prompts that repeat an earlier one, of whichever source; they are looked for after filters and caps."""

    def pinned(self) -> Self:
        """The config with what each source will read pinned."""
        return self.model_copy(update={"sources": tuple(source.pinned() for source in self.sources)})


def build_prompts(ws: Workspace, config: PromptsConfig) -> Prompts:
    """All usable prompts of all sources, in order; bad rows are kept in `bad/prompts.jsonl.zst`."""
    datasets: Counter[str] = Counter()
    names: set[str] = set()
    answers_cut, left_out, repeats = 0, Counter[str](), RepeatedRows(config.duplicates)
    with (
        LineWriter(ws, "prompts.jsonl.zst") as good,
        LineWriter(ws, "bad/prompts.jsonl.zst") as bad,
        LineWriter(ws, "dropped/prompts.jsonl.zst") as out,
    ):
        for source in config.sources:
            if source.name in names:
                raise ValueError(f"two prompt sources are called {source.name!r}; give each its own name")
            names.add(source.name)
            reasons: Counter[str] = Counter()
            before, without = good.rows, left_out.total()
            for place, row, reason, why in _read_wanted(source, config.ground_truth):
                if not (reason or why) and repeats.again(row["messages"]):
                    why = "repeats an earlier prompt"
                if reason:
                    reasons[reason] += 1
                    bad.write({"place": place, "reason": reason, "source": source.name})
                elif why:
                    left_out[why] += 1
                    out.write({"place": place, "reason": why, "source": source.name})
                else:
                    # Only for the count: it is no field of a prompt.
                    answers_cut += row.pop("answer_cut", False)
                    datasets[row["dataset"]] += 1
                    good.write({"id": f"{source.name}-{good.rows - before}", **row})
            allowed = source.max_bad_fraction if isinstance(source, PromptRows) else 1.0
            # What is left out could be used: it counts among the good rows.
            usable = good.rows - before + left_out.total() - without
            check_share(f"prompt source {source.name!r}", usable, reasons, allowed)
    if left_out and not datasets:
        raise ValueError(f"every usable prompt is left out ({dict(left_out)}); loosen the filters of the sources")
    ws.note(last_answers_cut_off=answers_cut)
    if left_out:
        ws.note(prompts_left_out=dict(sorted(left_out.items())))
    return ws.artifact(Prompts, prompts=datasets.total(), datasets=dict(sorted(datasets.items())))


def _read_wanted(
    source: SyntheticPrompts | PromptRows, ground_truth: _GroundTruth
) -> Iterator[tuple[str, Row, str, str]]:
    """(place, row, reason why not usable or "", reason why its filter leaves it out or "") of every prompt."""
    rules = source.filter if isinstance(source, PromptRows) else PromptFilterConfig()
    last: dict[str, bytes] = {}
    if rules.caps:
        # A pass of its own finds where each cap ends, so that no pass need hold the prompts.
        usable = ((place, row) for place, row, reason in _read_source(source, ground_truth) if not reason)
        last = last_below_caps(
            rules, ((place, row["origin"]) for place, row in usable if not unwanted_prompt(rules, row["messages"]))
        )
    for place, row, reason in _read_source(source, ground_truth):
        # Only for the caps: it is no field of a prompt.
        origin = row.pop("origin", "")
        why = "" if reason else unwanted_prompt(rules, row["messages"]) or over_cap(rules, last, place, origin)
        yield place, row, reason, why


def _read_source(
    source: SyntheticPrompts | PromptRows, ground_truth: _GroundTruth = "required"
) -> Iterator[tuple[str, Row, str]]:
    """(place, row, reason why not usable or "") of every prompt; `answer_cut` in a row says that its last answer is gone."""
    if isinstance(source, SyntheticPrompts):
        problems = generate_mixed(source.problems, source.split, source.count, source.seed, distinct=source.distinct)
        for problem in problems:
            messages = [{"role": "user", "content": problem.question}]
            row = {"messages": messages, "ground_truth": problem.answer, "dataset": problem.kind}
            yield problem.key, row, ""
        return
    for place, row in read_rows(source.rows):
        if row is None:
            yield place, {}, "not a JSON object"
            continue
        messages, cut, reason = _question_of(row.get(source.field))
        if cut and source.last_answer == "refuse":
            raise ValueError(
                f"prompt source {source.name!r}: {place} ends with the assistant, and a prompt ends with the user; cut the "
                "answers off the file, or use last_answer: cut_off"
            )
        dataset, truth, fault = usable_truth(row.get("dataset"), row.get("ground_truth"))
        if fault and ground_truth == "optional":
            # Without a usable truth a language model can still judge, so the row stays as unverified.
            dataset, truth, fault = UNVERIFIED, None, ""
        clean = {"messages": messages, "ground_truth": truth, "dataset": dataset}
        clean["origin"] = str(row.get(source.filter.origin, ""))
        yield place, clean | ({"answer_cut": True} if cut else {}), reason or fault


def _question_of(messages: Any) -> tuple[list[dict[str, str]], bool, str]:
    """(messages up to the user's last, whether an answer after it was cut off, reason why they are no prompt or "")."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        return [], False, "no messages"
    found = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return [], False, "a message without role or text"
        role = message.get("role")
        if not isinstance(role, str):
            return [], False, "a message without role or text"
        if role not in _ROLES:
            return [], False, f"role {role[:20]!r}"
        found.append({"role": role, "content": message["content"]})
    # A prompt that ends with an answer is a chat; what is asked stands before it.
    cut = found[-1]["role"] == "assistant" and len(found) > 1
    if cut:
        found.pop()
    if found[-1]["role"] != "user":
        return [], False, "the last message is not the user's"
    return (found, cut, "") if found[-1]["content"].strip() else ([], False, "the question is empty")


prompts = stage(build_prompts, name="prompts", version=3)
