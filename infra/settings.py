"""Execution settings: where and how a recipe runs. Nothing here changes a result, so nothing here enters an identity."""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _word(value: Any) -> Any:
    return "off" if value is False else value


# YAML reads a bare `off` as the boolean false.
CompilePolicy = Annotated[Literal["off", "blocks"], BeforeValidator(_word)]
RayAddress = Annotated[Literal["local", "off"] | str, BeforeValidator(_word)]


class ComputeSettings(BaseModel):
    """What a training or evaluation stage may use."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = "cpu"
    """Torch device: cpu, cuda, mps."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one training process. Byte-identical reruns need the same number."""
    compile: CompilePolicy = "off"
    """torch.compile: off, or each transformer block."""


class Execution(BaseModel):
    """How a recipe runs on this machine or cluster (`execution:` in a recipe file, or OLMO2_* settings)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    store: str = "store"
    """Root of all artifacts: a folder, or any fsspec URL such as s3://bucket/prefix."""
    ray: RayAddress = "local"
    """`local` starts Ray here, `off` runs shards in this process, anything else is the address of an existing cluster."""
    cores: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Cores that stages share: a stage waits until its threads are free."""
    threads: dict[str, int] = {}
    """CPU threads per stage name; `default` for the others (1 when absent)."""
    device: str = "cpu"
    """Torch device of training and evaluation stages."""
    compile: dict[str, CompilePolicy] = {}
    """torch.compile policy per stage name; `default` for the others (off when absent). Compiling pays in long stages."""
    save_every: int = Field(default=200, ge=1)
    """Training steps between two save points: what a kill can cost."""
    lease_stale_seconds: float = Field(default=60.0, gt=0)
    """A lease whose heartbeat has not moved for this long is taken over."""

    def compute(self, stage: str) -> ComputeSettings:
        """Device, threads and compile policy of one stage."""
        policy = self.compile.get(stage, self.compile.get("default", "off"))
        return ComputeSettings(device=self.device, threads=self.stage_threads(stage), compile=policy)

    def stage_threads(self, stage: str) -> int:
        return min(self.cores, self.threads.get(stage, self.threads.get("default", 1)))
