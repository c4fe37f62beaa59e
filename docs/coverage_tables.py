"""Write the tables of docs/coverage.md: python docs/coverage_tables.py [--measure]

Architectures, kinds and reasons are counted on the meta device, with the timm that is installed. --measure first writes
results/coverage/agreement.csv: every architecture in small, with random weights, against what it is converted to.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import timm
import torch

from coverage_kinds import kinds, skeletons, small
from mpvg import SCHEMES, convert
from mpvg.convert import why_not
from mpvg.models.architectures import timm_architectures
from tables import DOCS, RESULTS, Tables, rows, table, write

DOCUMENT = DOCS / "coverage.md"
AGREEMENT = RESULTS / "coverage" / "agreement.csv"
NOISE = 0.3  # added to every parameter: untouched, norms and layer scales would hide errors
HEADER = ["architecture", "scheme", "difference", "timm", "torch"]


def keeps(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each scheme that keeps what a model computes, by convert's own word, and the model under it."""
    for scheme in SCHEMES:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "converted to scheme")
                converted = convert(model, scheme)
        except (ValueError, UserWarning):
            continue
        yield scheme, converted


def difference(model: Any, converted: Any) -> float:
    """Return max|difference| / max|output| for random images."""
    images = torch.randn(2, model.in_chans, *model.patch_embed.img_size)
    with torch.inference_mode():
        expected = model(images)
        return ((converted(images) - expected).abs().max() / expected.abs().max()).item()


def measured(name: str) -> list[list[Any]]:
    """Return how far a small model is from what it is converted to, its parameters having had noise.

    A convolutional stem goes without: some hundred layers of noise make its patches too large for all that follows.
    """
    torch.manual_seed(0)
    model = small(name).eval()
    if why_not(model) is not None:
        return []
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".backbone." not in key:
                parameter.add_(NOISE * torch.randn_like(parameter))
    versions = [timm.__version__, torch.__version__.partition("+")[0]]
    return [[name, scheme, difference(model, converted), *versions] for scheme, converted in keeps(model)]


def measure() -> None:
    """Write what was measured of every architecture."""
    found = [row for name in timm_architectures() for row in measured(name)]
    with AGREEMENT.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *found])


def ticked(names: Iterator[str] | list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def totals() -> str:
    """Return how many architectures are converted."""
    converted, refused = (sum(map(len, groups.values())) for groups in kinds())
    header = ["timm", "architectures", "converted", "in kinds", "refused"]
    return table(header, [[timm.__version__, *map(str, [converted + refused, converted, len(kinds()[0]), refused])]])


def by_kind(read_out: str) -> str:
    """Return the kinds of one read-out, the most frequent first: under which schemes they compute the same."""
    largest: dict[str, float] = defaultdict(float)
    for row in rows(AGREEMENT):
        largest[row["architecture"]] = max(largest[row["architecture"]], float(row["difference"]))
    body = []
    for kind, names in sorted(kinds()[0].items(), key=lambda item: (-len(item[1]), item[0])):
        first, _, rest = kind.partition(", ")
        if first == read_out:
            same = ticked([scheme for scheme, _ in keeps(skeletons()[names[0]])])
            apart = max(largest[name] for name in names)
            body.append([rest or "nothing", str(len(names)), ticked(names[:2]), same, f"{apart:.1g}"])
    header = ["beside a plain ViT's parts", "architectures", "such as", "the same under", "largest difference"]
    return table(header, body)


def by_reason() -> str:
    """Return the architectures that are refused, and what convert says."""
    found = sorted(kinds()[1].items(), key=lambda item: (-len(item[1]), item[0]))
    return table(
        ["refused", "architectures", "reason"], [[ticked(names), str(len(names)), reason] for reason, names in found]
    )


TABLES: Tables = {
    "totals": totals,
    "class token": lambda: by_kind("class token"),
    "mean": lambda: by_kind("mean"),
    "attention pooling": lambda: by_kind("attention pooling"),
    "refused": by_reason,
}

if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure()
    write(DOCUMENT, TABLES)
