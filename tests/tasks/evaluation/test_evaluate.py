"""Oracles: a plain argmax loop and a plain log-softmax over the same tiny model; byte equality of a resumed evaluation."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.compute import shards
from infra.execution.attempt import run_stage
from infra.session import Session
from infra.settings import EndpointSettings, Execution, ParallelSettings
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config, ModelConfig
from model.decoding.prefix_scoring import KeptWeights
from model.files.weights import save_hf
from model.network.transformer import Transformer
from model.parallel.group import Group
from model.tokens.tokenizer import Tokenizer
from tasks.artifacts import Checkpoint, Scores
from tasks.data.documents.dolma_files import written_rows
from tasks.evaluation import benchmarks
from tasks.evaluation import evaluate as evaluate_module
from tasks.evaluation.benchmarks import load_items
from tasks.evaluation.benchmarks.asking import ask, encode_pairs, encoded_prompt, local_scorer, request_names
from tasks.evaluation.benchmarks.items import Generation, Item, Likelihood, LikelihoodAnswer, Prompt
from tasks.evaluation.benchmarks.synthetic import SyntheticBenchmark
from tasks.evaluation.evaluate import EvaluateConfig, LoadedModel, SuiteConfig, evaluate_checkpoint
from tasks.generation import local_generator
from tasks.synthetic import ArithmeticConfig
from tasks.training.fitting.asked_tasks import AskedTask
from tests.model.groups import run_group
from tests.openai_server import OpenAIServer
from tests.tasks.test_generation import served
from tests.tasks.training.group_stage import Call, run_calls

TOKENIZER = Tokenizer(320)
TINY = ModelConfig(
    d_model=32,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    head_dim=16,
    mlp_hidden=64,
    vocab_size=TOKENIZER.padded_vocab_size,
    max_sequence_length=128,
)
SUMS = (ArithmeticConfig(operators=("+",), max_operand=60, phrasings=2),)


def make_checkpoint(ws: Workspace, config: Config) -> Checkpoint:
    save_hf(Transformer(TINY, seed=3), TINY, TOKENIZER, ws.scratch / "model")
    ws.put(ws.scratch / "model")
    return ws.artifact(Checkpoint, steps=0, tokens=0, parameters=TINY.parameters, loss=0.0, ranks=320, parent="")


class Desk:
    def __init__(self, root: Path, ray: str = "off"):
        self.session = Session(Store(str(root)), Execution(store=str(root), ray=ray, cores=2))
        self.checkpoint = self.run(stage(make_checkpoint, name="base", version=1), config=Config())

    def run(self, made: Any, **arguments: Any) -> Any:
        return run_stage(made, self.session, arguments, lambda event: None).artifact

    def evaluate(self, config: EvaluateConfig) -> Scores:
        return self.run(
            stage(evaluate_checkpoint, name="evaluate", version=1), checkpoint=self.checkpoint, config=config
        )

    def rows(self, artifact: Scores, name: str) -> list[dict[str, Any]]:
        return list(written_rows(Path(self.session.store.full(f"{artifact.address}/{name}"))))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "store")


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(TINY, seed=3).eval()


def config_of(**fields: Any) -> EvaluateConfig:
    benchmarks = tuple(
        SyntheticBenchmark(name=format, problems=SUMS, items=12, format=format, shots=1, max_new_tokens=12)
        for format in ("generate", "cloze", "multiple_choice")
    )
    suite = SuiteConfig(name="sums", tasks=(("cloze", "multiple_choice"), ("generate",)))
    return EvaluateConfig(label="base", benchmarks=benchmarks, suites=(suite,), **fields)


def local(model: Transformer):
    return local_generator(model, TOKENIZER, "fp32", 2)


def test_generation_equals_a_plain_argmax_loop(model):
    prompts = ["Question: What is 4 + 5?\nAnswer:", "Hi"]
    requests = [Generation(Prompt(text=text), 10) for text in prompts]
    asked = ask(
        TOKENIZER,
        requests,
        generator=local(model),
        scorer=local_scorer(model),
        max_context=128,
        progress=lambda n: None,
    )
    for text, answer in zip(prompts, asked.answers, strict=True):
        ids = TOKENIZER.encode(text)
        start = len(ids)
        while len(ids) < start + 10 and ids[-1] != TOKENIZER.eos_id:
            # Rows that pad the head have no token.
            ids.append(int(model(torch.tensor([ids]))[0, -1, : TOKENIZER.vocab_size].argmax()))
        assert answer == TOKENIZER.decode(ids[start:])


def test_likelihood_equals_a_plain_log_softmax(model):
    requests = [
        Likelihood(Prompt(text="Question: 4 + 5?\nAnswer:"), " 9"),
        Likelihood(Prompt(text="trailing "), "word"),
        Likelihood(Prompt(messages=({"role": "user", "content": "4 + 5?"},)), "9"),
        Likelihood(Prompt(text=""), "The"),
    ]
    asked = ask(
        TOKENIZER,
        requests,
        generator=local(model),
        scorer=local_scorer(model),
        max_context=128,
        progress=lambda n: None,
    )
    contexts = [
        TOKENIZER.encode("Question: 4 + 5?\nAnswer:"),
        TOKENIZER.encode("trailing"),
        encoded_prompt(TOKENIZER, requests[2].prompt),
        [TOKENIZER.eos_id],
    ]
    for context, text, answer in zip(contexts, [" 9", " word", "9", "The"], asked.answers, strict=True):
        tail = TOKENIZER.encode(text)
        with torch.no_grad():
            logprobs = model(torch.tensor([context + tail])).log_softmax(-1)[0]
        expected = sum(float(logprobs[len(context) - 1 + i, token]) for i, token in enumerate(tail))
        assert isinstance(answer, LikelihoodAnswer)
        assert answer.logprob == pytest.approx(expected, abs=1e-4)
        assert answer.tokens == len(tail)


def test_long_prompts_are_cut_on_the_left_and_counted(model):
    long = Prompt(text="x y " * 200 + "Answer:")
    requests = [Generation(long, 8), Likelihood(long, " 9"), Likelihood(Prompt(text="Answer:"), " 9")]
    asked = ask(
        TOKENIZER, requests, generator=local(model), scorer=local_scorer(model), max_context=64, progress=lambda n: None
    )
    assert asked.truncated == 2
    with pytest.raises(ValueError, match="max_new_tokens=64 leaves no room"):
        ask(
            TOKENIZER,
            [Generation(long, 64)],
            generator=local(model),
            scorer=local_scorer(model),
            max_context=64,
            progress=lambda n: None,
        )


def test_a_context_as_long_as_the_window_keeps_every_token_that_fits(model):
    ids = TOKENIZER.encode("xyz" * 100)
    window = TINY.max_sequence_length
    context = ids[:window]
    text = TOKENIZER.decode(context)
    assert TOKENIZER.encode(text) == context
    word = next(w for w in (" 9", "9", " a", "a") if len(TOKENIZER.encode(w)) == 1)
    asked = ask(
        TOKENIZER, [Likelihood(Prompt(text=text), word)], generator=local(model), scorer=local_scorer(model),
        max_context=window, progress=lambda n: None,
    )  # fmt: skip
    with torch.no_grad():
        expected = model(torch.tensor([context]))[0, -1].log_softmax(-1)[TOKENIZER.encode(word)[0]]
    assert isinstance(asked.answers[0], LikelihoodAnswer)
    assert asked.answers[0].logprob == pytest.approx(float(expected), abs=1e-4)
    assert asked.truncated == 0


@pytest.mark.parametrize("kind", ["cloze", "multiple_choice", "generate"])
def test_output_that_is_not_finite_ends_with_the_benchmark_and_the_item(desk, monkeypatch, kind):
    broken = Transformer(TINY, seed=3).eval()
    with torch.no_grad():
        broken.norm.weight[0] = torch.nan
    monkeypatch.setattr(
        evaluate_module, "load_model", lambda *_, **__: LoadedModel(broken, TOKENIZER, KeptWeights(), Group())
    )
    config = config_of()
    one = tuple(b for b in config.benchmarks if b.name == kind)
    item = load_items(one[0])[0].id
    with pytest.raises(FloatingPointError, match=f"benchmark '{kind}', item '{re.escape(item)}', request 0: .*finite"):
        desk.evaluate(config.model_copy(update={"benchmarks": one, "suites": ()}))


def test_an_empty_continuation_is_refused_by_name_before_the_model_is_asked(model):
    items = [Item("first", "", ""), Item("second", "", "")]
    asked = [
        (Likelihood(Prompt(text="a"), " b"),),
        (Likelihood(Prompt(text="a"), " b"), Likelihood(Prompt(text="a"), "")),
    ]
    with pytest.raises(ValueError, match="benchmark 'mine', item 'second', request 1 has an empty continuation"):
        request_names("mine", items, asked)
    with pytest.raises(ValueError, match=r"^the second one has an empty continuation"):
        encode_pairs(TOKENIZER, [*asked[0], asked[1][1]], ["the first one", "the second one"])


@pytest.mark.parametrize("chat", [False, True])
def test_scores_and_answers_are_stored(desk, chat):
    scores = desk.evaluate(config_of(chat=chat))
    assert set(scores.primary) == {"generate", "cloze", "multiple_choice", "sums"}
    assert scores.checkpoint == desk.checkpoint.digest
    stored = json.loads(desk.session.store.read(f"{scores.address}/scores.json"))
    by_name = {row["name"]: row for row in stored["benchmarks"]}
    for name, row in by_name.items():
        assert row["score"] == scores.primary[name]
        assert row["stderr"] == scores.stderr[name] > 0
    best = max(scores.primary["cloze"], scores.primary["multiple_choice"])
    assert scores.primary["sums"] == pytest.approx((best + scores.primary["generate"]) / 2)
    for name in ("generate", "cloze", "multiple_choice"):
        rows = desk.rows(scores, f"items/{name}.jsonl.zst")
        assert len(rows) == by_name[name]["n"] == 12
        primary = by_name[name]["primary"]
        assert sum(row["metrics"][primary] for row in rows) / 12 == pytest.approx(scores.primary[name])


def test_an_interrupted_evaluation_resumes_with_equal_bytes(desk, tmp_path, monkeypatch):
    config = config_of()
    undisturbed = Desk(tmp_path / "other").evaluate(config)
    original = evaluate_module.ask
    calls: list[int] = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(evaluate_module, "ask", failing)
    with pytest.raises(KeyboardInterrupt):
        desk.evaluate(config)
    resumed = desk.evaluate(config)
    assert len(calls) == 4, "the first benchmark is not asked again"
    assert resumed.digest == undisturbed.digest


def test_a_kill_in_the_middle_of_a_benchmark_costs_one_part(desk, tmp_path, monkeypatch):
    """Twelve items in parts of four: the second part is killed, and only it and what comes after are asked again."""
    monkeypatch.setattr(evaluate_module, "PART_REQUESTS", 4)
    config = config_of()
    config = config.model_copy(update={"benchmarks": config.benchmarks[:1], "suites": ()})
    undisturbed = Desk(tmp_path / "other").evaluate(config)
    original, first_requests = evaluate_module.ask, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        first_requests.append(kwargs["first_request"])
        if len(first_requests) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(evaluate_module, "ask", failing)
    with pytest.raises(KeyboardInterrupt):
        desk.evaluate(config)
    resumed = desk.evaluate(config)
    assert first_requests == [0, 4, 4, 8]
    assert resumed.digest == undisturbed.digest


def test_scoring_asks_for_no_request_again(desk, model, monkeypatch):
    """The requests are at hand where answers are scored, and making one may cost as much as all of a benchmark's shots."""
    monkeypatch.setattr(benchmarks, "make_requests", lambda *_: pytest.fail("a request was made again"))
    config = config_of()
    assert desk.evaluate(config).primary
    task = AskedTask(config.benchmarks[0], 2, TOKENIZER)
    assert len(task.scores(model, Group(), "fp32")) == 2


def test_parts_on_ray_have_the_scores_of_one_process(tmp_path, monkeypatch):
    here = Desk(tmp_path / "here").evaluate(config_of())
    monkeypatch.setattr(evaluate_module, "PART_REQUESTS", 6)
    monkeypatch.setattr(evaluate_module, "WORTH_WORKERS", 6)
    # This process, whose function is another one now, answers nothing itself.
    monkeypatch.setattr(evaluate_module, "ask", lambda *_, **__: pytest.fail("a part ran in the driver"))
    there = Desk(tmp_path / "there", ray="local")
    scores = there.evaluate(config_of())
    assert scores.primary == here.primary
    for name in ("generate", "cloze", "multiple_choice"):
        ours = there.rows(scores, f"items/{name}.jsonl.zst")
        assert [row["id"] for row in ours] == [
            row["id"] for row in Desk(tmp_path / "here").rows(here, f"items/{name}.jsonl.zst")
        ]


def test_names_are_checked_before_anything_runs(desk):
    config = config_of()
    twice = config.model_copy(update={"benchmarks": (config.benchmarks[0], config.benchmarks[0]), "suites": ()})
    with pytest.raises(ValueError, match=r"benchmark names \['generate'\] are used twice"):
        desk.evaluate(twice)
    lost = config.model_copy(update={"suites": (SuiteConfig(name="s", tasks=(("poetry",),)),)})
    with pytest.raises(ValueError, match="suite 's' names"):
        desk.evaluate(lost)


def test_where_a_server_answers_all_it_may_have_the_device(desk, model):
    """Oracle: local answers. This machine need not have the device."""
    config = config_of()
    config = config.model_copy(update={"benchmarks": config.benchmarks[:1], "suites": ()})
    here = desk.evaluate(config)
    with OpenAIServer(served(model, desk.checkpoint.digest)) as server:
        execution = desk.session.execution.model_copy(
            update={
                "device": "cuda",
                "generation": {"default": "endpoint"},
                "endpoints": {"default": EndpointSettings(url=server.url)},
            }
        )
        session = Session(desk.session.store, execution, force=frozenset({"evaluate"}))
        wrapped = stage(evaluate_checkpoint, name="evaluate", version=1)
        arguments = {"checkpoint": desk.checkpoint, "config": config}
        there = run_stage(wrapped, session, arguments, lambda event: None)
        assert server.sent.total() > 0
    assert (there.reused, there.artifact.digest) == (False, here.digest)


@pytest.mark.parametrize(
    ("data", "precision", "tolerance"), [("fsdp", "fp32", 1e-5), ("ddp", "fp32", 1e-5), ("fsdp", "bf16", 2e-2)]
)
def test_a_model_that_two_workers_hold_together_has_the_scores_of_one_process(desk, data, precision, tolerance):
    """Each worker reads its rows of the weights only. Log-likelihoods are equal within the precision, answers to the letter."""
    config = config_of(precision=precision)
    alone = desk.evaluate(config)
    ways = ParallelSettings(workers=2, data=data)
    call = Call(f"evaluate-{data}", evaluate_checkpoint, ways, {"checkpoint": desk.checkpoint, "config": config})
    root = str(desk.session.store.url)
    first, second = run_group(2, run_calls, root, [call, call])
    assert second == [None, None]
    found, again = first
    assert (found.notes["workers"], found.notes["parallel"]) == (2, data)
    assert found.artifact.primary == pytest.approx(alone.primary, abs=tolerance)
    for benchmark in config.benchmarks:
        name = f"items/{benchmark.name}.jsonl.zst"
        rows, together = desk.rows(alone, name), written_rows(Path(desk.session.store.full(f"{found.folder}/{name}")))
        for one, other in zip(rows, together, strict=True):
            assert one["id"] == other["id"]
            for answer, shared in zip(one["answers"], other["answers"], strict=True):
                numbers = {key for key, value in answer.items() if isinstance(value, float)}
                assert [shared[key] for key in numbers] == pytest.approx(
                    [answer[key] for key in numbers], abs=tolerance
                )
                assert {key: shared[key] for key in shared.keys() - numbers} == {
                    key: answer[key] for key in answer.keys() - numbers
                }
    assert again.resumed_from == f"shard {len(config.benchmarks)} of {len(config.benchmarks)} (evaluate base)"


@pytest.mark.parametrize("seen_by", ["listing", "question"])
def test_ranks_that_see_other_parts_do_what_rank_0_does(desk, seen_by):
    """Another attempt may commit a part between the looks of two ranks. What rank 1 sees then does not count: it would wait for
    rank 0, or leave it waiting."""
    alone = desk.evaluate(config_of())
    arguments = {"checkpoint": desk.checkpoint, "config": config_of()}
    call = Call(f"evaluate-{seen_by}", evaluate_checkpoint, ParallelSettings(workers=2, data="ddp"), arguments)
    first, second = run_group(2, ask_apart, str(desk.session.store.url), call, seen_by)
    assert second is None
    assert first.resumed_from == ""
    assert first.artifact.primary == pytest.approx(alone.primary, abs=1e-5)


def ask_apart(root: str, call: Call, seen_by: str) -> Any:
    """In each of two ranks: rank 1 sees that all parts but the first are answered already."""
    if torch.distributed.get_rank():
        skipped = {"files": {}, "result": [], "seconds": 0.0, "folder": ""}
        if seen_by == "listing":
            shards.committed_shards = lambda ws, keys: dict.fromkeys(keys[1:], skipped)
        else:
            exists, read_json = Store.exists, Store.read_json
            is_part = re.compile(r"/shards/.*-0*[1-9]\d*\.json$").search
            Store.exists = lambda self, path: bool(is_part(path)) or exists(self, path)
            Store.read_json = lambda self, path: (
                skipped if is_part(path) and not exists(self, path) else read_json(self, path)
            )
    return run_calls(root, [call])[0]
