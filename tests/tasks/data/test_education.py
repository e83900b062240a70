"""The FineWeb-Edu scorer. Oracles: the published model card's way of calling a checkpoint, one text at a time; a linear scorer's
probability; the identity of the scores.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tasks.data.classifying.classifier import ClassifierConfig, ClassSelection, classifier
from tasks.data.filters.classifiers.education import (
    CheckpointModel,
    EducationRule,
    EducationScorer,
    LinearModel,
    encoder_scores,
    load_encoder,
)
from tasks.data.filters.rules import needs_device, pin_rule
from tasks.data.filters.statistics.length import LengthScorer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *["the", "sun", "is", "a", "star", "and", "buys", "cheap", "pills", "now"]]
TEXTS = ["the sun is a star", "buys cheap pills now " * 30, "", "the", "a star and the sun " * 3, "unknown words"]


def checkpoint(folder: Path, labels: int = 1) -> Path:
    """A tiny encoder with random weights, wide enough that its scores differ and leave 0 to 5."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=24, num_labels=labels, initializer_range=1.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.classifier.weight.data *= 4
    torch.nn.init.constant_(model.classifier.bias, -16.5)
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=24,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def by_the_card(folder: Path, text: str) -> float:
    """The model card's snippet for one text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", padding="longest", truncation=True)
    logits = model(**inputs).logits.squeeze(-1).float().detach()
    return max(0.0, min(float(logits), 5.0))


def test_scores_are_those_of_the_model_card(tmp_path):
    folder = checkpoint(tmp_path / "edu")
    encoder = load_encoder(str(folder), "", 512, "cpu", 1)
    assert encoder.max_tokens == 24, "positions of the checkpoint bound what is read"
    found = encoder_scores(TEXTS, encoder)
    expected = [by_the_card(folder, text) for text in TEXTS]
    assert found == pytest.approx(expected, abs=2e-4)
    assert len({round(score, 2) for score in expected}) > 3


def test_several_classes_give_the_expected_class(tmp_path):
    folder = checkpoint(tmp_path / "grades", labels=4)
    encoder = load_encoder(str(folder), "", 8, "cpu", 1)
    model, tokenizer = encoder.model, encoder.tokenizer
    for text, score in zip(TEXTS, encoder_scores(TEXTS, encoder), strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=8)
        share = model(**inputs).logits[0].softmax(-1).tolist()
        assert score == pytest.approx(sum(number * part for number, part in enumerate(share)), abs=2e-4)


def test_stage_scores_with_a_checkpoint_and_a_raw_or_rounded_threshold(bench, tmp_path):
    folder = checkpoint(tmp_path / "edu")
    scorer = EducationScorer(model=CheckpointModel(path=str(folder)))
    rule = pin_rule(EducationRule(scorer=scorer, threshold=1.2))
    assert len(rule.scorer.model.revision) == 64
    documents = bench.documents(TEXTS)
    made = bench.filtered(documents, rule)
    scores = {text: by_the_card(folder, text) for text in TEXTS}
    assert {row["text"] for row in bench.rows(made, "documents/")} == {t for t in TEXTS if scores[t] >= 1.2}
    assert 0 < made.documents < len(TEXTS)
    rounded = bench.filtered(documents, rule.model_copy(update={"compare": "rounded", "threshold": 3.0}))
    assert {row["text"] for row in bench.rows(rounded, "documents/")} == {t for t in TEXTS if round(scores[t]) >= 3}
    # A checkpoint that changed on disk is not the one that the identity names.
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="its files changed"):
        bench.filtered(bench.documents(TEXTS[:2], "others"), rule)


def test_linear_scorer_is_the_offline_default(bench):
    good = [f"This is a well written sentence about subject {i} and its long history." for i in range(120)]
    junk = [f"xx{i} $$ click 0x{i:x} buy {i % 7} ::" for i in range(120)]
    inputs = [bench.documents(good, "good"), bench.documents(junk, "junk")]
    config = ClassifierConfig(
        positives=ClassSelection(sources=("good",)), negatives=ClassSelection(sources=("junk",)), dim=8, bucket=1000,
        learning_rate=0.5, epochs=10
    )  # fmt: skip
    assert config.sources == ("good", "junk")
    education = bench.run(classifier, inputs, config)
    assert EducationRule().scorer.model == LinearModel(classifier="education")
    asked = EducationScorer(model=CheckpointModel()), EducationScorer(), LengthScorer()
    assert [needs_device(scorer) for scorer in asked] == [True, False, False]
    assert bench.filtered(inputs[0], EducationRule(), classifiers=[education]).documents > 110
    with pytest.raises(ValueError, match="no document of"):
        bench.filtered(inputs[1], EducationRule(threshold=4.5), classifiers=[education])


def test_what_is_missing_is_named(tmp_path):
    """In an interpreter of its own, where transformers cannot be imported."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from tasks.data.filters.classifiers.education import load_encoder\n"
        "load_encoder('some/model', '', 8, 'cpu', 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'olmo2-recipe[transformers]'" in done.stderr
    with pytest.raises(ValueError, match=r"(?s)cannot be loaded as a sequence-classification checkpoint.*config.json"):
        load_encoder(str(tmp_path), "", 8, "cpu", 1)
