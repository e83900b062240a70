"""The language-model judge. Oracles: RECIPE G (aspects, scale, the published parser's quirks), a server's own count."""

import re

import pytest

from infra.language_models.protocol import Answer
from infra.settings import EndpointSettings
from tasks.prompting import LanguageModelConfig
from tasks.training.answers.model_judge import (
    AspectQuestion,
    LanguageModelJudge,
    aspect_questions,
    judge_request,
    read_blocks,
    read_judgements,
)
from tasks.training.answers.rule_judge import ASPECTS, mean_rating
from tasks.training.preferences import PreferencesConfig, build_preferences
from tests.openai_server import OpenAIServer, completed
from tests.tasks.training.conftest import Rows, make_prompts, user
from tests.tasks.training.test_preferences import CONFIG, read_rows

JUDGE = LanguageModelJudge(model=LanguageModelConfig(model="judge", temperature=0.0))

BLOCKS = """Text 1
Type: 2
Rating: 4
Rationale: fine, though a 5 was near. Rating it was hard.

**Text 2**
- Rating: N/A
Rationale: invented

Text 3:
Rating: 2"""


def said(*texts):
    """What a judge says of one prompt, aspect by aspect."""
    return {
        AspectQuestion(0, aspect, False): Answer(completed(text), remembered=False)
        for aspect, text in zip(ASPECTS, texts, strict=True)
    }


def read(answers, count, reading):
    found = read_judgements(answers, count, reading)
    return found.ratings, found.reason


def test_one_request_per_aspect_lists_all_texts():
    texts = ["hello", "{% raw %}"]
    requests = [judge_request(JUDGE, question, "Say {{ x }} hello", texts) for question in aspect_questions(JUDGE, 0)]
    assert len(requests) == len({request.key for request in requests}) == len(ASPECTS) == 4
    for request in requests:
        system, user = request.body["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        assert "Instruction:\nSay {{ x }} hello\n" in user["content"]
        assert "Text 1:\nhello\n" in user["content"] and "Text 2:\n{% raw %}\n" in user["content"]
        assert request.body["temperature"] == 0.0
    with pytest.raises(ValueError, match="give one for each of instruction_following"):
        LanguageModelJudge(prompts={"honesty": "{{ instruction }} {{ texts }}"})
    with pytest.raises(ValueError, match=r"must ask for \{\{ instruction \}\} and \{\{ texts \}\}"):
        LanguageModelJudge(prompts=dict.fromkeys(ASPECTS, "{{ texts }}"))


def test_blocks_are_read_as_a_reader_would():
    assert read_blocks(BLOCKS) == {1: "4", 2: "N/A", 3: "2"}
    assert read_blocks("Text 1\nRating: 4.5\n\nText 2\nRating: 7\n\nText 3\nno rating") == {}
    assert read_blocks("Text 1\nRating: 3\n\nText 1\nRating: 4\n\nText 2\nRating: 5\nRating: 1") == {}


def test_strict_reading_leaves_out_what_it_cannot_read():
    ratings, reason = read(said(*[BLOCKS] * 4), 3, "strict")
    assert reason == ""
    assert [one["honesty"] for one in ratings] == [4, None, 2]
    assert mean_rating({"honesty": None, "truthfulness": 5, "helpfulness": 4, "instruction_following": 3}) == 4.0
    assert read(said(BLOCKS, BLOCKS, BLOCKS, "Text 1\nRating: 4"), 3, "strict") == (
        [],
        "helpfulness: no rating of text 2",
    )
    assert read(said(BLOCKS, "", BLOCKS, BLOCKS), 3, "strict") == ([], "honesty: empty")


def test_published_reading_has_the_published_quirks():
    ratings, reason = read(said(BLOCKS, BLOCKS, BLOCKS, "nothing"), 3, "published")
    assert reason == ""
    assert [list(one.values()) for one in ratings] == [[4, 4, 4, 1], [-1, -1, -1, 1], [2, 2, 2, 1]]
    assert mean_rating(ratings[1]) == -0.5


def rater(body):
    """The second text is best in everything; honesty does not apply; the last prompt's helpfulness is not rated."""
    prompt = body["messages"][1]["content"]
    count = len(re.findall(r"^Text \d+:$", prompt, re.MULTILINE))
    if "informative" in prompt and "Instruction:\n1+0\n" in prompt:
        return "I would rather not."
    rating = {i: "N/A" if "confidence" in prompt else 5 if i == 2 else 3 for i in range(1, count + 1)}
    return "\n\n".join(f"Text {i}\nRating: {value}\nRationale: so." for i, value in rating.items())


def test_pairs_follow_the_judge_and_a_rerun_asks_nothing(make_bench):
    config = CONFIG.model_copy(update={"judge": JUDGE})
    assert PreferencesConfig.model_validate(config.model_dump()) == config
    with OpenAIServer(rater, faults=True) as server:
        endpoint = EndpointSettings(
            url=server.url, first_wait_seconds=0.01, timeout_seconds=2.0, prompt_price=1e6, concurrency=8
        )
        bench = make_bench("a", endpoints={"judge": endpoint})
        prompts = bench.prompts(6)
        asked = [row["messages"][0]["content"] for row in read_rows(bench, prompts, "prompts.jsonl.zst")]
        assert asked.count("1+0") == 1
        made = bench.run(build_preferences, policy=bench.base(), prompts=prompts, config=config)
        paid = server.paid.total()
        assert set(server.paid.values()) == {1}
        again = bench.run(build_preferences, "again", policy=bench.base(), prompts=prompts, config=config)
        assert (again.digest, server.paid.total()) == (made.digest, paid)
    assert made.pairs == 5
    rows = read_rows(bench, made, "preferences.jsonl.zst")
    for row in rows:
        own = [s for s in read_rows(bench, made, "samples/00000000.jsonl.zst") if s["id"] == row["id"]]
        assert row["chosen"][-1]["content"] == own[1]["text"]
        assert (row["chosen_rating"], row["rejected_rating"]) == (5.0, 3.0)
        assert row["chosen_ratings"] == {aspect: None if aspect == "honesty" else 5 for aspect in ASPECTS}
    unrated = read_rows(bench, made, "unrated/00000000.jsonl.zst")
    assert [row["reason"] for row in unrated] == ["helpfulness: no rating of text 1"]


def test_prompts_without_ground_truth_are_judged_by_a_model_and_by_no_rules(make_bench):
    rows = [
        {"id": str(i), "messages": [user(f"river {i}")], "ground_truth": None, "dataset": "unverified"}
        for i in range(3)
    ]
    with OpenAIServer(rater, faults=False) as server:
        bench = make_bench("a", endpoints={"judge": EndpointSettings(url=server.url)})
        prompts = bench.run(make_prompts, config=Rows(rows=rows))
        config = CONFIG.model_copy(update={"judge": JUDGE})
        made = bench.run(build_preferences, policy=bench.base(), prompts=prompts, config=config)
    assert made.pairs == 3
    assert {row["correct"] for row in read_rows(bench, made, "samples/00000000.jsonl.zst")} == {None}
    with pytest.raises(ValueError, match="a prompt without ground truth has no verdict"):
        bench.run(build_preferences, "ruled", policy=bench.base(), prompts=prompts, config=CONFIG)


def test_a_judge_that_favours_a_place_is_asked_both_ways_round(make_bench):
    """Its first text gets a 5 and all others 1, whatever they say: in both orders together only the ends differ from the rest."""

    def first_wins(body):
        count = len(re.findall(r"^Text \d+:$", body["messages"][1]["content"], re.MULTILINE))
        return "\n\n".join(f"Text {i}\nRating: {5 if i == 1 else 1}" for i in range(1, count + 1))

    def ratings(name, **changes):
        judge = JUDGE.model_copy(update=changes)
        with OpenAIServer(first_wins) as server:
            bench = make_bench(name, endpoints={"judge": EndpointSettings(url=server.url)})
            config = CONFIG.model_copy(update={"judge": judge})
            made = bench.outcome(build_preferences, policy=bench.base(), prompts=bench.prompts(2), config=config)
            rows = read_rows(bench, made.artifact, "samples/00000000.jsonl.zst")
            return [row["rating"] for row in rows], made.record.notes, server.sent.total()

    once, notes, asked = ratings("a")
    assert once == [5, 1, 1] * 2 and asked == 2 * 4 and "judge_agreement" not in notes
    both, notes, asked = ratings("b", positions="both")
    assert both == [3, 1, 3] * 2 and asked == 2 * 2 * 4
    # Of three texts it rates the middle one alike in both orders.
    assert notes["judge_agreement"] == pytest.approx(1 / 3, abs=1e-4)


def test_an_unreadable_rating_is_asked_for_again_with_another_seed(make_bench):
    def moody(body):
        """Says nothing of use on seed 0, and at the second attempt about helpfulness."""
        seed, prompt = body["seed"], body["messages"][1]["content"]
        return "I would rather not." if seed == 0 or (seed == 1 and "informative" in prompt) else rater(body)

    found = {}
    for attempts in (1, 2, 3):
        with OpenAIServer(moody) as server:
            bench = make_bench(f"{attempts}", endpoints={"judge": EndpointSettings(url=server.url)})
            judge = JUDGE.model_copy(update={"attempts": attempts})
            config = CONFIG.model_copy(update={"judge": judge})
            arguments = {"policy": bench.base(), "prompts": bench.prompts(2), "config": config}
            if attempts < 3:
                with pytest.raises(ValueError, match=r"no pair is left of 2 prompts.*2 unrated"):
                    bench.run(build_preferences, **arguments)
            else:
                assert bench.run(build_preferences, **arguments).pairs == 2
            found[attempts] = [server.sent.total(), *(sum(b["seed"] == s for b in server.bodies) for s in range(3))]
    # Only what could not be read is asked again.
    assert found == {1: [8, 8, 0, 0], 2: [16, 8, 8, 0], 3: [18, 8, 8, 2]}


def test_what_is_asked_once_as_published_has_the_identity_it_had():
    assert not {"positions", "attempts"} & JUDGE.model_dump().keys()
    assert not {"pool", "margin"} & CONFIG.model_dump().keys()
    both = JUDGE.model_copy(update={"positions": "both", "attempts": 2})
    assert LanguageModelJudge.model_validate(both.model_dump()) == both
