"""Fingerprints of code. Oracle: what issue 9 says must, and must not, make an artifact stale; tried on real modules."""

import ast
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.execution import fingerprint
from infra.execution.fingerprint import BODY, differences, digest_of, fingerprint_of
from infra.execution.syntax import Scope, definitions

ROOT = Path(fingerprint.__file__).parents[2]
FILES = [
    "model/training/losses.py",
    "model/training/objectives.py",
    "tasks/training/dpo.py",
    "tasks/data/dedup.py",
    "model/tokens/tokenizer.py",
]


def texts(tree: ast.Module) -> dict[str, str]:
    """Every definition of a module, normalised."""
    found = definitions(tree, BODY)
    return {name: item.normalised(Scope(), set(found), "m", lambda _: None)[0] for name, item in found.items()}


def mutated(node: ast.AST) -> Callable[[], None] | None:
    """Change one literal, operator or called function in place, so that it computes something else; returns what undoes it."""
    match node:
        case ast.Constant(value=bool()):
            field, value = "value", not node.value
        case ast.Constant(value=int() | float()):
            field, value = "value", node.value + 1
        case ast.Constant(value=str()):
            field, value = "value", f"{node.value}x"
        case ast.BinOp():
            field, value = "op", ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        case ast.Compare():
            field, value = "ops", [ast.Lt() if isinstance(node.ops[0], ast.GtE) else ast.GtE(), *node.ops[1:]]
        case ast.BoolOp():
            field, value = "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case ast.Call(func=ast.Name() as name):
            node, field, value = name, "id", f"{name.id}_other"
        case ast.Call(func=ast.Attribute() as attribute):
            node, field, value = attribute, "attr", f"{attribute.attr}_other"
        case _:
            return None
    before = getattr(node, field)
    setattr(node, field, value)
    return lambda: setattr(node, field, before)


def annotations(statement: ast.stmt) -> Iterator[ast.expr]:
    """The annotations of a statement that nothing reads: all but those of the fields of a class."""
    fields = {id(item) for node in ast.walk(statement) if isinstance(node, ast.ClassDef) for item in node.body}
    for node in ast.walk(statement):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.arg) or (isinstance(node, ast.AnnAssign) and id(node) not in fields):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        yield from (part for part in found if part is not None)


@pytest.mark.parametrize("file", FILES)
def test_every_change_of_a_literal_an_operator_or_a_call_is_seen(file: str):
    tried = 0
    # Imports are no definitions; what is used of them stands in what uses it.
    for statement in ast.parse((ROOT / file).read_text()).body:
        module = ast.Module([statement], [])
        before = texts(module)
        bare = {
            id(node.value)
            for node in ast.walk(statement)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        bare |= {id(node) for part in annotations(statement) for node in ast.walk(part)}
        for node in list(ast.walk(statement)) if before else []:
            if id(node) in bare:
                continue  # a docstring, or a type that nothing reads
            undo = mutated(node)
            if undo is None:
                continue
            tried += 1
            assert texts(module) != before, f"line {getattr(node, 'lineno', '?')}: {ast.unparse(node)}"
            undo()
    assert tried > 50


class Renamer(ast.NodeTransformer):
    """Gives every local variable of a function another name, comprehensions' too; parameters keep theirs."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        arguments = {item.arg for item in ast.walk(node.args) if isinstance(item, ast.arg)}
        inner = {
            item.arg for part in ast.walk(node) if isinstance(part, ast.FunctionDef | ast.Lambda)
            for item in ast.walk(part.args) if isinstance(item, ast.arg)
        }  # fmt: skip
        stored = {item.id for item in ast.walk(node) if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)}
        free = {name for item in ast.walk(node) if isinstance(item, ast.Global | ast.Nonlocal) for name in item.names}
        self.names.append(stored - arguments - inner - free)
        node.body = [self.visit(item) for item in node.body]
        self.names.pop()
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if any(node.id in names for names in self.names):
            node.id = f"renamed_{node.id}"
        return node


@pytest.mark.parametrize("file", FILES)
def test_comments_docstrings_formatting_and_names_of_local_variables_are_not_seen(file: str):
    source = (ROOT / file).read_text()
    before = texts(ast.parse(source))
    # Without any comment, in another format.
    assert texts(ast.parse(ast.unparse(ast.parse(source)))) == before
    changed = ast.parse(source)
    for node in ast.walk(changed):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = "Other words."
    assert texts(changed) == before
    renamed = Renamer().visit(ast.parse(source))
    assert ast.dump(renamed) != ast.dump(ast.parse(source))
    assert texts(ast.parse(ast.unparse(renamed))) == before


class Untyped(ast.NodeTransformer):
    """Gives every annotation of a variable, a parameter and a return another type, and drops those that bind nothing."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = ast.Name("Other", ast.Load())
        for item in ast.walk(node.args):
            if isinstance(item, ast.arg):
                item.annotation = ast.Name("Other", ast.Load())
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        # Fields of the class keep theirs, its methods do not.
        node.body = [self.visit(item) if isinstance(item, ast.FunctionDef) else item for item in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        return ast.Assign([node.target], node.value, lineno=node.lineno) if node.value is not None else None


@pytest.mark.parametrize("file", FILES)
def test_annotations_that_nothing_reads_are_not_seen(file: str):
    source = (ROOT / file).read_text()
    changed = ast.parse(ast.unparse(ast.fix_missing_locations(Untyped().visit(ast.parse(source)))))
    assert ast.dump(changed) != ast.dump(ast.parse(source))
    assert texts(changed) == texts(ast.parse(source))


TYPED = """
from dataclasses import dataclass
from typing import get_type_hints
from pydantic import BaseModel, computed_field

@dataclass
class Part:
    size: int = 3

class Settings(BaseModel):
    rate: int = 1

    @computed_field
    def twice(self) -> int:
        return self.rate * 2

    @property
    def half(self) -> int:
        return self.rate // 2

def checks(text, count: int):
    return len(text) == count

CHECKS = {"checks": checks}

def types_of(name):
    return get_type_hints(CHECKS[name])

def work(value: int) -> int:
    local: int = value
    known: int
    known = local + Part().size + Settings().half
    return known + len(types_of("checks")) + helped(known)

def helped(value: int) -> int:
    return value
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("local: int =", "local: float =", []),
        ("    known: int\n", "", []),
        ("def helped(value: int) -> int", "def helped(value)", []),
        ("def half(self) -> int", "def half(self) -> float", []),
        # These are read while the code runs: they make fields, arguments and forms.
        ("size: int = 3", "size: float = 3", ["toy/typed.py: Part changed"]),
        ("rate: int = 1", "rate: float = 1", ["toy/typed.py: Settings changed"]),
        ("def twice(self) -> int", "def twice(self) -> float", ["toy/typed.py: Settings.twice changed"]),
        ("count: int", "count: float", ["toy/typed.py: checks changed"]),
        ("def work(value: int)", "def work(value: float)", ["toy/typed.py: work changed"]),
    ],
)
def test_an_edit_of_annotations_makes_nothing_stale_but_where_they_are_read(
    toy: Path, old: str, new: str, told: list[str]
):
    (toy / "typed.py").write_text(TYPED)
    importlib.invalidate_caches()
    before = fingerprint_of(function("toy.typed"))
    edit(toy / "typed.py", old, new)
    assert differences(before, fingerprint_of(function("toy.typed"))) == told


@pytest.mark.parametrize(
    ("imported", "reader"),
    [
        ("import typing", "typing.get_type_hints(CHECKS[name])"),
        ("import pydantic", "pydantic.TypeAdapter(CHECKS[name]).json_schema()"),
    ],
)
def test_what_reads_annotations_is_known_by_a_dotted_name_too(toy: Path, imported: str, reader: str):
    text = TYPED.replace("from typing import get_type_hints", imported).replace("get_type_hints(CHECKS[name])", reader)
    (toy / "typed.py").write_text(text)
    importlib.invalidate_caches()
    before = fingerprint_of(function("toy.typed"))
    edit(toy / "typed.py", "count: int", "count: float")
    assert differences(before, fingerprint_of(function("toy.typed"))) == ["toy/typed.py: checks changed"]


def test_a_program_that_is_run_as_a_file_belongs_to_what_names_it(toy: Path):
    edit(toy / "more.py", "'words.txt'", "'child.py'")
    (toy / "child.py").write_text("LIMIT = 3\nprint(LIMIT)\n")
    importlib.invalidate_caches()
    before = fingerprint_of(function())
    edit(toy / "child.py", "print(LIMIT)", "print(LIMIT)  # shown")
    assert differences(before, fingerprint_of(function())) == []
    edit(toy / "child.py", "LIMIT = 3", "LIMIT = 4")
    assert differences(before, fingerprint_of(function())) == ["toy/child.py: LIMIT changed"]


WORK = '''
"""A stage."""
from toy.parts import RATE, Shape, scale as scaled, unused
from toy import more

def work(value):
    total = sum(scaled(item, RATE) for item in value)
    return Shape(total).area() + more.extra(total)

def beside():
    return 1
'''
PARTS = '''
RATE = 3
OTHER = 4

def scale(item, rate):
    """Times the rate."""
    return item * rate + inner()

def inner():
    return 5

def unused():
    return 6

class Shape:
    side: int = 7

    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side ** 2
'''
MORE = "def extra(x):\n    return open('words.txt').read() if x else x\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of three modules and a data file."""
    folder = tmp_path / "toy"
    folder.mkdir()
    for name, text in {"__init__": "", "work": WORK, "parts": PARTS, "more": MORE}.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "words.txt").write_text("words")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fingerprint, "PACKAGES", ("toy",))
    monkeypatch.setattr(fingerprint, "_root", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "toy"]:
        del sys.modules[name]
    fingerprint._find.cache_clear()
    for name in [name for name in fingerprint._modules if name.split(".")[0] == "toy"]:
        del fingerprint._modules[name]


def function(name: str = "toy.work") -> Callable:
    return importlib.import_module(name).work


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


OTHER_CALL = "toy/parts.py: unused is new, RATE is gone, inner is gone, scale is gone"


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("parts.py", "RATE = 3", "RATE = 4", ["toy/parts.py: RATE changed"]),
        ("parts.py", "return 5", "return 55", ["toy/parts.py: inner changed"]),
        ("parts.py", "item * rate", "item + rate", ["toy/parts.py: scale changed"]),
        ("parts.py", "** 2", "** 3", ["toy/parts.py: Shape.area changed"]),
        ("parts.py", "side: int = 7", "side: int = 8", ["toy/parts.py: Shape changed"]),
        ("more.py", "if x else x", "if x else 0", ["toy/more.py: extra changed"]),
        ("words.txt", "words", "other", ["toy/words.txt: (file) changed"]),
        ("work.py", "+ more", "- more", ["toy/work.py: work changed"]),
        ("work.py", "scaled(item, RATE)", "unused()", ["toy/work.py: work changed", OTHER_CALL]),
        ("parts.py", "\ndef inner", "\nprint('imported')\n\ndef inner", ["toy/parts.py: (module) is new"]),
    ],
)  # fmt: skip
def test_what_a_stage_uses_is_named_when_it_changes(toy: Path, file: str, old: str, new: str, told: list[str]):
    before = fingerprint_of(function())
    edit(toy / file, old, new)
    found = differences(before, fingerprint_of(function()))
    assert sorted(found) == sorted(told)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("parts.py", "OTHER = 4", "OTHER = 5"),
        ("parts.py", "return 6", "return 7"),
        ("parts.py", "Times the rate.", "By the rate."),
        ("work.py", "return 1", "return 2"),
        ("work.py", "total", "summed"),
        ("work.py", "for item in", "for one in"),
        ("work.py", "scale as scaled", "scale as scaled  # a comment"),
    ],
)
def test_what_a_stage_does_not_use_is_nothing_to_it(toy: Path, file: str, old: str, new: str):
    before = fingerprint_of(function())
    edit(toy / file, old, new)
    if new == "for one in":
        edit(toy / file, "scaled(item", "scaled(one")
    assert differences(before, fingerprint_of(function())) == []


def test_a_module_that_moves_is_the_same(toy: Path):
    before = fingerprint_of(function())
    (toy / "deep").mkdir()
    (toy / "deep" / "__init__.py").touch()
    shutil.move(toy / "parts.py", toy / "deep" / "pieces.py")
    edit(toy / "work.py", "toy.parts", "toy.deep.pieces")
    for name in ("toy.work", "toy.parts"):
        sys.modules.pop(name, None)
    fingerprint._find.cache_clear()
    importlib.invalidate_caches()
    now = fingerprint_of(function())
    assert "toy/deep/pieces.py" in now
    assert differences(before, now) == []
    assert digest_of(now) == digest_of(before)


def test_real_stages_cover_what_they_compute_with():
    from tasks.data.synthesis.rewrite import rewrite
    from tasks.training.dpo import dpo

    found = fingerprint_of(dpo.function)
    assert "dpo_loss" in found["model/training/objectives.py"]
    assert "learning_rate" in found["model/training/schedule.py"]
    assert "(file)" in found["model/tokens/vocabulary/cl100k_base.tiktoken"]
    assert not any(file.startswith("flows/") for file in found)
    assert any(file.startswith("tasks/prompts/rewrite_") for file in fingerprint_of(rewrite.function))
