"""Educational value, 0 to 5: the score of the FineWeb-Edu classifier (RECIPE C.3; Penedo et al. 2024).

The published scorer is a transformers checkpoint with one regression output, read as its model card says: the beginning of the
text, one number, clipped to 0 to 5. Any sequence-classification checkpoint will do: one with several classes scores the expected
class number. Offline the default is a linear scorer instead: a fastText classifier of the recipe, its probability times 5.
The paper does not say whether its threshold of 2 is on the raw score or on the rounded one: `compare` says it, raw by default.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field

from model.config import Config
from tasks.data.filters.attributes import DocumentScores, Limit
from tasks.data.filters.batch import TextBatch
from tasks.data.filters.classifiers.quality import positive_probabilities
from tasks.data.filters.classifiers.revision import pin_checkpoint

HIGHEST = 5.0
_EXTRA = "transformers"
"""The optional dependency group that holds what checkpoints need."""

_BATCH_TOKENS = 16_384
# Below this difference two scores of one text on one machine may be the batch's doing.
_DIGITS = 4


class LinearModel(Config):
    """A fastText classifier of the recipe: offline, tens of megabytes per second."""

    kind: Literal["linear"] = "linear"
    classifier: str = Field(default="education", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the classifier under `classifiers`."""


class CheckpointModel(Config):
    """A sequence-classification checkpoint of transformers, loaded once per worker."""

    kind: Literal["checkpoint"] = "checkpoint"
    path: str = "HuggingFaceFW/fineweb-edu-classifier"
    """Hub id, or local folder."""
    revision: str = ""
    """Commit of the hub repository, or hash of the local folder; filled in when the recipe is pinned."""
    max_tokens: int = Field(default=512, ge=2)
    """Tokens from the beginning of the text that are read (the published encoder's window)."""

    def pinned(self) -> Self:
        """The model with its commit, or the hash of its local folder."""
        return self.model_copy(update={"revision": pin_checkpoint(self.path, self.revision)})


class EducationScorer(Config):
    """Asks a model how educational a text is."""

    kind: Literal["fineweb_edu"] = "fineweb_edu"
    model: Annotated[LinearModel | CheckpointModel, Field(discriminator="kind")] = LinearModel()
    """What scores."""

    def pinned(self) -> Self:
        """The scorer with its model pinned."""
        return self.model_copy(update={"model": self.model.pinned()})


class EducationRule(Config):
    """Keeps texts of educational value."""

    kind: Literal["fineweb_edu"] = "fineweb_edu"
    scorer: EducationScorer = EducationScorer()
    """What is asked."""
    threshold: float = Field(default=2.0, ge=0, le=HIGHEST)
    """Lowest score kept (paper section 4.3: 2, which keeps 20.3 % of the web; 3 keeps 5.8 %)."""
    compare: Literal["raw", "rounded"] = "raw"
    """Which score is compared: as the model gives it, or rounded to the nearest integer."""

    def limits(self) -> tuple[Limit, ...]:
        """The lowest score."""
        return (Limit("score" if self.compare == "raw" else "rounded", self.threshold, HIGHEST, "grade"),)


class Encoder(NamedTuple):
    """A loaded checkpoint."""

    model: Any
    tokenizer: Any
    device: str
    max_tokens: int


def load_encoder(path: str, revision: str, max_tokens: int, device: str, threads: int) -> Encoder:
    """The checkpoint, ready to score. Raises ValueError where transformers is not installed or the checkpoint is none."""
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise ValueError(
            f"scoring with {path} needs transformers, which is not installed: pip install 'olmo2-recipe[{_EXTRA}]', or use the "
            "linear scorer (scorer.model.kind: linear)"
        ) from error
    import torch

    disable_progress_bar()
    # Each worker has its own cores; torch would take all of the machine's.
    torch.set_num_threads(threads)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision or None)
        # Weights are never unpickled.
        model = AutoModelForSequenceClassification.from_pretrained(
            path, revision=revision or None, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be loaded as a sequence-classification checkpoint: {error}. Give a hub id or a folder "
            "with config.json, model.safetensors and a tokenizer"
        ) from error
    # The shorter of the two: positions beyond the checkpoint's window have no embedding.
    return Encoder(model.to(device).eval(), tokenizer, device, min(max_tokens, _window(model)))


def _window(model: Any) -> int:
    """Tokens that the checkpoint's positions allow."""
    config = model.config.to_dict()
    return int(config.get("max_position_embeddings") or 1 << 30)


def encoder_scores(texts: Sequence[str], encoder: Encoder) -> list[float]:
    """0 to 5 for each text. Texts of like length go through the model together, so little of a batch is padding."""
    import torch

    encoded = encoder.tokenizer(list(texts), truncation=True, max_length=encoder.max_tokens)["input_ids"]
    # Shortest first, so that texts of like length share a batch.
    order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
    scores = [0.0] * len(texts)
    with torch.inference_mode():
        for chosen in _batches([len(encoded[index]) for index in order]):
            members = [order[place] for place in chosen]
            inputs = encoder.tokenizer.pad({"input_ids": [encoded[index] for index in members]}, return_tensors="pt")
            logits = encoder.model(**inputs.to(encoder.device)).logits.float().cpu()
            for index, score in zip(members, _grades(logits).tolist(), strict=True):
                scores[index] = round(score, _DIGITS)
    return scores


def _batches(lengths: list[int]) -> list[range]:
    """Ranges of ascending lengths that, padded to the last, stay within the tokens of a batch."""
    ranges, start = [], 0
    for place, length in enumerate(lengths):
        # Padded tokens are what costs, so they are bounded, not the number of texts.
        if place > start and (place + 1 - start) * length > _BATCH_TOKENS:
            ranges.append(range(start, place))
            start = place
    return [*ranges, range(start, len(lengths))] if lengths else []


def _grades(logits: Any) -> Any:
    """Scores from logits "texts classes": the one output, or the expected class number."""
    import torch

    if logits.shape[-1] > 1:
        classes = torch.arange(logits.shape[-1], dtype=torch.float32)
        # The expected class number: classes of 0 to 5 become one grade.
        logits = (logits.softmax(-1) * classes).sum(-1, keepdim=True)
    return logits.squeeze(-1).clamp(0.0, HIGHEST)


def score_education(batch: TextBatch, scorer: EducationScorer, model: Any) -> DocumentScores:
    """`score`, 0 to 5, and `rounded`, the nearest integer (half to even). `model` is a fastText model or an `Encoder`."""
    if isinstance(scorer.model, LinearModel):
        scores = [HIGHEST * probability for probability in positive_probabilities(batch.texts, model)]
    else:
        scores = encoder_scores(batch.texts, model)
    # np.round rounds halves to even, as the published scorer does.
    return DocumentScores({"score": scores, "rounded": np.round(scores).tolist()})
