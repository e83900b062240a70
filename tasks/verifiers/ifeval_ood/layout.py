"""Constraints `format:`: brackets, quotes, lists, lines, emoji and templates (see the package)."""

import re
from itertools import pairwise
from string import digits, punctuation

from tasks.verifiers.ifeval_ood.counting import MARKS, WITHOUT_PUNCTUATION
from tasks.verifiers.ifeval_ood.english import is_emoji, sentences, word_tokens

_LETTERS = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")
OPENING_OF = {")": "(", "]": "[", "}": "{"}
LEVELS = 5
"""Of brackets."""
QUOTE_LEVELS = 3
TEMPLATE_HEADINGS = ("My Answer:", "My Conclusion:", "Future Outlook:")


def parentheses(text: str) -> bool:
    """Brackets nested five deep, of which the innermost is closed by its own kind; after a wrong one counting starts again."""
    open_brackets: list[str] = []
    deepest = 0
    for letter in text:
        if letter in "([{":
            open_brackets.append(letter)
            deepest = max(deepest, len(open_brackets))
        elif letter in OPENING_OF:
            if open_brackets and open_brackets[-1] == OPENING_OF[letter]:
                open_brackets.pop()
                if deepest >= LEVELS:
                    return True
            else:
                open_brackets, deepest = [], 0
    return False


def quotes(text: str) -> bool:
    """Straight quotation marks, double and single in turn, nested three deep and closed; apostrophes count as marks."""
    open_quotes: list[str] = []
    deepest = 0
    for letter in text:
        if open_quotes and letter == open_quotes[-1]:
            open_quotes.pop()
            if deepest - len(open_quotes) >= QUOTE_LEVELS:
                return True
        elif letter in "\"'":
            open_quotes.append(letter)
            deepest = max(deepest, len(open_quotes))
    return False


def one_of_options(text: str, options: str) -> bool:
    """The answer is one of the options, which /, "or" or commas part; marks and case aside, but for lettered ones."""
    separator = next((one for one in ("/", "or") if one in options), ",")
    known = [option.strip() for option in options.split(separator)]
    if _LETTERS.match(options):
        return text in known
    return text.strip(MARKS).lower() in {option.strip(MARKS).lower() for option in known}


def one_word_a_line(text: str) -> bool:
    """As many lines that are not empty as words. As published, a line of blanks counts."""
    text = text.translate(WITHOUT_PUNCTUATION).strip()
    return sum(line != "" for line in text.split("\n")) == len(text.split())


def emoji(text: str) -> bool:
    """Every sentence ends with an emoji or is followed by one; ASCII punctuation after it is let pass.

    The last but one character counts too, because the last may be a joiner that shows nothing.
    """
    found = [sentence.translate(WITHOUT_PUNCTUATION).strip() for sentence in sentences(text)]
    for place, sentence in enumerate(found):
        if not sentence:
            return False
        following = found[place + 1][:1] if place + 1 < len(found) else ""
        if not any(is_emoji(letter) for letter in (*sentence[-2:], following)):
            return False
    return True


def line_indent(text: str) -> bool:
    """Each line is indented by more blanks than the one before. The published check leaves some empty lines in; here none is."""
    lines = [line for line in text.split("\n") if line.strip()]
    return all(before < after for before, after in pairwise(len(line) - len(line.lstrip(" ")) for line in lines))


def quote_unquote(text: str) -> bool:
    """No quotation follows another, and none ends the answer; curly double quotes are quotes, as in the first release."""
    text = text.replace("“", '"').replace("”", '"').replace("'\"'", "")
    text = "".join(text.split())
    return '""' not in text and not text.strip(digits + punctuation.replace('"', "")).endswith('"')


def special_list(text: str, sep: str) -> bool:
    """The marker occurs at least twice, anywhere."""
    return text.count(sep) >= 2


def thesis(text: str) -> bool:
    """Something in `<i>` or `<em>`, and something after it. As published, only the first is looked at."""
    start = text.find("<i>") if "<i>" in text else text.find("<em>")
    if start < 0:
        return False
    text = text[start:]
    end = text.find("</i>") if "</i>" in text else text.find("</em>")
    return end >= 0 and bool(text[3:end].strip()) and bool(text[end + 4 :].strip())


def sub_bullets(text: str) -> bool:
    """Between a star and the next, and after the last, there is a hyphen.

    As published, a text without stars passes, and so every text passes loosely, where stars are left out.
    """
    return all("-" in piece for piece in text.split("*")[1:])


def sentences_then_bullets(text: str) -> bool:
    """At least two sentences and then at least two lines that begin with a star, and nothing after them.

    As published, nothing but stars may follow an empty line or a bullet, not even an empty line.
    """
    count = bullets = 0
    prose = True
    for line in text.split("\n"):
        if line.strip().startswith("*"):
            prose = False
            if count < 2:
                return False
            bullets += 1
        elif prose:
            # More than two make no difference.
            found = len(sentences(line.strip(), 2))
            count, prose = count + found, found > 0
        else:
            return False
    return bullets >= 2


def title_case(text: str) -> bool:
    """No word has a small first letter and small letters after it, or is a small letter. As published, "Don't" has "n't"."""
    for word in word_tokens(text):
        rest = word[1:]
        if word[0].isalpha() and word[0].islower() and (not rest or rest.islower() or rest.isupper()):
            return False
    return True


def output_template(text: str) -> bool:
    """The three headings occur, in any order."""
    return all(heading in text for heading in TEMPLATE_HEADINGS)


def no_whitespace(text: str) -> bool:
    """No white space at all."""
    return not any(letter.isspace() for letter in text)
