"""Answers of several models. Oracles: RECIPE G (4 of the pool for each prompt), the servers' own counts of what they were asked,
the samples that the stage writes; frequencies within five standard errors of the named share."""

import math
import re
from collections import Counter

import pytest

from infra.language_models.client import EndpointError
from infra.settings import EndpointSettings
from tasks.prompting import LanguageModelConfig
from tasks.training.answers.completion_pool import POLICY, CheckpointMember, PoolConfig, ServedMember, drawn_members
from tasks.training.preferences import PreferencesConfig, build_preferences
from tests.openai_server import OpenAIServer, completed
from tests.tasks.training.conftest import Rows, Seed, make_checkpoint, make_prompts, user
from tests.tasks.training.test_preferences import read_rows


def served(name):
    return ServedMember(name=name, model=LanguageModelConfig(model=f"vendor/{name}", max_tokens=32))


POOL = PoolConfig(on_policy=0.25, members=tuple(map(served, "abcdef")))
CONFIG = PreferencesConfig(samples=4, max_prompt_tokens=64, max_new_tokens=8, precision="fp32", pool=POOL)


def solver(right):
    """A model that adds two digits, or is one off."""

    def reply(body):
        found = re.search(r"(\d)\+(\d)", body["messages"][-1]["content"])
        assert found
        return f"The answer is {int(found[1]) + int(found[2]) + (not right)}."

    return reply


def test_who_answers_follows_seed_prompt_and_share():
    draws = [drawn_members(POOL, 4, 1, f"prompt-{i}") for i in range(2000)]
    assert draws == [drawn_members(POOL, 4, 1, f"prompt-{i}") for i in range(2000)]
    assert draws != [drawn_members(POOL, 4, 2, f"prompt-{i}") for i in range(2000)]
    counted = Counter(name for names in draws for name in names)
    for name, share in ({POLICY: 0.25} | dict.fromkeys("abcdef", 0.75 / 6)).items():
        assert abs(counted[name] - 8000 * share) < 5 * math.sqrt(8000 * share * (1 - share)), (name, counted)
    # With more members than answers, none but the policy answers twice.
    assert all(len(set(others)) == len(others) for names in draws for others in [[n for n in names if n != POLICY]])
    few = PoolConfig(on_policy=0, members=(served("a"), served("b")))
    assert {tuple(sorted(drawn_members(few, 4, 1, str(i)))) for i in range(20)} == {("a", "a", "b", "b")}


def test_names_of_members_differ_from_each_other_and_from_the_policy():
    for names in ("aa", ("policy",)):
        with pytest.raises(ValueError, match="give each a name of its own"):
            PoolConfig(on_policy=0.5, members=tuple(map(served, names)))
    # The judge's usage has no name, so a member must have one.
    with pytest.raises(ValueError, match="name"):
        served("")
    with pytest.raises(ValueError, match="name"):
        CheckpointMember(name="", checkpoint="of the recipe")
    with pytest.raises(ValueError, match="on_policy"):
        PoolConfig.model_validate({"members": [served("a").model_dump()]})
    assert PreferencesConfig.model_validate(CONFIG.model_dump()) == CONFIG


def start(bench, count=24):
    return {"policy": bench.base(), "prompts": bench.prompts(count), "config": CONFIG}


def test_a_pool_answers_on_several_servers_and_a_rerun_asks_nothing(make_bench):
    quick = {"first_wait_seconds": 0.01, "timeout_seconds": 2.0, "concurrency": 4}
    with OpenAIServer(solver(True), faults=True) as good, OpenAIServer(solver(False), faults=True) as bad:
        settings = [EndpointSettings(url=server.url, **quick, prompt_price=1.0) for server in (good, bad)]
        endpoints = {f"vendor/{name}": settings[name > "c"] for name in "abcdef"}
        bench = make_bench("one", endpoints=endpoints)
        outcome = bench.outcome(build_preferences, **start(bench))
        paid = good.paid.total() + bad.paid.total()
        again = bench.outcome(build_preferences, "again", **start(bench))
        assert good.paid.total() + bad.paid.total() == paid
        assert set(good.paid.values()) == set(bad.paid.values()) == {1}
    assert again.artifact.digest == outcome.artifact.digest
    samples = read_rows(bench, outcome.artifact, "samples/00000000.jsonl.zst")
    assert Counter(row["model"] for row in samples) == outcome.record.notes["answers_by_model"]
    questions = {
        row["id"]: row["messages"][0]["content"] for row in read_rows(bench, bench.prompts(24), "prompts.jsonl.zst")
    }
    others = [(row["model"], questions[row["id"]]) for row in samples if row["model"] != POLICY]
    # Some questions are asked twice: a model's answer to each is paid for once.
    assert len(set(others)) == paid < len(others)
    assert len(samples) == 24 * 4
    assert outcome.record.notes["on_policy_share"] == pytest.approx(1 - len(others) / 96, abs=1e-4)
    assert {row["correct"] for row in samples if row["model"] in "abc"} == {True}
    assert {row["correct"] for row in samples if row["model"] in "def"} == {False}
    for row in read_rows(bench, outcome.artifact, "preferences.jsonl.zst"):
        own = {(s["model"], s["text"]): s["rating"] for s in samples if s["id"] == row["id"]}
        assert own[row["chosen_model"], row["chosen"][-1]["content"]] == row["chosen_rating"] == max(own.values())
        assert own[row["rejected_model"], row["rejected"][-1]["content"]] == row["rejected_rating"]
    usage = outcome.record.notes["pool_endpoints"]
    assert sum(found["requests"] for found in usage.values()) == len(others)
    assert sum(found["paid_now"] for found in usage.values()) == pytest.approx(10 * paid / 1e6)


def test_a_model_that_refuses_or_says_nothing_is_left_out_of_its_prompts(make_bench):
    def shy(body):
        text = solver(True)(body)
        return {
            "1": 400,
            "2": " ",
            "3": completed(text, finish="content_filter"),
            "4": completed(text, finish="length"),
        }[body["messages"][-1]["content"][0]]

    rows = [
        {"id": str(i), "messages": [user(f"{i}+1")], "ground_truth": str(i + 1), "dataset": "gsm8k"}
        for i in range(1, 5)
    ]
    pool = PoolConfig(on_policy=0, members=tuple(map(served, "abcd")))
    with OpenAIServer(shy) as server:
        bench = make_bench("one", endpoints={"default": EndpointSettings(url=server.url)})
        prompts = bench.run(make_prompts, config=Rows(rows=rows))
        config = CONFIG.model_copy(update={"pool": pool})
        made = bench.run(build_preferences, policy=bench.base(), prompts=prompts, config=config)
    assert made.pairs == 1
    samples = read_rows(bench, made, "samples/00000000.jsonl.zst")
    assert [(row["id"], row["finished"]) for row in samples] == [("4", False)] * 4
    unrated = read_rows(bench, made, "unrated/00000000.jsonl.zst")
    assert [(row["id"], row["reason"]) for row in unrated] == [(id, "fewer than two answers") for id in "123"]


def test_own_checkpoints_answer_with_their_own_weights(make_bench):
    pool = PoolConfig(on_policy=0.5, members=(CheckpointMember(name="other", checkpoint="of the recipe"),))
    config = CONFIG.model_copy(update={"pool": pool})

    def run(name, seed):
        bench = make_bench(name)
        other = bench.run(make_checkpoint, "other", config=Seed(seed=seed))
        arguments = {"policy": bench.base(), "prompts": bench.prompts(6), "config": config, "others": [other]}
        outcome = bench.outcome(build_preferences, **arguments)
        rows = read_rows(bench, outcome.artifact, "samples/00000000.jsonl.zst")
        return outcome.artifact.digest, {
            by: [row["text"] for row in rows if (row["model"] == POLICY) == (by == POLICY)] for by in (POLICY, "other")
        }

    first, answers = run("one", 7)
    assert first == run("two", 7)[0]
    assert answers[POLICY] and answers["other"]
    _, others = run("three", 8)
    assert others[POLICY] == answers[POLICY] and others["other"] != answers["other"]


def test_a_margin_leaves_out_what_is_too_close_and_says_so(make_bench):
    """Right answers are rated 4.75 or more, wrong ones 2.75 or less; ties of right answers have no margin."""
    pool = PoolConfig(on_policy=0, members=tuple(map(served, "abcdef")))
    with OpenAIServer(solver(True)) as good, OpenAIServer(solver(False)) as bad:
        endpoints = {f"vendor/{name}": EndpointSettings(url=(good if name <= "d" else bad).url) for name in "abcdef"}
        found = {}
        for margin in (0.0, 2.0):
            bench = make_bench(f"{margin}", endpoints=endpoints)
            config = CONFIG.model_copy(update={"pool": pool, "margin": margin})
            found[margin] = bench.outcome(build_preferences, **start(bench) | {"config": config})
            rows = read_rows(bench, found[margin].artifact, "preferences.jsonl.zst")
            assert all(row["chosen_rating"] - row["rejected_rating"] >= margin for row in rows)
        kept, notes = found[2.0].artifact, found[2.0].record.notes
        assert found[0.0].artifact.pairs == 24 and found[0.0].artifact.ties > 0
        assert kept.pairs + notes["below_margin"] == 24 and kept.ties == 0
        # All four answers to such a prompt are those of the four good models.
        alone = sum(
            set(drawn_members(pool, 4, CONFIG.seed, row["id"])) == set("abcd")
            for row in read_rows(bench, bench.prompts(24), "prompts.jsonl.zst")
        )
        assert notes["below_margin"] == alone < 24


def test_a_capped_stage_stops_and_goes_on_with_more_money(make_bench):
    """Each answer costs 10, whoever gives it."""
    with OpenAIServer(solver(True)) as server:
        limits = {"url": server.url, "prompt_price": 1e6, "concurrency": 1}
        bench = make_bench("one", endpoints={"default": EndpointSettings(**limits, max_cost=50)})
        with pytest.raises(EndpointError, match="reaches max_cost=50"):
            bench.run(build_preferences, **start(bench))
        # The first member's answers alone reach it: the cap is each model's.
        assert server.paid.total() == 5
        richer = make_bench("one", endpoints={"default": EndpointSettings(**limits, max_cost=5000)})
        assert richer.run(build_preferences, **start(richer)).pairs == 24
        assert set(server.paid.values()) == {1}
