"""Word-problem templates: GSM8K-like stories whose numbers are drawn and whose answers are recomputed (RECIPE C.7).

The paper substitutes numbers into GSM8K's own questions; these stories are ours, so that nothing is downloaded and
nothing is near an evaluation set. A story's numbers are drawn from `ranges`; `products` makes a number that must divide
evenly. `steps` are (sentence, left, operator, right): an operand is a number's name or `#1`, `#2` … for an earlier
result, and `{}` in the sentence stands for the calculation. The last result is the answer.
"""

from dataclasses import dataclass, field

_Step = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Template:
    """One story. Texts may use {name}, {other}, {item} (a plural) and the numbers by name."""

    id: str
    text: str
    ranges: dict[str, tuple[int, int]]
    """Smallest and largest value of every drawn number, at scale 1."""
    steps: tuple[_Step, ...]
    products: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Numbers which are the product of two drawn numbers."""
    hidden: tuple[str, ...] = ()
    """Drawn numbers which the question does not show."""


FIRST_NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lena", "Max", "Rosa", "Ali", "Nina", "Leo", "Eva", "Ian", "Zoe")
ITEMS = ("apples", "books", "pens", "cards", "coins", "shells", "stamps", "marbles", "eggs", "cups", "toys", "nuts")

TEMPLATES: tuple[Template, ...] = (
    Template(
        "gain",
        "{name} has {a} {item} and gets {b} more. How many {item} does {name} have?",
        {"a": (2, 50), "b": (2, 50)},
        (("{name} has {} {item}.", "a", "+", "b"),),
    ),
    Template(
        "give",
        "{name} has {a} {item} and gives {b} of them to {other}. How many {item} are left?",
        {"a": (2, 80), "b": (2, 50)},
        (("There are {} {item} left.", "a", "-", "b"),),
    ),
    Template(
        "boxes",
        "{name} has {a} boxes with {b} {item} in each. How many {item} is that?",
        {"a": (2, 12), "b": (2, 12)},
        (("That is {} {item}.", "a", "*", "b"),),
    ),
    Template(
        "share",
        "{name} shares {t} {item} equally among {a} friends. How many {item} does each friend get?",
        {"a": (2, 12), "k": (2, 12)},
        (("Each friend gets {} {item}.", "t", "/", "a"),),
        {"t": ("a", "k")},
        ("k",),
    ),
    Template(
        "gain_lose",
        "{name} has {a} {item}, finds {b} more and then loses {c}. How many {item} does {name} have now?",
        {"a": (5, 40), "b": (2, 30), "c": (2, 30)},
        (("{name} has {} {item}.", "a", "+", "b"), ("Then {} are left.", "#1", "-", "c")),
    ),
    Template(
        "boxes_loose",
        "There are {a} bags with {b} {item} in each and {c} loose {item}. How many {item} are there?",
        {"a": (2, 10), "b": (2, 10), "c": (2, 30)},
        (("The bags hold {} {item}.", "a", "*", "b"), ("In all {}.", "#1", "+", "c")),
    ),
    Template(
        "boxes_eaten",
        "{name} buys {a} packs of {b} {item} and uses {c} of them. How many {item} are left?",
        {"a": (2, 10), "b": (3, 10), "c": (2, 40)},
        (("The packs hold {} {item}.", "a", "*", "b"), ("Then {} are left.", "#1", "-", "c")),
    ),
    Template(
        "change",
        "{name} buys {a} {item} for {b} dollars each and pays with {c} dollars. How much change does {name} get?",
        {"a": (2, 9), "b": (2, 9), "c": (20, 100)},
        (("The cost is {} dollars.", "a", "*", "b"), ("The change is {} dollars.", "c", "-", "#1")),
    ),
    Template(
        "two_prices",
        "A pen costs {a} dollars and a book costs {b} dollars. What do {c} pens and one book cost?",
        {"a": (2, 9), "b": (5, 40), "c": (2, 9)},
        (("The pens cost {} dollars.", "a", "*", "c"), ("In all {} dollars.", "#1", "+", "b")),
    ),
    Template(
        "wage",
        "{name} earns {a} dollars an hour and works {b} hours. How many dollars does {name} earn?",
        {"a": (5, 25), "b": (2, 12)},
        (("{name} earns {} dollars.", "a", "*", "b"),),
    ),
    Template(
        "wage_spend",
        "{name} earns {a} dollars a day for {b} days and spends {c} dollars. How many dollars are left?",
        {"a": (5, 20), "b": (2, 9), "c": (5, 60)},
        (("{name} earns {} dollars.", "a", "*", "b"), ("Then {} dollars are left.", "#1", "-", "c")),
    ),
    Template(
        "older",
        "{name} is {a} years old. {other} is {b} years older. How old is {other}?",
        {"a": (3, 60), "b": (2, 30)},
        (("{other} is {} years old.", "a", "+", "b"),),
    ),
    Template(
        "twice",
        "{name} has {a} {item}. {other} has {b} times as many. How many {item} do they have together?",
        {"a": (2, 12), "b": (2, 6)},
        (("{other} has {} {item}.", "a", "*", "b"), ("Together {}.", "#1", "+", "a")),
    ),
    Template(
        "fewer",
        "{name} has {a} {item}. {other} has {b} fewer. How many {item} do they have together?",
        {"a": (8, 50), "b": (2, 20)},
        (("{other} has {} {item}.", "a", "-", "b"), ("Together {}.", "#1", "+", "a")),
    ),
    Template(
        "more_together",
        "{name} has {a} {item}. {other} has {b} more than {name}. How many {item} do they have together?",
        {"a": (3, 40), "b": (2, 20)},
        (("{other} has {} {item}.", "a", "+", "b"), ("Together {}.", "#1", "+", "a")),
    ),
    Template(
        "speed",
        "A car drives {a} miles an hour for {b} hours. How many miles does it drive?",
        {"a": (10, 70), "b": (2, 9)},
        (("It drives {} miles.", "a", "*", "b"),),
    ),
    Template(
        "trip_left",
        "A trip is {c} miles long. {name} drives {a} miles an hour for {b} hours. How many miles are left?",
        {"a": (10, 40), "b": (2, 6), "c": (60, 250)},
        (("{name} drives {} miles.", "a", "*", "b"), ("Then {} miles are left.", "c", "-", "#1")),
    ),
    Template(
        "pages_days",
        "A book has {t} pages. {name} reads {a} pages a day. How many days does it take?",
        {"a": (2, 15), "k": (2, 15)},
        (("It takes {} days.", "t", "/", "a"),),
        {"t": ("a", "k")},
        ("k",),
    ),
    Template(
        "pages_left",
        "A book has {c} pages. {name} reads {a} pages a day for {b} days. How many pages are left?",
        {"a": (4, 20), "b": (2, 7), "c": (40, 200)},
        (("{name} reads {} pages.", "a", "*", "b"), ("Then {} pages are left.", "c", "-", "#1")),
    ),
    Template(
        "rows",
        "A room has {a} rows of {b} seats. {c} seats are taken. How many seats are free?",
        {"a": (3, 12), "b": (3, 12), "c": (2, 60)},
        (("There are {} seats.", "a", "*", "b"), ("Then {} are free.", "#1", "-", "c")),
    ),
    Template(
        "bus",
        "A bus has {a} people. At a stop {b} get off and {c} get on. How many people are on the bus?",
        {"a": (5, 50), "b": (2, 30), "c": (2, 30)},
        (("There are {} people.", "a", "-", "b"), ("Then there are {}.", "#1", "+", "c")),
    ),
    Template(
        "three_days",
        "{name} picks {a} {item} on Monday, {b} on Tuesday and {c} on Friday. How many {item} is that?",
        {"a": (2, 30), "b": (2, 30), "c": (2, 30)},
        (("The first two days give {}.", "a", "+", "b"), ("In all {}.", "#1", "+", "c")),
    ),
    Template(
        "share_after",
        "{name} has {a} {item} and buys {b} more. Then {name} puts them equally into {c} boxes. How many go in each box?",
        {"a": (4, 40), "b": (2, 30), "c": (2, 6)},
        (("{name} has {} {item}.", "a", "+", "b"), ("Each box gets {}.", "#1", "/", "c")),
    ),
    Template(
        "save_weeks",
        "{name} saves {a} dollars a week and wants a toy for {t} dollars. How many weeks does it take?",
        {"a": (2, 12), "k": (2, 12)},
        (("It takes {} weeks.", "t", "/", "a"),),
        {"t": ("a", "k")},
        ("k",),
    ),
    Template(
        "save_more",
        "{name} has {b} dollars and saves {a} dollars a week. How many dollars does {name} have after {c} weeks?",
        {"a": (2, 12), "b": (5, 50), "c": (2, 9)},
        (("{name} saves {} dollars.", "a", "*", "c"), ("Then {name} has {}.", "b", "+", "#1")),
    ),
    Template(
        "legs",
        "A farm has {a} cows and {b} hens. A cow has 4 legs and a hen has 2. How many legs are there?",
        {"a": (2, 12), "b": (2, 12), "four": (4, 4), "two": (2, 2)},
        (
            ("The cows have {} legs.", "a", "*", "four"),
            ("The hens have {}.", "b", "*", "two"),
            ("In all {}.", "#1", "+", "#2"),
        ),
        hidden=("four", "two"),
    ),
    Template(
        "half",
        "{name} has {t} {item} and gives half of them to {other}. Then {name} gets {a} more. How many {item} now?",
        {"k": (2, 25), "a": (2, 20), "two": (2, 2)},
        (("Half is {}.", "t", "/", "two"), ("Then {name} has {} {item}.", "#1", "+", "a")),
        {"t": ("two", "k")},
        ("k", "two"),
    ),
    Template(
        "dozen",
        "{name} bakes {a} trays of {b} buns and sells them for {c} dollars each. How many dollars is that?",
        {"a": (2, 6), "b": (2, 9), "c": (2, 5)},
        (("There are {} buns.", "a", "*", "b"), ("They sell for {} dollars.", "#1", "*", "c")),
    ),
    Template(
        "score",
        "A team has {c} points and wins {a} games at {b} points each. How many points does it have now?",
        {"a": (2, 9), "b": (2, 5), "c": (2, 50)},
        (("The games give {} points.", "a", "*", "b"), ("Now it has {}.", "c", "+", "#1")),
    ),
    Template(
        "water",
        "A tank holds {c} litres. It loses {a} litres an hour. How many litres are left after {b} hours?",
        {"a": (2, 12), "b": (2, 9), "c": (30, 150)},
        (("It loses {} litres.", "a", "*", "b"), ("Then {} litres are left.", "c", "-", "#1")),
    ),
)
