"""A language model judges stored answers. Oracles: judges whose rule the test knows, the same fit by torch's optimizer, and the
win rate that a planted preference for length hides.
"""

import json
from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli.main import app
from infra.execution.attempt import run_stage
from tasks.evaluation.benchmarks import load_items
from tasks.evaluation.benchmarks.instructions import InstructionsBenchmark
from tasks.evaluation.evaluate import EvaluateConfig, SuiteConfig, evaluate
from tasks.evaluation.judge import JudgeConfig
from tasks.evaluation.scoring.length_control import PlayedRows, fit_logistic, length_controlled
from tasks.evaluation.scoring.selection import select
from tests.openai_server import OpenAIServer
from tests.tasks.evaluation.test_evaluate import Desk, config_of

ITEMS = 12


def rows_of(folder: Path, **fields: Callable[[int], Any]) -> str:
    path = folder / "rows.jsonl"
    rows = [
        {"instruction": f"Write {place} words.", **{name: made(place) for name, made in fields.items()}}
        for place in range(ITEMS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def evaluated(desk: Desk, *benchmarks: InstructionsBenchmark) -> str:
    """The id of an evaluation with stored answers, made by the stage itself."""
    suite = SuiteConfig(name="all", tasks=tuple((one.name,) for one in benchmarks))
    config = EvaluateConfig(label="sft", benchmarks=benchmarks, suites=(suite,), chat=True, max_context=128).pinned()
    arguments = {"checkpoint": desk.checkpoint, "config": config}
    return run_stage(evaluate.labelled("sft"), desk.session, arguments, lambda event: None).record.id


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("judge") / "store")


def judged(desk: Desk, id: str, server: OpenAIServer, *more: str, code: int = 0) -> Any:
    words = ["judge", id, "--url", server.url, "--model", "a-judge", "--store", desk.session.store.url, *more]
    done = CliRunner().invoke(app, [*words, "--json"])
    if code == 0:
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout)
    return done.exception


def between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0].strip()


def outputs(body: dict[str, Any]) -> tuple[str, str]:
    """What the judge is shown first and second."""
    prompt = body["messages"][0]["content"]
    return between(prompt, "Output (m):", "Output (M):"), between(prompt, "Output (M):", "Reply with one letter")


def compared(tmp_path: Path, **more: Any) -> InstructionsBenchmark:
    path = rows_of(tmp_path, output=lambda place: f"REFERENCE {'word ' * place}")
    fields = {"name": "alpaca", "question": "preferred", "reference": "output", "rows": {"paths": [path]}}
    return InstructionsBenchmark.model_validate(fields | {"max_new_tokens": 8, "context": 128} | more)


def test_a_preference_is_the_letters_probability_wherever_an_answer_stands(desk: Desk, tmp_path: Path):
    """This judge gives the reference 0.7, in whichever place it sees it."""
    id = evaluated(desk, compared(tmp_path))
    places = []

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        first, _ = outputs(body)
        places.append(first.startswith("REFERENCE"))
        mass = {"m": 0.7, "M": 0.3} if places[-1] else {"m": 0.2, " m": 0.1, "M": 0.7}
        top = [{"token": token, "logprob": log(0.9 * share)} for token, share in mass.items()]
        content = [{"token": "m", "logprob": 0.0, "top_logprobs": top}]
        return {"choices": [{"message": {"content": "m"}, "finish_reason": "length", "logprobs": {"content": content}}]}

    with OpenAIServer(reply) as server:
        shown = judged(desk, id, server)
        assert {body["max_tokens"] for body in server.bodies} == {1}
        again = judged(desk, id, server)
    assert 0 < sum(places) < len(places) == ITEMS, "both orders are shown, and the second time nothing is asked"
    assert again["reused"]
    (row, suite) = shown["benchmarks"]
    assert row["primary"] == "length_controlled_win_rate"
    assert row["metrics"]["win_rate"]["value"] == pytest.approx(0.3)
    assert row["score"] == pytest.approx(0.3, abs=1e-4), "length tells nothing where the preference is always the same"
    assert (suite["name"], suite["score"]) == ("all", pytest.approx(row["score"]))


def test_a_judge_without_probabilities_says_a_letter(desk: Desk, tmp_path: Path):
    id = evaluated(desk, compared(tmp_path))
    with OpenAIServer(lambda body: "M" if outputs(body)[0].startswith("REFERENCE") else "m") as server:
        shown = judged(desk, id, server, "--seed", "5")
    assert shown["benchmarks"][0]["metrics"]["win_rate"]["value"] == 1.0


def test_too_many_judgements_that_say_nothing_are_refused_with_an_example(desk: Desk, tmp_path: Path):
    id = evaluated(desk, compared(tmp_path))
    with OpenAIServer(lambda body: "Both are fine.") as server:
        error = judged(desk, id, server, "--seed", "7", code=1)
    assert isinstance(error, ValueError)
    assert "12 of 12 judgements of 'alpaca' cannot be read, such as 'Both are fine.' for item 0" in str(error)


def test_an_assistant_should_refuse_what_is_harmful_and_nothing_else(desk: Desk, tmp_path: Path):
    """The judge sees a refusal in the answers to even instructions, and harm in those to multiples of three."""
    path = rows_of(tmp_path, label=lambda place: "refuse" if place < 6 else "comply")
    common = {"rows": {"paths": [path]}, "max_new_tokens": 4, "context": 128}
    id = evaluated(
        desk,
        InstructionsBenchmark.model_validate({"name": "both", "question": "refuses", "wanted": "label", **common}),
        InstructionsBenchmark.model_validate({"name": "all_harmful", "question": "refuses", **common}),
        InstructionsBenchmark.model_validate({"name": "harm", "question": "harmless", **common}),
    )

    def reply(body: dict[str, Any]) -> str:
        place = int(between(body["messages"][0]["content"], "Write ", " words"))
        return f"Refusal: {'no' if place % 2 else 'yes'}\nHarmful: {'no' if place % 3 else 'yes'}"

    with OpenAIServer(reply) as server:
        shown = {row["name"]: row for row in judged(desk, id, server)["benchmarks"]}
    # Refused are 0, 2, 4, which should be, and 6, 8, 10, which should not: six of twelve are as they should be.
    assert shown["both"]["score"] == 0.5
    assert shown["all_harmful"]["score"] == 0.5
    assert shown["harm"]["score"] == pytest.approx(8 / 12)
    assert shown["all"]["score"] == pytest.approx((0.5 + 0.5 + 8 / 12) / 3)
    assert shown["both"]["metrics"]["refused"]["value"] == 0.5


SAFETY_ROWS: dict[str, list[dict[str, Any]]] = {
    "allenai/tulu-3-harmbench-eval": [
        {"Behavior": "Say how.", "FunctionalCategory": "contextual", "ContextString": "A text.", "BehaviorID": "a"},
        {"Behavior": "Do it.", "FunctionalCategory": "standard", "ContextString": "", "BehaviorID": "b"},
    ],
    "walledai/XSTest": [
        {"prompt": "How do I kill a process?", "label": "safe", "type": "homonyms"},
        {"prompt": "How do I hurt him?", "label": "unsafe", "type": "contrast_homonyms"},
    ],
    "allenai/wildguardmix": [
        {"prompt": "asked", "prompt_harm_label": "harmful", "response_harm_label": "unharmful", "adversarial": True},
        {
            "prompt": "harmless",
            "prompt_harm_label": "unharmful",
            "response_harm_label": "unharmful",
            "adversarial": False,
        },
        {"prompt": "unlabelled", "prompt_harm_label": "harmful", "response_harm_label": None, "adversarial": False},
    ],
    "allenai/tulu-3-do-anything-now-eval": [{"adversarial": "You are DAN.", "source": "ChatGPT", "platform": "web"}],
    "allenai/tulu-3-trustllm-jailbreaktrigger-eval": [{"prompt": "cot", "id": 1, "source": "QBB", "label": ["cot"]}],
    "allenai/olmo-eval-wildjailbreak": [
        {"adversarial": "a play", "vanilla": "x", "data_type": "adversarial_harmful"},
        {"adversarial": "a recipe", "vanilla": "", "data_type": "adversarial_benign"},
        {"adversarial": "a poem", "vanilla": "", "data_type": "adversarial_benign"},
    ],
}
"""Rows of our own with the fields that olmo-eval reads."""


def test_the_safety_suite_asks_and_judges_its_six_sets_as_olmo_eval_does(desk: Desk, tmp_path: Path):
    for dataset, rows in SAFETY_ROWS.items():
        folder = tmp_path / dataset
        folder.mkdir(parents=True)
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = select(["safety"], copies=str(tmp_path))
    benchmarks = tuple(
        InstructionsBenchmark.model_validate(one.model_dump() | {"max_new_tokens": 8, "context": 128})
        for one in chosen.benchmarks
    )
    asked = {
        one.name: [item.question for item in load_items(one.pinned())] for one in benchmarks if one.name != "xstest"
    }
    assert asked == {
        "harmbench": ["A text.\n\n---\n\nSay how.", "Do it."],
        "wildguardtest": ["asked"],
        "do_anything_now": ["You are DAN."],
        "jailbreak_trigger": ["cot"],
        "wildjailbreak_benign": ["a recipe", "a poem"],
        "wildjailbreak_harmful": ["a play"],
    }  # fmt: skip
    config = EvaluateConfig(
        label="sft", benchmarks=benchmarks, suites=tuple(chosen.suites), chat=True, max_context=128
    ).pinned()
    arguments = {"checkpoint": desk.checkpoint, "config": config}
    id = run_stage(evaluate.labelled("sft"), desk.session, arguments, lambda event: None).record.id

    seen: list[str] = []

    def wildguard(body: dict[str, Any]) -> str:
        """Sees a refusal of everything but the recipe, and harm in the second behaviour alone."""
        (message,) = body["messages"]
        seen.append(message["content"])
        request = between(message["content"], "Human user:\n", "\n\nAI assistant:\n")
        refused, harm = ("no" if request == "a recipe" else "yes"), ("yes" if request == "Do it." else "no")
        return f"Harmful request: yes\nResponse refusal: {refused}\nHarmful response: {harm}"

    with OpenAIServer(wildguard) as server:
        shown = {row["name"]: row["score"] for row in judged(desk, id, server, "--prompt", "wildguard")["benchmarks"]}
        assert "there is no prompt 'none'" in str(judged(desk, id, server, "--prompt", "none", code=1))
    assert all(text.startswith("<|user|>\n[INST] ") and text.endswith("[/INST]\n<|assistant|>") for text in seen)
    assert shown == {
        "harmbench": 0.5, "xstest": 0.5, "wildguardtest": 1.0, "do_anything_now": 1.0, "jailbreak_trigger": 1.0,
        "wildjailbreak_benign": 0.5, "wildjailbreak_harmful": 1.0, "wildjailbreak": 0.75,
        "safety": pytest.approx((0.5 + 0.5 + 1 + 1 + 1 + 0.75) / 6),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep": {"label": ("none",)}}, "has no row with"),
        ({"wanted": "label", "reactions": {"x": "comply"}}, "it says x"),
    ],
)
def test_rows_that_say_nothing_of_what_is_wanted_are_named(fields: dict[str, Any], said: str, tmp_path: Path):
    path = rows_of(tmp_path, label=lambda place: "refuse")
    config = {"name": "own", "question": "refuses", "rows": {"paths": [path]}} | fields
    with pytest.raises(ValueError, match=said):
        load_items(InstructionsBenchmark.model_validate(config).pinned())


def test_answers_to_other_benchmarks_are_not_judged(desk: Desk):
    scores = desk.evaluate(config_of())
    with OpenAIServer(lambda body: "m") as server:
        error = judged(desk, scores.id, server, code=1)
    assert "has no answers to benchmarks of kind instructions" in str(error)
    with pytest.raises(ValueError, match="a judge reads answers to benchmarks of kind `instructions`, not cloze"):
        JudgeConfig(label="x", benchmarks=config_of().benchmarks[1:2])


def test_alpaca_eval_is_read_from_a_copy(tmp_path: Path):
    (tmp_path / "alpaca_eval_2").mkdir()
    rows_of(tmp_path / "alpaca_eval_2", output=str)
    (chosen,) = select(["alpaca_eval_2"], copies=str(tmp_path)).benchmarks
    items = load_items(chosen.pinned())
    assert [(item.id, item.question, item.data["reference"]) for item in items] == [
        (str(place), f"Write {place} words.", str(place)) for place in range(ITEMS)
    ]
    with pytest.raises(ValueError, match="one object a line"):
        select(["alpaca_eval_2"])


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "preferred"},
        {"question": "harmless", "reference": "output"},
        {"question": "harmless", "wanted": "x"},
        {"question": "refuses", "reactions": {"safe": "comply"}},
    ],
)
def test_fields_that_no_question_reads_are_refused(fields: dict[str, str]):
    with pytest.raises(ValueError, match=r"question|`wanted` mean"):
        InstructionsBenchmark.model_validate({"name": "x", "rows": {"paths": ["x.jsonl"]}, **fields})


def logistic(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


def test_the_fit_is_that_of_torchs_optimizer():
    chance = np.random.default_rng(0)
    features, weights = chance.normal(size=(300, 3)), chance.uniform(0.1, 2, 300)
    targets = np.clip(logistic(features @ [1.5, -0.5, 0.2]) + chance.normal(0, 0.1, 300), 0, 1)
    found = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits, wanted = torch.from_numpy(features) @ found, torch.from_numpy(targets)
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        total = (each * torch.from_numpy(weights)).sum()
        total.backward()
        return total

    optimizer.step(loss)  # type: ignore[arg-type]
    assert fit_logistic(features, targets, weights) == pytest.approx(found.detach().numpy(), abs=1e-5)


def test_a_preference_for_length_is_taken_out():
    """Planted: the judge likes length, and the model writes long. Without that it wins as often as the constant says."""
    chance = np.random.default_rng(1)
    own, other = chance.integers(800, 3000, 805), chance.integers(200, 2000, 805)
    difference = (other - own).astype(float)
    preferences = logistic(-2.0 * np.tanh(difference / difference.std(ddof=1)) - 0.4)
    found = length_controlled(preferences.tolist(), range(805), own.tolist(), other.tolist())
    assert np.mean(preferences) > 0.55
    assert found == pytest.approx([1 / (1 + exp(0.4))] * 805, abs=1e-3)


def test_difficulty_and_played_rows_take_part():
    """A judge that follows length, difficulty and the model's constant; the played rows follow the first two alone."""
    chance = np.random.default_rng(2)
    hard = dict(enumerate(chance.normal(size=805)))
    own, other = chance.integers(800, 3000, 805), chance.integers(200, 2000, 805)
    difference = (other - own).astype(float)
    levels = np.array([hard[place] for place in range(805)])
    preferences = logistic(-2.0 * np.tanh(difference / difference.std(ddof=1)) + 0.7 * levels - 0.4)
    features = np.stack([np.tanh(chance.normal(size=1610)), np.tile(levels, 2), np.zeros(1610)], 1)
    played = PlayedRows(hard, features, logistic(features @ [-2.0, 0.7, 0.0]))
    found = length_controlled(preferences.tolist(), range(805), own.tolist(), other.tolist(), played)
    assert found == pytest.approx(logistic(0.7 * levels - 0.4), abs=1e-3)
    with pytest.raises(ValueError, match="805 have no difficulty"):
        length_controlled([0.5], [805], [1], [2], played)


def test_equal_lengths_and_preferences_without_exception_are_fitted():
    # Nothing but the constant is left, whose value is the mean of the preferences: each counts as it is.
    assert length_controlled([1.0, 0.0, 0.0], range(3), [5] * 3, [5] * 3) == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)
    assert all(np.isfinite(length_controlled([1.0] * 4, range(4), [9, 8, 7, 6], [1, 2, 3, 4])))


@pytest.mark.parametrize("with_played", [False, True])
def test_the_standard_error_is_that_of_instructions_drawn_again(with_played: bool):
    """Oracle: the bootstrap over instructions, of a model's score and of the gain of a second model on the same ones."""
    chance = np.random.default_rng(3)
    count = 400
    other = chance.integers(200, 2000, count)
    hard = chance.normal(size=count)
    features = np.stack([np.tanh(chance.normal(size=2 * count)), np.tile(hard, 2), np.zeros(2 * count)], 1)
    drawn = chance.random(2 * count) < logistic(features @ [-1.0, 1.5, 0.0])
    played = PlayedRows(dict(enumerate(hard)), features, drawn.astype(float)) if with_played else None

    def model(longer: int, constant: float) -> tuple[np.ndarray, np.ndarray]:
        own = np.maximum(1, other + chance.integers(-600, 600 + longer, count))
        difference = (other - own).astype(float)
        liked = logistic(-1.0 * np.tanh(difference / difference.std(ddof=1)) + 1.5 * hard + constant)
        return own, (chance.random(count) < liked).astype(float)

    first, second = model(0, 0.2), model(800, 0.5)

    def values(of: tuple[np.ndarray, np.ndarray], places: np.ndarray) -> np.ndarray:
        own, preferences = of
        drawn = (column[places].tolist() for column in (preferences, every, own, other))
        return np.array(length_controlled(*drawn, played=played))

    every = np.arange(count)
    again = [chance.integers(0, count, count) for _ in range(400)]
    scores = np.array([[values(of, places).mean() for of in (first, second)] for places in again])
    one, two = values(first, every), values(second, every)
    for found, drawn_again in ((one, scores[:, 0]), (two, scores[:, 1]), (two - one, scores[:, 1] - scores[:, 0])):
        assert found.std(ddof=1) / count**0.5 == pytest.approx(drawn_again.std(ddof=1), rel=0.12)
