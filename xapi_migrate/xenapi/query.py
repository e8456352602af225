"""The little language of get_all_where and get_all_records_where.

    true | false | field "name" = "text" | not EXPR | EXPR and EXPR | EXPR or EXPR | (EXPR)

Texts stand in double or single quotes and are compared with a field's database form (integers as decimal text).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from xapi_migrate.errors import InvalidValue
from xapi_migrate.store.interfaces import Record
from xapi_migrate.xenapi.wire import iso8601

Predicate = Callable[[Record], bool]

_TOKEN = re.compile(r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>[A-Za-z_]+)|(?P<sign>[()=]))""")
MOST_TOKENS = 1000
DEEPEST = 50


def parse_query(expression: str) -> Predicate:
    """InvalidValue if it is not in the language."""
    parser = _Parser(expression)
    predicate = parser.either(0)
    if parser.next() is not None:
        raise InvalidValue("expr", expression[:200])
    return predicate


def database_form(value: Any) -> str:
    """A value as a query writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return iso8601(value)
    return str(value)


class _Parser:
    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens: list[str] = []
        self._at = 0
        position, end = 0, len(expression.rstrip())
        while position < end:
            found = _TOKEN.match(expression, position)
            if found is None or len(self._tokens) > MOST_TOKENS:
                raise self._wrong()
            self._tokens.append(found[0].strip())
            position = found.end()

    def _wrong(self) -> InvalidValue:
        return InvalidValue("expr", self._expression[:200])

    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self, *expected: str) -> str:
        token = self.next()
        if token is None or (expected and token not in expected):
            raise self._wrong()
        self._at += 1
        return token

    def _quoted(self) -> str:
        token = self._take()
        if token[0] not in "\"'":
            raise self._wrong()
        return re.sub(r"\\(.)", r"\1", token[1:-1])

    def either(self, depth: int) -> Predicate:
        left = self._both(depth)
        while self.next() == "or":
            self._take()
            left = _either(left, self._both(depth))
        return left

    def _both(self, depth: int) -> Predicate:
        left = self._one(depth)
        while self.next() == "and":
            self._take()
            left = _both(left, self._one(depth))
        return left

    def _one(self, depth: int) -> Predicate:
        if depth > DEEPEST:
            raise self._wrong()
        token = self._take("(", "not", "true", "false", "field")
        if token == "(":
            inner = self.either(depth + 1)
            self._take(")")
            return inner
        if token == "not":
            negated = self._one(depth + 1)
            return lambda record: not negated(record)
        if token == "field":
            name = self._quoted()
            self._take("=")
            return _equals(name, self._quoted())
        return lambda record: token == "true"


def _either(left: Predicate, right: Predicate) -> Predicate:
    return lambda record: left(record) or right(record)


def _both(left: Predicate, right: Predicate) -> Predicate:
    return lambda record: left(record) and right(record)


def _equals(name: str, text: str) -> Predicate:
    plain = name.replace("__", "_")

    def compare(record: Record) -> bool:
        for candidate in (name, plain):
            if candidate in record and not candidate.startswith("_"):
                return database_form(record[candidate]) == text
        raise InvalidValue("expr", f"there is no field {name[:100]}")

    return compare
