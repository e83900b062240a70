"""The kinds of artifact that stages hand to each other, with their file formats (RECIPE C.1, F, G, H).

Every payload is a folder. Names below are relative to it.
"""

from typing import TypedDict

from pydantic import Field

from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from model.tokens.tokenizer import TokenizerName

METRICS = "metrics.jsonl"
"""The log of a training: a line per step, with all metrics where the step was logged, else those of every step."""
MOMENTS = "optimizer.safetensors"
"""Adam's moments of a training, twice the size of its weights: an anneal that goes on with them reads them, nothing else."""
PERPLEXITY, TASK, SELECT = "perplexity/", "task/", "select/"
"""How names in it begin of what was evaluated on the way: held-out windows of a source, items of a benchmark, and what chooses
among save points."""

ROUNDING = 1e-9
"""What rounding may do to a difference of ratings."""


class Documents(Artifact):
    """Dolma documents lie in `documents/*.jsonl.zst` (id, text, source, added, created, metadata), with
    `attributes/<name>/*.jsonl.zst` next to them. What a stage removed lies in `dropped/*.jsonl.zst` (the document plus
    `reason` and `detail`). Rows that collect could not use lie in `bad/*.jsonl.zst`, paragraphs that dedup took out of
    documents in `removed/*.jsonl.zst`."""

    documents: int
    bytes: int
    """UTF-8 bytes of text."""
    sources: dict[str, int]
    """Documents per source."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Documents removed by this stage, per reason."""


class ReadCounts(TypedDict):
    """What `collect.json` says of a source: what was listed, read and kept."""

    files: int
    bad_files: int
    rows: int
    """Listed in the files."""
    read: int
    """Rows with a usable text, repeated ids among them."""
    documents: int
    bad: dict[str, int]
    """Unusable rows by reason."""
    first_bad_files: list[str]


class LimitHistogram(TypedDict):
    """An entry of `histograms.json`: one limit of a rule, and the documents per bin of its score."""

    rule: str
    label: str
    least: float | None
    """None for no limit, since JSON has no infinity."""
    most: float | None
    scale: str
    edges: list[float]
    kept: list[int]
    dropped: list[int]


class Attributes(Artifact):
    """What scorers say of the documents of another artifact: `attributes/<name>/*.jsonl.zst` with its files' names, one row per
    document in the same order (RECIPE C.1)."""

    documents: int
    of: str
    """Digest of the documents."""
    names: list[str]
    """Scorers, in the order in which they were asked."""


class Classifier(Artifact):
    """A fastText model: `model.bin`, with `metrics.json` of its held-out precision and recall."""

    labels: list[str]
    precision: float
    recall: float
    examples: int


class Tokens(Artifact):
    """Token files: `tokens/*.npy`, raw little-endian uint32 without a header, and `tokens/*.csv.gz` with rows
    (start, end, id, src, loc)."""

    source: str
    tokens: int
    documents: int
    ranks: int
    """Ordinary tokens of the vocabulary used, the first so many of its whole one."""
    tokenizer: TokenizerName = "dolma2"
    """Which vocabulary that is."""
    bytes: int = 0
    """UTF-8 bytes of the encoded text."""
    files: dict[str, int]
    """Token count of every `.npy` file."""


class Mix(Artifact):
    """`mix.json`: the token files to train on, in order, each with its address, the tokens to take of it and its source."""

    tokens: int
    ranks: int
    tokenizer: TokenizerName = "dolma2"
    bytes: int = 0
    """UTF-8 bytes of the text behind the tokens, by each source's mean."""
    shares: dict[str, float]
    """Realised share of each source."""


class Checkpoint(Artifact):
    """A Hugging Face `Olmo2ForCausalLM` folder (config, safetensors, tokenizer); `optimizer.safetensors` where moments are kept;
    `metrics.jsonl`, one line per step. One that was adopted from outside has no steps, tokens or loss of its own (0)."""

    steps: int
    tokens: int
    """Tokens trained on in this stage."""
    parameters: int
    loss: float
    """Mean of the training objective over the last tenth of the steps; NaN-free."""
    ranks: int
    tokenizer: TokenizerName = "dolma2"
    parent: str
    """Digest of the checkpoint that training started from; empty when it started from an initialisation."""
    flops: float = 0.0
    """Training FLOPs of this stage (RECIPE A.7)."""


def is_of_model(name: str) -> bool:
    """Whether a checkpoint's file belongs to its model: all but Adam's moments."""
    return name != MOMENTS


class RewardModel(Artifact):
    """A checkpoint folder whose head is one score: `reward_head.safetensors` next to the Olmo2 weights; `metrics.jsonl`."""

    steps: int
    tokens: int
    parameters: int
    loss: float
    accuracy: float
    """Share of held-out pairs with the chosen answer scored higher."""
    accuracy_stderr: float
    pairs_held_out: int = 0
    """Pairs that the accuracy is of."""
    ranks: int
    tokenizer: TokenizerName = "dolma2"
    parent: str
    flops: float = 0.0


class Chats(Artifact):
    """`chats.jsonl.zst`: {id, messages: [{role, content}], source} per line."""

    chats: int
    sources: dict[str, int]
    dropped: dict[str, int] = Field(default_factory=dict)
    """Chats removed by this stage, per reason."""


class Preferences(Artifact):
    """`preferences.jsonl.zst`: {id, chosen, rejected (message lists), chosen_rating, rejected_rating, ...} per line."""

    pairs: int
    ties: int
    mean_chosen: float | None
    """Mean rating; None where released pairs have no ratings."""
    mean_rejected: float | None
    dropped: dict[str, int] = Field(default_factory=dict)
    """Pairs removed by this stage, per reason."""


class Prompts(Artifact):
    """`prompts.jsonl.zst`: {id, messages, ground_truth, dataset} per line (RECIPE H.1)."""

    prompts: int
    datasets: dict[str, int]
    dropped: dict[str, int] = Field(default_factory=dict)
    """Prompts removed by this stage, per reason."""


class Scores(Artifact):
    """`scores.json`: one row per benchmark, `items/<benchmark>.jsonl.zst`: one row per item with the model's answer."""

    label: str
    """What was evaluated, as the report names it."""
    checkpoint: str
    """Digest of the evaluated checkpoint."""
    primary: dict[str, float]
    """Primary score of each benchmark, 0 to 1."""
    stderr: dict[str, float]
    """Standard error of each primary score."""


class RankedCandidate(TypedDict):
    """A row of `ranking.json`."""

    rank: int
    candidate: str
    score: float
    stderr: float
    n: int
    behind_best: float
    behind_best_stderr: float
    discordant: int
    p_holm: float
    tied_with_best: bool
    items_to_decide: int | None
    seeds_to_decide: int | None
    tokens: int | None
    """The budget that it was ranked at."""
    stopped: bool
    """Whether a smaller budget has shown that a larger one would be wasted on it."""


class RankingTable(TypedDict):
    """What `ranking.json` holds."""

    benchmark: str
    metric: str
    outcome: str
    unranked: list[str]
    """Candidates whose score is not finite."""
    seeds: int
    noise_floor: float | None
    tokens: int | None
    candidates: list[RankedCandidate]
    """Best first; those that an earlier budget stopped come last."""


class Ranking(Artifact):
    """`ranking.json`: the sweep's candidates, best first, with scores and standard errors (RECIPE E, micro-anneal)."""

    order: list[str]
    scores: dict[str, float]
    stderr: dict[str, float]
    outcome: str = "undecided"
    """The best candidate where it is better than all others beyond chance, else "undecided"."""
    hopeless: list[str] = Field(default_factory=list)
    """Candidates that are worse than the best beyond chance, or whose score is not finite: none tries them further."""


class Report(Artifact):
    """`report.html`, one self-contained page, and `report.json`, the same figures."""

    summary: dict[str, float]
    # Words stand among the numbers, so the values of a step are of several types.
    gains: dict[str, JsonObject] = Field(default_factory=dict)
    """Per step (curation, sweep, soup, sft, dpo, reward, rlvr): gain, stderr (paired), n, discordant, and words."""
