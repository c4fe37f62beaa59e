"""One step of a training: from the pixels of a batch to the loss. `mpvg compare` and `mpvg fit` have no other."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn.functional import cross_entropy

from mpvg.data.augment import erase, keys
from mpvg.data.batch import Batch
from mpvg.errors import NonFiniteLossError, UserError
from mpvg.train.freezing import set_training_mode
from mpvg.train.recipe import Recipe

_STEPS_UNWATCHED = 50  # on a GPU, where reading a loss waits for its step


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Have all that a step draws depend on it alone: a training that was interrupted goes on as it would have.

    Args:
        seed: The run's seed.
        step: From 0.
        rank: Of the process.
    """
    stream = np.random.SeedSequence([seed, step, rank])
    for_torch, for_numpy = (int(word) for word in stream.generate_state(2))
    torch.manual_seed(for_torch)  # dropout and drop path
    np.random.seed(for_numpy)  # timm's mixup


def build_mixup(recipe: Recipe, classes: int, batch_size: int) -> Mixup | None:
    """Return timm's mixup and cutmix of whole batches, which draws from NumPy's global stream; None for neither.

    Args:
        recipe: For its augmentation and label smoothing.
        classes: Number of classes.
        batch_size: Images that are mixed with each other.

    Raises:
        UserError: Images cannot be paired.
    """
    drawn = recipe.augmentation
    if not drawn.mixes:
        return None
    if batch_size % 2:
        raise UserError(f"batch_size {batch_size} is odd, and mixup pairs the images of a batch: name an even number.")
    return Mixup(
        mixup_alpha=drawn.mixup,
        cutmix_alpha=drawn.cutmix,
        prob=drawn.mix_prob,
        switch_prob=drawn.switch_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )


def prepare(
    batch: Batch, recipe: Recipe, normalise: Callable[[Tensor], Tensor], mixup: Mixup | None, *, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Erase, mix and normalise a batch, in the recipe's order.

    Args:
        batch: Its images.
        recipe: For its augmentation.
        normalise: From pixels of 0 to 255 to what the model is fed.
        mixup: Of `build_mixup`.
        seed: The run's seed.
        epoch: From 0.

    Returns:
        Images (B, C, H, W), and labels: classes (B,), or parts of each class (B, K) where batches are mixed.
    """
    drawn = recipe.augmentation

    def erased(images: Tensor) -> Tensor:
        if drawn.erasing == 0:
            return images
        return erase(images, drawn.erasing, keys(seed, epoch, batch.positions))

    if mixup is None:
        return erased(normalise(batch.pixels)), batch.labels
    if not drawn.erase_after_mixup:
        images, targets = mixup(erased(normalise(batch.pixels)), batch.labels)
        return images, targets
    pixels, targets = mixup(batch.pixels.float(), batch.labels)
    return erased(normalise(pixels.round_())), targets


def training_step(model: Any, inputs: tuple[Tensor, ...], labels: Tensor, recipe: Recipe) -> Tensor:
    """Return the loss that a training step descends.

    Args:
        model: In the mode of training.
        inputs: What the model is called with: normalised images (B, C, H, W), or sequences and a mask.
        labels: Classes (B,), or parts of each class (B, K), which are smooth already.
        recipe: For its label smoothing.

    Returns:
        The mean loss of the batch.
    """
    smoothing = recipe.label_smoothing if labels.ndim == 1 else 0.0
    return cross_entropy(model(*inputs), labels, label_smoothing=smoothing)


def over_processes(loss: Tensor, *, asked_to_stop: bool) -> Tensor:
    """Return what all processes see of a step: their mean loss, and more than zero where one was asked to stop.

    One reduction for both, and no wait for the device: then all processes stop at the same step, for one of which it
    is time or the loss is no number any more.

    Args:
        loss: The loss of this process.
        asked_to_stop: Whether this process was.

    Returns:
        Both (2,), as float32.
    """
    seen = torch.stack([loss.detach().float(), loss.new_full((), float(asked_to_stop), dtype=torch.float32)])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(seen)
        seen /= torch.distributed.get_world_size()
    return seen


def take_step(
    model: Any, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...], labels: Tensor, recipe: Recipe
) -> float:
    """Take one step down the loss; Lightning does the same around `training_step`.

    Args:
        model: The model, put into the mode of training.
        optimizer: Of its parameters that are trained.
        inputs: As for `training_step`.
        labels: As for `training_step`.
        recipe: For the loss and what is trained.

    Returns:
        The loss before the step.
    """
    set_training_mode(model, recipe.trains)
    loss = training_step(model, inputs, labels, recipe)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def check_loss(loss: float, *, what: str, epoch: int, step: int, lr: float) -> None:
    """Raise where a loss is no number any more.

    Args:
        loss: The loss of a step.
        what: What is trained.
        epoch: From 1.
        step: Steps taken, this one included.
        lr: Peak learning rate.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite.
    """
    if not isfinite(loss):
        where = f"epoch {epoch}, step {step}"
        raise NonFiniteLossError(f"the loss of {what} is {loss} at {where}: lower the learning rate (it is {lr:g}).")


class LossWatch:
    """Notices what the steps of a training bring, without waiting for the device at every step.

    Args:
        what: What is trained.
        lr: Peak learning rate.

    Attributes:
        asked_to_stop: Whether a process was, as far as was looked.
    """

    def __init__(self, what: str, lr: float) -> None:
        self.what, self.lr = what, lr
        self.asked_to_stop = False
        self._seen: list[tuple[Tensor, int, int]] = []

    def note(self, seen: Tensor, *, epoch: int, step: int) -> None:
        """Remember a loss and whether a process was asked to stop (2,), with its epoch and step from 1."""
        self._seen.append((seen, epoch, step))

    @property
    def is_due(self) -> bool:
        """Whether to look now: always where it costs nothing."""
        return len(self._seen) >= _STEPS_UNWATCHED or any(seen.device.type == "cpu" for seen, _, _ in self._seen)

    def check(self) -> None:
        """Look at what was noted; raise NonFiniteLossError at the first loss that is NaN or infinite."""
        if not self._seen:
            return
        rows = torch.stack([seen for seen, _, _ in self._seen]).tolist()
        for (loss, asked), (_, epoch, step) in zip(rows, self._seen, strict=True):
            check_loss(loss, what=self.what, epoch=epoch, step=step, lr=self.lr)
            self.asked_to_stop = self.asked_to_stop or asked > 0
        self._seen.clear()
