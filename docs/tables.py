"""What the documents' tables are made with; each document has a module that fills in its own.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. A test fails where a document is not what its module
would write.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
Row = dict[str, str]
Tables = Mapping[str, Callable[[], str]]


def rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def number(value: float, form: str) -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def filled(document: str, tables: Tables) -> str:
    """Return the document with each table between its marks as it is now."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{tables[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", fill, document, flags=re.S)


def write(document: Path, tables: Tables) -> None:
    """Write the tables into their document."""
    document.write_text(filled(document.read_text(encoding="utf-8"), tables), encoding="utf-8")
