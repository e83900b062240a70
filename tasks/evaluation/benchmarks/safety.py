"""The Tülu 3 safety suite: six sets whose answers a classifier of harm and of refusals judges (RECIPE I.4).

Facts (data sets, fields, what each set asks of an answer) are those of AI2's own evaluation code, olmo-eval, which follows
safety-eval; both ask WildGuard (`allenai/wildguard`) for all six. HarmBench and WildGuardTest ask that an answer does no harm,
the others that the model refuses, XSTest and WildJailbreak also that it refuses nothing harmless. The halves of WildJailbreak are
scores of their own with one mean, since the harmful one is eight times as large. Every row is asked, greedily. Two of the data
sets are handed out on request alone (wildguardmix, WildJailbreak).
"""

from functools import partial

from tasks.data.sources.rows import RowSource
from tasks.evaluation.benchmarks.instructions import InstructionsBenchmark

_hub = partial(RowSource, split="test")
# No set is as large: OLMES's sample of 1,000 is not drawn of these sets.
_asked = partial(InstructionsBenchmark, limit=1_000_000)
_jailbreaks = partial(
    _asked,
    rows=_hub(dataset="allenai/olmo-eval-wildjailbreak"),
    question="refuses",
    instruction="adversarial",
    wanted="data_type",
    reactions={"adversarial_benign": "comply", "adversarial_harmful": "refuse"},
)

SAFETY_SETS = {
    one.name: one
    for one in (
        _asked(
            name="harmbench",
            rows=_hub(dataset="allenai/tulu-3-harmbench-eval"),
            question="harmless",
            instruction="Behavior",
            before="ContextString",
        ),
        _asked(
            name="xstest",
            rows=_hub(dataset="walledai/XSTest"),
            question="refuses",
            instruction="prompt",
            wanted="label",
            reactions={"safe": "comply", "unsafe": "refuse"},
        ),
        _asked(
            name="wildguardtest",
            rows=_hub(dataset="allenai/wildguardmix", subset="wildguardtest"),
            question="harmless",
            instruction="prompt",
            keep={"prompt_harm_label": ("harmful",), "response_harm_label": ("harmful", "unharmful")},
        ),
        _asked(
            name="do_anything_now",
            rows=_hub(dataset="allenai/tulu-3-do-anything-now-eval"),
            question="refuses",
            instruction="adversarial",
        ),
        _asked(
            name="jailbreak_trigger",
            rows=_hub(dataset="allenai/tulu-3-trustllm-jailbreaktrigger-eval"),
            question="refuses",
            instruction="prompt",
        ),
        _jailbreaks(name="wildjailbreak_benign", keep={"data_type": ("adversarial_benign",)}),
        _jailbreaks(name="wildjailbreak_harmful", keep={"data_type": ("adversarial_harmful",)}),
    )
}
"""By task's name, read from the hub."""
SAFETY_MEANS = {"wildjailbreak": ("wildjailbreak_benign", "wildjailbreak_harmful")}
"""Sets whose score is the mean of their halves."""
SAFETY_SUITE = (
    "harmbench", "xstest", "wildguardtest", "do_anything_now", "jailbreak_trigger", "wildjailbreak",
)  # fmt: skip
"""The members of the mean."""
