"""Rows of post-training data as they are released. Oracles: rows written here whose fate is known, and the verifiers themselves,
which must judge any answer to a row that is kept.
"""

import json
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.filters.chats.chat_filters import ChatFilterConfig, PromptFilterConfig
from tasks.data.filters.chats.repeated import conversation_key
from tasks.data.post_training.chats import ChatRows, ChatsConfig, chats
from tasks.data.post_training.pairs import PairsConfig, pairs
from tasks.data.post_training.prompts import PromptRows, PromptsConfig, prompts
from tasks.data.sources.rows import RowSource
from tasks.verifiers import verify
from tasks.verifiers.ground_truth import unusable_constraint, usable_truth

USER = [{"role": "user", "content": "q"}]
GOOD = {"messages": USER, "ground_truth": "4", "dataset": "gsm8k"}
BULLETS = {"func_name": "verify_bullet_points", "N": 3}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def written(tmp_path):
    def write(rows: list[Any]) -> RowSource:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return RowSource(paths=(str(path),))

    return write


def asked(bench, rows: RowSource, ground_truth: Literal["required", "optional"] = "required", **options):
    source = PromptRows(name="file", rows=rows, **options)
    return bench.run(prompts, PromptsConfig(sources=(source,), ground_truth=ground_truth).pinned())


UNUSABLE = [
    ({"func_name": "verify_letter_frequency", "letter": "ab", "N": 1}, "letter='ab' is not a single character"),
    ({"func_name": "verify_letter_frequency", "letter": "", "N": 1}, "letter is empty"),
    ({"func_name": "verify_bullet_points"}, "lacks N"),
    ({"func_name": "verify_bullet_points", "N": None}, "lacks N"),
    ({"func_name": "verify_bullet_points", "N": True}, "N=True is not a whole number"),
    ({"func_name": "verify_bullet_points", "N": -1}, "N=-1 is below 0"),
    ({"func_name": "verify_bullet_points", "N": 1.5}, "N=1.5 is not a whole number"),
    ({"func_name": "validate_word_constraint", "N": "10", "quantifier": "at least"}, "N='10' is not a whole number"),
    ({"func_name": "validate_word_constraint", "N": 10, "quantifier": "exactly"}, "quantifier='exactly' is none of"),
    ({"func_name": "verify_paragraph_count", "N": 0}, "N=0 is below 1"),
    ({"func_name": "validate_paragraphs", "N": 2, "i": 3, "first_word": "so"}, "i=3 is beyond N=2"),
    ({"func_name": "validate_paragraphs", "N": 2, "i": 0, "first_word": "so"}, "i=0 is below 1"),
    ({"func_name": "validate_sections", "N": 2, "section_splitter": ""}, "section_splitter is empty"),
    ({"func_name": "validate_response_language", "language": "klingon"}, "language='klingon' is not a code"),
    ({"func_name": "verify_keywords", "keyword_list": "rain"}, "keyword_list='rain' is not a list of words"),
    ({"func_name": "verify_keywords", "keyword_list": ["rain", 3]}, "is not a list of words"),
    ({"func_name": "validate_choice", "options": []}, "options is empty"),
    ({"func_name": "validate_emoji"}, "func_name 'validate_emoji' is not a constraint"),
    ({"func_name": ["validate_title"]}, "is not a constraint"),
    ({}, "func_name None is not a constraint"),
    ("yes", "ground truth 'yes' is no JSON"),
    ([1, 2], "not an object with func_name"),
]


@pytest.mark.parametrize(("truth", "reason"), UNUSABLE)
def test_a_constraint_that_cannot_be_judged_has_a_reason(truth, reason):
    text = truth if isinstance(truth, str) else json.dumps(truth)
    assert reason in unusable_constraint(text)


USABLE = [
    BULLETS,
    BULLETS | {"quantifier": None, "letter": "ab"},
    {"func_name": "verify_letter_frequency", "letter": "a", "N": 0},
    {"func_name": "validate_word_constraint", "N": 10, "quantifier": "around"},
    {"func_name": "validate_paragraphs", "N": 3, "i": 3, "first_word": "so"},
    {"func_name": "validate_response_language", "language": "de"},
    {"func_name": "validate_forbidden_words", "forbidden_words": []},
    {"func_name": "validate_json_format"},
    {"func_name": "validate_sections", "N": 2, "section_splitter": "SECTION"},
]


@pytest.mark.parametrize("truth", USABLE)
def test_what_passes_can_be_judged_whatever_the_answer_is(truth):
    assert unusable_constraint(json.dumps(truth)) == ""
    for text in ("", "a", "so\n\nit\n\ngoes", '{"a": 1}', "*" * 40, "<<x>>", "SECTION 1 SECTION 2", "\x00"):
        assert verify("ifeval", text, json.dumps(truth)).correct in (True, False)


def test_rows_that_no_verifier_can_use_are_set_aside_with_their_reasons(bench, written):
    good = [GOOD | {"messages": [user(str(i))]} for i in range(40)]
    bad = [
        {"messages": USER, "ground_truth": t if isinstance(t, str) else json.dumps(t), "dataset": "ifeval"}
        for t, _ in UNUSABLE
    ]
    with pytest.raises(ValueError, match=r"22 of 62 rows are unusable .* max_bad_fraction=0.01"):
        asked(bench, written([*good, *bad]))
    made = asked(bench, written([*good, *bad]), max_bad_fraction=1.0)
    assert made.prompts == 40
    reasons = [row["reason"] for row in bench.rows(made, "bad/")]
    assert all(reason in found for (_, reason), found in zip(UNUSABLE, reasons, strict=True))


def test_truth_and_dataset_may_be_lists_of_one(bench, written):
    rows = [{"messages": USER, "ground_truth": ["4"], "dataset": ["gsm8k"]}, GOOD | {"ground_truth": 4}]
    made = asked(bench, written(rows))
    assert [(row["ground_truth"], row["dataset"]) for row in bench.rows(made, "prompts")] == [("4", "gsm8k")] * 2
    assert usable_truth(["gsm8k", "math"], ["4", "4"])[2] == "dataset is a list of 2, and one verifier judges a row"
    assert usable_truth(["gsm8k"], [])[2] == "no ground truth"
    assert usable_truth("gsm8k", {"a": 1})[2].endswith("and gsm8k compares text")


def test_a_language_model_needs_no_ground_truth(bench, written):
    rows = [{"messages": [user(f"river {i}")], "source": "wildchat"} for i in range(3)] + [GOOD]
    with pytest.raises(ValueError, match="no ground truth"):
        asked(bench, written(rows))
    made = asked(bench, written(rows), ground_truth="optional")
    assert made.datasets == {"gsm8k": 1, "unverified": 3}
    assert [row["ground_truth"] for row in bench.rows(made, "prompts")] == [None, None, None, "4"]


def test_the_last_answer_is_cut_off_or_the_file_refused(bench, written):
    talk = [user("a"), assistant("b"), user("c"), assistant("d")]
    rows = written([GOOD | {"messages": talk}, GOOD])
    made = asked(bench, rows)
    assert [row["messages"] for row in bench.rows(made, "prompts")] == [talk[:-1], USER]
    with pytest.raises(ValueError, match=r"'file': .*:1 ends with the assistant.*last_answer: cut_off"):
        asked(bench, rows, last_answer="refuse")


def read_pairs(bench, rows: RowSource, **options):
    return bench.run(pairs, PairsConfig(rows=rows, **options).pinned())


CHOSEN, REJECTED = [user("Name rivers."), assistant("Elbe, Rhine.")], [user("Name rivers."), assistant("No.")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name rivers.", "chosen": CHOSEN, "rejected": REJECTED, "source": "ultrafeedback"},
        {"chosen": CHOSEN, "rejected": REJECTED},
        {"prompt": "Name rivers.", "chosen": "Elbe, Rhine.", "rejected": "No."},
        {"system": "", "question": "Name rivers.", "chosen": "Elbe, Rhine.", "rejected": "No."},
        {"prompt": CHOSEN[:1], "chosen": CHOSEN[1:], "rejected": REJECTED[1:]},
        {
            "chosen": "\n\nHuman: Name rivers.\n\nAssistant: Elbe, Rhine.",
            "rejected": "\n\nHuman: Name rivers.\n\nAssistant: No.",
        },
    ],
)
def test_released_pairs_are_read(bench, written, row):
    made = read_pairs(bench, written([row]))
    (read,) = bench.rows(made, "preferences")
    assert (read["chosen"], read["rejected"]) == (CHOSEN, REJECTED)
    assert (made.pairs, made.ties, made.mean_chosen) == (1, 0, None)


MODELS = {"chosen_model": "allenai/OLMo-2-1124-7B-SFT", "rejected_model": "01-ai/Yi-1.5-9B-Chat"}
SCHEMAS = {
    # allenai/olmo-2-1124-7b-preference-mix by its card of November 2024, and by that of today.
    "preference mix, first": {"chosen": CHOSEN, "rejected": REJECTED, **MODELS, "id": "a_1", "source": "ai2-adapt-dev/a"},
    "preference mix": {
        "prompt": "Name rivers.", "chosen": CHOSEN, "rejected": REJECTED, "chosen_rating": 4.75, "rejected_rating": 2.0,
        **MODELS, "source": "ai2-adapt-dev/sft_v3.9_if_taxonomy_olmo2_7b", "id": "a_1",
    },
    "preference mix, unrated": {
        "prompt": "Name rivers.", "chosen": CHOSEN, "rejected": REJECTED, "chosen_rating": None, "rejected_rating": None,
        **MODELS, "source": "ai2-adapt-dev/a", "id": "a_1",
    },
    "UltraFeedback binarised": {
        "prompt": "Name rivers.", "prompt_id": "f0", "chosen": CHOSEN, "rejected": REJECTED, "messages": CHOSEN,
        "score_chosen": 4.75, "score_rejected": 2.0,
    },
    "UltraFeedback cleaned": {
        "source": "evol_instruct", "prompt": "Name rivers.", "chosen": CHOSEN, "chosen-rating": 4.75, "chosen-model": "x",
        "rejected": REJECTED, "rejected-rating": 2.0, "rejected-model": "y",
    },
    "HH": {
        "chosen": "\n\nHuman: Name rivers.\n\nAssistant: Elbe, Rhine.",
        "rejected": "\n\nHuman: Name rivers.\n\nAssistant: No.",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_of_a_released_schema_is_taken_as_it_is(bench, tmp_path, name):
    """As Parquet with the card's columns and types, the last row of another conversation."""
    row = SCHEMAS[name]
    talk = [user("a"), assistant("b"), user("Name rivers.")]
    longer = row | {side: [*talk, row[side][-1]] for side in ("chosen", "rejected") if isinstance(row[side], list)}
    path = tmp_path / "train-00000-of-00001.parquet"
    table = pa.Table.from_pylist([row, longer])
    for place, field in enumerate(table.schema):
        if pa.types.is_null(field.type):
            table = table.set_column(place, field.name, pa.nulls(2, pa.float64()))
    pq.write_table(table, path)
    made = read_pairs(bench, RowSource(paths=(str(path),)))
    first, second = bench.rows(made, "preferences")
    assert (first["chosen"], first["rejected"]) == (CHOSEN, REJECTED)
    rated = any("4.75" in str(value) for value in row.values())
    assert (first["chosen_rating"], first["rejected_rating"]) == ((4.75, 2.0) if rated else (None, None))
    assert made.mean_chosen == (4.75 if rated else None)
    assert first["dataset"] == row.get("source", "")
    assert len(second["chosen"]) == (4 if isinstance(row["chosen"], list) else 2)


def test_a_rating_that_is_no_number_is_none(bench, written):
    row = {"chosen": CHOSEN, "rejected": REJECTED, "chosen_rating": float("nan"), "rejected_rating": 2.0}
    made = read_pairs(bench, written([row]))
    assert (made.pairs, made.mean_chosen, made.mean_rejected) == (1, None, None)


def test_transcripts_keep_all_turns(bench, written):
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: Assistant: is that you?\n\nAssistant:"
    made = read_pairs(bench, written([{"chosen": f"{start} yes\n\nindeed", "rejected": f"{start} no"}]))
    (read,) = bench.rows(made, "preferences")
    assert read["chosen"] == [user("a"), assistant("b"), user("Assistant: is that you?"), assistant("yes\n\nindeed")]


def test_ratings_and_ties_are_counted(bench, written):
    row = {"chosen": CHOSEN, "rejected": REJECTED}
    rows = written([row | {"score_chosen": 5, "score_rejected": 2}, row | {"score_chosen": 3, "score_rejected": 3.0}])
    made = read_pairs(bench, rows)
    assert (made.pairs, made.ties, made.mean_chosen, made.mean_rejected) == (2, 1, 4.0, 2.5)
    assert read_pairs(bench, rows, ties="drop").pairs == 1


def test_pairs_that_cannot_be_compared_have_a_reason(bench, written):
    other = [user("Name hills."), assistant("No.")]
    rows = [
        {"chosen": CHOSEN, "rejected": REJECTED},
        {"chosen": CHOSEN, "rejected": other},
        {"chosen": CHOSEN, "rejected": CHOSEN},
        {"chosen": CHOSEN},
        {"chosen": "Elbe.", "rejected": "No."},
        {"chosen": CHOSEN, "rejected": [*REJECTED, user("why?")]},
        {"chosen": [user("q"), {"role": "tool", "content": "x"}], "rejected": REJECTED},
        {"chosen": CHOSEN, "rejected": [user("Name rivers."), assistant(" ")]},
    ]
    made = read_pairs(bench, written(rows), max_bad_fraction=1.0)
    assert [row["reason"] for row in bench.rows(made, "bad/")] == [
        "chosen and rejected answer different questions",
        "chosen and rejected are the same",
        "rejected: no messages",
        "chosen: no question",
        "rejected: the last message is not the assistant's",
        "chosen: role 'tool'",
        "rejected: the answer is empty",
    ]


def talk(bench, rows: RowSource, **options):
    source = ChatRows(name="file", rows=rows, **options)
    return bench.run(chats, ChatsConfig(sources=(source,)).pinned())


def test_chats_of_every_shape_are_read_or_refused_by_name(bench, written):
    system = {"role": "system", "content": "Be brief."}
    kept = [
        [system, user("a"), assistant("b")],
        [user("a"), assistant("b"), assistant("c"), user("d"), assistant("e")],
        [user(""), assistant("b")],
    ]
    rows = [*kept, [{"role": "system", "content": " "}, user("a"), assistant("b")]]
    bad = {
        "role 'tool'": [user("a"), {"role": "tool", "content": "x"}, assistant("b")],
        "role 'function'": [user("a"), {"role": "function", "content": "x"}, assistant("b")],
        "a message with tool_calls": [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}],
        "a message without text": [user("a"), {"role": "assistant", "content": None}],
        "an empty answer": [user("a"), assistant("b"), user("c"), assistant(" ")],
        "no assistant message": [user("a")],
    }
    made = talk(bench, written([{"messages": m} for m in [*rows, *bad.values()]]), max_bad_fraction=1.0)
    assert [row["messages"] for row in bench.rows(made, "chats")] == [*kept, [user("a"), assistant("b")]]
    assert [row["reason"] for row in bench.rows(made, "bad/")] == list(bad)


@pytest.mark.parametrize(
    "answer",
    [
        "My knowledge cutoff is October 2023.",
        "As of my last update in 2021, that was true.",
        "My training data only goes up to 2022.",
        "I have a knowledge cut-off of April 2023",
    ],
)
def test_mentions_of_a_date_cutoff_are_left_out(bench, written, answer):
    fine = "Add the trimmings and cut off the stalk; my train ends in Ulm."
    rows = [{"messages": [user("knowledge cutoff?"), assistant(text)]} for text in (answer, fine)]
    made = talk(bench, written(rows), filter=ChatFilterConfig(mentions=("date_cutoff",)))
    assert [row["messages"][1]["content"] for row in bench.rows(made, "chats")] == [fine]
    assert [row["reason"] for row in bench.rows(made, "dropped/")] == ["mentions a date cut-off"]
    assert talk(bench, written(rows)).chats == 2


def test_caps_take_a_seeded_choice_of_each_origin(bench, written):
    rows = written(
        [{"messages": [user(str(i)), assistant("x")], "source": "big" if i % 4 else "small"} for i in range(800)]
    )

    def taken(seed: int) -> list[str]:
        made = talk(bench, rows, filter=ChatFilterConfig(caps={"big": 7, "small": 500}, seed=seed))
        return [row["messages"][0]["content"] for row in bench.rows(made, "chats")]

    first = taken(1)
    big = [int(i) for i in first if int(i) % 4]
    assert len(big) == 7
    assert len(first) == 207
    # The choice depends on the rows' places, so on this test's folder; of 600 rows that all 7 are early ones does not happen.
    assert max(big) > 40, "not merely the first ones"
    assert first == taken(1)
    assert first != taken(2)
    none = talk(bench, rows, filter=ChatFilterConfig(caps={"big": 0}))
    assert none.chats == 200


def test_lengths_and_languages_are_filtered(bench, written):
    german = "Der Fluss fliesst durch das Tal und der Garten liegt an der alten Steinbruecke."
    english = "The river flows through the valley and the garden lies by the old stone bridge."
    rows = written([{"messages": [user("q"), assistant(text)]} for text in (german, english, "ok", english * 9)])
    made = talk(bench, rows, filter=ChatFilterConfig(languages=("en",), min_chars=5, max_chars=300))
    assert [row["messages"][1]["content"] for row in bench.rows(made, "chats")] == [english]
    assert [row["reason"] for row in bench.rows(made, "dropped/")] == ["another language", "short answers", "too long"]


def completions(question: str, answers: list[str], origin: str) -> list[dict[str, Any]]:
    return [{"messages": [user(question), assistant(text)], "source": origin} for text in answers]


def test_a_majority_of_completions_decides_which_is_kept(bench, written):
    """Case: the personas' mathematics of the 1B's mix, 5 completions a question; what does not vote is left alone."""
    rows = [
        *completions("pens?", ["$12,000$", "So 12000.", "I get 7.", r"\boxed{12{,}000}", "The answer is 12,000"], "maths"),
        *completions("split?", ["1", "2", "1", "2", "3"], "maths"),
        *completions("few?", ["4", "4"], "maths"),
        *completions("x?", [r"\boxed{\frac{1}{2}}", r"so \boxed{\frac12}", r"\boxed{x+1}", r"$\frac{1}{2}$", "no idea"], "maths"),
        *completions("late?", ["5", "6", "6", "5", "5", "6", "6", "6"], "maths"),
        *completions("hello?", ["hi", "hello", "hi"], "talk"),
    ]  # fmt: skip
    vote = {"completions": 5, "origins": ["maths"]}
    made = talk(bench, written(rows), filter=ChatFilterConfig.model_validate({"majority": vote}))
    kept = [row["messages"][1]["content"] for row in bench.rows(made, "chats")]
    assert kept == ["$12,000$", r"\boxed{\frac{1}{2}}", "5", "hi", "hello", "hi"]
    reasons = [row["reason"] for row in bench.rows(made, "dropped/")]
    assert reasons.count("no answer of more than half of 5 completions") == 5 + 2
    assert reasons.count("another completion was kept") == 4 + 4 + 7


def test_caps_count_what_a_vote_leaves(bench, written):
    rows = [row for n in range(9) for row in completions(f"{n} + {n}?", [str(2 * n), str(2 * n), "0.5"], "maths")]
    options = {"majority": {"completions": 3}, "caps": {"maths": 4}}
    made = talk(bench, written(rows), filter=ChatFilterConfig.model_validate(options))
    kept = [row["messages"] for row in bench.rows(made, "chats")]
    assert len(kept) == 4
    assert all(int(answer["content"]) == 2 * int(question["content"][0]) for question, answer in kept)


# -- pairs and prompts are filtered, and nothing comes twice ---------------------------------------------------


def pair(question: str, chosen: str, rejected: str = "No.", **fields: Any) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected} | fields


def dropped(bench, made, name: str) -> list[tuple[str, str]]:
    return [(row["place"].rpartition(":")[2], row["reason"]) for row in bench.rows(made, f"dropped/{name}")]


def test_pairs_are_filtered_by_margin_length_language_and_cap(bench, written):
    rows = [
        pair("q", "The longer answer explains it.", "Not at all.", score_chosen=4, score_rejected=3.5),
        pair("q", "The longer answer explains it again.", "Not at all.", score_chosen=4, score_rejected=3),
        pair("q", "The unrated answer explains it.", rejected="Nobody rated this one at all."),
        pair("q", "x" * 200, rejected="Nobody rated this one at all."),
        *(pair(f"q{i}", "The capped answer explains it.", "It is not that one.", source="big") for i in range(6)),
    ]
    filters = ChatFilterConfig(max_chars=100, min_chars=4, caps={"big": 2})
    config = PairsConfig(rows=written(rows), margin=1.0, filter=filters).pinned()
    made = bench.run(pairs, config)
    assert made.pairs == 2 + 2
    reasons = [reason for _, reason in dropped(bench, made, "preferences")]
    assert sorted(reasons) == ["below the margin", *["over the cap of big"] * 4, "too long"]
    assert bench.reader().record(made).notes["pairs_left_out"]["over the cap of big"] == 4
    # Both sides have to pass, and "No." has three characters.
    short = PairsConfig(rows=written([*rows, pair("q", "Yes, it is.")]), filter=ChatFilterConfig(min_chars=4)).pinned()
    assert bench.run(pairs, short).pairs == len(rows)
    with pytest.raises(ValueError, match=r"every usable pair is left out.*loosen filter or margin"):
        bench.run(pairs, PairsConfig(rows=written(rows[:2]), margin=3.0).pinned())
    with pytest.raises(ValueError, match=r"preferences\.filter\.majority votes over the chats of a question"):
        PairsConfig.model_validate({"filter": {"majority": {"completions": 3}}})


def test_ties_that_are_dropped_take_no_place_below_a_cap(bench, written):
    apart = [pair(f"q{i}", "It is that one.", source="big", score_chosen=4, score_rejected=3) for i in range(3)]
    equal = [pair(f"t{i}", "It is that one.", source="big", score_chosen=4, score_rejected=4) for i in range(30)]
    filters = ChatFilterConfig(caps={"big": 3})
    made = bench.run(pairs, PairsConfig(rows=written(apart + equal), ties="drop", filter=filters).pinned())
    assert (made.pairs, made.ties, made.mean_rejected) == (3, 30, 3.0)
    assert dropped(bench, made, "preferences") == []
    # Kept, they stand for a place like all others.
    kept = bench.run(pairs, PairsConfig(rows=written(apart + equal), filter=filters).pinned())
    assert (kept.pairs, len(dropped(bench, kept, "preferences"))) == (3, 30)


def test_a_margin_forgives_the_rounding_of_means(bench, written):
    """A mean of three aspects that is a third higher; in floating point the difference is a little less than 1 / 3."""
    better = (5 + 4 + 4) / 3
    assert better - 4 < 1 / 3
    rows = [pair("q", "It is that one.", score_chosen=better, score_rejected=4.0)]
    assert bench.run(pairs, PairsConfig(rows=written(rows), margin=1 / 3).pinned()).pairs == 1
    with pytest.raises(ValueError, match="every usable pair is left out"):
        bench.run(pairs, PairsConfig(rows=written(rows), margin=0.334).pinned())


def test_as_published_pairs_need_no_margin_and_have_the_identity_they_had(bench, written):
    worse = pair("q", "The longer answer.", score_chosen=2, score_rejected=5)
    assert bench.run(pairs, PairsConfig(rows=written([worse])).pinned()).pairs == 1
    assert PairsConfig().model_dump().keys() == {"kind", "rows", "ties", "max_bad_fraction"}
    assert not {"duplicates"} & (ChatsConfig().model_dump().keys() | PromptsConfig().model_dump().keys())
    assert "filter" not in PromptsConfig().model_dump()["sources"][0]


def test_prompts_are_filtered_by_length_language_and_cap(bench, written):
    german = "Bitte nenne mir drei Flüsse, die durch mehrere deutsche Städte fließen."
    english = "Please name three rivers that flow through several German cities."
    rows = [GOOD | {"messages": [user(text)], "set": origin} for text, origin in [
        (english, "a"), (german, "a"), ("q", "a"), (english * 5, "a"), *((f"{english} {i}", "b") for i in range(5))
    ]]  # fmt: skip
    filters = PromptFilterConfig(languages=("en",), min_chars=10, max_chars=200, caps={"b": 3}, origin="set")
    made = asked(bench, written(rows), filter=filters)
    assert made.prompts == 1 + 3
    reasons = sorted(reason for _, reason in dropped(bench, made, "prompts"))
    assert reasons == ["another language", "over the cap of b", "over the cap of b", "short question", "too long"]
    assert {tuple(sorted(row)) for row in bench.rows(made, "prompts")} == {
        ("dataset", "ground_truth", "id", "messages")
    }
    with pytest.raises(ValueError, match=r"every usable prompt is left out.*loosen the filters"):
        asked(bench, written(rows), filter=PromptFilterConfig(min_chars=10_000))


def test_rows_that_repeat_an_earlier_one_are_dropped_over_all_sources(bench, written):
    chat = {"messages": [user("Name a river."), assistant("Elbe.")]}
    same = {"messages": [user(" name a\nriver. "), assistant("ELBE.")]}
    other = {"messages": [user("Name a river."), assistant("Rhine.")]}
    sources = tuple(ChatRows(name=name, rows=written([chat, other][:count])) for name, count in (("a", 1), ("b", 2)))
    sources += (ChatRows(name="c", rows=written([same, {"messages": [user("q"), assistant("a")]}])),)
    kept = bench.run(chats, ChatsConfig(sources=sources).pinned())
    made = bench.run(chats, ChatsConfig(sources=sources, duplicates="drop").pinned())
    assert (kept.chats, made.sources) == (5, {"a": 1, "b": 1, "c": 1})
    assert [row["source"] for row in bench.rows(made, "dropped/chats")] == ["b", "c"]
    both = [pair("q", "yes"), pair("q", "yes"), pair("q", "yes", "never"), pair("Q", " YES ")]
    assert bench.run(pairs, PairsConfig(rows=written(both), duplicates="drop").pinned()).pairs == 2
    rows = [GOOD, GOOD | {"ground_truth": "5"}, GOOD | {"messages": [user("another")]}]
    questions = PromptsConfig(sources=(PromptRows(name="file", rows=written(rows)),), duplicates="drop").pinned()
    assert bench.run(prompts, questions).prompts == 2


def test_conversations_are_told_apart_by_roles_and_by_where_messages_end():
    keys = [
        conversation_key([user("a b")]),
        conversation_key([user("a"), user("b")]),
        conversation_key([user("a")], [user("b")]),
        conversation_key([assistant("a b")]),
        conversation_key([user("ab")]),
    ]
    assert len(set(keys)) == len(keys)
    assert conversation_key([user("A\t b")]) == keys[0]
