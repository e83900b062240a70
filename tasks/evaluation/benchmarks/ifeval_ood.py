"""IFEval-OOD: IFBench's 300 single-turn prompts, zero-shot, with 58 constraints that IFEval lacks (paper, Table 24). Held out.

Rows, requests and scores are IFEval's. Primary: prompt-level loose accuracy, answers of 2,048 tokens, chat, greedy, as the task
`ifeval_ood` of AI2's olmo-eval has it, which says that it mirrors `ifeval_ood::tulu`. That task reads `allenai/IFBench_test2`;
the public release names `allenai/IFBench_test`. The paper counts 52 constraints, the released set 58 (see the verifiers).
"""

from typing import Literal

from tasks.data.sources.rows import RowSource
from tasks.evaluation.benchmarks.ifeval import InstructionRows
from tasks.verifiers.ifeval import Arguments
from tasks.verifiers.ifeval_ood import check_constraint


class IFEvalOODBenchmark(InstructionRows):
    """Verifiable instructions that no training data have: 300 prompts, 256 with one constraint and 44 with two."""

    kind: Literal["ifeval_ood"] = "ifeval_ood"
    name: str = "ifeval_ood"
    """Name in scores and reports."""
    rows: RowSource = RowSource(dataset="allenai/IFBench_test", split="train")

    def check(self, instruction: str, arguments: Arguments, text: str) -> bool:
        """Whether a text meets one constraint."""
        return check_constraint(instruction, arguments, text)
