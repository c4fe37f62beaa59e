"""What padding, folding and conversion change in a model's outputs, at most, under each scheme.

    python benchmarks/sequence_agreement.py      # writes results/beyond_images/agreement.csv

Weights are random and perturbed, N(0, 0.3), so that no norm hides an error; numbers are max|difference| by
max|output|. Garbage is +-1e4 in padded places; "padded or not" is with more of them, and each sequence alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import Tensor

import mpvg
from mpvg.files import as_csv, write_atomically

RESULTS = Path(__file__).parents[1] / "results" / "beyond_images" / "agreement.csv"
KINDS: dict[str, dict[str, Any]] = {"ids": {"vocab_size": 100}, "series": {"in_chans": 3, "patch_size": 4}}
LENGTHS, LONGEST, MORE = torch.tensor([60, 37, 8, 1]), 60, 20
GARBAGE = (10_000, -10_000)


def perturbed(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def apart(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def with_garbage(x: Tensor, mask: Tensor, garbage: int, more: int) -> tuple[Tensor, Tensor]:
    """Return sequences with garbage at padded places, and so many padded places more."""
    dirty = torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], dim=1)
    real = torch.cat([mask, mask.new_zeros(len(x), more)], dim=1)
    dirty[~real] = garbage
    return dirty, real


@torch.inference_mode()
def sequence(scheme: str, kind: str, dtype: torch.dtype) -> tuple[float, float, float]:
    """Return what garbage in padded places changes, what more of them or none at all changes, and what folding does."""
    torch.manual_seed(0)
    sizes = {"max_length": LONGEST + MORE, "num_classes": 5, **KINDS[kind]}
    model = perturbed(timm.create_model("mpvg_sequence", scheme=scheme, dtype=dtype, **sizes))
    x = torch.randint(0, 100, (4, LONGEST)) if kind == "ids" else torch.randn(4, LONGEST, 3, dtype=dtype)
    mask = torch.arange(LONGEST) < LENGTHS[:, None]
    expected = model(x, mask)
    garbage, longer = (
        max(apart(model(*with_garbage(x, mask, value, more)), expected) for value in GARBAGE) for more in (0, MORE)
    )
    alone = torch.cat([model(one[None, :length]) for one, length in zip(x, LENGTHS.tolist(), strict=True)])
    return garbage, max(longer, apart(alone, expected)), apart(mpvg.fold(model)(x, mask), expected)


@torch.inference_mode()
def converted(scheme: str, architecture: str) -> float | None:
    """Return the largest difference to the encoder that was converted; None where the scheme changes its input."""
    if not mpvg.SCHEMES[scheme].join_input:
        return None
    sizes: dict[str, Any] = {"vocab_size": 100, "max_position_embeddings": 64}
    if architecture == "BERT":
        of_bert = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 96}
        plain: Any = transformers.BertModel(transformers.BertConfig(**sizes, **of_bert))
    else:
        config = transformers.DistilBertConfig(**sizes, dim=48, n_layers=6, n_heads=4, hidden_dim=96)
        plain = transformers.DistilBertModel(config)
    perturbed(plain)
    ids, mask = torch.randint(0, 100, (4, LONGEST)), torch.arange(LONGEST) < LENGTHS[:, None]
    outputs = (one(ids, mask.long()).last_hidden_state for one in (mpvg.convert(plain, scheme), plain))
    return apart(*outputs)


def main() -> None:
    rows = []
    for scheme in mpvg.SCHEMES:
        row: dict[str, Any] = {"scheme": scheme}
        for dtype in (torch.float32, torch.float64):
            found = [sequence(scheme, kind, dtype) for kind in KINDS]
            garbage, lengths, folding = (f"{max(values):.1e}" for values in zip(*found, strict=True))
            of_type = str(dtype).removeprefix("torch.")
            row |= {f"garbage, {of_type}": garbage, f"padded or not, {of_type}": lengths, f"folded, {of_type}": folding}
        for architecture in ("BERT", "DistilBERT"):
            difference = converted(scheme, architecture)
            row[f"converted {architecture}"] = "" if difference is None else f"{difference:.1e}"
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS, as_csv(rows))


if __name__ == "__main__":
    main()
