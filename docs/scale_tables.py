"""Write the tables of docs/scale.md from results/scale/equality.csv and the models: python docs/scale_tables.py

The rows come from `python benchmarks/processes.py`.
"""

from __future__ import annotations

import timm

import mpvg  # registers the models
from tables import DOCS, RESULTS, Tables, rows, table, write

assert mpvg
DOCUMENT = DOCS / "scale.md"
EQUALITY = RESULTS / "scale" / "equality.csv"


def equality() -> str:
    """Return the largest differences of trainings in two processes to that in one."""
    found: dict[str, dict[str, str]] = {}
    for row in rows(EQUALITY):
        found.setdefault(row["two processes"], {})[row["what"]] = f"{float(row['largest_difference']):.0e}"
    header = next(iter(found.values()))
    return table(["two processes beside one", *header], [[how, *values.values()] for how, values in found.items()])


def sent() -> str:
    """Return what DDP sends in a step over 8 devices, and what of it a scheme's position norms are."""
    body = []
    for label, name in (("DeiT-Ti", "tiny"), ("DeiT-S", "small"), ("DeiT-B", "base")):
        counts = {}
        for scheme in ("gap", "mpvg"):
            model = timm.create_model(f"mpvg_deit_{name}_patch16_224", scheme=scheme, device="meta", weight_init="skip")
            counts[scheme] = sum(parameter.numel() for parameter in model.parameters())
        norms = counts["mpvg"] - counts["gap"]
        a_step = 4 * counts["mpvg"] * 2 * 7 / 8
        body.append(
            [
                label,
                f"{counts['gap']:,}",
                f"{norms:,}",
                f"{100 * norms / counts['gap']:.2f} %",
                f"{a_step / 1e6:.0f} MB",
            ]
        )
    header = ["", "P under `gap`", "more under `mpvg`", "", "sent by each of 8 devices in a step of `mpvg`"]
    return table(header, body)


TABLES: Tables = {"equality": equality, "sent": sent}


if __name__ == "__main__":
    write(DOCUMENT, TABLES)
