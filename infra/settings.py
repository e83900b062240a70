"""Execution settings: where and how a recipe runs. Nothing here changes a result, so nothing here enters an identity."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypedDict, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

V = TypeVar("V")
PASS_TOKENS = 16_384
"""Padded tokens that go through a model at once where nothing is said."""
ANSWERS_AT_ONCE = 64
"""Answers that decode together where nothing is said."""
SHUFFLE_BYTES = 256_000_000
"""Memory of a shard that compares records of all shards where nothing is said."""


def _word(value: Any) -> Any:
    return "off" if value is False else value


# YAML reads a bare `off` as the boolean false.
CompilePolicy = Annotated[Literal["off", "blocks"], BeforeValidator(_word)]
AttentionPolicy = Literal["auto", "flash", "cudnn", "efficient", "math"]
GenerationSettings = Literal["local", "endpoint"]
"""A checkpoint's answers are decoded in the stage, or by the server that `endpoints` names under the checkpoint's digest."""


_ADDRESS = re.compile(r"(ray://)?(?P<host>[^\s:/]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")
"""A head node's GCS, or with `ray://` its client server; IPv6 in brackets."""


def parsed_address(address: str) -> tuple[str, int] | None:
    """Host and port of a cluster; None for `local` and `off`. ValueError for anything else."""
    if address in ("local", "off"):
        return None
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(
            f"{address!r} is none of: local (a Ray of this machine), off (shards run in this process), "
            "HOST:PORT of a running cluster's head, such as ray-head:6379"
        )
    return found["host"].strip("[]"), int(found["port"])


def _ray_address(value: str) -> str:
    parsed_address(value)
    return value


RayAddress = Annotated[Literal["local", "off"] | str, BeforeValidator(_word), AfterValidator(_ray_address)]


ReferencePlace = Annotated[str, Field(pattern=r"^(policy|host|cpu|cuda:\d+)$")]
"""Where a frozen reference is: on the policy's device, on the host, or on a device of its own."""
WITH_REFERENCE = ("rlvr", "ppo")
"""Stages that hold a frozen reference while they train."""


class ParallelLayout(TypedDict):
    """The fields of ParallelSettings that a trainer has to know."""

    workers: int
    data: Literal["ddp", "fsdp", "hsdp"]
    replicas: int
    activation_checkpointing: Literal["off", "feed_forward", "blocks"]


class ParallelSettings(BaseModel):
    """How many processes train one model, and what each of them holds. Results do not depend on it, up to rounding.

    Which of these go together is the trainer's to say (`model.config.Parallel`); a recipe asks it when it is loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    workers: int = Field(default=1, ge=1)
    """World size: data parallel processes, started through Ray; 1 trains in the stage's own process."""
    data: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Each worker holds the whole model (ddp), a part of every tensor (fsdp), or a part of one of several copies (hsdp)."""
    replicas: int = Field(default=1, ge=1)
    """Whole copies of the model in hsdp; each is spread over workers / replicas workers."""
    activation_checkpointing: Annotated[Literal["off", "feed_forward", "blocks"], BeforeValidator(_word)] = "off"
    """What is computed again in the backward pass instead of kept: nothing, every MLP, every block."""
    max_restarts: int = Field(default=3, ge=-1)
    """How often, in its whole run, a group that lost a worker is started again from its last save point; -1 for no limit. A
    fault that comes back at every start is then tried for ever."""

    def layout(self) -> ParallelLayout:
        """What the trainer has to know; how often a lost group is started again is not."""
        return {
            "workers": self.workers,
            "data": self.data,
            "replicas": self.replicas,
            "activation_checkpointing": self.activation_checkpointing,
        }


class FitSettings(BaseModel):
    """The devices that training stages are fitted to; what is not given is found on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    devices: int | None = Field(default=None, ge=1)
    """Devices of the machine or cluster that one training may use."""
    memory: float | None = Field(default=None, gt=0)
    """Bytes of one device."""


class PlacementOptions(TypedDict):
    """Options of a Ray task or actor that choose its node."""

    resources: dict[str, float]
    label_selector: dict[str, str]


class Placement(BaseModel):
    """What a stage asks of the node of a Ray cluster that it runs on, besides its threads and its GPU; so do its shards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    memory: float | None = Field(default=None, gt=0)
    """Bytes of the node's memory that the stage reserves; null reserves none. Shards reserve none."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom resources of Ray, such as {fast_disk: 1}."""
    labels: dict[str, str] = {}
    """Labels that the node must have (`ray start --labels`), such as {kind: cpu}."""

    def options(self) -> PlacementOptions:
        """Options of a Ray task or actor."""
        return {"resources": dict(self.resources), "label_selector": dict(self.labels)}


class ComputeSettings(BaseModel):
    """What a training or evaluation stage may use."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = "cpu"
    """Torch device: cpu, cuda, mps."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one training process. Byte-identical reruns need the same number."""
    compile: CompilePolicy = "off"
    """torch.compile: off, or each transformer block."""
    attention: AttentionPolicy = "auto"
    """The kernel of attention in training."""
    emulate_float8: bool = False
    """Whether a training in float8 emulates its matmuls."""
    parallel: ParallelSettings = ParallelSettings()
    """Processes that train one model together."""
    gc_every: int = Field(default=10, ge=1)
    """Training steps between two collections of Python's garbage."""
    stall_seconds: float = Field(default=3600.0, gt=0)
    """A training step that takes longer ends its process."""
    health: bool | None = None
    """Whether the device proves itself before the stage; None where it is no CPU."""
    micro_instances: int = Field(default=0, ge=0)
    """Windows of a forward pass in a training on a mix; 0 is the whole batch at once."""
    pass_tokens: int = Field(default=PASS_TOKENS, ge=1)
    """Padded tokens that go through the model at once in post-training."""
    answers_at_once: int = Field(default=ANSWERS_AT_ONCE, ge=1)
    """Answers that decode together in evaluations."""
    placement: Placement = Placement()
    """The nodes of a cluster that it and its shards may run on."""
    reference: str = "policy"
    """Where a frozen reference is (`Execution.reference`)."""
    shuffle_bytes: int = Field(default=SHUFFLE_BYTES, ge=1024)
    """Memory of a shard that groups the records of all shards by key."""
    halvings: int = Field(default=0, ge=0)
    """How often this attempt has run out of memory: each time half as much goes through the model at once."""

    @property
    def checks_first(self) -> bool:
        """Whether each device proves itself before the stage."""
        return not self.device.startswith("cpu") if self.health is None else self.health

    def halved(self) -> Self:
        """The same with half as much going through the model at once."""
        return self.model_copy(
            update={
                "halvings": self.halvings + 1,
                "pass_tokens": max(1, self.pass_tokens // 2),
                "answers_at_once": max(1, self.answers_at_once // 2),
            }
        )

    def windows_at_once(self, batch: int) -> int:
        """Windows of a forward pass in a training on a mix of so many a batch: `micro_instances`, 0 for all of them. Halved, it
        is the next lower divisor of the batch.
        """
        if not self.halvings:
            return self.micro_instances
        wanted = max(1, (self.micro_instances or batch) >> self.halvings)
        return next(count for count in range(wanted, 0, -1) if batch % count == 0)


class WeightFolder(BaseModel):
    """How a server gets the weights of a policy in training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    server: Literal["vllm", "sglang"]
    """Whose endpoints reload weights."""
    path: str = Field(min_length=1)
    """A folder that trainer and server see under this path; it holds the weights of one rollout at a time."""


class EndpointSettings(BaseModel):
    """Where a language model answers (any server with the OpenAI protocol: a vendor's, vLLM, llama.cpp) and how to treat it.

    The model's name, prompts and sampling are config, since they change the result; what is here does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    url: str = Field(pattern=r"^https?://.+")
    """Base URL up to the version, such as http://localhost:8000/v1."""
    key_env: str = ""
    """Environment variable that holds the key; empty when the server wants none. The key itself is written nowhere."""
    served_name: str = ""
    """What the server calls the model; empty when it knows the name in the config."""
    concurrency: int = Field(default=32, ge=1)
    """Requests under way at once, and so the most that a kill can cost."""
    requests_per_minute: float = Field(default=0, ge=0)
    """Requests sent per minute at most; 0 for no limit."""
    tokens_per_minute: float = Field(default=0, ge=0)
    """Prompt and answer tokens per minute at most, counted as answers arrive; 0 for no limit."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """A request without a whole answer after this long has stalled and is sent again."""
    first_wait_seconds: float = Field(default=1.0, gt=0)
    """Pause after a first failure; it doubles with each further one, up to a minute, with jitter. Retry-After goes first."""
    patience_seconds: float = Field(default=1800.0, gt=0)
    """A request that still fails after this long ends the stage; all answers are kept, so the same command resumes."""
    prompt_price: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, in the currency of your choice."""
    completion_price: float = Field(default=0.0, ge=0)
    """Price of a million answer tokens."""
    weights: WeightFolder | None = None
    """How this server takes other weights while it runs. Under the name of `rlvr` or `ppo`, it then answers their rollouts where
    `generation` says `endpoint`."""
    max_cost: float | None = Field(default=None, gt=0)
    """What one stage may pay for this model, over all its shards and attempts, in the currency of the prices; null for no limit.
    The stage ends when it is reached. Requests under way then are still answered, so a little more may be paid. The server must
    report `usage` in its answers. What it charges for answers that never came (a time limit, a broken connection) is not seen."""

    @model_validator(mode="after")
    def _what_is_capped_has_a_price(self) -> Self:
        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise ValueError(
                f"max_cost={self.max_cost:g} caps what prompt_price and completion_price add up to, and both are 0; give them"
            )
        return self


class SiteSettings(BaseModel):
    """What electricity costs the environment at a site; the defaults are those of the cluster that trained the 7B (paper Table
    19, Jupiter).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    pue: float = Field(default=1.2, ge=1)
    """Power usage effectiveness: electricity of the building per electricity of the machines."""
    carbon: float = Field(default=0.332, ge=0)
    """kg CO2 per kWh."""
    water: float = Field(default=1.29, ge=0)
    """Litres per kWh, on site and at the power station together."""


class StatedSite(BaseModel):
    """What a recipe states of the site where it runs, with the fields of `SiteSettings`; null for what it does not state.

    A plan takes the defaults of `SiteSettings` for what is not stated, and a run that has finished shows no figure then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    pue: float | None = Field(default=None, ge=1)
    """Power usage effectiveness: electricity of the building per electricity of the machines."""
    carbon: float | None = Field(default=None, ge=0)
    """kg CO2 per kWh."""
    water: float | None = Field(default=None, ge=0)
    """Litres per kWh, on site and at the power station together."""

    def planned(self) -> SiteSettings:
        """The site of a plan: what is stated, and the published site's values for the rest."""
        return SiteSettings.model_validate(self.model_dump(exclude_none=True))


class PricingSettings(BaseModel):
    """What GPU hours cost and how many GPUs work at once; prices of language models are those of `endpoints`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    price: float = Field(gt=0)
    """Money per GPU and hour, in the currency of your choice."""
    gpus: int = Field(default=1, ge=1)
    """GPUs that one training may use."""
    gpu: str = "h100"
    """A GPU that `olmo2 plan --gpu` knows."""
    mfu: float = Field(default=0.4, gt=0, le=1)
    """Share of the peak FLOP/s that training reaches."""


class Execution(BaseModel):
    """How a recipe runs on this machine or cluster (`execution:` in a recipe file, or OLMO2_* settings)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    store: str = "store"
    """Root of all artifacts: a folder, or any fsspec URL such as s3://bucket/prefix."""
    ray: RayAddress = "local"
    """`local` starts Ray here, `off` runs shards in this process, anything else is the address of an existing cluster."""
    cores: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    """Cores that stages share: a stage waits until its threads are free. One that only asks a language model takes none."""
    threads: dict[str, int] = {}
    """CPU threads per stage name; `default` for the others (1 when absent)."""
    device: str = "cpu"
    """Torch device of training and evaluation stages."""
    compile: dict[str, CompilePolicy] = {}
    """torch.compile policy per stage name, or per label such as pretrain:trial-filtered, which goes first; `default` for the
    others (off when absent). Compiling pays in long stages."""
    attention: dict[str, AttentionPolicy] = {}
    """The kernel of attention per training stage, by its name; `default` for the others (auto when absent). On a GPU `auto`
    measures PyTorch's kernels before the first step and takes the quickest that agrees with math in fp32; a CPU has kernels of
    its own. `flash`, `cudnn`, `efficient` (memory-efficient) and `math` name one. The record's notes have the choice, which
    changes results by rounding only (docs/scaling.md)."""
    emulate_float8: bool = False
    """Whether trainings with `optim: {precision: float8}` multiply factors rounded to float8 in fp32. That is slow, and works on
    any device; without it they need a GPU that multiplies float8."""
    save_every: int = Field(default=200, ge=1)
    """Training steps between two save points: what a kill can cost. Only the newest is there (1B 1000, 7B and 13B 250,
    32B 200; RECIPE D)."""
    keep_every: int | None = Field(default=None, ge=1)
    """Training steps between two save points that stay, besides the newest; a multiple of `save_every`, null for none
    (published: 1000)."""
    gc_every: int = Field(default=10, ge=1)
    """Training steps between two collections of Python's garbage; there are no others meanwhile (7B and 13B 1, 1B 10, 32B
    1000; RECIPE J)."""
    stall_seconds: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """A training step that takes longer has hung: its process prints every thread's stack and ends with status 75. A group
    starts again by itself, a single process when the same command is given again."""
    health: bool | None = None
    """Whether each device proves itself before a training (docs/scaling.md): true, false, or null for those that are no CPU.
    With false none is checked after a non-finite loss or a collective that timed out either."""
    micro_instances: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Windows of a forward pass (a micro-batch) per training on a mix, by stage name; `default` for the others. 0, which holds
    when absent, is the whole batch at once. Gradient accumulation over the passes changes results by rounding only."""
    pass_tokens: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Padded tokens that go through the model at once in post-training, by stage name; `default` for the others (16,384 when
    absent). It bounds memory and changes results by rounding only."""
    answers_at_once: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Answers that decode together in evaluations, by stage name; `default` for the others (64 when absent). It bounds memory
    and changes results by rounding only."""
    reference: dict[str, ReferencePlace] = {}
    """Where the frozen reference of `rlvr` and `ppo` is, by stage name; `default` for both. `policy`, which holds when absent: on
    the policy's device. `host`: in the host's memory, sharded where the training is; each pass brings it to that device block by
    block. `cpu` or `cuda:1`: on that device, which computes too. Results change by rounding at most."""
    shuffle_bytes: int = Field(default=SHUFFLE_BYTES, ge=1024)
    """Memory that a worker may use, besides its shard, while it compares the records of all shards: deduplication (equal texts,
    MinHash, n-grams) and the check for repeated ids. With less, there are more and smaller files between the steps."""
    cache_bytes: int | None = Field(default=None, ge=0)
    """Size of this machine's copies of a remote store's objects (~/.cache/olmo2), those of all stores together; null for half
    of the disk. The least recently used go. What a stage is using stays, so what it uses at once may be more."""
    parallel: dict[str, ParallelSettings] = {}
    """Processes per training stage, by its name; one for the others."""
    fit: FitSettings | None = None
    """Choose sharding, recomputation and micro-batches of each training so that it fits the devices (`{}` for those of this
    machine, `{devices: 64, memory: 80e9}` for a cluster). What a stage is given above is kept. `olmo2 fit` shows the choice."""
    on_cluster: Literal["stages", "shards"] = "stages"
    """What runs on a Ray cluster: whole stages, or shards and groups only, led by this machine. The loss of a node then costs the
    shards that ran on it, and the end of this machine's process all that are running."""
    placement: dict[str, Placement] = {}
    """Which nodes of a Ray cluster a stage may run on, per stage name; `default` for the others. Example: data on CPU nodes
    with `{collect: {labels: {kind: cpu}}}`."""
    lease_stale_seconds: float = Field(default=60.0, gt=0)
    """A lease whose heartbeat has not moved for this long is taken over."""
    generation: dict[str, GenerationSettings] = {}
    """Who answers prompts with a checkpoint, per stage name; `default` for the others (local when absent)."""
    endpoints: dict[str, EndpointSettings] = {}
    """Where language models answer, per model name; `default` for the others."""
    stale: Literal["refuse", "rerun"] = "refuse"
    """What to do with an artifact whose stage's code has changed at the same version: refuse to run, or rerun it."""
    accept: str = ""
    """Why such artifacts are good all the same (`--accept`): they are used, and who said so, when and why is kept."""
    watts: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    """Power that a stage draws, on all its machines, by stage name; `default` for the others. Its energy is then that times its
    seconds, and what the machine's counters say where nothing is stated (docs/scaling.md)."""
    site: StatedSite = StatedSite()
    """The place, for what plans, reports and model cards say of CO2 and water (docs/scaling.md)."""
    track: dict[Literal["tensorboard", "wandb", "mlflow", "trackio"], Annotated[str, Field(min_length=1)]] = {}
    """Where metrics go too: `{tensorboard: FOLDER, wandb: PROJECT, mlflow: ADDRESS, trackio: PROJECT}`, any of them."""
    pricing: PricingSettings | None = None
    """What a stage's price is computed from."""
    approve_above: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """A stage whose price passes this waits until a person has approved it on the dashboard; null asks nobody."""
    approve: str = ""
    """Why such stages are approved beforehand (`--approve`); who, when and why is kept."""

    @model_validator(mode="after")
    def _what_is_approved_has_a_price(self) -> Self:
        if self.approve_above is not None and self.pricing is None:
            raise ValueError(
                f"approve_above={self.approve_above:g} needs the price of a GPU hour; give execution: "
                "{pricing: {price: 2.5, gpus: 64}}"
            )
        return self

    @model_validator(mode="after")
    def _kept_save_points_are_save_points(self) -> Self:
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ValueError(
                f"keep_every={self.keep_every} is not a multiple of save_every={self.save_every}; "
                # Rounded up: the next multiple of `save_every`.
                f"use {-(-self.keep_every // self.save_every) * self.save_every}"
            )
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        for stage, parallel in self.parallel.items():
            needed = parallel.workers * self.stage_threads(stage)
            if parallel.workers > 1 and self.ray == "off":
                raise ValueError(
                    f"parallel.{stage}.workers={parallel.workers} are started through Ray; ray may not be off"
                )
            if parallel.workers > 1 and self.ray == "local" and needed > self.cores:
                raise ValueError(
                    f"parallel.{stage}: {parallel.workers} workers of {self.stage_threads(stage)} threads need {needed} "
                    f"cores, there are cores={self.cores}; use fewer workers or threads, or a cluster's address as ray"
                )
        return self

    @model_validator(mode="after")
    def _references_have_a_place(self) -> Self:
        for stage, place in self.reference.items():
            if stage not in (*WITH_REFERENCE, "default"):
                raise ValueError(
                    f"reference.{stage}={place}: only {' and '.join(WITH_REFERENCE)} hold a reference while they train (dpo "
                    "keeps its log-probabilities, a reward model is trained or begins a value model); leave it out"
                )
        self.check_references()
        return self

    def check_references(self) -> None:
        """Raise ValueError where a stage's reference is on a device that its processes cannot use."""
        for stage in WITH_REFERENCE:
            place, parallel = _of_stage(self.reference, stage, "policy"), self.parallel.get(stage, ParallelSettings())
            if place.startswith("cuda:") and (parallel.workers > 1 or self.cluster):
                raise ValueError(
                    f"reference.{stage}={place}: a worker of a group or of a cluster sees its own GPU only; use host or policy"
                )
            if place.startswith("cuda:") and (not self.device.startswith("cuda:") or self.device == place):
                raise ValueError(
                    f"reference.{stage}={place} needs a policy on another GPU that is named, and device={self.device}: give both "
                    "a number (with device: cuda the run hands out GPUs itself), or use host"
                )
            sharded = parallel.workers > 1 and parallel.data != "ddp"
            if place == "cpu" and sharded and self.device.startswith("cuda"):
                raise ValueError(
                    f"reference.{stage}=cpu: shards are exchanged between GPUs (parallel.{stage}.data={parallel.data}); use "
                    "host, which keeps them in the host's memory"
                )

    @property
    def cluster(self) -> str:
        """The address of the Ray cluster that stages run on; empty where they run on this machine."""
        return "" if self.ray in ("local", "off") or self.on_cluster == "shards" else self.ray

    def compute(self, stage: str, label: str = "") -> ComputeSettings:
        """Device, threads, compile policy and processes of one stage; its label may have a compile policy of its own."""
        return ComputeSettings(
            device=self.device,
            threads=self.stage_threads(stage),
            compile=self.compile.get(label) or _of_stage(self.compile, stage, "off"),
            attention=_of_stage(self.attention, stage, "auto"),
            emulate_float8=self.emulate_float8,
            parallel=self.parallel.get(stage, ParallelSettings()),
            gc_every=self.gc_every,
            stall_seconds=self.stall_seconds,
            health=self.health,
            micro_instances=_of_stage(self.micro_instances, stage, 0),
            pass_tokens=_of_stage(self.pass_tokens, stage, PASS_TOKENS),
            answers_at_once=_of_stage(self.answers_at_once, stage, ANSWERS_AT_ONCE),
            placement=_of_stage(self.placement, stage, Placement()),
            reference=_of_stage(self.reference, stage, "policy"),
            shuffle_bytes=self.shuffle_bytes,
        )

    def stage_cores(self, stage: str) -> int:
        """Cores of this machine that a stage takes: its threads, in each of its local processes; none in a cluster."""
        if self.cluster:
            return 0
        workers = self.parallel[stage].workers if stage in self.parallel else 1
        return workers * self.stage_threads(stage)

    def stage_watts(self, stage: str) -> float | None:
        """Power that is stated for a stage; None where nothing is."""
        return _of_stage(self.watts, stage, None)

    def stage_generation(self, stage: str) -> GenerationSettings:
        """Who answers prompts in a stage."""
        return _of_stage(self.generation, stage, "local")

    def stage_threads(self, stage: str) -> int:
        """CPU threads of one process of a stage. A cluster's nodes may have more cores than this machine."""
        wanted = _of_stage(self.threads, stage, 1)
        return wanted if self.cluster else min(self.cores, wanted)


def _of_stage(settings: Mapping[str, V], stage: str, absent: V) -> V:
    """A stage's own setting, else the recipe's `default`, else what holds when nothing is said."""
    return settings.get(stage, settings.get("default", absent))


def read_key(model: str, settings: EndpointSettings) -> str:
    """The key from its environment variable. ValueError when it is not set."""
    key = os.environ.get(settings.key_env, "")
    if not key:
        raise ValueError(f"the key of {model} is looked for in ${settings.key_env}, which is not set; export it")
    return key


def settings_of(model: str, endpoints: dict[str, EndpointSettings]) -> EndpointSettings:
    """The endpoint of a model. ValueError when there is none."""
    found = endpoints.get(model) or endpoints.get("default")
    if found is None:
        raise ValueError(
            f"no endpoint is known for model {model!r}; name one in the recipe, execution: "
            f"{{endpoints: {{{model}: {{url: http://localhost:8000/v1}}}}}}, or a `default` for all models"
        )
    return found
