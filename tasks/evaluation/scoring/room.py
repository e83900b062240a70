"""How many tokens a benchmark's prompts and answers have together, and what that leaves for a prompt (RECIPE I.1, I.4).

Base tasks have a context of 2,048 tokens, which a task may say otherwise in its field `context` (IFEval's answers alone have
2,048). The model's window bounds every context. The stage and the check before a run both ask here.
"""

from tasks.evaluation.benchmarks import Benchmark
from tasks.evaluation.benchmarks.olmes.benchmark import OlmesBenchmark


def context_of(benchmark: Benchmark, max_context: int, window: int) -> int:
    """Tokens of prompt and answer together: the benchmark's own `context`, else the task's published one, else `max_context`.

    It is never more than the model's window.
    """
    published = benchmark.facts.max_context if isinstance(benchmark, OlmesBenchmark) else max_context
    # A context given in the recipe goes before the published one; the window bounds both.
    return min(benchmark.context or published, window)


def longest_answer(benchmark: Benchmark) -> int:
    """Tokens of the longest answer that is written; 0 where only choices are scored or the benchmark's files say it."""
    if isinstance(benchmark, OlmesBenchmark):
        return (benchmark.max_new_tokens or benchmark.facts.max_new_tokens) if benchmark.format == "generate" else 0
    # Families differ in what fields they have, so the field is asked for by name.
    return benchmark.model_dump(include={"max_new_tokens"}).get("max_new_tokens", 0)


def prompt_room(max_new_tokens: int, context: int) -> int:
    """Tokens that are left for a prompt. Raises ValueError where there are none."""
    if max_new_tokens >= context:
        raise ValueError(
            f"max_new_tokens={max_new_tokens:,} leaves no room for a prompt in a context of {context:,} tokens; "
            f"use at most {context - 1:,}"
        )
    return context - max_new_tokens
