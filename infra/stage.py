"""A stage: a function from a workspace, typed artifacts and a config to one artifact.

A flow calls the wrapped stage, and the session's engine decides what that does. The engine that runs submits it and returns at
once a promise, typed as the artifact it will be, that may be passed to other stages. The engine that plans submits nothing, so
the same flow code yields the plan.

    >>> base = pretrain.labelled("7b")(mix, PretrainConfig())  # inside a flow; `base` is typed as a Checkpoint
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Concatenate, Generic, ParamSpec, TypedDict, TypeVar, Unpack, cast, get_type_hints

from pydantic import BaseModel

from infra.json_values import JsonObject
from infra.records.artifact import Artifact
from infra.records.record import Input
from infra.session import Arguments, Pending, Session, StageEstimate, current_session

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)

_Estimate = Callable[..., StageEstimate]


@dataclass(frozen=True)
class Call:
    """One stage with its arguments told apart: configs are hashed as they are, artifacts by their digests."""

    inputs: Arguments
    """Parameter name -> artifact, list of artifacts, or None."""
    config: JsonObject

    @property
    def pending(self) -> list[str]:
        return [item.label for _, item in self.flat() if isinstance(item, Pending)]

    def flat(self) -> list[tuple[str, Artifact | Pending]]:
        """Inputs one by one; members of a list are numbered."""
        found: list[tuple[str, Artifact | Pending]] = []
        for name, value in self.inputs.items():
            if isinstance(value, list | tuple):
                found += [(f"{name}[{index}]", item) for index, item in enumerate(value)]
            elif isinstance(value, Artifact | Pending):
                found.append((name, value))
        return found

    def records(self) -> list[Input]:
        """Inputs as a record names them."""
        return [
            Input(
                name=name,
                kind=item.kind,
                stage=item.stage,
                id=item.id,
                digest=item.digest,
                address=item.address,
            )
            for name, item in self.flat()
            if isinstance(item, Artifact)
        ]


@dataclass(frozen=True)
class Stage(Generic[P, A]):
    """A named, versioned stage. `version` is raised by hand when its meaning changes."""

    function: Callable[Concatenate[Any, P], A]
    name: str
    version: int
    process: bool = False
    """Runs in a process of its own: training and evaluation, whose threads and memory should be theirs alone."""
    grouped: bool = False
    """May run on several workers (`execution.parallel`): a stage that shares its work out among them."""
    waits: bool = False
    """Takes no core: the server of a language model does its work."""
    sharded: bool = False
    """Its process only hands out shards, where there is a Ray: it holds no core while they wait for one."""
    trains: bool = False
    """Computes gradients in its processes, on devices that prove themselves first (`execution.health`)."""
    estimate: _Estimate | None = None
    """Tokens, FLOPs and what else a plan can say before it runs: (config and inputs by name) -> facts."""
    suffix: str = ""

    @property
    def label(self) -> str:
        """The name in this recipe: the stage's, with what tells its instances apart."""
        return f"{self.name}:{self.suffix}" if self.suffix else self.name

    @property
    def reference(self) -> str:
        """Where another process finds the function."""
        return f"{self.function.__module__}:{self.function.__name__}"

    @cached_property
    def result_class(self) -> type[A]:
        """The class of its artifact."""
        return get_type_hints(self.function)["return"]

    @property
    def result_kind(self) -> str:
        return self.result_class.__name__

    def labelled(self, suffix: str | int) -> "Stage[P, A]":
        """The same stage under a label of its own, for several instances in one recipe."""
        return replace(self, suffix=str(suffix))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> A:
        """Hand the stage to the session's engine; returns a promise typed as its artifact."""
        session = current_session()
        self._check_workers(session)
        arguments, engine = self.bind(*args, **kwargs), session.in_charge
        # What the engine hands out is called here, so that its own task stands directly below the noun.
        promise = engine.taker(self, session)(self, session, arguments)
        engine.promised(promise)
        return cast(A, promise)

    def _check_workers(self, session: Session) -> None:
        """Raise ValueError when the settings ask for a group that this stage cannot be."""
        workers = session.execution.compute(self.name).parallel.workers
        if workers > 1 and not self.grouped:
            raise ValueError(
                f"execution.parallel.{self.name}.workers={workers}, but stage {self.name} runs in one process; remove that "
                "setting (stages that train with gradients, and evaluate, can be groups; all others cannot)"
            )

    def bind(self, *args: Any, **kwargs: Any) -> Arguments:
        """Arguments by parameter name, defaults filled in."""
        # None stands for the workspace, which is added where the stage runs.
        bound = inspect.signature(self.function).bind(None, *args, **kwargs)
        bound.apply_defaults()
        # Without the first, the workspace.
        return dict(list(bound.arguments.items())[1:])

    def sort(self, arguments: Arguments) -> Call:
        """Tell configs from inputs."""
        config = {
            name: value.model_dump(mode="json")
            for name, value in arguments.items()
            if isinstance(value, BaseModel) and not isinstance(value, Artifact)
        }
        inputs = {name: value for name, value in arguments.items() if name not in config}
        for name, value in inputs.items():
            members = value if isinstance(value, list | tuple) else [value]
            for member in members:
                assert member is None or isinstance(member, Artifact | Pending), f"{self.name}: {name}={member!r}"
        # A single config is the record's config itself; several are told apart by parameter name.
        return Call(inputs, next(iter(config.values())) if len(config) == 1 else config)


class HowItRuns(TypedDict, total=False):
    """What is said of a stage once, where it is defined; each is False where it is not said, and means what it does in Stage."""

    process: bool
    grouped: bool
    waits: bool
    sharded: bool
    trains: bool


def stage(
    function: Callable[Concatenate[Any, P], A],
    *,
    name: str,
    version: int,
    estimate: _Estimate | None = None,
    **how: Unpack[HowItRuns],
) -> Stage[P, A]:
    """Wrap a stage function; the wrapped stage is the noun that flows call."""
    return Stage(function, name, version, estimate=estimate, **how)


__all__ = ["Call", "Session", "Stage", "stage"]
