"""Write the tables of docs/beyond_images.md from results/beyond_images/*.csv: python docs/beyond_images_tables.py"""

from __future__ import annotations

from collections.abc import Mapping

from analysis_tables import interval
from mpvg.stats import paired_difference, student_interval, verdict
from tables import DOCS, RESULTS, Row, Tables, number, rows, table, write

DOCUMENT, FOLDER = DOCS / "beyond_images.md", RESULTS / "beyond_images"
SCHEMES = ("default", "gap", "lape", "lape_gap", "pvg", "mpvg")
PAIRS = (
    ("mpvg", "gap"),
    ("mpvg", "pvg"),
    ("mpvg", "default"),
    ("mpvg", "lape"),
    ("lape", "default"),
    ("gap", "default"),
)
Seeds = Mapping[str, float]


def sets() -> list[Row]:
    return rows(FOLDER / "sets.csv")


def accuracies(column: str = "accuracy", tokens: str = "in order") -> Mapping[tuple[str, str], Seeds]:
    """Return percent by seed of each (set, scheme).

    Raises:
        ValueError: Two rows of one set, scheme and seed.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows(FOLDER / "runs.csv"):
        if row["tokens"] == tokens:
            seeds = found.setdefault((row["set"], row["scheme"]), {})
            if row["seed"] in seeds:
                raise ValueError(
                    f"{row['set']}, {row['scheme']}, seed {row['seed']}: two rows; leave the one that counts."
                )
            seeds[row["seed"]] = 100 * float(row[column])
    return found


def by_set() -> str:
    """Return each scheme's accuracy on each set."""
    found = accuracies()
    names = [one["set"] for one in sets()]
    body = [
        [f"`{scheme}`", *(interval(student_interval([*found[name, scheme].values()]), ".1f") for name in names)]
        for scheme in SCHEMES
    ]
    return table(["scheme", *(f"{name}, %" for name in names)], body)


def differences() -> str:
    """Return differences of schemes, paired by seed, with what they show."""
    found = accuracies()
    body = []
    for one, other in PAIRS:
        cells = []
        for name in (row["set"] for row in sets()):
            seeds = found[name, one].keys()
            values, others = ([found[name, scheme][seed] for seed in seeds] for scheme in (one, other))
            difference = paired_difference(values, others)
            said = verdict(difference, "").split(" than")[0]
            cells.append(f"{interval(difference, '+.1f')}: {said}")
        body.append([f"`{one}` to `{other}`", *cells])
    return table(["difference", *(row["set"] for row in sets())], body)


def shown() -> str:
    """Say in how many of all comparisons a difference was shown."""
    found, higher, lower, total = accuracies(), 0, 0, 0
    for one, other in PAIRS:
        for name in (row["set"] for row in sets()):
            seeds = found[name, one].keys()
            values, others = ([found[name, scheme][seed] for seed in seeds] for scheme in (one, other))
            said = verdict(paired_difference(values, others), "")
            higher, lower, total = higher + said.startswith("higher"), lower + said.startswith("lower"), total + 1
    return f"Of {total} differences in the table, {higher} are shown to be gains and {lower} to be losses."


def order() -> str:
    """Return what is left of the accuracy when tokens come in random order."""
    in_order, mixed, trained = accuracies(), accuracies("shuffled_accuracy"), accuracies(tokens="shuffled")
    body = []
    for one in sets():
        name = one["set"]
        cells = [interval(student_interval([*found[name, "gap"].values()]), ".1f") for found in (in_order, trained)]
        tested = [interval(student_interval([*mixed[name, scheme].values()]), ".1f") for scheme in ("gap", "mpvg")]
        body.append([name, number(100 * float(one["majority"]), ".1f"), *cells, *tested])
    header = ["set", "largest class, %", "`gap`, in order", "`gap`, trained and tested shuffled"]
    return table([*header, "`gap`, only tested shuffled", "`mpvg`, only tested shuffled"], body)


def described() -> str:
    """Return what each set is, and how long it was trained on."""
    body = [
        [
            one["set"], one["task"], one["classes"], f"{one['train']} / {one['val']} / {one['test']}", one["lengths"],
            one["channels"], one["patch_size"], one["epochs"], one["steps"], one["seeds"],
        ]
        for one in sets()
    ]  # fmt: skip
    header = [
        "set",
        "task",
        "classes",
        "train / val / test",
        "lengths",
        "channels",
        "steps a token",
        "epochs",
        "updates",
    ]
    return table([*header, "seeds"], body)


def rates() -> str:
    """Return the learning rate that each scheme chose on each set."""
    chosen: dict[tuple[str, str], str] = {}
    for row in rows(FOLDER / "runs.csv"):
        if row["tokens"] == "in order":
            chosen[row["set"], row["scheme"]] = row["lr"]
    body = [[f"`{scheme}`", *(chosen[one["set"], scheme] for one in sets())] for scheme in SCHEMES]
    return table(["scheme", *(one["set"] for one in sets())], body)


def correlations() -> str:
    """Return each set's correlation of tokens and delivered position by block, the mean over the seeds."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in rows(FOLDER / "correlations.csv"):
        if row["correlation"]:
            of_block = found.setdefault((row["set"], row["scheme"]), {}).setdefault(int(row["block"]), [])
            of_block.append(float(row["correlation"]))
    blocks = sorted({block for by_block in found.values() for block in by_block})
    body = [
        [name, f"`{scheme}`", *(_mean(by_block.get(block, [])) for block in blocks)]
        for (name, scheme), by_block in found.items()
    ]
    return table(["set", "scheme", *map(str, blocks)], body)


def _mean(values: list[float]) -> str:
    return number(sum(values) / len(values), "+.2f") if values else ""


def agreement() -> str:
    """Return the largest differences that padding, folding and conversion make."""
    found = rows(FOLDER / "agreement.csv")
    body = [[f"`{row['scheme']}`", *(row[name] for name in row if name != "scheme")] for row in found]
    return table(["scheme", *(name for name in found[0] if name != "scheme")], body)


TABLES: Tables = {
    "accuracies": by_set,
    "differences": differences,
    "differences shown": shown,
    "order": order,
    "sets": described,
    "rates": rates,
    "correlations": correlations,
    "agreement": agreement,
}

if __name__ == "__main__":
    write(DOCUMENT, TABLES)
