"""Texts at the limits of quality and repetition rules, for our rules and those of other tools. Made here; no data of others."""

STORY = (
    "The old man walked to the market with his basket. He had to be there before the sun was high, and that was not easy for "
    "someone of his age. On the way he met a neighbour who asked him about the harvest of the year. They talked for a while "
    "about rain, wheat and the price of bread, then each of them went on. At the market he sold apples and pears to people "
    "that he had known since they were children. In the evening he counted the coins, smiled and put out the lamp."
)
WORDS = ["garden", "window", "silver", "letter", "music", "winter", "bridge", "market", "river", "stone"]


def lines(different: int, same: int, text: str = "This line is here again and says the same.") -> str:
    """Lines that differ, then lines that are all the same."""
    own = [
        f"The {WORDS[n % 10]} of day {n} was not like the {WORDS[(n * 3 + 1) % 10]} of day {n + 7}."
        for n in range(different)
    ]
    return "\n".join([*own, *[text] * same])


TEXTS = {
    "story": STORY,
    "two_stories": f"{STORY}\n\n{STORY}",
    "short": "The story is short, and that is all of it.",
    "no_lines_again": lines(20, 1),
    "few_lines_again": lines(20, 4),
    "a_third_of_lines_again": lines(14, 7),
    "half_of_lines_again": lines(10, 10),
    "one_line_twelve_times": lines(0, 12),
    "paragraphs_again": "\n\n".join([STORY, *["A paragraph that stands here four times."] * 4]),
    "most_paragraphs_again": "\n\n".join(
        ["One of its own, and that is the only one."] + ["This one has company here."] * 9
    ),
    "pair_again": "Tom Smith said that Tom Smith would have to be there. " * 1 + "Tom Smith " * 12 + STORY,
    "phrase_again": "we all have to go to the sea and " * 6 + STORY,
    "long_phrase_twice": STORY + " " + STORY[:200],
    "long_words": "internationalization misunderstanding the of and to " * 12,
    "short_words": "I am a to of be at it is " * 12,
    "hashes": STORY + " #tag" * 12,
    "many_hashes": "# the comment of that line " * 12,
    "ellipsis_words": "the ... of ... that ... and ... to be " * 12,
    "ellipsis_lines": "\n".join([f"The {word} of the day is here, and so ..." for word in WORDS] * 2),
    "bullets": "\n".join(f"- the {WORDS[n % 10]} of number {n} and that" for n in range(30)),
    "dots_as_bullets": "\n".join(f"• the {WORDS[n % 10]} of number {n} and that" for n in range(30)),
    "stars_as_bullets": "\n".join(f"* the {WORDS[n % 10]} of number {n} and that" for n in range(30)),
    "numbers": " ".join(f"{n * 7} {n * 11} the {n}" for n in range(60)),
    "no_stop_words": "garden window silver letter music winter bridge market river stone " * 8,
    "symbols": "./!*? <><> apple orange interconnection === ++ " * 12,
    "code": "\n".join(f"    value_{n} = compute(value_{n - 1}, {n})  # step {n}" for n in range(1, 40)),
}
