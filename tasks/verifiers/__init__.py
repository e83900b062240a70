"""Verifiers: text to verdict. Shared by RLVR, by the preference stage and by evaluation (RECIPE H.4).

A row's `dataset`, lower-cased, names its verifier, as in the published RLVR data.
"""

from typing import Any

from tasks.verifiers.competition_math import verify_math
from tasks.verifiers.constraints import verify_constraint
from tasks.verifiers.gsm8k import verify_gsm8k
from tasks.verifiers.verdict import Rules, Verdict

__all__ = ["DATASETS", "Rules", "Verdict", "verify"]

SYNTHETIC = ("arithmetic", "multi_addition", "word_problems")
"""Kinds of `tasks.synthetic`, whose rows name their kind as the dataset."""

DATASETS = ("gsm8k", "math", "ifeval", *SYNTHETIC)


def verify(dataset: str, text: str, ground_truth: Any, rules: Rules = "correct") -> Verdict:
    """Judge the text after the last assistant header against a row's ground truth.

    `rules` names how answers are read; synthetic problems have no published rule. Raises ValueError for a dataset without
    a verifier.
    """
    match dataset.lower():
        case "gsm8k":
            return verify_gsm8k(text, ground_truth, rules)
        case "math":
            return verify_math(text, ground_truth, rules)
        case "ifeval":
            return verify_constraint(text, ground_truth, rules)
        case name if name in SYNTHETIC:
            return verify_gsm8k(text, ground_truth)
    raise ValueError(f"dataset {dataset!r} has no verifier; known are {', '.join(DATASETS)}")
