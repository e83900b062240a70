"""IFEval-OOD's 58 constraints by their ids: AI2's IFBench (Pyatkin et al. 2025), which its code calls `ifeval_ood`.

The recipe's paper (Table 24) speaks of 52 constraints; the released test set and its registry have 58, and all are here. Verdicts
are the released checks', where they are kind too; functions say where that surprises ("as published"). Differences:

* Words, syllables and verbs are approximated, and sentences are looked for in the first 40,000 characters (see english).
* A missing argument is an error; the released checks draw one at random. A malformed table fails instead of raising.
* `format:line_indent` leaves out every empty line, `format:quote_unquote` takes curly quotes for quotes.
* `ratio:overlap` and `repeat:repeat_span` count words, as the mended checks do, not characters as those of the first release did.

Example: `check_constraint("count:numbers", {"N": 1}, "About 3.14.")` is true.
"""

import inspect
from collections.abc import Callable
from typing import Any

from tasks.verifiers.ifeval_ood import counting, fixed_tasks, layout, wording
from tasks.verifiers.verdict import is_blank

OOD_CONSTRAINTS: dict[str, Callable[..., bool]] = {
    "count:word_count_range": counting.words_in_range,
    "count:unique_word_count": counting.unique_words,
    "count:conjunctions": counting.conjunctions,
    "count:person_names": counting.person_names,
    "count:numbers": counting.numbers,
    "count:punctuation": counting.punctuation_marks,
    "count:words_japanese": counting.japanese_words,
    "count:pronouns": counting.pronouns,
    "count:keywords_multiple": counting.keywords_multiple,
    "ratio:stop_words": counting.stop_words,
    "ratio:sentence_type": counting.sentence_types,
    "ratio:sentence_balance": counting.sentence_balance,
    "ratio:overlap": counting.overlap,
    "ratio:sentence_words": counting.sentence_words,
    "words:alphabet": wording.alphabet,
    "words:vowel": wording.three_vowels,
    "words:consonants": wording.consonant_clusters,
    "words:palindrome": wording.palindromes,
    "words:prime_lengths": wording.prime_lengths,
    "words:start_verb": wording.starts_with_verb,
    "words:repeats": wording.repeats,
    "words:odd_even_syllables": wording.odd_even_syllables,
    "words:last_first": wording.last_first,
    "words:paragraph_last_first": wording.paragraph_last_first,
    "words:no_consecutive": wording.no_consecutive,
    "words:keywords_specific_position": wording.keyword_position,
    "words:words_position": wording.second_words,
    "sentence:alliteration_increment": wording.alliteration_increment,
    "sentence:keyword": wording.sentence_keyword,
    "sentence:increment": wording.sentence_increment,
    "format:parentheses": layout.parentheses,
    "format:quotes": layout.quotes,
    "format:options": layout.one_of_options,
    "format:newline": layout.one_word_a_line,
    "format:emoji": layout.emoji,
    "format:line_indent": layout.line_indent,
    "format:quote_unquote": layout.quote_unquote,
    "format:list": layout.special_list,
    "format:thesis": layout.thesis,
    "format:sub-bullets": layout.sub_bullets,
    "format:no_bullets_bullets": layout.sentences_then_bullets,
    "format:title_case": layout.title_case,
    "format:output_template": layout.output_template,
    "format:no_whitespace": layout.no_whitespace,
    "custom:multiples": fixed_tasks.multiples,
    "custom:mcq_count_length": fixed_tasks.multiple_choice,
    "custom:reverse_newline": fixed_tasks.reverse_countries,
    "custom:word_reverse": fixed_tasks.word_reverse,
    "custom:character_reverse": fixed_tasks.character_reverse,
    "custom:sentence_alphabet": wording.sentence_alphabet,
    "custom:european_capitals_sort": fixed_tasks.european_capitals,
    "custom:csv_city": fixed_tasks.csv_city,
    "custom:csv_special_character": fixed_tasks.csv_special_character,
    "custom:csv_quotes": fixed_tasks.csv_quotes,
    "custom:date_format_list": fixed_tasks.napoleon_dates,
    "repeat:repeat_change": fixed_tasks.repeat_change,
    "repeat:repeat_simple": fixed_tasks.repeat_simple,
    "repeat:repeat_span": fixed_tasks.repeat_span,
}
"""Each function's first argument is the text, the others have the names of the rows' `kwargs`."""


def check_constraint(constraint: str, arguments: dict[str, Any], text: str) -> bool:
    """Judge one constraint. A blank text fails everything; arguments of other constraints and None are ignored.

    Raises ValueError for an unknown constraint or a missing argument.
    """
    if constraint not in OOD_CONSTRAINTS:
        raise ValueError(f"constraint {constraint!r} is unknown; known are {', '.join(OOD_CONSTRAINTS)}")
    function = OOD_CONSTRAINTS[constraint]
    # [1:] leaves out the text itself; rows carry the arguments of all constraints, most of them None.
    wanted = list(inspect.signature(function).parameters)[1:]
    given = {name: arguments[name] for name in wanted if arguments.get(name) is not None}
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ValueError(
            f"constraint {constraint} lacks {', '.join(missing)}; its row gives "
            f"{', '.join(sorted(name for name, value in arguments.items() if value is not None)) or 'no arguments'}"
        )
    return not is_blank(text) and function(text, **given)
