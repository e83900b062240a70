"""Rows of our own in the schemas of the data sets of Tables 20, 21 and 24: columns, types, nesting, subsets, splits and files as
on the hub. `write_benchmarks` is a part of `make_samples`.

Every text is about a museum of minerals, of which no other sample tells, so that decontamination finds nothing of them there.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from tasks.evaluation.benchmarks.olmes.tasks.choices.agi_eval import EXAMS
from tasks.evaluation.benchmarks.olmes.tasks.reasoning.bbh import BBH_TASKS
from tasks.evaluation.benchmarks.olmes.tasks.reasoning.deepmind_math import MODULES
from tasks.evaluation.benchmarks.olmes.tasks.reasoning.minerva_math import TYPES

Row = dict[str, Any]
Table = Callable[[str, list[Row]], None]
Card = Callable[[str, dict[str, dict[str, str]]], None]
MINERALS = (
    "quartz",
    "calcite",
    "feldspar",
    "gypsum",
    "talc",
    "topaz",
    "beryl",
    "galena",
    "pyrite",
    "zircon",
    "olivine",
)
COLOURS = ("violet", "amber", "pale green", "deep red", "milky", "smoky", "sky blue")
SUBJECTS = ("astronomy", "anatomy", "marketing", "world_religions")
"""A few of the 57."""
UNSEEN = (
    ({"count:numbers": {"N": 3.0}}, "Include exactly 3 numbers in the response."),
    ({"words:keywords_specific_position": {"keyword": "drawer", "n": 2, "m": 4}}, "Let word 4 of sentence 2 be drawer."),
    ({"format:no_whitespace": {}}, "The output should not contain any whitespace."),
    ({"ratio:sentence_balance": {}, "count:pronouns": {"N": 4.0}}, "Balance the types of sentences. Use 4 pronouns."),
    ({"repeat:repeat_span": {"n_start": 1, "n_end": 2, "prompt_to_repeat": "Name a gem."}}, "Copy words 1 and 2 of: Name a gem."),
    ({"count:word_count_range": {"min_words": 2.0, "max_words": 9.0}}, "Write 2 to 9 words."),
)  # fmt: skip
"""IFBench's constraints with their arguments, and how a prompt says them."""
ARGUMENTS = """N capital_frequency capital_relation end_phrase first_word forbidden_words frequency keyword keyword1 keyword2
    keyword3 keyword4 keyword5 keywords language let_frequency let_relation letter m max_words min_words n n_end
    n_start nth_paragraph num_bullets num_highlights num_paragraphs num_placeholders num_sections num_sentences
    num_words options percentage postscript_marker prompt_to_repeat reference_text relation section_spliter sep
    small_n word"""
"""Every row of IFBench has all of these for each of its constraints, null but for the constraint's own."""
ROWS = 8
"""Of each split; more than the shots that any task takes."""


def pick(rng: Random, count: int) -> list[str]:
    return rng.sample(MINERALS, count)


def asked(rng: Random, place: int) -> str:
    return f"Which mineral lies in drawer {place + 1}, where everything is {rng.choice(COLOURS)}?"


def passage(rng: Random, place: int) -> str:
    first, second = pick(rng, 2)
    return (
        f"Room {place + 1} of the museum shows {rng.randint(11, 40)} pieces of {first}, all of them {rng.choice(COLOURS)}. "
        f"A donor brought {rng.randint(2, 9)} crates with {second} later, and curators labelled each crystal twice."
    )


def lettered(count: int, letters: str = "ABCDE") -> list[str]:
    return list(letters[:count])


def keyed(name: str, choices: int, question: str, **more: Any) -> list[Row]:
    """Rows of ARC, CommonsenseQA and OpenBookQA."""
    rng, rows = Random(name), []
    for place in range(ROWS):
        options = {"text": pick(rng, choices), "label": lettered(choices)}
        row = {"id": f"{name}-{place}", question: asked(rng, place), "choices": options}
        rows.append(row | {"answerKey": rng.choice(options["label"])} | more)
    return rows


def boolq(rng: Random, place: int) -> Row:
    text = passage(rng, place)
    return {
        "question": f"is there any {rng.choice(MINERALS)} in the room",
        "passage": text,
        "idx": place,
        "label": place % 2,
    }


def hellaswag(rng: Random, place: int) -> Row:
    return {
        "ind": place,
        "activity_label": "Polishing stones",
        "ctx_a": f"A curator holds a {rng.choice(COLOURS)} stone.",
        "ctx_b": "she",
        "ctx": "A curator holds a stone. she",
        "endings": [f"puts it beside the {mineral}." for mineral in pick(rng, 4)],
        "source_id": f"activitynet~v_{place}",
        "split": "val",
        "split_type": "indomain",
        "label": str(place % 4),
    }


def piqa(rng: Random, place: int) -> Row:
    first, second = pick(rng, 2)
    goal = f"To clean {first} number {place + 1},"
    return {"goal": goal, "sol1": "use lukewarm water.", "sol2": f"rub it with {second}.", "label": place % 2}


def socialiqa(rng: Random, place: int) -> Row:
    answers = dict(zip(("answerA", "answerB", "answerC"), ("proud", "tired", "curious"), strict=True))
    context = f"Robin gave the museum a piece of {rng.choice(MINERALS)}."
    return {"context": context, "question": "How would Robin feel afterwards?", **answers, "label": str(1 + place % 3)}


def winogrande(rng: Random, place: int) -> Row:
    first, second = pick(rng, 2)
    sentence = f"The {first} did not fit in tray {place + 1} with the {second} because the _ was too wide."
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(1 + place % 2)}


def mmlu(subject: str) -> list[Row]:
    rng = Random(f"mmlu {subject}")
    return [
        {"question": asked(rng, place), "subject": subject, "choices": pick(rng, 4), "answer": place % 4}
        for place in range(ROWS)
    ]


def nq_open(rng: Random, place: int) -> Row:
    return {
        "question": f"who found the {rng.choice(MINERALS)} of hall {place + 1}",
        "answer": ["Robin Vale", "R. Vale"],
    }


def drop(rng: Random, place: int) -> Row:
    """Three validated answers, a list for each field."""
    empty = {"day": "", "month": "", "year": ""}
    answer = {"number": str(3 + place), "date": empty, "spans": []}
    validated = {"number": ["", "4"], "date": [empty, empty], "spans": [["crates", "drawers"], []]}
    ids = {"section_id": f"museum_{place // 2}", "query_id": f"drop-{place}"}
    asked = {"passage": passage(rng, place), "question": "How many crates did the donor bring?"}
    return ids | asked | {"answer": answer, "validated_answers": validated}


def squad(rng: Random, place: int) -> Row:
    answers = {"text": ["curators", "the curators"], "answer_start": [9, 5]}
    asked = {"context": passage(rng, place), "question": "Who labelled each crystal?", "answers": answers}
    return {"id": f"squad-{place}", "title": "Mineral_museum", **asked}


def coqa(rng: Random, place: int) -> Row:
    turns = {"input_text": ["What does the room show?", "Who labelled them?"], "turn_id": [1, 2]}
    given = {"input_text": ["pieces of mineral", "curators"], "turn_id": [1, 2], "span_text": ["pieces", "curators"]}
    others = {str(number): given for number in range(3)}
    text = {"id": f"coqa-{place}", "source": "museum", "story": passage(rng, place)}
    return text | {"questions": turns, "answers": given, "additional_answers": others}


def jeopardy(rng: Random, place: int) -> Row:
    mineral = rng.choice(MINERALS)
    return {"context": f"MUSEUMS: Drawer {place + 1} holds this mineral", "continuation": mineral, "category": "museum"}


def agi_eval(exam: str) -> list[Row]:
    rng, rows = Random(exam), []
    for place in range(ROWS):
        options = [f"({letter}){mineral}" for letter, mineral in zip("ABCD", pick(rng, 4), strict=True)]
        told = f"{passage(rng, place)} " if exam in ("lsat-rc", "sat-en") else ""
        query = f"{told}Q: {asked(rng, place)} Answer Choices: {' '.join(options)}\nA: Among A through D, the answer is"
        rows.append({"query": query, "choices": options, "gold": [place % 4]})
    return rows


def mmlu_pro() -> list[Row]:
    rng, rows = Random("mmlu pro"), []
    for category in ("business", "physics"):
        for place in range(ROWS):
            answer = place % 10
            text = {"question_id": len(rows), "question": asked(rng, place), "options": pick(rng, 10)}
            gold = {"answer": "ABCDEFGHIJ"[answer], "answer_index": answer, "cot_content": ""}
            rows.append(text | gold | {"category": category, "src": "museum"})
    return rows


def triviaqa(rng: Random, place: int) -> Row:
    value = rng.choice(MINERALS)
    names = {"aliases": [value.title(), f"the {value}"], "normalized_aliases": [value]}
    answer = names | {"normalized_value": value, "type": "WikipediaEntity", "value": value.title()}
    ids = {"question": asked(rng, place), "question_id": f"tc_{place}", "question_source": "http://quiz.example/"}
    return ids | {"answer": answer}


def bbh(name: str) -> list[Row]:
    rng = Random(name)
    return [{"input": f"{asked(rng, place)}\nOptions:\n(A) talc\n(B) beryl", "target": "(A)"} for place in range(ROWS)]


def hendrycks_math(kind: str) -> list[Row]:
    rng, rows = Random(kind), []
    for place in range(ROWS):
        trays, stones = rng.randint(3, 30), rng.randint(3, 30)
        problem = f"There are {trays} trays with ${stones}$ stones each. How many stones are there?"
        solution = f"There are ${trays} \\cdot {stones} = \\boxed{{{trays * stones}}}$ stones."
        rows.append({"problem": problem, "level": f"Level {1 + place % 5}", "type": kind, "solution": solution})
    return rows


def popqa() -> list[Row]:
    rng, rows = Random("popqa"), []
    for number, relation in enumerate(("occupation", "place of birth", "genre", "capital")):
        for place in range(ROWS):
            subject = f"Robin of {rng.choice(MINERALS).title()} {number}{place}"
            answers = ["curator", "keeper of stones"]
            question = f"What is the {relation} of {subject}?"
            text = {"id": len(rows), "subj": subject, "prop": relation, "obj": answers[0]}
            rows.append(text | {"question": question, "possible_answers": json.dumps(answers)})
    return rows


def truthfulqa(rng: Random, place: int) -> Row:
    one, other, third = pick(rng, 3)
    true, false = f"It is {one}, as the label says", f"It turns into {other} at night"
    single = {"choices": [true, false], "labels": [1, 0]}
    several = {"choices": [true, f"It is not {third}", false], "labels": [1, 1, 0]}
    question = f"What happens to the stone in drawer {place + 1}?"
    return {"question": question, "mc1_targets": single, "mc2_targets": several}


def humaneval(rng: Random, place: int) -> Row:
    name = f"weigh_{place}"
    prompt = f'def {name}(stones):\n    """Return the sum of the weights of the stones plus {place}."""\n'
    test = f"def check(candidate):\n    assert candidate([1, 2]) == {3 + place}\n"
    made = {"canonical_solution": f"    return sum(stones) + {place}\n", "test": test, "entry_point": name}
    return {"task_id": f"HumanEval/{place}", "prompt": prompt, **made}


def deepmind_math(module: str) -> list[Row]:
    """The hub's rows are Python's way of writing bytes."""
    rng, rows = Random(module), []
    for _ in range(ROWS):
        left, right = rng.randint(2, 99), rng.randint(2, 99)
        rows.append({"question": f"b'What is {left} plus {right}?\\n'", "answer": f"b'{left + right}\\n'"})
    return rows


def gpqa() -> list[Row]:
    rng, rows = Random("gpqa"), []
    for place in range(ROWS):
        fields = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
        options = dict(zip(fields, pick(rng, 4), strict=True))
        rows.append({"Question": f"{asked(rng, place)}\nGive its name, without any article.", **options})
    return rows


def ifbench(rng: Random, place: int) -> Row:
    constraints, told = UNSEEN[place % len(UNSEEN)]
    empty = dict.fromkeys(ARGUMENTS.split())
    prompt = f"Describe the {rng.choice(COLOURS)} {rng.choice(MINERALS)} in drawer {place + 1}. {told}"
    row = {"key": str(place), "prompt": prompt, "instruction_id_list": list(constraints)}
    return row | {"kwargs": [empty | arguments for arguments in constraints.values()]}


def each(name: str, row: Callable[[Random, int], Row]) -> list[Row]:
    rng = Random(name)
    return [row(rng, place) for place in range(ROWS)]


def separated(file: Path, rows: list[Row], dialect: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), dialect=dialect)
    writer.writeheader()
    writer.writerows(rows)
    file.write_bytes(text.getvalue().encode())


def write_benchmarks(folder: Path, table: Table, card: Card) -> None:
    """All data sets below a folder."""

    def hub(dataset: str, parts: dict[tuple[str, str], list[Row]], default: str = "data") -> None:
        """Parquet files of (subset, split), and the card that names them; without a subset they lie in `default`."""
        configs: dict[str, dict[str, str]] = {}
        for (subset, split), rows in parts.items():
            place = subset or default
            table(f"{dataset}/{place}/{split}-00000-of-00001.parquet", rows)
            configs.setdefault(subset or "default", {})[split] = f"{place}/{split}-*"
        card(dataset, configs)

    def groups(split: str, names: Iterable[str], rows: Callable[[str], list[Row]]) -> dict[tuple[str, str], list[Row]]:
        return {(name, split): rows(name) for name in names}

    arc = {(name, "test"): keyed(name, 4, "question") for name in ("ARC-Challenge", "ARC-Easy")}
    hub("allenai/ai2_arc", arc)
    hub("aps/super_glue", {("boolq", "validation"): each("boolq", boolq)})
    concept = keyed("csqa", 5, "question", question_concept="stone")
    hub("tau/commonsense_qa", {("", "validation"): concept})
    hub("Rowan/hellaswag", {("", "validation"): each("hellaswag", hellaswag)})
    hub("allenai/openbookqa", {("main", "test"): keyed("obqa", 4, "question_stem")})
    hub("ybisk/piqa", {("", "validation"): each("piqa", piqa)}, "plain_text")
    hub("allenai/social_i_qa", {("", "validation"): each("siqa", socialiqa)})
    hub("allenai/winogrande", {("winogrande_xl", "validation"): each("winogrande", winogrande)})
    subjects = [row for subject in SUBJECTS for row in mmlu(subject)]
    hub("cais/mmlu", {("all", "test"): subjects, ("all", "dev"): [*reversed(subjects)]})
    hub("google-research-datasets/nq_open", {("", "validation"): each("nq", nq_open)}, "nq_open")
    hub("EleutherAI/drop", {("", "validation"): each("drop", drop)})
    hub("rajpurkar/squad", {("", "validation"): each("squad", squad)}, "plain_text")
    hub("EleutherAI/coqa", {("", "validation"): each("coqa", coqa)})
    hub("soldni/jeopardy", {("mosaicml_gauntlet", "train"): each("jeopardy", jeopardy)})
    for exam in EXAMS:
        hub(f"dmayhem93/agieval-{exam}", {("", "test"): agi_eval(exam)})
    hub("TIGER-Lab/MMLU-Pro", {("", "test"): mmlu_pro(), ("", "validation"): mmlu_pro()})
    hub("mandarjoshi/trivia_qa", {("rc.wikipedia.nocontext", "validation"): each("triviaqa", triviaqa)})
    hub("lukaemon/bbh", groups("test", BBH_TASKS, bbh))
    hub("EleutherAI/hendrycks_math", groups("test", TYPES, hendrycks_math))
    separated(folder / "akariasai/PopQA/test.tsv", popqa(), "excel-tab")
    card("akariasai/PopQA", {"default": {"test": "test.tsv"}})
    hub("truthfulqa/truthful_qa", {("multiple_choice", "validation"): each("truthfulqa", truthfulqa)})
    for dataset, place in (("openai/openai_humaneval", "openai_humaneval"), ("evalplus/humanevalplus", "data")):
        hub(dataset, {("", "test"): each("humaneval", humaneval)}, place)
    hub("deepmind/math_dataset", groups("test", MODULES, deepmind_math))
    hub("allenai/IFBench_test", {("", "train"): each("ifbench", ifbench)})
    separated(folder / "Idavidrein/gpqa/gpqa_main.csv", gpqa(), "excel")
    card("Idavidrein/gpqa", {"gpqa_main": {"train": "gpqa_main.csv"}})
