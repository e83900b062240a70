"""lm-evaluation-harness's own tasks on local copies of their data sets; runs in an environment of its own.

`python lm_eval_tasks.py JOB.json`: the job names the model's folder and, by task, the file of its evaluated split. Prints one
JSON line: per task its items with the rendered context and continuations, their log-likelihoods and the metrics.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch


def config_of(name: str, file: str) -> dict[str, Any]:
    """The harness's own definition of a task, with its evaluated split read from a file."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports] # in the peer's environment only
    from lm_eval.tasks._yaml_loader import load_yaml  # pyright: ignore[reportMissingImports]

    config = load_yaml(TaskManager().task_index[name].yaml_path, resolve_func=True)
    split = config.get("test_split") or config["validation_split"]
    config |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: file}},
        "training_split": None,
        "fewshot_split": None,
        "num_fewshot": 0,
        "validation_split": split if split != config.get("test_split") else None,
    }
    config.pop("tag", None)
    return config


def main() -> None:
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.api.task import ConfigurableTask  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    class Planted(HFLM):
        """The harness's own model, which says given answers where it would write some; stops cut them as it cuts its own."""

        answers: tuple[str, ...] = ()

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            found = []
            for request in requests:
                text = self.answers[request.doc_id]
                for stop in request.args[1]["until"]:
                    text = text.split(stop)[0]
                found.append(text)
            return found

    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    model = Planted(pretrained=job["folder"], device="cpu", dtype="float32", batch_size=8, max_length=2048)
    found = {}
    for name, file in job["tasks"].items():
        task = ConfigurableTask(config=config_of(name, file))
        model.answers = tuple(job.get("answers", {}).get(name, ()))
        result = simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0, verbosity="ERROR")
        (samples,) = result["samples"].values()
        found[name] = [
            {
                "pairs": [list(one) for one in sample["arguments"]],
                "answers": [one[0] if isinstance(one, (list, tuple)) else one for one in flat(sample["resps"])],
                "metrics": {key: sample[key] for key in ("acc", "exact_match", "f1", "em") if key in sample},
            }
            for sample in sorted(samples, key=lambda sample: sample["doc_id"])
            # A task with several ways of reading an answer has a sample for each.
            if sample["filter"] == job.get("filters", {}).get(name, sample["filter"])
        ]
    print(json.dumps(found))


def flat(responses: Any) -> list[Any]:
    """The first response of every request."""
    return [one[0] for one in responses]


if __name__ == "__main__":
    main()
