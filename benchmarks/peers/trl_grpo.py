"""TRL's GRPOTrainer on a job of `benchmarks/rlvr.py`; runs in an environment of its own.

`python trl_grpo.py JOB.json` prints one JSON line: the share of right answers of each rollout, and CPU seconds of the training.
"""

import json
import re
import resource
import sys
from pathlib import Path

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports] # in the peer's environment only
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

NUMBER = re.compile(r"-?\d+")


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    right: list[float] = []

    def reward(completions, truth, **others):
        """1 for an answer whose last number is the sum, as the verifier of our side takes it."""
        texts = [completion[0]["content"] for completion in completions]
        found = [float((NUMBER.findall(text) or [""])[-1] == wanted) for text, wanted in zip(texts, truth, strict=True)]
        right.append(sum(found) / len(found))
        return found

    rows = [{"prompt": [{"role": "user", "content": q}], "truth": a} for q, a in job["sums"]]
    answers = job["prompts"] * job["samples"]
    config = GRPOConfig(
        output_dir=job["folder"], use_cpu=True, bf16=job["bf16"], report_to=[], save_strategy="no", logging_strategy="no",
        disable_tqdm=True, learning_rate=job["learning_rate"], lr_scheduler_type="constant", beta=job["kl"], epsilon=0.2,
        temperature=1.0, num_generations=job["samples"], max_completion_length=job["new_tokens"],
        per_device_train_batch_size=answers // job["updates"], steps_per_generation=job["updates"],
        gradient_accumulation_steps=1, max_steps=job["rollouts"] * job["updates"], max_grad_norm=1.0, adam_beta2=0.999,
        weight_decay=0.0, gradient_checkpointing=False, seed=1,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    before = used()
    trainer.train()
    print(json.dumps({"rewards": right, "seconds": used() - before}))


def used() -> float:
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime


if __name__ == "__main__":
    main()
