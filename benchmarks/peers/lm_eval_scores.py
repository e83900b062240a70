"""lm-evaluation-harness and a plain transformers loop on given requests; runs in an environment of its own.

`python lm_eval_scores.py JOB.json`: the job names the model's folder, who answers ("lm_eval" or "prefix_loop"), and the
requests. Prints one JSON line: CPU seconds from texts to answers, and the answers.
"""

import copy
import json
import resource
import sys
from typing import Any

import torch

Pairs = list[tuple[str, str]]


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def harness(job: dict[str, Any]) -> Any:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports] # in the peer's environment only
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    model = HFLM(pretrained=job["folder"], device="cpu", dtype="float32", batch_size=job["batch_size"], max_length=2048)
    kind = job["kind"]

    def ask(requests: list[Any]) -> list[Any]:
        instances = [Instance(kind, {}, tuple(request), index) for index, request in enumerate(requests)]
        return getattr(model, kind)(instances, disable_tqdm=True)

    return ask if kind == "generate_until" else lambda requests: [float(answer[0]) for answer in ask(requests)]


def prefix_loop(job: dict[str, Any]) -> Any:
    """Forty lines that reuse keys and values: the shots once, each question once, its choices as one batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def feed(ids: list[list[int]], cache: Any, keep: int) -> tuple[torch.Tensor, Any]:
        output = model(torch.tensor(ids), past_key_values=cache, use_cache=True, logits_to_keep=keep)
        return torch.log_softmax(output.logits.float(), -1), output.past_key_values

    @torch.inference_mode()
    def ask(pairs: Pairs) -> list[float]:
        contexts = {context: encode(context) for context, _ in pairs}
        lists = list(contexts.values())
        columns = list(zip(*(ids[:-1] for ids in lists), strict=False))
        shared = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
        _, shots = feed([lists[0][:shared]], DynamicCache(), 1)
        scores = []
        for context, ids in contexts.items():
            choices = [encode(continuation) for other, continuation in pairs if other == context]
            first, cache = feed([ids[shared:]], copy.deepcopy(shots), 1)
            sums = [float(first[0, -1, choice[0]]) for choice in choices]
            longest = max(map(len, choices)) - 1
            if longest:
                cache.batch_repeat_interleave(len(choices))
                rest = [choice[:-1] + [0] * (longest + 1 - len(choice)) for choice in choices]
                after, _ = feed(rest, cache, longest)
                for row, choice in enumerate(choices):
                    sums[row] += sum(float(after[row, at, token]) for at, token in enumerate(choice[1:]))
            scores += sums
        return scores

    return ask


def main() -> None:
    with open(sys.argv[1]) as file:
        job = json.load(file)
    torch.set_num_threads(1)
    ask = {"lm_eval": harness, "prefix_loop": prefix_loop}[job["who"]](job)
    requests = [tuple(request) for request in job["requests"]]
    ask(requests[:4])  # whatever is loaded at first use is not measured
    begun = cpu_seconds()
    answers = ask(requests)
    print(json.dumps({"seconds": cpu_seconds() - begun, "answers": answers}))


if __name__ == "__main__":
    main()
