"""Write the tables of docs/analysis.md from the numbers in results/fashion_mnist: python docs/analysis_tables.py

The numbers come from `mpvg compare` and `mpvg analyze`; the commands stand in the document.
"""

from __future__ import annotations

from mpvg.analysis.printed import FIGURE_6
from mpvg.stats import Interval, paired_difference, student_interval, verdict
from tables import DOCS, RESULTS, Row, Tables, number, rows, table, write

FASHION = RESULTS / "fashion_mnist"
DOCUMENT = DOCS / "analysis.md"


def interval(found: Interval, form: str) -> str:
    if found.low is None or found.high is None:
        return number(found.mean, form)
    return f"{number(found.mean, form)} ({number(found.low, form)} to {number(found.high, form)})"


def accuracies() -> str:
    """Return accuracy by scheme, and its difference to gap, seed by seed."""
    by_scheme: dict[str, dict[str, float]] = {}
    for row in rows(FASHION / "results.csv"):
        by_scheme.setdefault(row["scheme"], {})[row["seed"]] = 100 * float(row["accuracy"])
    body = []
    for scheme, accuracy in by_scheme.items():
        difference = paired_difference(list(accuracy.values()), [by_scheme["gap"][seed] for seed in accuracy])
        compared = ["", "reference"] if scheme == "gap" else [interval(difference, "+.2f"), verdict(difference, "gap")]
        body.append([f"`{scheme}`", interval(student_interval(list(accuracy.values())), ".2f"), *compared])
    return table(["scheme", "test accuracy, % (95 %)", "minus `gap`, points (95 %)", ""], body)


def measured(measure: str) -> dict[str, dict[str, list[float]]]:
    """Return a measure, or all whose names begin like it, of every seed by scheme and block."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows(FASHION / "measures.csv"):
        if (row["measure"] == measure or (measure[-1] == "_" and row["measure"].startswith(measure))) and row["value"]:
            found.setdefault(row["scheme"], {}).setdefault(row["block"], []).append(float(row["value"]))
    return found


def by_block(measure: str, form: str, factor: float = 1) -> str:
    found = measured(measure)
    blocks = sorted(
        {block for values in found.values() for block in values}, key=lambda name: (not name.isdigit(), name)
    )
    body = [
        [f"`{scheme}`"]
        + [
            interval(student_interval([factor * value for value in values[block]]), form) if block in values else ""
            for block in blocks
        ]
        for scheme, values in found.items()
    ]
    return table(["scheme", *(f"block {block}" if block.isdigit() else block for block in blocks)], body)


def at_last_norm() -> str:
    """Return the measures at the Last LN by scheme, the paper's beside them."""
    measures = {
        "var_beta": "var(β)",
        "var_beta_and_constant": "var(β + c)",
        "cosine": "cosine",
        "cosine_with_position": "cosine, position in",
        "correlation_before": "r with x_L",
        "correlation_after": "r with LN(x_L)",
    }
    found = {measure: measured(measure) for measure in measures}
    body = []
    for scheme in found["var_beta"]:
        cells = []
        for measure in measures:
            values = found[measure].get(scheme, {}).get("")
            form = ".2f" if measure.startswith("co") else ".2g"
            paper = FIGURE_6.get(scheme, {}).get(measure)
            cell = interval(student_interval(values), form) if values else ""
            cells.append(cell if paper is None else f"{cell}; paper {paper}")
        body.append([f"`{scheme}`", *cells])
    return table(["scheme", *measures.values()], body)


def tested() -> str:
    """Return the paper's statements and what was found."""

    def text(row: Row) -> str:
        found = Interval(*(float(row[name]) if row[name] else None for name in ("mean", "low", "high")))  # type: ignore[arg-type]
        return interval(found, ".2g")

    statements = rows(FASHION / "statements.csv")
    body = [
        [row["claim"], row["where"], f"{row['measure']} {row['expected']}", text(row), f"**{row['verdict']}**"]
        for row in statements
    ]
    return table(["the paper says", "models", "expected", f"found (95 %, {statements[0]['seeds']} seeds)", ""], body)


TABLES: Tables = {
    "accuracies": accuracies,
    "statements": tested,
    "correlations": lambda: by_block("correlation", ".2f"),
    "last norm": at_last_norm,
    "removed": lambda: by_block("accuracy_change, removed", "+.1f", 100),
    "replaced": lambda: by_block("accuracy_change, d_", "+.1f", 100),
    "variance shares": lambda: by_block("variance_share", ".2f"),
    "ranks": lambda: by_block("effective_rank", ".1f"),
}


if __name__ == "__main__":
    write(DOCUMENT, TABLES)
