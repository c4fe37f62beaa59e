"""Write the tables of docs/augmentation.md from results/augmentation: python docs/augmentation_tables.py

The rows come from `python benchmarks/augmentation_agreement.py` and `python benchmarks/augmentation.py`.
"""

from __future__ import annotations

from tables import DOCS, RESULTS, Row, Tables, number, rows, table, write

AGREEMENT = RESULTS / "augmentation" / "agreement.csv"
SPEED = RESULTS / "augmentation" / "speed.csv"
DOCUMENT = DOCS / "augmentation.md"
STEP = "training step"


def agreement() -> str:
    """Return how far each operation is from Pillow's."""
    found = rows(AGREEMENT)
    body = [[row["operation"], row["interpolation"], apart(row), row["largest"]] for row in found]
    shown = table(["operation", "interpolation", "mean difference", "largest"], body)
    first = found[0]
    return f"Levels of 255, on {first['images']} images of {first['data']}, Pillow {first['pillow']}:\n\n{shown}"


def apart(row: Row) -> str:
    return "exact" if row["largest"] == "0" else number(float(row["mean"]), ".4f")


def speed() -> str:
    """Return images a second in each way, and how they compare to timm's in the same rounds."""
    found = [row for row in rows(SPEED) if row["beside"] != STEP]
    body = []
    for row in found:
        per_second = float(row["batch"]) / float(row["milliseconds"]) * 1e3
        times = (
            f"{1 / float(row['ratio']):.2f} ({1 / float(row['ratio_high']):.2f} to {1 / float(row['ratio_low']):.2f})"
        )
        first = row["work"] == row["beside"]
        body.append([row["work"], milliseconds(row), f"{per_second:,.0f}", "" if first else times])
    first_row = found[0]
    where = f"{first_row['hardware']}, {first_row['threads']} thread, batches of {first_row['batch']} images of "
    where += f"{first_row['pixels']} pixels ({first_row['data']}), {first_row['versions']}"
    header = ["way", "ms a batch (quartiles)", "images a second", "times timm's (95 %)"]
    return f"{where}; load before: {first_row['load']}:\n\n{table(header, body)}"


def milliseconds(row: Row) -> str:
    return f"{float(row['milliseconds']):,.1f} ({float(row['low']):,.1f} to {float(row['high']):,.1f})"


def step() -> str:
    """Return the part of a training step that augmentation takes."""
    found = [row for row in rows(SPEED) if row["beside"] == STEP]
    body = []
    for row in found:
        middle, low, high = (100 * float(row[name]) for name in ("ratio", "ratio_low", "ratio_high"))
        part = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        body.append([row["work"], milliseconds(row), "" if row["work"] == STEP else part])
    return table(["work", "ms a batch (quartiles)", "% of the step (95 %)"], body)


TABLES: Tables = {"agreement": agreement, "speed": speed, "step": step}


if __name__ == "__main__":
    write(DOCUMENT, TABLES)
