"""Published mixes by name: which sources, and how much of each (paper Tables 4, 5, 10 and 13; RECIPE C.2, C.7, C.8).

`passes` presets say how often each source is read: the tables' Source % / 100. `ratio` presets say which part of the mix each
source is: Table 10's candidates of 50 billion tokens, whose printed percentages do not sum to 100 to the last digit and are
scaled to do so. Sources have the names that the published recipes give them; a recipe that uses a preset names its own like that.

The `listed` presets are what the released file lists hold instead of what Table 13 prints. For 100B these are the third copy
of one part of the mathematics and both copies of wiki. They need the mathematics as its parts.
"""

from typing import Literal, NamedTuple

PresetName = Literal[
    "olmo-mix-1124",
    "dolmino-50b",
    "dolmino-100b",
    "dolmino-300b",
    "dolmino-50b-listed",
    "dolmino-100b-listed",
    "dolmino-300b-listed",
    "dolmino-high-quality",
    "dolmino-math",
    "pt-mix",
    "web-ft7",
    "web-ft7-fw3",
    "web-ft7-fw2",
    "web-ft7-fw2-math",
    "web-ft7-fw2-ins",
    "web-ft7-fw2-math-ins",
]


class Preset(NamedTuple):
    """Amounts by source; the other fields of a mix that follow from where the preset comes from."""

    amounts: dict[str, float]
    unit: Literal["passes", "ratio"] = "passes"
    requested_tokens: int | None = None
    """Size of a mix of ratios, tokens."""


CANDIDATE_TOKENS = 50_000_000_000
"""Size of each of Table 10's mixes."""

CANDIDATE_MAX_REPETITION = 4.0
"""Most passes over a source of a candidate mix: not printed; that of the micro-anneals (RECIPE E)."""

# Parts of Dolmino's mathematics, in the order of Table 5's groups (RECIPE C.7).
MATH_PARTS = (
    "persona_maths",
    "persona_grade_school",
    "persona_algebra",
    "arithmetic",
    "multi_addition",
    "gsm8k_numbers",
    "gsm8k_mind",
    "tinygsm_solving",
    "tinygsm_students",
    "books_ajibawa",
    "books_matrix",
    "metamath",
    "gsm8k_main",
    "gsm8k_socratic",
)

# Table 13: Source % / 100.
_TABLE_13 = {
    "dolmino-50b": {
        "filtered_web": 0.0323,
        "flan": 0.5,
        "stackexchange": 1.0,
        "papers": 0.0515,
        "wiki": 1.0,
        "math": 1.0,
    },
    "dolmino-100b": {
        "filtered_web": 0.0685,
        "flan": 1.0,
        "stackexchange": 2.0,
        "papers": 0.167,
        "wiki": 1.0,
        "math": 2.0,
    },
    "dolmino-300b": {
        "filtered_web": 0.2078,
        "flan": 2.0,
        "stackexchange": 4.0,
        "papers": 1.0,
        "wiki": 4.0,
        "math": 4.0,
    },
}

# Table 10: percent of each mix, by source.
_TABLE_10_COLUMNS = (
    "pt-mix",
    "web-ft7",
    "web-ft7-fw3",
    "web-ft7-fw2",
    "web-ft7-fw2-math",
    "web-ft7-fw2-ins",
    "web-ft7-fw2-math-ins",
)
_TABLE_10 = {
    "web": (95.2, 0, 0, 0, 0, 0, 0),
    "web_ft7": (0, 57.1, 0, 0, 0, 0, 0),
    "web_ft7_fw3": (0, 0, 54.2, 0, 0, 0, 0),
    "filtered_web": (0, 0, 0, 57.9, 61.8, 75.5, 57.5),
    "flan": (0, 0, 0, 0, 0, 8.8, 6.7),
    "stackexchange": (0, 0, 0, 0, 0, 0.7, 0.5),
    "code": (2.1, 19.5, 20.9, 19.2, 0, 0, 0),
    "codesearchnet": (0, 0, 0, 0, 0.1, 0.2, 0.1),
    "gutenberg": (0, 1.2, 1.3, 1.2, 0, 0, 0),
    "papers": (1.5, 6.6, 7.1, 6.5, 10.7, 13.0, 9.9),
    "wiki": (0.1, 0.9, 0.9, 0.9, 1.6, 1.9, 1.4),
    "stackexchange_redpajama": (0, 4.0, 4.3, 4.0, 0, 0, 0),
    "arxiv": (0.5, 4.9, 5.2, 4.8, 0, 0, 0),
    "proofs": (0.3, 2.8, 3.0, 2.7, 0, 0, 0),
    "web_math": (0.3, 2.9, 3.1, 2.8, 5.2, 0, 4.8),
    "gsm8k_main": (0, 0, 0.003, 0.003, 0.003, 0, 0.003),
    "mathpile": (0, 0, 0, 0, 2.1, 0, 1.9),
    "automathtext": (0, 0, 0, 0, 18.5, 0, 17.2),
}


def preset(name: PresetName) -> Preset:
    """The mix of a name."""
    if name in _TABLE_13:
        return Preset(_TABLE_13[name])
    if name in _TABLE_10_COLUMNS:
        return _candidate(_TABLE_10_COLUMNS.index(name))
    if name.endswith("-listed"):
        return Preset(_listed(name.removesuffix("-listed")))
    once = {
        # Table 4: one pass over everything.
        "olmo-mix-1124": ("web", "code", "papers", "arxiv", "web_math", "proofs", "wiki"),
        # Table 5: its two halves. CodeSearchNet is in the table, but not in the file lists.
        "dolmino-high-quality": ("filtered_web", "flan", "papers", "wiki", "stackexchange"),
        "dolmino-math": (*MATH_PARTS, "codesearchnet"),
    }
    return Preset(dict.fromkeys(once[name], 1.0))


def _candidate(column: int) -> Preset:
    percent = {source: float(row[column]) for source, row in _TABLE_10.items() if row[column]}
    # The printed percentages sum to 99.9 or 100.1, so they are scaled to 1.
    total = sum(percent.values())
    ratios = {source: share / total for source, share in percent.items()}
    return Preset(ratios, "ratio", CANDIDATE_TOKENS)


def _listed(name: str) -> dict[str, float]:
    amounts = dict(_TABLE_13[name])
    times = amounts.pop("math")
    # The released list of 100B holds two copies of wiki, where Table 13 prints one.
    if name == "dolmino-100b":
        amounts["wiki"] = 2.0
    amounts |= dict.fromkeys(MATH_PARTS, times)
    if name == "dolmino-100b":
        amounts["tinygsm_students"] = 3.0
    return amounts
