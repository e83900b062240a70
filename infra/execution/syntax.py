"""Syntax trees as text that says what the code does and not how it is written, for `fingerprint.py`.

Comments and formatting are in no tree. Docstrings and other bare strings are taken out, and so are annotations that nothing
reads while the code runs: those of variables, parameters and returns. Fields of classes that something is made of (pydantic
models, dataclasses, named tuples) keep theirs, and so do functions under a decorator that may read them.

A local variable stands as a number, by its first occurrence in its function; parameters keep their names, since callers may use
them. A name of the module's stands as it is; one of ours that is imported stands under its own name, one of another package
under its full one.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
READERS = ("get_type_hints", "TypeAdapter")
"""Whoever names one of these reads the annotations of what it refers to."""
_BLIND = frozenset(
    {"abstractmethod", "cache", "cached_property", "classmethod", "contextmanager", "field_validator", "lru_cache"}
    | {"model_validator", "no_grad", "override", "property", "staticmethod"}
)
"""Decorators that do not read annotations."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Scope:
    """What imported names mean: a definition in a module (`from m import x`), or a module itself (`import m`)."""

    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)

    def extended(self, other: "Scope") -> "Scope":
        return Scope(self.names | other.names, self.modules | other.modules)


def imported_names(body: list[ast.stmt], module: str, *, is_package: bool) -> Scope:
    """What the import statements among some statements bind, also in blocks of theirs; not inside functions."""
    scope = Scope()
    for node in _statements(body):
        _bind_import(node, scope, module, is_package)
    return scope


def _bind_import(node: ast.AST, scope: Scope, module: str, is_package: bool) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            # `import a.b` binds `a`; what is used of it is followed by its dots.
            scope.modules[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0]
            )
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            above = module.split(".")[: len(module.split(".")) - node.level + is_package]
            source = ".".join([*above, *([source] if source else [])])
        for alias in node.names:
            scope.names[alias.asname or alias.name] = (source, alias.name)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for inner in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(statement, inner, []))
            for handler in getattr(statement, "handlers", []):
                yield from _statements(handler.body)


@dataclass
class Definition:
    """Statements that make one name of a module; a method's has the name of its class before it."""

    nodes: list[ast.stmt]
    members: list[str] = field(default_factory=list)
    """Methods of a class, which are definitions of their own."""

    def strings(self) -> Iterator[str]:
        """All string constants."""
        for node in self.nodes:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.value

    @cached_property
    def reads_types(self) -> bool:
        """Whether it asks for annotations of what it refers to, by a name or as `typing.get_type_hints`. Made once: all nodes are
        there by then.
        """
        return any(_named(inner) in READERS for node in self.nodes for inner in ast.walk(node))

    def normalised(
        self, scope: Scope, own: set[str], module: str, find: Callable[[str], Any], *, typed: bool = False
    ) -> tuple[str, list[tuple[str, str]]]:
        """The text, and (module, name) of what it refers to: module "" for this one, name "*" for a whole module. Annotations
        are part of it where it is `typed`: something that runs reads them.
        """
        inner = Scope()
        for node in self.nodes:
            for child in ast.walk(node):
                _bind_import(child, inner, module, False)
        writer = Writer(scope.extended(inner), own, find, typed)
        text = "\n".join(writer.text(node) for node in self.nodes)
        return f"{text} {self.members}", [*writer.reached, *(("", member) for member in self.members)]


def definitions(tree: ast.Module, body_name: str) -> dict[str, Definition]:
    """What a module defines, by name; statements that define nothing are together under `body_name`."""
    found: dict[str, Definition] = {}

    def add(name: str, node: ast.stmt) -> None:
        found.setdefault(name, Definition([])).nodes.append(node)

    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                add(node.name, node)
            case ast.ClassDef():
                methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
                rest = [part for part in node.body if part not in methods]
                add(node.name, ast.ClassDef(node.name, node.bases, node.keywords, rest, node.decorator_list))
                for method in methods:
                    add(f"{node.name}.{method.name}", method)
                    found[node.name].members.append(f"{node.name}.{method.name}")
            case ast.Import() | ast.ImportFrom():
                pass
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.AnnAssign(value=None):
                pass
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
                for name in names or [body_name]:
                    add(name, node)
            case _:
                add(body_name, node)
    return found


class Writer:
    """Writes syntax trees as text and collects what they refer to outside themselves."""

    def __init__(self, scope: Scope, own: set[str], find: Callable[[str], Any], typed: bool = False):
        self.reached: list[tuple[str, str]] = []
        self._scope = scope
        self._own = own
        self._find = find
        self._locals: list[dict[str, str]] = []
        self._count = 0
        self._typed = typed
        self._fields_count = False
        """Whether annotations of assignments are read here: in the body of a class that something is made of."""

    def text(self, node: Any) -> str:
        """One node, with all below it."""
        match node:
            case list():
                kept = [item for item in node if not (_says_nothing(item) or self._only_annotates(item))]
                return f"[{','.join(map(self.text, kept))}]"
            case ast.Attribute() if (dotted := self._outside(node)) is not None:
                return dotted
            case ast.Name():
                return self._name(node.id, type(node.ctx).__name__)
            case ast.Global() | ast.Nonlocal():
                return f"{type(node).__name__}({','.join(map(self._local, node.names))})"
            case ast.AST():
                return self._node(node)
            case _:
                return repr(node)

    def _only_annotates(self, node: Any) -> bool:
        return isinstance(node, ast.AnnAssign) and node.value is None and not self._fields_count

    def _node(self, node: ast.AST) -> str:
        if isinstance(node, _FUNCTIONS):
            outside, self._fields_count = self._fields_count, False
            text = self._function(node)
            self._fields_count = outside
            return text
        if isinstance(node, ast.ClassDef):
            outside = self._fields_count
            # A plain class has no use for its annotations; a base or a decorator may make fields of them.
            self._fields_count = self._typed or bool(node.bases or node.keywords or node.decorator_list)
            text = self._fields(node)
            self._fields_count = outside
            return text
        if isinstance(node, ast.AnnAssign) and node.value is not None and not self._fields_count:
            # As the same assignment without its annotation is written.
            return self._fields(ast.Assign([node.target], node.value))
        if isinstance(node, COMPREHENSIONS):
            # What comes first is evaluated outside, which matters to nobody here.
            with_names = [name for part in node.generators for name in _bound(part.target)]
            return self._inside(with_names, lambda: self._fields(node, order=("generators", "key", "value", "elt")))
        return self._fields(node)

    def _fields(self, node: ast.AST, order: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> str:
        names = sorted(node._fields, key=lambda name: order.index(name) if name in order else -1)
        parts = []
        for name in names:
            value = getattr(node, name, None)
            if name in ("type_comment", "kind") or name in without:
                continue
            if self._binds_text(node, name, value):
                parts.append(f"{name}={self._local(str(value))}")
            else:
                parts.append(f"{name}={self.text(value)}")
        return f"{type(node).__name__}({','.join(parts)})"

    @staticmethod
    def _binds_text(node: ast.AST, name: str, value: Any) -> bool:
        """Fields that bind a variable by its bare name."""
        kinds = (ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return isinstance(value, str) and (
            (name == "name" and isinstance(node, kinds)) or (name == "rest" and isinstance(node, ast.MatchMapping))
        )

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [item for item in (arguments.vararg, arguments.kwarg) if item is not None]
        # Defaults, decorators and annotations that are read belong to the outside.
        head = [
            self.text(getattr(node, "decorator_list", [])),
            self.text(arguments.defaults),
            self.text(arguments.kw_defaults),
        ]
        if self._typed or not all(_decorator(item) in _BLIND for item in getattr(node, "decorator_list", [])):
            head += [self.text(item.annotation) for item in every] + [self.text(getattr(node, "returns", None))]
        name = "" if isinstance(node, ast.Lambda) else self._local(node.name)
        kinds = [len(arguments.posonlyargs), len(arguments.args), len(arguments.kwonlyargs)]
        kinds += [int(arguments.vararg is not None), int(arguments.kwarg is not None)]
        parameters = {item.arg: item.arg for item in every}
        body = node.body if isinstance(node.body, list) else [node.body]
        bound = [name for name in _bound_in(body) if name not in parameters]
        known = list(parameters) if isinstance(node, ast.Lambda) else []

        def inside() -> str:
            if not isinstance(node, ast.Lambda):
                self._locals[-1].update(parameters)
            names = [self._local(item.arg) for item in every]
            return f"{type(node).__name__}({name},{kinds},{names},{','.join(head)},{self.text(body)})"

        return self._inside([*known, *bound], inside)

    def _inside(self, names: list[str], write: Callable[[], str]) -> str:
        self._locals.append(dict.fromkeys(names, ""))
        try:
            return write()
        finally:
            self._locals.pop()

    def _local(self, name: str) -> str:
        """A variable's number, given at its first occurrence; any other name as it is."""
        for scope in reversed(self._locals):
            if name in scope:
                if not scope[name]:
                    scope[name] = f"${self._count}"
                    self._count += 1
                return scope[name]
        return name

    def _is_local(self, name: str) -> bool:
        return any(name in scope for scope in self._locals)

    def _name(self, name: str, context: str) -> str:
        if self._is_local(name):
            return f"{context}:{self._local(name)}"
        if name in self._scope.names:
            module, original = self._scope.names[name]
            whole = f"{module}.{original}"
            if self._find(whole) is not None:
                self.reached.append((whole, "*"))
                return f"module:{original}"
            self.reached.append((module, original))
            return f"{context}:{self._shown(module, original)}"
        if name in self._scope.modules:
            self.reached.append((self._scope.modules[name], "*"))
            return f"module:{self._scope.modules[name]}"
        if name in self._own:
            self.reached.append(("", name))
        return f"{context}:{name}"

    def _shown(self, module: str, name: str) -> str:
        """Without its module, if that is one of ours, so that it may move."""
        return f"{module}.{name}" if self._find(module) is None else name

    def _outside(self, node: ast.Attribute) -> str | None:
        """`module.name` of an imported module, as a reference to that one name; None for any other attribute."""
        dots = [node.attr]
        inner = node.value
        while isinstance(inner, ast.Attribute):
            dots.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name) or self._is_local(inner.id):
            return None
        if inner.id in self._scope.modules:
            module = self._scope.modules[inner.id]
        elif inner.id in self._scope.names:
            module = ".".join(self._scope.names[inner.id])
        else:
            return None
        # The longest module first: `a.b.c` may be the name c of a.b, or the module a.b.c.
        while dots and self._find(f"{module}.{dots[0]}") is not None:
            module = f"{module}.{dots.pop(0)}"
        if not dots or self._find(module) is None:
            return None
        self.reached.append((module, dots[0]))
        return f"{type(node.ctx).__name__}:{'.'.join(dots)}"


def _decorator(node: ast.expr) -> str:
    """The last name of a decorator: `no_grad` of `@torch.no_grad()`."""
    return _named(node.func if isinstance(node, ast.Call) else node)


def _named(node: ast.AST) -> str:
    """The last part of a name, dotted or not; empty for what is no name."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _says_nothing(node: Any) -> bool:
    """Docstrings, other bare strings, imports: names that are used say where they are from."""
    bare = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return bare or isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)


def _bound(target: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _bound_in(body: list[Any]) -> list[str]:
    """Variables of a function: what its statements bind, not those of functions and comprehensions inside it."""
    found: list[str] = []
    outside: set[str] = set()

    def visit(node: ast.AST) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.append(node.name)
                for part in node.decorator_list:
                    visit(part)
                return
            case ast.Lambda():
                return
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                # A walrus inside one binds here.
                found.extend(item.target.id for item in ast.walk(node) if isinstance(item, ast.NamedExpr))
                return
            case ast.Name(ctx=ast.Store() | ast.Del()):
                found.append(node.id)
            case (
                ast.ExceptHandler(name=str() as name)
                | ast.MatchAs(name=str() as name)
                | ast.MatchStar(name=str() as name)
            ):
                found.append(name)
            case ast.MatchMapping(rest=str() as name):
                found.append(name)
            case ast.Global() | ast.Nonlocal():
                outside.update(node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for node in body:
        visit(node)
    return [name for name in found if name not in outside]
