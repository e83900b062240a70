"""Parsing of Python source, one thread at a time.

CPython before 3.12 counts the depth of the tree it builds in a place that all threads share (bpo-106905). Two threads that parse
at once can end with "SystemError: AST constructor recursion depth mismatch". Stages run in threads, so a lock stands around it.
"""

import ast
import threading

_PARSER = threading.Lock()


def parse(source: str | bytes) -> ast.Module:
    """The tree of a module. Raises SyntaxError, ValueError and RecursionError as `ast.parse` does."""
    with _PARSER:
        return ast.parse(source)
