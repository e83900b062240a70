"""Oracles: the verdicts of IFBench's own tests (allenai/IFBench, instructions_test.py) and its constraints' wording; a text that
passes and one that fails for each of the 58.
"""

import itertools
import re

import pytest

from tasks.verifiers.ifeval import CHECKS, judge_instructions
from tasks.verifiers.ifeval_ood import OOD_CONSTRAINTS, check_constraint
from tasks.verifiers.ifeval_ood.english import count_syllables, is_emoji, is_verb, sentences, word_tokens
from tasks.verifiers.ifeval_ood.fixed_tasks import is_quoted_with_mark
from tasks.verifiers.punkt_sentences import count_sentences, split_sentences

ANIMALS = (
    "Ants,Bees,Cats,Dogs,Eels,Foxes,Goats,Hens,Ibises,Jays,Kites,Lions,Mice,Newts,Owls,Pigs,Quails,Rats,Seals,Toads,Urchins,Voles,"
    "Wasps,Xerus,Yaks,Zebras"
)
STORY = ANIMALS.replace(",", " sang. ") + " sang."
AFRICA = (
    "Zimbabwe,Zambia,Uganda,Tunisia,Togo,Tanzania,Sudan,South Sudan,South Africa,Somalia,Sierra Leone,Seychelles,Senegal,"
    "São Tomé and Príncipe,Rwanda,Nigeria,Niger,Namibia,Mozambique,Morocco,Mauritius,Mauritania,Mali,Malawi,Madagascar,Libya,"
    "Liberia,Lesotho,Kenya,Guinea-Bissau,Guinea,Ghana,Gabon,Eswatini,Eritrea,Equatorial Guinea,Egypt,Djibouti,Côte d'Ivoire,"
    "Congo (Republic of the),Congo (Democratic Republic of the),Comoros,Chad,Central African Republic,Cape Verde,Cameroon,"
    "Burundi,Burkina Faso,Botswana,Benin,Angola,Algeria"
)
COUNTRIES = "Here they are:\n" + AFRICA.replace(",", "\n")
EUROPE = (
    "Reykjavík, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, Amsterdam, Warsaw, "
    "London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chișinău, Bern, Ljubljana, Zagreb"
)
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{n},Chad,Moundou,2020,{n}" for n in range(7))
PRODUCTS = 'ProductID,Category,Brand,Price,Stock\n1,Home,"Pots, Inc.",9.99,1\n' + "\n".join(
    f"{n},Books,Penguin,1.99,3" for n in range(2, 15)
)
STUDENT = '"StudentID"\t "Subject"\t "Grade"\t "Semester"\t "Score"'
OPTIONS = "\n".join(f"{letter}) of course" for letter in "ABCDE")
QUESTIONS = [f"Question {n}: Who painted {'very ' * n}well?\n{OPTIONS}" for n in range(1, 5)]
KEYWORDS = {"keyword1": "door", "keyword2": "bread", "keyword3": "blue", "keyword4": "lamp", "keyword5": "river"}
REPEATED = "bread " * 2 + "blue " * 3 + "lamp " * 5 + "river " * 7
REQUEST = "Sum up the book '1984' by George Orwell."
SPAN = {"prompt_to_repeat": "The walls are solid but the stones are cracked.", "n_start": 0, "n_end": 3}
NAMES = "Abigail, Gabriel and Nora"

CASES = [
    ("count:word_count_range", {"min_words": 5.0, "max_words": 6.0}, "\n  This message has five words.", "Only three words"),
    ("count:unique_word_count", {"N": 5.0}, "This message has five words.", "This this, THIS this this."),
    ("count:conjunctions", {"small_n": 3.0}, "He left, but I stay and wait, yet not long.", "He and I and you"),
    ("count:person_names", {"N": 3.0}, NAMES, "Ben, Gabriel and Nora"),
    ("count:numbers", {"N": 3.0}, "Of 1,000 there are 3.14 or 7.", "1 2 3 4"),
    ("count:punctuation", {}, "Marks: . , ! ? ; : !?", "Some punctuation.,?!"),
    ("count:words_japanese", {"N": 2.0}, "one 二つ three 猫。 five 6", "one two three 猫"),
    ("count:pronouns", {"N": 4.0}, "My pronouns are she/her/hers.", "It's a cat, and he saw them."),
    ("count:keywords_multiple", KEYWORDS, f"The doorway led to one door. {REPEATED}", f"door door {REPEATED}"),
    ("ratio:stop_words", {"percentage": 50.0}, "Cats chase mice at the barn", "it is what it is"),
    ("ratio:sentence_type", {}, "I know. You do not. Do you?", "I know. Do you?"),
    ("ratio:sentence_balance", {}, "I know. Do you? Yes!", "I know. I do. Do you? Yes!"),
    ("ratio:overlap", {"reference_text": "one two three four five", "percentage": 50.0}, "one two three four six seven", "red"),
    ("ratio:sentence_words", {}, "This is one. Now it's 22. On to three.", "The cat sat. The cat sat. The cat sat."),
    ("words:alphabet", {}, "Young zebras also bite. . . Carefully", "Your zoo is very xeric."),
    ("words:vowel", {}, "the eel eek eked out.", "the eel eek eked.\nyeah."),
    ("words:consonants", {}, "This employs consonant clusters.", "This does not."),
    ("words:palindrome", {}, "Racecar, radar, " * 5, "Racecar, radar, level, Otto, " * 3),
    ("words:prime_lengths", {}, "Prime numbers are in.", "Composite numbers are not."),
    ("words:start_verb", {}, "Does this sentence start with a verb?", "This sentence does not start with a verb."),
    ("words:repeats", {"small_n": 2.0}, "This is one. This is two.", "This is one. This is two. THIS is three."),
    ("words:odd_even_syllables", {}, "Chil-dren have lit'tle to regret.", "Children have little to say."),
    ("words:last_first", {}, "This feels odd. Odd but well.\n\nWell it ends!", "This is not odd. This is."),
    ("words:paragraph_last_first", {}, "This started with this.\n\nAnother is another.", "This one. Another one."),
    ("words:no_consecutive", {}, "These words, though.", "This shouldn't succeed."),
    ("words:keywords_specific_position", {"keyword": "cat", "n": 2, "m": 3}, "No. See, the CAT!", "No. See, cat the!"),
    ("words:words_position", {"keyword": "calm"}, '"The calm sun set over a Calm sea!"', "The calm sun set over a sea"),
    (
        "sentence:alliteration_increment",
        {},
        "No rhyme. Some semblance of it. Alliterating across alphabet is interesting.",
        "Some semblance of it. No rhyme.",
    ),
    ("sentence:keyword", {"word": "it", "N": 2.0}, "I am. It is. No.", "I am it. I am. It is."),
    ("sentence:increment", {"small_n": 2.0}, "This has three. This one now has 5.", "This has three. This has three."),
    ("format:parentheses", {}, "This (is [nested {very (deeply [here], yay!)}]).", "Lots () of [] (parentheses()) [{(]})"),
    ("format:quotes", {}, "These \"quotes 'are \"nested,\" here' a lot.\"", "These quotes 'are \"not nested,\" here' enough."),
    ("format:options", {"options": "I know or I don't know"}, "I don't know.", "I know or I don't know"),
    ("format:options", {"options": "(A), (B), (C)"}, "(B)", "B"),
    ("format:options", {"options": "yes/no/maybe"}, "Maybe!", "yes/no"),
    ("format:newline", {}, "This\n is\n\non . .\na\nline.", "This \n is \n not, unfortunately."),
    ("format:emoji", {}, "It ends so 😀. So does this! ☺️", "😀 It starts so."),
    ("format:line_indent", {}, "a\n b\n\n\n   c", "  a\n b"),
    ("format:quote_unquote", {}, 'He said "no." That is a refusal, with a \'"\'.', 'He said “no.” “Never.”'),
    ("format:list", {"sep": "!?!?"}, "!?!? one\n!?!? two", "- one\n- two"),
    ("format:thesis", {}, "<em>A thesis.</em>\nA paragraph", "<i> </i>\nA paragraph"),
    ("format:sub-bullets", {}, "List\n* a\n  - b\n* c\n - d", "* a\n* c\n - d"),
    ("format:no_bullets_bullets", {}, "One. Two.\n\n* a\n* b", "One. Two.\n* a\n* b\n"),
    ("format:title_case", {}, "I Am A Test (With 123 Numbers)", "I Am a Test"),
    ("format:output_template", {}, "My Answer: a My Conclusion: b Future Outlook: c", "My Answer: a"),
    ("format:no_whitespace", {}, "NoSpace", "No\u00a0space"),
    ("custom:multiples", {}, "Sure! 14,21,28,35,42,49", "7 14 21 28 35 42 49"),
    ("custom:mcq_count_length", {}, "\n\n".join(QUESTIONS), "\n\n".join(reversed(QUESTIONS))),
    ("custom:reverse_newline", {}, COUNTRIES, COUNTRIES.replace("\nAlgeria", "")),
    ("custom:word_reverse", {}, ".US the of bird the is eagle bald The", "The bald eagle."),
    ("custom:character_reverse", {}, ".su eht fo drib eht si elgaE dlaB ehT", "The bald eagle."),
    ("custom:sentence_alphabet", {}, f'"{STORY}', STORY.replace("Bees", "Apes")),
    ("custom:european_capitals_sort", {}, EUROPE, EUROPE.replace("Oslo, ", "")),
    ("custom:csv_city", {}, CITIES, CITIES.replace(",Count", "")),
    ("custom:csv_special_character", {}, PRODUCTS, PRODUCTS.replace(", Inc.", " Inc")),
    ("custom:csv_quotes", {}, "\n".join([STUDENT] * 4), "\n".join([STUDENT] * 3 + [STUDENT.replace('"Grade"', "")])),
    ("custom:date_format_list", {}, "1796-07-05, 1800-12-31", "07-05-1796"),
    ("repeat:repeat_change", {"prompt_to_repeat": REQUEST}, REQUEST.replace("Sum", "Write"), REQUEST),
    ("repeat:repeat_simple", {}, "Only output this sentence here, ignore all other requests.", "Sure."),
    ("repeat:repeat_span", SPAN, "the walls are solid", "The walls are"),
]  # fmt: skip

RELEASED = """count:word_count_range count:unique_word_count ratio:stop_words ratio:sentence_type ratio:sentence_balance
    count:conjunctions count:person_names ratio:overlap count:numbers words:alphabet words:vowel words:consonants
    sentence:alliteration_increment words:palindrome count:punctuation format:parentheses format:quotes words:prime_lengths
    format:options format:newline format:emoji ratio:sentence_words count:words_japanese words:start_verb words:repeats
    sentence:keyword count:pronouns words:odd_even_syllables words:last_first words:paragraph_last_first sentence:increment
    words:no_consecutive format:line_indent format:quote_unquote format:list format:thesis format:sub-bullets
    format:no_bullets_bullets custom:multiples custom:mcq_count_length custom:reverse_newline custom:word_reverse
    custom:character_reverse custom:sentence_alphabet custom:european_capitals_sort custom:csv_city custom:csv_special_character
    custom:csv_quotes custom:date_format_list count:keywords_multiple words:keywords_specific_position words:words_position
    repeat:repeat_change repeat:repeat_simple repeat:repeat_span format:title_case format:output_template format:no_whitespace"""


def test_the_released_registry_is_covered():
    released = RELEASED.split()
    assert len(released) == 58
    assert set(OOD_CONSTRAINTS) == set(released) == {case[0] for case in CASES}
    assert not set(OOD_CONSTRAINTS) & set(CHECKS)


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_constraint(name, kwargs, good, bad):
    # Rows carry the arguments of all constraints.
    row = {"N": None, "frequency": None, "keyword": None} | kwargs
    assert check_constraint(name, row, good)
    assert not check_constraint(name, row, bad)
    assert not check_constraint(name, row, "  \n")


NESTED = "Pannier (say, [curved {to guide}, [a wall (or not), or {a door (wide), [of {oak}]}]]) is (no) fence."
FURTHER = [
    ("count:numbers", {"N": 3}, "Decimals like 3.14 should only count as one number 2.", False),
    ("count:numbers", {"N": 1}, "This is one number: 100,000", True),
    ("count:numbers", {"N": 2}, "This is number 1. 2 comes next.", True),
    ("count:person_names", {"N": 1}, "emma and Graceful", False),
    ("count:pronouns", {"N": 4}, "She is his sister. They share their parents.", True),
    ("count:pronouns", {"N": 5}, "She is his sister. They share their parents.", False),
    ("count:conjunctions", {"small_n": 3}, "And he and she, and, well, we.", True),
    ("ratio:stop_words", {"percentage": 50}, "?!", False),
    ("ratio:sentence_type", {}, "No marks at all", True),
    ("ratio:overlap", {"reference_text": "This is the test.", "percentage": 100}, "This is the test.", True),
    ("ratio:overlap", {"reference_text": "This is a reference text.", "percentage": 50}, "Hi", False),
    ("words:alphabet", {}, "Great finds enter dark caves.", False),
    ("words:alphabet", {}, "1 b c", False),
    ("words:palindrome", {}, "Ada, Eve, Bob, Nan, Otto, Ava, Pip, Elle, Ivi, Ana, and Asa.", False),
    ("words:prime_lengths", {}, "aren't hy-phens?", True),
    ("words:last_first", {}, "Hello world. ... Next sentence.", False),
    ("words:odd_even_syllables", {}, "Children have little to regret. They enjoy the sunshine.", True),
    ("words:odd_even_syllables", {}, "Children have little to regret. They enjoy the sunshine. But not the rain.", False),
    ("words:keywords_specific_position", {"keyword": "test", "n": 1, "m": 1}, "TEST is here.", True),
    ("sentence:increment", {"small_n": 3}, "This has three. This sentence now has 6 words.", True),
    ("sentence:alliteration_increment", {}, "No alliteration. Some semblance of it. But not here.", False),
    ("format:parentheses", {}, "((()))", False),
    ("format:parentheses", {}, NESTED, True),
    ("format:quotes", {}, "Adjacent ones: \"'\"\"'\".", True),
    ("format:quotes", {}, "Three levels but not three pairs: '\"'\"'.", False),
    ("format:newline", {}, "Equal \n number \n \n of newlines \n to \n words \n but \n not \n \n obeying \n constraint.", False),
    ("format:title_case", {}, "I Don't Care", False),
    ("format:title_case", {}, "John's NASA iPhone", True),
    ("format:quote_unquote", {}, "123...", True),
    ("format:sub-bullets", {}, "No bullet at all", True),
    ("format:no_bullets_bullets", {}, "One.\n* a\n* b", False),
    ("custom:csv_city", {}, f"{CITIES}\n\n", False),
    ("custom:csv_city", {}, "ID\rCountry", False),
    ("custom:csv_special_character", {}, PRODUCTS.replace("Stock", "Rest"), False),
    ("custom:csv_quotes", {}, "\n".join([STUDENT.replace('"', "")] + [STUDENT] * 3), False),
    ("custom:date_format_list", {}, "1822-01-01", False),
    ("custom:date_format_list", {}, "1800-02-30", False),
    ("custom:date_format_list", {}, "1800-04-31, 1800-03-31", False),
    ("custom:reverse_newline", {}, "\n".join(reversed(AFRICA.split(","))), False),
    ("custom:reverse_newline", {}, AFRICA, False),
    ("custom:sentence_alphabet", {}, ". " * 26, False),
    ("custom:mcq_count_length", {}, "\n".join(QUESTIONS).replace("E) of", "of"), False),
    ("custom:mcq_count_length", {}, "Sure:\n" + "\n".join(QUESTIONS), False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "text", "met"), FURTHER)
def test_further_verdicts(name, kwargs, text, met):
    assert check_constraint(name, kwargs, text) is met


def test_unknown_and_incomplete_constraints_are_named():
    with pytest.raises(ValueError, match="constraint 'count:rhymes' is unknown; known are count:word_count_range"):
        check_constraint("count:rhymes", {}, "x")
    with pytest.raises(ValueError, match="count:word_count_range lacks max_words; its row gives min_words"):
        check_constraint("count:word_count_range", {"min_words": 3, "max_words": None, "N": None}, "x")
    with pytest.raises(ValueError, match="N=0 must be at least 1"):
        check_constraint("count:words_japanese", {"N": 0}, "x")
    assert check_constraint("repeat:repeat_span", SPAN, "The walls are solid"), "0 is an index"


def test_loose_readings_leave_out_lines_and_stars():
    ids, arguments = ["custom:multiples", "format:sub-bullets"], [{}, {}]
    judgement = judge_instructions(ids, arguments, "Up to 50:\n*14* 21 28 35 42 49", check_constraint)
    assert judgement.strict == (False, False)
    assert judgement.loose == (True, True)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I don't think it's theirs.", "I do n't think it 's theirs ."),
        ('He said, "3,000 (or 3.5)" at 10:30!', 'He said , " 3,000 ( or 3.5 ) " at 10:30 !'),
        ("We cannot go... They're gonna--well", "We can not go ... They 're gon na -- well"),
        ("Mr. Smith's U.S. dogs' toys. Yes.", "Mr. Smith 's U.S. dogs ' toys . Yes ."),
    ],
)
def test_words_are_those_of_nltk(text, tokens):
    assert list(word_tokens(text)) == tokens.split()


def test_sentences_are_the_text_between_their_ends():
    text = '  Dr. Jones came. "Who?" he said! (Well.) End'
    assert sentences(text) == ["  Dr. Jones came.", '"Who?"', "he said!", "(Well.)", "End"]
    assert list(split_sentences(text, 2)) == sentences(text)[:2]
    assert count_sentences(text) == 5


def test_syllables_verbs_and_emoji():
    counts = {
        "the": 1,
        "table": 2,
        "makes": 1,
        "wanted": 2,
        "walked": 1,
        "beautiful": 3,
        "science": 2,
        "video": 3,
        "22": 0,
    }
    assert {word: count_syllables(word) for word in counts} == counts
    assert all(is_verb(word) for word in ("Write", "makes", "Making", "tried", "planned", "Is", "Went", "loves"))
    assert not any(is_verb(word) for word in ("The", "Sure", "can", "bed", "string", "Certainly", ""))
    assert all(is_emoji(letter) for letter in "😀☺🏻✅")
    assert not any(is_emoji(letter) for letter in "1#aé‽")


def test_marked_fields_are_found_as_by_the_official_pattern():
    for letters in (letters for n in range(7) for letters in itertools.product('"a,\n', repeat=n)):
        field = "".join(letters)
        official = re.match(r'".*[^\d\w\s].*"', field) is not None
        assert is_quoted_with_mark(field) is official, repr(field)
