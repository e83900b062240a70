"""Writes the samples next to this file: rows of our own in the schemas and layouts of the data sets of the published recipes.

Column names, types, nesting, file names and compressions follow data set cards and converters (RECIPE C.1, C.2, C.7, F, G, H).
Run `python -m tests.samples.make_samples` to write them again; a test checks that the committed files are what this writes.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.samples.benchmark_rows import write_benchmarks

Row = dict[str, Any]
FOLDER = Path(__file__).parent / "hub"


def words(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


NOUNS = words(
    """river bridge garden orchard harbour lantern kettle ladder violin meadow engine glacier market canal library telescope
    furnace compass vineyard windmill quarry lighthouse workshop granary tunnel ferry pottery carpet chimney balcony courtyard
    cellar stable footpath reservoir turbine archive notebook microscope thermometer balance barometer pendulum"""
)
VERBS = words(
    "carries shelters measures repairs follows paints records weighs crosses observes describes surrounds warms cools"
)
ADJECTIVES = words(
    "old narrow quiet bright wooden distant heavy gentle broken careful early northern hollow steep polished"
)
PLACES = words(
    "the village,the northern coast,a small island,the upper valley,the old town,the university,the railway yard", ","
)
NAMES = words("Ada Bruno Clara Dmitri Elena Farid Greta Hassan Ines Jonas Kira Liam Mara Nils Olga Pavel")
LINES = [
    "def area(width, height):\n    return width * height\n",
    "class Counter:\n    def __init__(self):\n        self.total = 0\n\n    def add(self, value):\n        self.total += value\n",
    "for index, name in enumerate(names):\n    print(index, name)\n",
    "with open(path) as stream:\n    lines = stream.readlines()\n",
    "if not rows:\n    raise ValueError('no rows were given')\n",
]


def sentence(rng: Random) -> str:
    return (
        f"In {rng.choice(PLACES)} the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} a "
        f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}, and {rng.choice(NAMES)} notes {rng.randint(2, 99)} of them in "
        f"{rng.randint(1900, 2020)}."
    )


def prose(rng: Random, sentences: int = 12) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


def program(rng: Random) -> str:
    return f"# {sentence(rng)}\n" + "\n".join(rng.sample(LINES, 4)) + f"\n# {sentence(rng)}\n"


def formula(rng: Random) -> str:
    a, b = rng.randint(2, 40), rng.randint(2, 40)
    return f"Let $x = {a}$ and $y = {b}$. Then $x + y = {a + b}$ and $x \\cdot y = {a * b}$. {sentence(rng)}"


def documents(kind: str, count: int, text: Any, **more: Any) -> Iterator[Row]:
    """Dolma rows of one converter."""
    rng = Random(kind)
    for number in range(count):
        row = {"added": "2024-10-01T00:00:00.000Z", "created": "2023-03-04T05:06:07.000Z", "id": f"{kind}-{number}"}
        made = {"source": kind, "text": text(rng)}
        yield row | made | {key: value(number, rng) for key, value in more.items()}


def web_page(number: int, rng: Random) -> Row:
    return {"WARC-Target-URI": f"https://pages.example/{number}", "Content-Length": str(rng.randint(900, 9000))}


def word_problem(rng: Random) -> tuple[str, str, int]:
    """A question, its worked answer in GSM8K's form, the number."""
    name, thing = rng.choice(NAMES), rng.choice(NOUNS)
    each, days, lost = rng.randint(3, 12), rng.randint(3, 9), rng.randint(1, 5)
    total, left = each * days, each * days - lost
    question = (
        f"{name} draws {each} pictures of a {rng.choice(ADJECTIVES)} {thing} on each of {days} days and gives {lost} "
        f"of them away. How many pictures are left?"
    )
    answer = (
        f"In all {name} draws {each}*{days}=<<{each}*{days}={total}>>{total} pictures.\n"
        f"Of these {total}-{lost}=<<{total}-{lost}={left}>>{left} are left.\n#### {left}"
    )
    return question, answer, left


def gsm8k(split: str, count: int) -> list[Row]:
    rng = Random(f"gsm8k {split}")
    return [
        {"question": question, "answer": answer} for question, answer, _ in (word_problem(rng) for _ in range(count))
    ]


def gsm8k_test(count: int, *, socratic: bool) -> list[Row]:
    """Test questions that share no wording with the documents and training questions, or decontamination would find them."""
    rng = Random("gsm8k test")
    rows = []
    for number in range(1, count + 1):
        thing, place = rng.choice(("lanterns", "oars", "ropes")), rng.choice(("harbour", "ferry pier", "shipyard"))
        each, sheds, lost = rng.randint(20, 90), rng.randint(2, 6), rng.randint(5, 19)
        total, left = each * sheds, each * sheds - lost
        question = (
            f"At the {place} {rng.choice(NAMES)} keeps {each} {thing} apiece in {sheds} sheds that are equally full, and the "
            f"night storm number {number} carries away {lost} of all those {thing}. What remains of the {thing} at dawn?"
        )
        answer = (
            f"There were {each} x {sheds} = <<{each}*{sheds}={total}>>{total} {thing}.\n"
            f"At dawn {total} - {lost} = <<{total}-{lost}={left}>>{left} remain.\n#### {left}"
        )
        asked = f"How many {thing} were there? ** " if socratic else ""
        rows.append({"question": question, "answer": asked + answer})
    return rows


def chat(rng: Random, number: int, name: str) -> Row:
    question, answer, _ = word_problem(rng)
    messages = [
        {"content": question, "role": "user"},
        {"content": answer.split("####")[0].strip(), "role": "assistant"},
    ]
    if number % 5 == 0:
        messages.insert(0, {"content": f"You are the keeper of a {rng.choice(NOUNS)}.", "role": "system"})
    if number % 7 == 0:
        messages += [
            {"content": "And how do you know?", "role": "user"},
            {"content": sentence(rng), "role": "assistant"},
        ]
    return {"id": f"{name}_{number}", "messages": messages, "source": f"ai2-adapt-dev/{name}"}


def compared(rng: Random, number: int, name: str) -> Row:
    """A preference pair: two models' answers to a prompt, rated from 1 to 5 in the mean of four aspects."""
    question, answer, left = word_problem(rng)
    asked = {"content": question, "role": "user"}
    good = {"content": answer.split("####")[0].strip(), "role": "assistant"}
    bad = {"content": f"I think it is {left + rng.randint(1, 9)}. {sentence(rng)}", "role": "assistant"}
    better = rng.choice((3.5, 4.0, 4.75, 5.0))
    return {
        "id": f"{name}_{number}",
        "source": f"ai2-adapt-dev/{name}",
        "prompt": question,
        "chosen": [asked, good],
        "chosen_rating": better,
        "chosen_model": rng.choice(("allenai/OLMo-2-1124-7B-SFT", "mistralai/Mistral-Nemo-Instruct-2407")),
        "rejected": [asked, bad],
        # One pair in twelve is a tie, as the published way of pairing leaves them.
        "rejected_rating": better if number % 12 == 0 else better - rng.choice((0.25, 1.0, 2.5)),
        "rejected_model": rng.choice(("01-ai/Yi-1.5-9B-Chat", "tiiuae/falcon-7b-instruct")),
    }


def reinforcement(kinds: tuple[str, ...], count: int) -> list[Row]:
    rng = Random(" ".join(kinds))
    return [reinforced(rng, kinds[number % len(kinds)]) for number in range(count)]


def reinforced(rng: Random, kind: str) -> Row:
    question, _, left = word_problem(rng)
    truth, constraint_type, constraint = str(left), "", ""
    if kind == "MATH":
        question = f"Let $x = {left}$. What is $x + 1$? Put the answer in a box."
        truth = str(left + 1)
    if kind == "ifeval":
        words = rng.randint(20, 60)
        constraint_type, constraint = "Number Words", f"Answer with at least {words} words."
        question = f"Describe a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}. {constraint}"
        truth = json.dumps({"func_name": "validate_word_constraint", "N": words, "quantifier": "at least"})
    row: Row = {"messages": [{"content": question, "role": "user"}], "ground_truth": truth, "dataset": kind}
    return row | {"constraint_type": constraint_type, "constraint": constraint}


def ifeval(count: int) -> list[Row]:
    rng = Random("ifeval")
    rows = []
    for number in range(count):
        text = (
            f"Write about a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} in {rng.choice(PLACES)}. Use no commas at all."
        )
        instructions, arguments = ["punctuation:no_comma"], [{}]
        if number % 2:
            text += " Write at least 30 words."
            instructions.append("length_constraints:number_words")
            arguments.append({"relation": "at least", "num_words": 30})
        rows.append({"key": 1000 + number, "prompt": text, "instruction_id_list": instructions, "kwargs": arguments})
    return rows


def tiny_programs(count: int) -> Iterator[Row]:
    rng = Random("tiny")
    for _ in range(count):
        question, _, _ = word_problem(rng)
        each, days, lost = (int(word) for word in question.split() if word.isdigit())
        code = (
            f'def simple_math_problem() -> int:\n    """\n    {question}\n    """\n    pictures_each_day = {each}\n'
            f"    days = {days}\n    given_away = {lost}\n    drawn = pictures_each_day * days\n"
            "    result = drawn - given_away\n    return result\n"
        )
        yield {"question": question, "code": code}


def people(count: int) -> Iterator[Row]:
    rng = Random("people")
    for number in range(count):
        yield {
            "persona": f"A {rng.choice(ADJECTIVES)} keeper of the {rng.choice(NOUNS)} in {rng.choice(PLACES)}, number {number}"
        }


def lines(name: str, rows: Any) -> None:
    """JSON lines, compressed as the name says, with the same bytes each time."""
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith(".gz"):
        data = gzip.compress(data, 9, mtime=0)
    elif name.endswith((".zst", ".zstd")):
        data = zstandard.ZstdCompressor(level=19).compress(data)
    path.write_bytes(data)


def table(name: str, rows: list[Row]) -> None:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def card(dataset: str, configs: dict[str, dict[str, str]]) -> None:
    """The front matter of a data set card: which files are which configuration and split."""
    found = ["---", "configs:"]
    for config, splits in configs.items():
        found += [f"- config_name: {config}", "  data_files:"]
        found += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    path = FOLDER / dataset / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*found, "---", "", f"Rows of our own in the layout of {dataset}.", ""])
    path.write_text(text)


def pretraining_mix() -> None:
    name = "allenai/olmo-mix-1124"
    subsets = ("dclm", "starcoder", "pes2o", "arxiv", "open-web-math", "algebraic-stack", "wiki")
    card(name, {"default": {"train": "data/*/*"}} | {subset: {"train": f"data/{subset}/**/*"} for subset in subsets})
    rng = Random("dclm")
    pages = [
        {
            "bff_contained_ngram_count_before_dedupe": rng.randint(0, 9),
            "language_id_whole_page_fasttext": {"en": round(rng.uniform(0.8, 1), 6)},
            "metadata": web_page(number, rng),
            "previous_word_count": rng.randint(80, 400),
            "text": prose(rng),
            "url": f"https://pages.example/{number}",
            "warcinfo": "robots: classic\r\n",
            "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob": rng.uniform(0.02, 0.4),
        }
        for number in range(60)
    ]
    lines(
        f"{name}/data/dclm/raw/global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst", pages[:30]
    )
    lines(
        f"{name}/data/dclm/raw/global-shard_01_of_10/local-shard_1_of_10/shard_00000000_processed.jsonl.zst", pages[30:]
    )
    stars = {
        "metadata": lambda number, rng: {
            "max_stars_count": str(rng.randint(2, 900)),
            "max_stars_repo_path": f"src/{number}.py",
        }
    }
    lines(f"{name}/data/starcoder/starcoder-0000.json.gz", documents("starcoder", 40, program, **stars))
    paper = {
        "version": lambda *_: "v3-fos-license",
        "metadata": lambda number, rng: {"year": rng.randint(1990, 2022), "title": sentence(rng)},
    }
    lines(f"{name}/data/pes2o/pes2o-0000.json.gz", documents("s2ag/train", 40, prose, **paper))
    lines(
        f"{name}/data/arxiv/arxiv-0000.json.gz",
        documents("arxiv", 30, formula_page, metadata=lambda *_: {"yymm": "2101"}),
    )
    page = {"metadata": lambda number, rng: {"url": f"https://maths.example/{number}", "extraction_info": "{}"}}
    lines(
        f"{name}/data/open-web-math/open-web-math-train-0000.json.gz",
        documents("open-web-math", 30, formula_page, **page),
    )
    proofs = {"metadata": lambda *_: {"file_name": "Sum.lean", "size": 900}}
    lines(
        f"{name}/data/algebraic-stack/algebraic-stack-train-0000.json.gz",
        documents("algebraic-stack", 30, formula_page, **proofs),
    )
    article = {"metadata": lambda number, rng: {"length": rng.randint(90, 900), "revid": str(number)}}
    lines(f"{name}/data/wiki/wiki-0000.json.gz", documents("wikipedia", 40, prose, **article))


def formula_page(rng: Random) -> str:
    return "\n\n".join(formula(rng) for _ in range(6))


def midtraining_mix() -> None:
    name = "allenai/dolmino-mix-1124"
    subsets = ("dclm", "flan", "pes2o", "stackexchange", "wiki", "math")
    card(name, {"default": {"train": "data/**/*"}} | {subset: {"train": f"data/{subset}/**/*"} for subset in subsets})
    score = {"attributes": lambda number, rng: {"fineweb_edu": [[0, 900, rng.uniform(2, 4)]]}, "metadata": web_page}
    lines(f"{name}/data/dclm/0000/dclm-0000.json.zst", documents("dclm-hero-run", 60, prose, **score))
    task = {
        "metadata": lambda number, rng: {
            "_replicate": "1",
            "_task_name": f"task{number:03d}",
            "_template_type": "fs_opt",
        }
    }
    lines(f"{name}/data/flan/flan-0000.json.gz", documents("flan_v2", 60, prose, **task))
    asked = {"metadata": lambda number, rng: {"question_id": str(number), "answer_score": rng.randint(5, 90)}}
    lines(
        f"{name}/data/stackexchange/stackexchange-0000.json.gz", documents("stackexchange", 40, question_page, **asked)
    )
    solved = {"metadata": lambda number, rng: {"index": number}}
    lines(f"{name}/data/math/gsm8k/v0_main_train/train-0000.jsonl.zst", documents("gsm8k", 60, worked_page, **solved))
    lines(
        f"{name}/data/math/tinyGSM-MIND/2students/part-0000.jsonl.gz",
        documents("tinygsm_mind", 60, worked_page, **solved),
    )
    # Another converter's rows: other columns, of other types, in the same subset.
    told = {"metadata": lambda number, rng: json.dumps({"index": str(number)}), "attributes": web_page}
    rows = documents("codesearchnet-owmfilter", 60, worked_page, version=lambda *_: "v1", **told)
    lines(f"{name}/data/math/codesearchnet-owmfilter/train/part-0000.jsonl.gz", without_dates(rows))
    held = documents("codesearchnet-owmfilter-test", 60, worked_page, **told)
    lines(f"{name}/data/math/codesearchnet-owmfilter/test/part-0000.jsonl.gz", without_dates(held))


def without_dates(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows of a converter that dates nothing."""
    for row in rows:
        yield {key: value for key, value in row.items() if key not in ("added", "created")}


def question_page(rng: Random) -> str:
    return f"Why does the {rng.choice(NOUNS)} hold in {rng.choice(PLACES)}? {prose(rng, 3)}\n\n\n{prose(rng, 6)}"


def worked_page(rng: Random) -> str:
    question, answer, _ = word_problem(rng)
    return f"{question}\n{answer.split('####')[0].strip()}\n\n{sentence(rng)}"


def posttraining() -> None:
    rng = Random("tulu")
    for suffix in ("", "-0225"):
        name = f"allenai/tulu-3-sft-olmo-2-mixture{suffix}"
        card(name, {"default": {"train": "data/train-*"}})
        rows = [chat(rng, number, "personahub_math_v5_regen_149960") for number in range(60)]
        table(f"{name}/data/train-00000-of-00006.parquet", rows[:40])
        table(f"{name}/data/train-00001-of-00006.parquet", rows[40:])
    for name in ("1124-7b", "1124-13b", "0425-1b", "0325-32b"):
        dataset = f"allenai/olmo-2-{name}-preference-mix"
        card(dataset, {"default": {"train": "data/train-*"}})
        rows = [compared(Random(f"{name} {number}"), number, "sft_v3.9_used_off_policy") for number in range(60)]
        table(f"{dataset}/data/train-00000-of-00007.parquet", rows[:40])
        table(f"{dataset}/data/train-00001-of-00007.parquet", rows[40:])
    for name, kinds in (
        ("GSM-MATH-IF-Mixed-Constraints", ("gsm8k", "MATH", "ifeval")),
        ("GSM", ("gsm8k",)),
        ("MATH", ("MATH",)),
    ):
        rows = reinforcement(kinds, 60)
        if len(kinds) == 1:
            rows = [{key: row[key] for key in ("messages", "ground_truth", "dataset")} for row in rows]
        card(f"allenai/RLVR-{name}", {"default": {"train": "data/train-*"}})
        table(f"allenai/RLVR-{name}/data/train-00000-of-00001.parquet", rows)


def questions() -> None:
    splits = {"train": "{0}/train-*", "test": "{0}/test-*"}
    card(
        "openai/gsm8k",
        {name: {key: path.format(name) for key, path in splits.items()} for name in ("main", "socratic")},
    )
    for name in ("main", "socratic"):
        table(f"openai/gsm8k/{name}/train-00000-of-00001.parquet", gsm8k(f"{name} train", 60))
        table(f"openai/gsm8k/{name}/test-00000-of-00001.parquet", gsm8k_test(30, socratic=name == "socratic"))
    lines("google/IFEval/ifeval_input_data.jsonl", ifeval(30))
    card("google/IFEval", {"default": {"train": "ifeval_input_data.jsonl"}})
    lines("TinyGSM/TinyGSM/train.jsonl", tiny_programs(60))
    card("TinyGSM/TinyGSM", {"default": {"train": "train.jsonl"}})
    lines("proj-persona/PersonaHub/persona.jsonl", people(60))
    card("proj-persona/PersonaHub", {"persona": {"train": "persona.jsonl"}})


def write(folder: Path) -> None:
    """All samples below a folder."""
    global FOLDER
    FOLDER = folder
    for part in (pretraining_mix, midtraining_mix, posttraining, questions):
        part()
    write_benchmarks(folder, table, card)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
