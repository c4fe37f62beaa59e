"""Matrix-product FLOPs in closed form, from each architecture's equations; two FLOPs a multiply-accumulate.

    a block of N tokens, width D, hidden width H:   8 N D^2 + 4 N^2 D + 4 N D H   (24 N D^2 + 4 N^2 D for H = 4 D)

Convolutions are matrix products too, padding counted as they compute it. Nothing here runs a model or reads a weight;
what a model is asked for are its sizes.
Sources: the papers of the architectures, as the files of `mpvg.models` name them.
"""

from __future__ import annotations

from typing import Any

from mpvg.models.mpvg_ceit import LayerwiseCeiT
from mpvg.models.mpvg_sequence import LayerwiseSequence
from mpvg.models.mpvg_swin import LayerwiseSwin
from mpvg.models.mpvg_t2t import LayerwiseT2T


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def attention(tokens: int, width: int, window: int | None = None) -> int:
    """Return the FLOPs of self-attention: queries, keys, values and projection, then scores and weighted sums.

    Args:
        tokens: N.
        width: D, over all heads.
        window: Tokens that attend to each other; None for all.
    """
    return linear(tokens, width, 4 * width) + 2 * linear(tokens, width, tokens if window is None else window)


def block(tokens: int, width: int, hidden: int, window: int | None = None) -> int:
    """Return the FLOPs of one transformer block.

    Args:
        tokens: N.
        width: D.
        hidden: Width within the MLP.
        window: Tokens that attend to each other; None for all.
    """
    return attention(tokens, width, window) + 2 * linear(tokens, width, hidden)


def matrix_products(model: Any) -> int:
    """Return the matrix-product FLOPs that one image or sequence takes, without those of the position path.

    Args:
        model: A model of this library, folded or not.

    Returns:
        FLOPs of one forward pass with classifier.
    """
    if isinstance(model, LayerwiseSwin):
        return _swin(model)
    height, width = model.patch_embed.grid_size
    patches, dim = height * width, model.embed_dim
    tokens, classifier = patches + model.num_prefix_tokens, linear(1, dim, model.num_classes)
    if isinstance(model, LayerwiseSequence):
        embed = model.patch_embed
        chans = embed.in_chans  # none of token ids, which are looked up
        return linear(patches, chans * embed.patch_size, dim) + _blocks(model, tokens) + classifier
    chans = channels(model)
    if isinstance(model, LayerwiseCeiT):
        return _ceit_stem(patches, dim, chans) + _ceit_blocks(model, tokens, patches) + classifier
    if isinstance(model, LayerwiseT2T):
        stem = _soft_splits(patches, dim, chans)
    else:
        stem = linear(patches, chans * model.patch_embed.patch_size[0] * model.patch_embed.patch_size[1], dim)
    return stem + _blocks(model, tokens) + classifier


def merge(tokens: int, width: int) -> int:
    """Return the FLOPs of Swin's patch merging: (N, D) tokens become (N / 4, 2 D) through a linear layer from 4 D."""
    return linear(tokens // 4, 4 * width, 2 * width)


def channels(model: Any) -> int:
    """Return the channels of a model's images, which timm's models do not all tell."""
    if isinstance(model, LayerwiseT2T):
        return model.patch_embed.proj.attention1.norm1.normalized_shape[0] // 49
    return next(parameter.shape[1] for parameter in model.patch_embed.parameters() if parameter.ndim == 4)


def _blocks(model: Any, tokens: int) -> int:
    return len(model.blocks) * block(tokens, model.embed_dim, model.blocks[0].mlp.fc1.out_features)


def _performer(tokens: int, width: int, out: int) -> int:
    """Return the FLOPs of a Performer layer with m = E / 2 features."""
    features = out // 2
    random_features = 2 * linear(tokens, out, features)  # of queries and of keys
    total = linear(tokens, features, 1)
    weighted = 2 * linear(tokens, features, out)  # keys with values, then queries with that
    return linear(tokens, width, 3 * out) + random_features + total + weighted + 3 * linear(tokens, out, out)


def _soft_splits(patches: int, width: int, chans: int, token_width: int = 64) -> int:
    """Return the FLOPs of T2T's tokens; the splits themselves copy, so that only what lies between them counts."""
    first = _performer(16 * patches, 49 * chans, token_width)
    second = _performer(4 * patches, 9 * token_width, token_width)
    return first + second + linear(patches, 9 * token_width, width)


def _ceit_stem(patches: int, width: int, chans: int) -> int:
    """Return the FLOPs of 7x7 with stride 2, pooling, and 4x4 with stride 4."""
    return linear(64 * patches, 49 * chans, 64) + linear(patches, 16 * 64, width)


def _ceit_blocks(model: Any, tokens: int, patches: int) -> int:
    """Return the FLOPs of all blocks, whose LeFF leaves a class token out, and of LCA, of which one token is read."""
    dim, layers = model.embed_dim, len(model.blocks)
    hidden = model.blocks[0].mlp.conv1.out_channels
    leff = 2 * linear(patches, dim, hidden) + linear(patches, 9, hidden)  # 1x1, depthwise 3x3, 1x1
    lca = attention(layers, dim) + 2 * linear(1, dim, hidden)
    return layers * (attention(tokens, dim) + leff) + lca


def _swin(model: Any) -> int:
    """Return the FLOPs of Swin; its maps are made of whole windows, so that there is no padding to count."""
    (height, wide), dim = model.patch_embed.grid_size, model.layers[0].dim
    patch, chans = model.patch_embed.patch_size, channels(model)
    tokens = height * wide
    flops = linear(tokens, chans * patch[0] * patch[1], dim)
    for index, stage in enumerate(model.layers):
        if index:
            flops += merge(tokens, dim)
            tokens, dim = tokens // 4, 2 * dim
        high, broad = model.windows[index]
        hidden = stage.blocks[0].mlp.fc1.out_features
        flops += len(stage.blocks) * block(tokens, dim, hidden, window=high * broad)
    return flops + linear(1, dim, model.num_classes)
