"""A real store in a temporary folder, and a way to run a data stage in it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from infra.execution.attempt import run_stage
from infra.records.artifact import Artifact
from infra.session import Session
from infra.settings import Execution
from infra.stage import Stage
from infra.storage.store import Store
from infra.workspace import WorkSettings, Workspace
from tasks.artifacts import Classifier, Documents
from tasks.data.collect import collect
from tasks.data.filter import FilterConfig, Judge, filter
from tasks.data.filters.rules import Rule
from tasks.data.score import ScoreConfig, score, score_rows
from tasks.data.sources.local import LocalSource


class Bench:
    """Runs stages as a recipe would, in process, and reads what they made."""

    def __init__(self, root: Path):
        self.root = root
        self.store = Store(str(root / "store"))
        self.session = Session(self.store, Execution(store=self.store.url, ray="off"))

    def set(self, **execution: Any) -> None:
        """Change settings of how stages run."""
        self.session.execution = self.session.execution.model_copy(update=execution)

    def run(self, stage: Stage, *args: Any, **kwargs: Any) -> Any:
        """The artifact of a stage call."""
        return run_stage(stage, self.session, stage.bind(*args, **kwargs), lambda event: None).artifact

    def filtered(self, documents: Documents, *rules: Rule, classifiers: Sequence[Classifier] = ()) -> Documents:
        """What passes the rules: scored and filtered, as the recipe does it."""
        config = FilterConfig(rules=rules)
        scores = self.run(score, documents, ScoreConfig(scorers=config.scorers), list(classifiers))
        return self.run(filter, documents, config, scores)

    def reader(self) -> Workspace:
        """A workspace for reading artifacts."""
        compute = self.session.execution.compute("test")
        return Workspace(
            self.store,
            stage="test",
            id="0",
            payload="test/0",
            progress_folder="_progress/test",
            settings=WorkSettings(compute=compute),
        )

    def rows(self, artifact: Artifact, prefix: str) -> list[dict[str, Any]]:
        """All rows of the JSON-lines files below a prefix, in order."""
        ws = self.reader()
        return [row for name in ws.files(artifact, prefix) for row in ws.read_jsonl(artifact, name)]

    def json(self, artifact: Artifact, name: str) -> Any:
        return self.reader().read_json(artifact, name)

    def documents(self, texts: Iterable[str], name: str = "web", **options: Any) -> Documents:
        """A documents artifact of these texts, ids 0, 1, ... as strings."""
        path = self.root / f"{name}.jsonl"
        path.write_bytes(b"".join(orjson.dumps({"id": str(i), "text": t}) + b"\n" for i, t in enumerate(texts)))
        return self.run(collect, LocalSource(name=name, paths=(str(path),), **options).pinned())


def refusals(rule: Rule, documents: Iterable[Any], model: Any = None) -> list[str]:
    """The detail with which a rule refuses each document (or text); empty where it does not."""
    rows = [item if isinstance(item, dict) else {"id": "", "source": "", "text": item} for item in documents]
    judge = Judge([rule])
    (found,) = score_rows(rows, [rule.scorer], [model])
    return [judge.decide([attributes])[1] for attributes in found]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def new_bench(tmp_path: Path) -> Callable[[str], Bench]:
    """Further stores, by name."""

    def make(name: str) -> Bench:
        (tmp_path / name).mkdir()
        return Bench(tmp_path / name)

    return make
