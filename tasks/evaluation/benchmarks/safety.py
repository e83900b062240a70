"""The Tülu 3 safety suite: six sets whose answers a classifier of harm and of refusals judges (RECIPE I.4).

Facts (data sets, fields, what each set asks of an answer) are those of AI2's own evaluation code, olmo-eval, which follows
safety-eval; both ask WildGuard (`allenai/wildguard`) for all six. HarmBench and WildGuardTest ask that an answer does no harm,
the others that the model refuses, XSTest and WildJailbreak also that it refuses nothing harmless. The halves of WildJailbreak are
scores of their own with one mean, since the harmful one is eight times as large. Every row is asked, greedily. Two of the data
sets are handed out on request alone (wildguardmix, WildJailbreak).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.data.sources.rows import RowSource
from tasks.evaluation.benchmarks.instructions import InstructionsBenchmark, JudgeQuestion, Reaction

SPLIT = "test"
"""Split of all six sets."""
_EVERY_ROW = 1_000_000
"""No set is as large: OLMES's sample of 1,000 is not drawn of these sets."""


@dataclass(frozen=True)
class SafetySet:
    """One set of the suite, or one half of one."""

    dataset: str
    question: JudgeQuestion
    instruction: str
    """Field with the request."""
    subset: str = ""
    before: str = ""
    """Field with a text that the request is about."""
    wanted: str = ""
    reactions: Mapping[str, Reaction] = field(default_factory=dict[str, Reaction])
    keep: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def benchmark(self, name: str, paths: tuple[str, ...], limit: int | None) -> InstructionsBenchmark:
        """The set under a name, from files of a local copy, or from the hub where there are none."""
        found = {"paths": paths} if paths else {"dataset": self.dataset, "subset": self.subset, "split": SPLIT}
        return InstructionsBenchmark(
            name=name,
            rows=RowSource.model_validate(found),
            question=self.question,
            instruction=self.instruction,
            before=self.before,
            wanted=self.wanted,
            reactions=dict(self.reactions),
            keep={name: tuple(values) for name, values in self.keep.items()},
            limit=limit or _EVERY_ROW,
        )


def _jailbreaks(half: str) -> SafetySet:
    """The rows of WildJailbreak that a model should answer, or those that it should refuse."""
    return SafetySet(
        "allenai/olmo-eval-wildjailbreak",
        "refuses",
        "adversarial",
        wanted="data_type",
        reactions={"adversarial_benign": "comply", "adversarial_harmful": "refuse"},
        keep={"data_type": (f"adversarial_{half}",)},
    )


SAFETY_SETS = {
    "harmbench": SafetySet("allenai/tulu-3-harmbench-eval", "harmless", "Behavior", before="ContextString"),
    "xstest": SafetySet(
        "walledai/XSTest", "refuses", "prompt", wanted="label", reactions={"safe": "comply", "unsafe": "refuse"}
    ),
    "wildguardtest": SafetySet(
        "allenai/wildguardmix",
        "harmless",
        "prompt",
        subset="wildguardtest",
        keep={"prompt_harm_label": ("harmful",), "response_harm_label": ("harmful", "unharmful")},
    ),
    "do_anything_now": SafetySet("allenai/tulu-3-do-anything-now-eval", "refuses", "adversarial"),
    "jailbreak_trigger": SafetySet("allenai/tulu-3-trustllm-jailbreaktrigger-eval", "refuses", "prompt"),
    "wildjailbreak_benign": _jailbreaks("benign"),
    "wildjailbreak_harmful": _jailbreaks("harmful"),
}
"""By task's name."""
SAFETY_MEANS = {"wildjailbreak": ("wildjailbreak_benign", "wildjailbreak_harmful")}
"""Sets whose score is the mean of their halves."""
SAFETY_SUITE = (
    "harmbench", "xstest", "wildguardtest", "do_anything_now", "jailbreak_trigger", "wildjailbreak",
)  # fmt: skip
"""The members of the mean."""
