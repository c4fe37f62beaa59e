"""Work that only some images of a batch need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_chosen(
    work: Callable[..., Tensor], chosen: Tensor, images: Tensor, *parameters: Tensor, at_once: int | None = None
) -> Tensor:
    """Return the images with the work done on the chosen ones; where only these are worked on, in place.

    Args:
        work: Takes images and their parameters, returns the images changed; each by itself.
        chosen: Which images, (B,) in bool.
        images: Images (B, ...).
        parameters: Of each image, (B, ...) each.
        at_once: How many images the work takes at most, for what it needs of memory; None for all.

    Returns:
        Images (B, ...).
    """
    if not picks_out(images.device):
        done = _in_parts(work, at_once, images, *parameters)
        return torch.where(chosen.reshape(-1, *[1] * (images.dim() - 1)), done, images)
    index = chosen.nonzero()[:, 0]
    if len(index) == 0:
        return images
    taken = (part.index_select(0, index) for part in (images, *parameters))
    return images.index_copy_(0, index, _in_parts(work, at_once, *taken))


def picks_out(device: torch.device) -> bool:
    """Whether only the chosen images are worked on.

    Elsewhere than on the processor, to learn how many are chosen would wait for the device, while work on all images
    costs next to nothing.
    """
    return device.type == "cpu"


def _in_parts(work: Callable[..., Tensor], at_once: int | None, *inputs: Tensor) -> Tensor:
    if at_once is None or len(inputs[0]) <= at_once:
        return work(*inputs)
    return torch.cat([work(*parts) for parts in zip(*(part.split(at_once) for part in inputs), strict=True)])
