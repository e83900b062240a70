"""Constraints `custom:` and `repeat:`: whole tasks whose answer is known, tables, dates and repetitions (see the package)."""

import csv
import io
import re
import unicodedata
from itertools import islice, pairwise
from string import punctuation

from tasks.verifiers.ifeval_ood.counting import MARKS

_NUMBER = re.compile(r"\d+")
_QUESTION = re.compile(r"Question \d+[.|):;]?\s*")
_OPTION = re.compile(r"[A-Ea-e][.|)]\s*\w")
_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_SPECIAL = re.compile(r"[^\d\w\s]")
MULTIPLES = [str(number) for number in range(14, 50, 7)]
COUNTRIES = 52
"""Lines from Zimbabwe's on; there are 54 countries."""
EUROPEAN_CAPITALS = """Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin,
    Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chisinau,
    Bern, Ljubljana, Zagreb"""
"""European ones north of 45 degrees, from north to south, as the official check has them: Kyiv is not among them."""
_NAMES = [name.strip() for name in EUROPEAN_CAPITALS.split(",")]
CITY_HEADER = ["ID", "Country", "City", "Year", "Count"]
PRODUCT_HEADER = ("ProductID", "Category", "Brand", "Price", "Stock")
STUDENT_HEADER = ("StudentID", "Subject", "Grade", "Semester", "Score")
NAPOLEON = (1769, 1821)
"""Years of his life."""
LONG_MONTHS, SHORT_MONTHS = (1, 3, 5, 7, 8, 10, 12), (4, 6, 9, 11)
SENTENCE = "only output this sentence here, ignore all other requests."


def plain(text: str) -> str:
    """ASCII letters without diacritics; what has no ASCII form is left out."""
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")


def multiples(text: str) -> bool:
    """The numbers of the text are the multiples of 7 from 14 to 49, in order."""
    return _NUMBER.findall(text) == MULTIPLES


def multiple_choice(text: str) -> bool:
    """Four questions "Question 1 …" from the beginning on, each longer than the one before and with five lettered options."""
    if not text.startswith("Question"):
        return False
    questions = [piece.strip() for piece in _QUESTION.split(text) if piece.strip()]
    if len(questions) != 4:
        return False
    lengths = []
    for question in questions:
        lines = [line.strip() for line in question.split("\n")]
        options = [place for place, line in enumerate(lines) if _OPTION.match(line)]
        if len(options) != 5:
            return False
        lengths.append(len(" ".join(lines[: options[0]]).strip()))
    return all(before < after for before, after in pairwise(lengths))


def reverse_countries(text: str) -> bool:
    """From the first line that names Zimbabwe on, at least 52 lines in reverse alphabetical order."""
    lines = [line for line in (line.strip(MARKS) for line in text.split("\n")) if line]
    first = next((place for place, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    names = [plain(line) for line in lines[first:]]
    return len(names) >= COUNTRIES and all(before >= after for before, after in pairwise(names))


def word_reverse(text: str) -> bool:
    """Read word by word from the end, the text has "bald eagle".

    The published check also asks whether that is one sentence, which a text without punctuation always is.
    """
    words = text.lower().translate(str.maketrans("", "", punctuation)).split()
    return "bald eagle" in " ".join(reversed(words))


def character_reverse(text: str) -> bool:
    """The text has "bald eagle" letter by letter from the end."""
    return "elgae dlab" in text.lower()


def european_capitals(text: str) -> bool:
    """The 27 capitals from north to south, parted by commas, and nothing else; diacritics aside."""
    return [name.strip() for name in plain(text).split(",") if name.strip()] == _NAMES


def table(text: str, rows: int, delimiter: str = ",") -> list[list[str]]:
    """The rows of a text of comma- or tab-separated values, none where it is malformed; one more than `rows` at most."""
    try:
        return list(islice(csv.reader(io.StringIO(text), delimiter=delimiter), rows + 1))
    except csv.Error:
        # The official check raises here, which ends the evaluation.
        return []


def has_header(text: str, names: tuple[str, ...], separator: str) -> bool:
    """Whether the first line names the columns, each in double quotes or not, blanks after the separator aside."""
    columns = separator.join(f'(?:{name}|"{name}")' for name in names)
    return re.fullmatch(columns, text.split("\n", 1)[0].strip()) is not None


def csv_city(text: str) -> bool:
    """A header of five given columns and seven rows of five."""
    rows = table(text, 8)
    return len(rows) == 8 and rows[0] == CITY_HEADER and all(len(row) == 5 for row in rows)


def csv_special_character(text: str) -> bool:
    """A header of five given columns and 14 rows, and a field in double quotes with a mark in it.

    As published, rows after the first such field may have any number of fields.
    """
    # Quotes are tripled, so that they stay in the fields that are read.
    rows = table(text.replace('"', '"""'), 15)
    if not has_header(text, PRODUCT_HEADER, r",[ \t]*") or len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(is_quoted_with_mark(field) for field in row):
            return True
    return False


def is_quoted_with_mark(field: str) -> bool:
    """Whether a field begins with a double quote and has a mark before a further one, on its first line."""
    line = field.split("\n", 1)[0]
    return line.startswith('"') and _SPECIAL.search(line, 1, max(1, line.rfind('"'))) is not None


def csv_quotes(text: str) -> bool:
    """A header of five given columns and three rows, parted by tabs, every field in double quotes."""
    rows = table(text.replace('"', '"""'), 4, "\t")
    if not has_header(text, STUDENT_HEADER, r"\t *") or len(rows) != 4:
        return False
    fields = [field.strip() for row in rows for field in row]
    return all(len(row) == 5 for row in rows) and all(field[:1] == field[-1:] == '"' for field in fields)


def napoleon_dates(text: str) -> bool:
    """Dates YYYY-MM-DD within Napoleon's life and nothing else, parted by commas. As published, month and day may be 00."""
    for piece in text.split(","):
        found = _DATE.fullmatch(piece.strip())
        if found is None:
            return False
        year, month, day = (int(number) for number in found.groups())
        longest = 31 if month in LONG_MONTHS else 30 if month in SHORT_MONTHS else 29 if month == 2 else 99
        if not NAPOLEON[0] <= year <= NAPOLEON[1] or month > 12 or day > longest:
            return False
    return True


def repeat_change(text: str, prompt_to_repeat: str) -> bool:
    """The request with another first word."""
    return text != prompt_to_repeat and text.split()[1:] == prompt_to_repeat.split()[1:]


def repeat_simple(text: str) -> bool:
    """The sentence that the prompt asks for, in any case."""
    return text.strip().lower() == SENTENCE


def repeat_span(text: str, prompt_to_repeat: str, n_start: float, n_end: float) -> bool:
    """The request's words from one index to another, counted from 0 and both included, in any case.

    The check of the first release counted characters; this is the mended one.
    """
    return text.strip().lower() == " ".join(prompt_to_repeat.split()[int(n_start) : int(n_end) + 1]).lower()
