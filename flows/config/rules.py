"""What the parts of a recipe may not say of each other: contradictions that would otherwise end a run at the stage they meet in,
after all that comes before it.

The rules are those of the stages themselves, asked of the configuration alone.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from flows.config.errors import nearest
from flows.config.parts import PAST_MIDTRAINING
from flows.config.passwords import check_passwords
from flows.config.phases.grid_config import Gridded
from flows.config.recipe_config import RecipeConfig
from flows.config.sizes.limits import check_limits, reinforcements
from flows.config.stages import STAGE_NAMES, unknown_stages
from infra.settings import Execution
from model.config import Parallel
from tasks.data.filters.rules import classifier_of
from tasks.data.mix import RANKED_FIRST, WINNER, MixConfig
from tasks.evaluation.benchmarks.roles import refuse_held_out
from tasks.evaluation.evaluate import check_benchmark_names
from tasks.training.answers.model_judge import LanguageModelJudge
from tasks.training.fitting.mix_windows import MixTrainingConfig
from tasks.training.ppo import PPOConfig, ppo_rollouts
from tasks.training.preferences import PreferencesConfig
from tasks.training.rlvr import RLVRConfig, rollouts_of


def check_recipe(config: RecipeConfig) -> None:
    """Raise ValueError for the first contradiction, by the names of both fields.

    What concerns the model is not asked of a recipe that starts at a checkpoint: that has a model of its own.
    """
    _check_names(config)
    _check_start(config)
    _check_classifiers(config)
    _check_execution(config.execution)
    refuse_held_out("microanneal.rank_by", config.sweep_evaluation.benchmarks)
    for section in config.grid:
        refuse_held_out(f"grid.{section}.by", config.grid_evaluation(section).benchmarks)
        _check_grid(section, config)
    for chat in (False, True):
        # Both kinds of model, with everything that the last of its kind is asked.
        check_benchmark_names(config.evaluation.of("recipe", chat=chat, last=True))
    # A checkpoint brings its own model and vocabulary, so `pretrain.model` is not asked where one is given.
    if not config.begins_at(("base", *PAST_MIDTRAINING)):
        _check_model(config)
    _check_variants(config)
    for name, stage, training in _trainings(config):
        _check_windows(name, stage, training, config.execution)
    _check_trial(config)
    _check_preferences(config)
    for name, how, _ in reinforcements(config):
        _check_rollouts(name, how)
        _check_value_model(name, how, config)
    made = {*config.collect, *config.synthesize}
    candidates = [candidate.name for candidate in config.candidates]
    _check_sources("pretrain_mix", config.pretrain_mix, made, [])
    mixes = {"anneal_mix": config.anneal_mix}
    mixes |= {f"further_ingredients.{item.name}.mix": item.mix for item in config.further_ingredients}
    for name, mix in mixes.items():
        _check_sources(name, mix, {*made, *candidates}, candidates)
    _check_shape("pretrain_mix", config.pretrain_mix, "pretrain", config.pretrain)
    for name, mix in mixes.items():
        _check_shape(name, mix, "anneal", config.anneal)
    check_limits(config)
    check_passwords(config)


def _check_grid(section: Gridded, config: RecipeConfig) -> None:
    """Every combination is a setting that the stage takes."""
    try:
        config.grid[section].points(getattr(config, section))
    except ValidationError as error:
        said = error.errors()[0]
        where = ".".join(str(part) for part in said["loc"])
        raise ValueError(f"grid.{section}.values: {where}: {said['msg'].removeprefix('Value error, ')}") from error


def _check_names(config: RecipeConfig) -> None:
    if config.collect.keys() != config.filter.keys():
        raise ValueError(
            f"filter has rules for {', '.join(config.filter)}, but the sources are {', '.join(config.collect)}; "
            "give every source its rules, such as mine: {rules: [...]} (mine: {rules: []} keeps everything, mine: {} means "
            "the repetition rule), and no others"
        )
    if config.microanneal.web not in config.collect:
        raise ValueError(
            f"microanneal.web={config.microanneal.web!r} is not a source; they are {', '.join(config.collect)}"
        )
    for field, sources in {"collect": config.collect, "synthesize": config.synthesize}.items():
        for key, source in sources.items():
            if source.name != key:
                raise ValueError(
                    f"{field}.{key} has name={source.name!r}, and its documents would be looked for under {key!r}; give both "
                    "the same name"
                )
    names = [*config.collect, *config.synthesize, *(item.name for item in config.candidates)]
    if reserved := sorted({WINNER, RANKED_FIRST}.intersection(names)):
        raise ValueError(
            f"a source or candidate is called {reserved[0]!r}, which in a mix stands for what the sweep chooses; call it "
            "something else"
        )
    if twice := _repeated(names):
        raise ValueError(f"sources and candidates share the names {twice}; every source needs its own")
    chats = [source.name for source in config.chats.sources]
    asked = [config.preference_prompts, config.rlvr_prompts, *(item.prompts for item in config.further_rlvr)]
    messages = [*chats, *(source.name for prompts in asked if prompts for source in prompts.sources), "pairs"]
    for field, ruled, known in (
        ("decontaminate", config.decontaminate.sources, names),
        ("decontaminate_messages", config.decontaminate_messages.sources, messages),
    ):
        if unknown := sorted(ruled.keys() - set(known)):
            raise ValueError(f"{field}.sources has a rule for {unknown[0]!r}, which is none of {', '.join(known)}")
    labels = {
        "anneal_seeds": [str(seed) for seed in config.anneal_seeds],
        "further_ingredients": [item.name for item in config.further_ingredients],
        "further_rlvr": [item.name for item in config.further_rlvr],
    }
    for field, names in labels.items():
        if twice := _repeated(names):
            raise ValueError(f"{field} has {twice} more than once; each makes a stage of its own name")


def _repeated(names: list[str]) -> str:
    return ", ".join(sorted({name for name in names if names.count(name) > 1}))


def _check_start(config: RecipeConfig) -> None:
    if config.start and config.comparison:
        raise ValueError(
            f"comparison trains its variants from their initialisation, but start gives {', '.join(config.start)}; leave one out"
        )
    places = [place for place in config.start if place != "reward"]
    if len(places) > 1:
        raise ValueError(
            f"start names {' and '.join(places)}, but a recipe begins at one checkpoint; give one of them (a reward model may "
            "stand beside it)"
        )


def _check_classifiers(config: RecipeConfig) -> None:
    known = ", ".join(config.classifiers) or "there are none"
    if unasked := sorted(config.label.keys() - config.classifiers.keys()):
        raise ValueError(
            f"label makes examples for classifiers, and {', '.join(unasked)} is none ({known}); name one of `classifiers` or "
            "take it out"
        )
    asking = {**config.filter, **{candidate.name: candidate.filter for candidate in config.candidates}}
    for source, rules in asking.items():
        for scorer in rules.scorers:
            name = classifier_of(scorer)
            if name and name not in config.classifiers:
                raise ValueError(
                    f"a {scorer.kind} rule of {source} asks the classifier {name!r}, which is not under `classifiers` "
                    f"({known}); define it there, or take the rule out"
                )
    sources = [*config.collect, *config.synthesize]
    for name, classifier in config.classifiers.items():
        if unknown := sorted(set(classifier.sources) - set(sources)):
            raise ValueError(
                f"classifier {name!r} selects from {', '.join(unknown)}; the sources are {', '.join(sources)}"
            )


def _check_execution(execution: Execution) -> None:
    for field, name in unknown_stages(execution).items():
        raise ValueError(f"{field}: there is no stage {name!r}{nearest(name, list(STAGE_NAMES))}")
    for stage, settings in execution.parallel.items():
        try:
            Parallel(**settings.layout())
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"execution.parallel.{stage}: {said}") from error


def _check_value_model(name: str, how: RLVRConfig | PPOConfig, config: RecipeConfig) -> None:
    # A recipe that starts at rlvr leaves the first stage of reinforcement out, so only further ones can miss the model.
    made_before = {"dpo", "rlvr"} if name != "rlvr" else {"dpo"}
    place = next((place for place in config.start if place in made_before), None)
    needed = isinstance(how, PPOConfig) and how.value_start == "reward_model"
    if place and "reward" not in config.start and needed:
        field = name.removesuffix(".rlvr")
        raise ValueError(
            f"{field}.algorithm=ppo needs the reward model, which a recipe that starts at a {place} checkpoint does not "
            f"make; give one too, start: {{{place}: ID, reward: ID}}, start at sft, or use value_start: fresh or algorithm: grpo"
        )


def _trainings(config: RecipeConfig) -> Iterator[tuple[str, str, MixTrainingConfig]]:
    """(field, stage, config) of every training on a mix."""
    yield "pretrain", "pretrain", config.pretrain
    if config.comparison:
        yield from (
            (f"comparison.variants.{name}", "pretrain", how) for name, how in config.comparison.variants.items()
        )
    yield "anneal", "anneal", config.anneal
    yield "microanneal.anneal", "anneal", config.microanneal.anneal


def _check_preferences(config: RecipeConfig) -> None:
    if isinstance(config.preferences, PreferencesConfig) and config.preference_prompts is None:
        raise ValueError(
            "preferences are sampled, and preference_prompts is not given; name the prompts, or read released pairs with "
            "preferences: {kind: pairs, rows: {...}}"
        )
    asked = {"preference_prompts": config.preference_prompts, "rlvr_prompts": config.rlvr_prompts}
    asked |= {f"further_rlvr.{item.name}.prompts": item.prompts for item in config.further_rlvr}
    judged = isinstance(config.preferences, PreferencesConfig) and isinstance(
        config.preferences.judge, LanguageModelJudge
    )
    for name, prompts in asked.items():
        if prompts and prompts.ground_truth == "optional" and not (judged and name == "preference_prompts"):
            raise ValueError(
                f"{name} may lack a ground truth (ground_truth: optional), and verifiers judge the answers; use required, or "
                "preferences.judge: {kind: language_model}"
            )


def _check_model(config: RecipeConfig) -> None:
    model, tokenizer = config.pretrain.model, config.encode.vocabulary
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"pretrain.model.vocab_size={model.vocab_size:,} has no row for each of the {tokenizer.vocab_size:,} ids of "
            f"encode.ranks={config.encode.ranks:,}; use {tokenizer.padded_vocab_size:,}"
        )
    window = model.max_sequence_length
    for name, _, training in _trainings(config):
        if training.sequence_length > window:
            raise ValueError(
                f"{name}.sequence_length={training.sequence_length:,} exceeds pretrain.model.max_sequence_length={window:,}; "
                "lower the first or raise the second"
            )


def _check_trial(config: "RecipeConfig") -> None:
    trial = config.curation_trial
    if trial is None:
        return
    if trial.source not in config.collect:
        raise ValueError(
            f"curation_trial.source={trial.source!r} is not a collected source; they are {', '.join(config.collect)}"
        )
    needed, rows = config.encode.vocabulary.vocab_size, trial.pretrain.model.vocab_size
    if rows < needed:
        raise ValueError(
            f"curation_trial.pretrain.model.vocab_size={rows:,} has no row for each of the {needed:,} ids of "
            f"encode.ranks={config.encode.ranks:,}; raise it"
        )
    _check_windows("curation_trial.pretrain", "pretrain", trial.pretrain, config.execution)


def _check_variants(config: RecipeConfig) -> None:
    """Variants share the mix and its vocabulary, so what they read has one shape."""
    if config.comparison is None:
        return
    for name, how in config.comparison.variants.items():
        for field in ("sequence_length", "batch_size"):
            value, shared = getattr(how, field), getattr(config.pretrain, field)
            if value != shared:
                raise ValueError(
                    f"comparison.variants.{name}.{field}={value:,} is not pretrain.{field}={shared:,}; the mix is cut for one"
                )
        if name in config.comparison.encode:
            own = config.comparison.encode[name].vocabulary
            if how.model.vocab_size < own.vocab_size:
                raise ValueError(
                    f"comparison.variants.{name}.model.vocab_size={how.model.vocab_size:,} has no row for each of the "
                    f"{own.vocab_size:,} ids of comparison.encode.{name} ({own}); use {own.padded_vocab_size:,}"
                )
        elif how.model.vocab_size != config.pretrain.model.vocab_size:
            raise ValueError(
                f"comparison.variants.{name}.model.vocab_size={how.model.vocab_size:,} is not that of pretrain, "
                f"{config.pretrain.model.vocab_size:,}; the token files have one vocabulary"
            )


def _check_windows(name: str, stage: str, training: MixTrainingConfig, execution: Execution) -> None:
    batch, micro = training.batch_size, execution.compute(stage).micro_instances
    if micro and batch % micro:
        # Offered is the largest size that divides the batch and takes no more memory than was meant.
        fitting = max(size for size in range(1, min(micro, batch) + 1) if batch % size == 0)
        raise ValueError(
            f"execution.micro_instances.{stage}={micro:,} does not divide {name}.batch_size={batch:,}; use {fitting:,}"
        )
    if training.target_length % training.sequence_length:
        raise ValueError(
            f"{name}.target_length={training.target_length:,} is not a multiple of {name}.sequence_length="
            f"{training.sequence_length:,}; use 0, or a multiple"
        )


def _check_shape(name: str, mix: MixConfig, field: str, training: MixTrainingConfig) -> None:
    """A mix is cut into the windows and batches of its training, so what it says of them may not be something else."""
    for shape in ("sequence_length", "batch_size"):
        said, meant = getattr(mix, shape), getattr(training, shape)
        if said not in (None, meant):
            raise ValueError(
                f"{name}.{shape}={said:,} disagrees with {field}.{shape}={meant:,}, the training that reads the mix; leave it "
                f"out of {name}, since the training's holds"
            )


def _check_rollouts(name: str, how: RLVRConfig | PPOConfig) -> None:
    try:
        ppo_rollouts(how) if isinstance(how, PPOConfig) else rollouts_of(how)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_sources(name: str, mix: MixConfig, known: set[str], candidates: list[str]) -> None:
    for wish in mix.sources:
        if wish.source == WINNER and candidates:
            if mix.winner != RANKED_FIRST and mix.winner not in known:
                raise ValueError(
                    f"{name}.winner={mix.winner!r} is neither {RANKED_FIRST} nor a source ({', '.join(sorted(known))})"
                )
        elif wish.source not in known:
            raise ValueError(
                f"{name} takes {wish.source!r}, which is not a source; they are {', '.join(sorted(known))}"
            )
