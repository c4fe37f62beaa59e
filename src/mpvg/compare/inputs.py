"""The images and schemes of a comparison, checked before anything is computed or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from mpvg.compare.settings import Settings
from mpvg.create import check_name, starting_point
from mpvg.data.sources import ImageData, held_out, load_data
from mpvg.errors import UserError
from mpvg.train.build import check_build, check_scheme, model_arguments, own_size


def load_inputs(settings: Settings, schemes: Sequence[str]) -> tuple[dict[str, str], ImageData]:
    """Return the schemes' canonical names, each with the scheme that the model makes of it, and the images.

    Args:
        settings: The configuration.
        schemes: Names or texts of schemes.

    Raises:
        UserError: A scheme, the model or the images cannot be used.
    """
    names = [check_scheme(scheme) for scheme in schemes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"--schemes names {twice!r} twice: leave one out.")
    check_name(settings.model)
    if settings.img_size:  # before images are resized to no purpose
        check_build(settings.model, names[0], model_arguments((settings.img_size, settings.img_size), 3, 2))
    data = load_data(
        settings.data,
        img_size=settings.img_size,
        mixed_size=own_size(settings.model),
        skip_bad_images=settings.skip_bad_images,
    )
    if data.val is None:
        held_out(data, settings.val_fraction)
    of_images = model_arguments(data.image_size, data.channels, len(data.classes))
    built = {}
    for name in names:
        start = starting_point(settings.model, name, pretrained=settings.pretrained, preserve=settings.preserve)
        arguments = {**start.arguments, **of_images}
        if start.weights is not None:
            start.build(name, **of_images)  # says now whether the weights fit every scheme
        built[name] = check_build(start.name, name, arguments, trains=settings.recipe.trains)
    return built, data


def one_and_the_same(model: str, built: Mapping[str, str]) -> list[str]:
    """Say which schemes are one in a model's family.

    Args:
        model: Registered name.
        built: Schemes' names, each with the scheme that the model makes of it.

    Returns:
        A sentence a pair.
    """
    return [
        f"{a} and {b} are one scheme in {model}, which has no class token: their runs are the same."
        for a, b in combinations(built, 2)
        if built[a] == built[b]
    ]
