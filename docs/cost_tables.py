"""Write the tables of docs/cost.md from results/cost and results/bench: python docs/cost_tables.py

The counts come from `mpvg cost --csv results/cost/counted.csv`, the measured times from `mpvg bench`. The pictures are
drawn by cost_figures.py.
"""

from __future__ import annotations

from dataclasses import fields

from bench_tables import attempts, bench_rows, hours_by_speed, loading, peaks, ratios, recipe_flops, recipe_hours
from mpvg.cost import Cost
from mpvg.cost.growth import MOVED, law, traffic_share
from mpvg.scheme import SCHEMES
from tables import DOCS, RESULTS, Tables, number, rows, table, write

DOCUMENT = DOCS / "cost.md"
COUNTED = RESULTS / "cost" / "counted.csv"
DEIT = "mpvg_deit_tiny_patch16_224"
MODELS = (
    DEIT,
    "mpvg_deit_small_patch16_224",
    "mpvg_deit_base_patch16_224",
    "mpvg_vit_lite_7_4_32",
    "mpvg_t2t_vit_7",
    "mpvg_ceit_tiny_patch16_224",
    "mpvg_swin_tiny_patch4_window7_224",
    "mpvg_vit_nano",
)
BATCHES = (1, 32, 256)
WIDTHS = (192, 384, 768)  # of DeiT-Ti, S and B, the first models
HEAD = 64  # width of a head in DeiT
TOKENS = (49, 196, 576, 1024)


def counted() -> dict[tuple[str, str], Cost]:
    """Return the committed costs by model and scheme."""
    found = {}
    for row in rows(COUNTED):
        values = {one.name: row[one.name] if one.type == "str" else int(row[one.name]) for one in fields(Cost)}
        found[row["model"], row["scheme"]] = Cost(**values)  # type: ignore[arg-type]
    return found


def percent(part: float) -> str:
    return number(100 * part, "+.3f") + " %" if part else "0"


def by_scheme() -> str:
    """Return what every scheme costs in DeiT-Ti."""
    found = counted()
    gap, body = found[DEIT, "gap"], []
    for scheme in SCHEMES:
        one = found[DEIT, scheme]
        extras = [percent(one.extra(gap, batch)["flops"]) for batch in BATCHES]
        more = one.parameters - gap.parameters
        body.append(
            [
                f"`{scheme}`",
                number(more, "+,d") if more else "0",
                f"{one.matmul / 1e6:,.1f}",
                f"{one.norm_flops / 1e6:.2f}",
                f"{one.added / 1e6:.3f}",
                *extras,
                percent(one.extra(gap, BATCHES[-1])["folded_flops"]),
            ]
        )
    batches = [f"extra, batch {batch}" for batch in BATCHES]
    header = ["scheme", "parameters", "matrix products", "LN', once", "additions, each image", *batches, "folded"]
    return table(header, body)


def by_model() -> str:
    """Return what `mpvg` costs in every architecture."""
    found, body = counted(), []
    for model in MODELS:
        one, gap, default = (found[model, scheme] for scheme in ("mpvg", "gap", "default"))
        body.append(
            [f"`{model}`", percent(one.extra(gap)["parameters"])]
            + [percent(one.extra(gap, batch)["flops"]) for batch in BATCHES]
            + [percent(one.extra(gap, BATCHES[-1])["folded_flops"]), percent(one.extra(default, BATCHES[-1])["flops"])]
        )
    batches = [f"FLOPs, batch {batch}" for batch in BATCHES]
    header = ["model", "parameters", *batches, "folded", f"FLOPs against `default`, batch {BATCHES[-1]}"]
    return table(header, body)


def by_memory() -> str:
    """Return what is kept for backward under `mpvg`."""
    found, body = counted(), []
    for model in MODELS:
        one, gap = found[model, "mpvg"], found[model, "gap"]
        parts = [percent(one.extra(gap, batch)["kept"]) for batch in BATCHES]
        body.append([f"`{model}`", *(f"{n / 2**20:,.2f}" for n in (one.kept_image, one.kept_positions)), *parts])
    batches = [f"extra, batch {batch}" for batch in BATCHES]
    return table(["model", "MiB an image", "MiB a step for positions", *batches], body)


def by_folding() -> str:
    """Return what folding `mpvg` takes away, and what it leaves."""
    found, body = counted(), []
    for model in MODELS:
        one = found[model, "mpvg"]
        gone, left = one.parameters - one.folded_parameters, one.folded_tables
        once = (one.merging + one.norm_flops) / 1e6
        body.append([f"`{model}`", f"{gone:,}", f"{once:,.2f}", f"{left:,}", f"{one.folded_added / 1e6:.3f}"])
    header = [
        "model",
        "parameters gone",
        "10⁶ FLOPs a forward pass gone",
        "numbers stored",
        "10⁶ additions an image left",
    ]
    return table(header, body)


def by_law() -> str:
    """Return the law beside the count for DeiT's three sizes."""
    found, body = counted(), []
    for model, width in zip(MODELS, WIDTHS, strict=False):
        one, gap = found[model, "mpvg"], found[model, "gap"]
        body.append(
            [f"`{model}`"]
            + [percent(value) for batch in BATCHES
               for value in (law(width=width, tokens=gap.tokens, batch=batch), one.extra(gap, batch)["flops"])]
        )  # fmt: skip
    return table(["model", *(f"{what}, batch {batch}" for batch in BATCHES for what in ("law", "counted"))], body)


def by_traffic() -> str:
    """Return how much more memory traffic a block has for its position, with heads of DeiT's width."""
    body = [
        [f"{tokens:,}", *(percent(traffic_share(width=HEAD, heads=1, tokens=tokens, fused=on)) for on in (True, False))]
        for tokens in TOKENS
    ]
    return table(["tokens", "attention in one kernel", "attention by separate operations"], body)


def moved() -> str:
    """Return the numbers that a block reads and writes, an operation a column."""
    return table([*MOVED, "all"], [[*map(str, MOVED.values()), str(sum(MOVED.values()))]])


TABLES: Tables = {
    "schemes": by_scheme,
    "models": by_model,
    "law": by_law,
    "moved": moved,
    "traffic": by_traffic,
    "memory": by_memory,
    "folding": by_folding,
    "bench inference": lambda: ratios(bench_rows(), work="inference"),
    "bench training": lambda: ratios(bench_rows(), work="training"),
    "bench memory": lambda: peaks(bench_rows(), work="training"),
    "attempts": attempts,
    "recipe flops": lambda: recipe_flops(rows(COUNTED)),
    "hours by speed": lambda: hours_by_speed(loading()),
    "recipe hours": lambda: recipe_hours(bench_rows(), loading()),
}


if __name__ == "__main__":
    write(DOCUMENT, TABLES)
