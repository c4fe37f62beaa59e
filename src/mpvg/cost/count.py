"""Costs of models under schemes, counted by torch on the meta device, where nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import timm
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mpvg.cost.examples import example, size_arguments, size_of
from mpvg.cost.formulas import matrix_products
from mpvg.cost.own_work import own_work
from mpvg.fold import fold
from mpvg.models.common import plain_attention
from mpvg.scheme import SCHEMES

FLOAT = 4  # bytes of float32


@dataclass(frozen=True)
class Cost:
    """What one model under one scheme costs; FLOPs of a forward pass, two a multiply-accumulate, bytes of float32.

    Args:
        model: Registered name.
        scheme: Its scheme.
        height: Of the images, pixels; 1 for sequences.
        width: Of the images, pixels; of sequences their steps.
        tokens: Of an image, the class token among them; all that is told of an image holds for a sequence.
        parameters: Frozen ones too.
        matmul: Matrix-product FLOPs of one image, counted by torch with fused attention off.
        matmul_formula: The same by closed formula.
        merging: Of these, Swin's merging of positions, which is done once a forward pass.
        norms: Position norms.
        norm_flops: Their operations, once a forward pass.
        averaged: Further additions once a forward pass (CeiT and sequences under MPVG).
        added: Additions of positions, an image.
        kept_image: Bytes kept for backward, an image, fused attention off.
        kept_once: Bytes kept for backward, once a step.
        kept_positions: Of these, those of the position path, by formula.
        folded_parameters: After `mpvg.fold`.
        folded_tables: Numbers in the tables that a folded model stores.
        folded_added: Additions of positions, an image, after `mpvg.fold`.
    """

    model: str
    scheme: str
    height: int
    width: int
    tokens: int
    parameters: int
    matmul: int
    matmul_formula: int
    merging: int
    norms: int
    norm_flops: int
    averaged: int
    added: int
    kept_image: int
    kept_once: int
    kept_positions: int
    folded_parameters: int
    folded_tables: int
    folded_added: int

    def flops(self, batch: int = 1) -> float:
        """Return the FLOPs of an image in a batch: matrix products, and all that the scheme asks for."""
        once = self.merging + self.norm_flops + self.averaged
        return self.matmul - self.merging + self.added + once / batch

    def folded_flops(self, batch: int = 1) -> float:
        """Return the FLOPs of an image in a batch after `mpvg.fold`."""
        return self.matmul - self.merging + self.folded_added + self.averaged / batch

    def kept(self, batch: int = 1) -> float:
        """Return the bytes kept for backward, an image of a batch."""
        return self.kept_image + self.kept_once / batch

    def extra(self, reference: Cost, batch: int = 1) -> dict[str, float]:
        """Return by what part this is more than a reference: of parameters, FLOPs and memory for backward.

        Args:
            reference: Usually `gap` of the same architecture.
            batch: Images a forward pass.
        """
        return {
            "parameters": self.parameters / reference.parameters - 1,
            "matmul": self.matmul / reference.matmul - 1,
            "flops": self.flops(batch) / reference.flops(batch) - 1,
            "folded_flops": self.folded_flops(batch) / reference.folded_flops(batch) - 1,
            "kept": self.kept(batch) / reference.kept(batch) - 1,
        }


def cost(model: Any) -> Cost:
    """Count what a model costs.

    Args:
        model: An unfolded model of this library on the meta device; it is left in eval mode.

    Returns:
        The cost at the model's image size, or greatest length.
    """
    with plain_attention(model):
        once, image = _kept(model)
        folded = fold(model)
        work = own_work(model)
        height, width = size_of(model)
        return Cost(
            model=model.default_cfg["architecture"],
            scheme=str(model.scheme),
            height=height,
            width=width,
            tokens=model.patch_embed.num_patches + model.num_prefix_tokens,
            parameters=_parameters(model),
            matmul=count_matrix_products(model),
            matmul_formula=matrix_products(model) + work.merging,
            merging=work.merging,
            norms=work.norms,
            norm_flops=work.norm_flops,
            averaged=work.averaged,
            added=work.added,
            kept_image=image,
            kept_once=once,
            kept_positions=FLOAT * work.kept,
            folded_parameters=_parameters(folded),
            folded_tables=sum(b.numel() for n, b in folded.named_buffers() if n.startswith(("tables.", "last_table"))),
            folded_added=own_work(folded).added,
        )


def costs(
    models: Sequence[str], schemes: Sequence[str] = tuple(SCHEMES), *, img_size: int | None = None
) -> Iterator[Cost]:
    """Count models under schemes, leaving out what means nothing.

    Args:
        models: Registered names.
        schemes: Names or texts of schemes.
        img_size: Side of the images in pixels, of sequences their steps; None for each model's own.

    Yields:
        A cost for each model and scheme, in order; `scheme` is as it was named, though a family without class tokens
        may make of it what another name says.
    """
    for name in models:
        counted: dict[str, Cost] = {}
        for scheme in schemes:
            try:
                model = timm.create_model(
                    name, scheme=scheme, device="meta", weight_init="skip", **size_arguments(name, img_size)
                )
            except ValueError:  # a scheme that means nothing in this family
                continue
            meant = str(model.scheme)
            if meant not in counted:
                counted[meant] = cost(model)
            yield replace(counted[meant], scheme=scheme)


def count_matrix_products(model: Any, batch: int = 1) -> int:
    """Return the matrix-product FLOPs of a forward pass as torch counts them; fused attention must be off."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example(model, batch))
    return counter.get_total_flops()


def count_kept(model: Any, batch: int) -> int:
    """Return the bytes that a forward pass in training mode keeps for backward, each storage once.

    Parameters, buffers and the input are not counted: they are there anyway.
    """
    given = example(model, batch)
    there = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers(), given)}
    found: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in there:
            found[_storage(tensor)] = tensor.untyped_storage()  # held, so that no other takes its address
        return tensor

    model.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(given)
    model.eval()
    return sum(storage.nbytes() for storage in found.values())


def as_row(found: Cost, references: Mapping[str, Cost], batch: int = 1) -> dict[str, Any]:
    """Return a cost as one flat row, with the parts by which it exceeds the references.

    Args:
        found: The cost.
        references: Costs of schemes in the same model, by their names.
        batch: Images a forward pass.
    """
    row: dict[str, Any] = {**asdict(found), "batch": batch, "flops": found.flops(batch), "kept": found.kept(batch)}
    for name, reference in references.items():
        row |= {f"{what}_vs_{name}": part for what, part in found.extra(reference, batch).items()}
    return row


def _kept(model: Any) -> tuple[int, int]:
    """Return the bytes kept once a step and for each image; a single image takes shorter ways, so two and three."""
    two, three = count_kept(model, 2), count_kept(model, 3)
    return 3 * two - 2 * three, three - two


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
