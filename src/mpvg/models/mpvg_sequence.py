"""A transformer encoder for text and time series under every position scheme.

    x_0 = E[ids]   or   W (p steps of all channels) + b          (+ pos_0), behind the class token where there is one
    y   = LN(x_L) + LN'(s),   read out at the class token, or as the mean over the real tokens

Padding contributes nothing: padded places are emptied, nobody attends to them, and the mean leaves them out. The mean
of LN'(s) is over the real positions then, and no constant: it depends on the length, and `mpvg.fold` keeps the table.
"""

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import LayerNorm, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.nn.functional import pad

from mpvg.blocks import Block, receive
from mpvg.models.common import cfg, check_arguments, check_table, create
from mpvg.models.sequence_inputs import SeriesEmbed, TokenEmbed, check_sequences, check_sizes
from mpvg.position import Blocks, Layerwise, Positions
from mpvg.scheme import PositionScheme, SchemeLike
from mpvg.tables import make_sinusoid, resize_table


class LayerwiseSequence(Layerwise, nn.Module):
    """A pre-norm transformer encoder of timm's blocks, told where its tokens are by a position scheme.

    Args:
        scheme: Preset name, text, mapping or PositionScheme. It sets class_token and global_pool.
        vocab_size: Number of token ids; None for series of numbers.
        in_chans: Channels of a series; 1 for token ids.
        max_length: Longest sequence, in steps. The position table has a row a token; shorter ones use its first rows.
        patch_size: Steps of a series that make one token.
        embed_dim: Width D.
        depth: Number of blocks L.
        num_heads: Heads of each block's attention.
        mlp_ratio: Width within the MLP by D.
        num_classes: Outputs of the head; 0 for none.
        pos_embed: "learn", "sincos1d" or "none". A sinusoid is a frozen parameter.
        class_token: Only what the scheme says; None follows it.
        global_pool: "token" with a class token, "avg" without; "" for none, to read tokens.
        drop_rate: Dropout before the head.
        pos_drop_rate: Dropout of x_0.
        proj_drop_rate: Dropout within attention and MLP.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Drop path of the last block; it grows linearly from the first.
        weight_init: "" or "skip", for weights that will be loaded.
        device: Where the parameters are made.
        dtype: Their type.

    Raises:
        ValueError: An argument that contradicts another or the scheme, or a scheme that means nothing at this depth.

    Source:
        MPVG, section 3, beyond images. Assumption: initialised as timm's ViT.
    """

    if TYPE_CHECKING:
        pos_embed: Any  # nn.Parameter, or None
        cls_token: nn.Parameter | None

    def __init__(
        self,
        *,
        scheme: SchemeLike = "mpvg",
        vocab_size: int | None = None,
        in_chans: int = 1,
        max_length: int = 128,
        patch_size: int = 1,
        embed_dim: int = 64,
        depth: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        num_classes: int = 2,
        pos_embed: str = "learn",
        class_token: bool | None = None,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        weight_init: str = "",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        of_type = {"device": device, "dtype": dtype}
        scheme = PositionScheme.parse(scheme)
        check_arguments(scheme, pos_embed, class_token=class_token, global_pool=global_pool)
        check_sizes(vocab_size=vocab_size, in_chans=in_chans, max_length=max_length, patch_size=patch_size)
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} with num_heads={num_heads}: use a multiple of the heads.")
        if pos_embed == "sincos2d":
            raise ValueError("pos_embed='sincos2d': a sequence has one dimension, use 'learn', 'sincos1d' or 'none'.")
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_features = self.head_hidden_size = embed_dim
        self.has_class_token = self.has_class_row = scheme.class_token
        self.num_prefix_tokens = int(scheme.class_token)
        self.global_pool = ("token" if scheme.class_token else "avg") if global_pool is None else global_pool
        self.grad_checkpointing = False
        if vocab_size is not None:
            self.patch_embed: Any = TokenEmbed(vocab_size, embed_dim, **of_type)
        else:
            self.patch_embed = SeriesEmbed(in_chans, patch_size, embed_dim, **of_type)
        self._set_length(max_length)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = Blocks(
            Block(
                TimmBlock(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    qkv_bias=True,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=rate,
                    norm_layer=LayerNorm,
                    **of_type,
                )
            )
            for rate in rates
        )
        self.norm = LayerNorm(embed_dim, **of_type)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(embed_dim, num_classes, **of_type) if num_classes else nn.Identity()
        plan = scheme.plan(depth)
        check_table(scheme, plan, pos_embed, embed_dim)
        self.follow(scheme, plan, self.norm)
        for block, source in zip(self.blocks, plan.blocks, strict=True):
            receive(block, source)
        rows, self.pos_kind = self.num_prefix_tokens + self.patch_embed.num_patches, pos_embed
        table = None if pos_embed == "none" else nn.Parameter(torch.empty(1, rows, embed_dim, **of_type))
        self.pos_embed = None if table is None else table.requires_grad_(pos_embed == "learn")
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **of_type)) if scheme.class_token else None
        if weight_init != "skip":
            self.init_weights()

    def _set_length(self, max_length: int) -> None:
        self.max_length = max_length
        embed = self.patch_embed
        embed.num_patches = -(-max_length // embed.patch_size)
        embed.grid_size = (embed.num_patches, 1)

    def init_weights(self) -> None:
        """Initialise all weights; what schemes share is drawn first: one seed gives it the same values in all."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    trunc_normal_(module.weight, std=0.02)
                    if isinstance(module, nn.Linear):
                        nn.init.zeros_(module.bias)
                elif isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
            if self.pos_embed is not None and self.pos_kind == "learn":
                trunc_normal_(self.pos_embed[:, self.num_prefix_tokens :], std=0.02)
                if self.has_class_row:
                    trunc_normal_(self.pos_embed[:, :1], std=0.02)
            elif self.pos_embed is not None:
                grid = self.patch_embed.grid_size
                self.pos_embed.copy_(make_sinusoid(self.pos_kind, grid, self.embed_dim, self.has_class_row))
            if self.cls_token is not None:
                trunc_normal_(self.cls_token, std=0.02)

    def initial_position(self, grid_size: tuple[int, int] | None = None) -> Tensor | None:
        """Return pos_0 (1, [1 +] N, D) for a grid (N, 1); None for the table as it is."""
        if self.pos_embed is None or grid_size is None:
            return self.pos_embed
        return resize_table(self.pos_embed, self.pos_kind, grid_size, self.patch_embed.grid_size, self.has_class_row)

    def position_parts(self) -> list[Any]:
        """Return what positions depend on, the length of the table with it."""
        return [*super().position_parts(), self.max_length]

    def embed(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Positions, Tensor | None]:
        """Return x_0 (B, N, D), the positions of its N tokens and which of these are real (B, N); None for all.

        Args:
            x: Token ids (B, T) or series (B, T, C).
            mask: True at real places (B, T); None for all.
        """
        embed = self.patch_embed
        check_sequences(x, mask, embed.vocab_size, embed.in_chans, self.max_length)
        x = embed(x, mask)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        positions = first_rows(self.positions_for(), x.shape[1])
        initial = positions.initial
        if self.joins_input and initial is not None:
            x = x + initial
        return self.pos_drop(x), positions, None if mask is None else self.token_mask(mask)

    def token_mask(self, mask: Tensor) -> Tensor:
        """Return which tokens are real (B, [1 +] N), by the real places (B, T): those with any, and a class token."""
        step = self.patch_embed.patch_size
        if step > 1:
            mask = pad(mask, (0, -mask.shape[1] % step), value=False)
            mask = mask.reshape(mask.shape[0], mask.shape[1] // step, step).any(dim=2)
        return pad(mask, (self.num_prefix_tokens, 0), value=True)

    def run_blocks(self, x: Tensor, positions: Positions, start: int, stop: int, mask: Tensor | None = None) -> Tensor:
        """Return the tokens (B, N, D) that leave block `stop - 1`; nobody attends where `mask` (B, N) is False."""
        attn_mask: Tensor | None = None
        if mask is not None:
            allowed = torch.zeros(mask.shape, dtype=x.dtype, device=x.device)
            attn_mask = allowed.masked_fill(~mask, float("-inf")).unsqueeze(1).unsqueeze(2)
        return self.blocks.run(x, positions.blocks, start, stop, self.grad_checkpointing, attn_mask)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Positions, Tensor | None]:
        """Return x_L (B, N, D), the positions, and which of the N tokens are real."""
        x, positions, mask = self.embed(x, mask)
        return self.run_blocks(x, positions, 0, len(self.blocks), mask), positions, mask

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return y (B, N, D), the tokens after the Last LN and its position; padded ones mean nothing."""
        x, positions, _ = self.encode(x, mask)
        return self.last_norm(x, positions)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, num_classes).

        Args:
            x: Token ids (B, T), or series (B, T, C).
            mask: True at real ids or steps (B, T), False at padding; None for no padding.

        Raises:
            ValueError: Of another shape or kind, longer than the table, or without a real place. On a GPU, which that
                would wait for, and in compiled code nothing is looked at: there a mean over no token is NaN.
        """
        x, positions, mask = self.encode(x, mask)
        last = positions.last
        if last is None or self.global_pool != "avg":
            return self._read_out(self.last_norm(x, positions), mask)
        # the mean of LN'(s) on its own costs (B, N) x (N, D) instead of an addition to every token
        pooled = self.pool(self.norm(x), mask) + self._pool_rows(last, mask)
        return self.head(self.head_drop(pooled))

    def forward_head(self, x: Tensor, pre_logits: bool = False, mask: Tensor | None = None) -> Tensor:
        """Return logits (B, num_classes), or what the head reads (B, D), for what `forward_features` returns.

        Args:
            x: Tokens y (B, N, D).
            pre_logits: Leave the head out.
            mask: Of the sequences' places (B, T), as in `forward`.
        """
        return self._read_out(x, None if mask is None else self.token_mask(mask), pre_logits)

    def _read_out(self, x: Tensor, mask: Tensor | None, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.pool(x, mask))
        return x if pre_logits else self.head(x)

    def pool(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what the head reads (B, D), or all tokens where they are not pooled.

        Args:
            x: Tokens (B, [1 +] N, D), the class token first.
            mask: Which of them are real (B, [1 +] N); None for all.
        """
        if self.global_pool == "":
            return x
        if self.global_pool == "token":
            return x[:, 0]
        if mask is None:
            return x[:, self.num_prefix_tokens :].mean(dim=1)
        return (self._shares(mask, x).unsqueeze(1) @ x[:, self.num_prefix_tokens :]).squeeze(1)

    def _pool_rows(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean of a position's rows (1, [1 +] N, D) over the real tokens: (D,), or (B, D) with a mask."""
        rows = rows[0, self.num_prefix_tokens :]
        return rows.mean(dim=0) if mask is None else self._shares(mask, rows) @ rows

    def _shares(self, mask: Tensor, like: Tensor) -> Tensor:
        """Return each token's part in the mean (B, N)."""
        real = mask[:, self.num_prefix_tokens :]
        return real.to(like.dtype) / real.sum(dim=1, keepdim=True)

    def forward_intermediates(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """Return y, and what leaves chosen blocks (B, N, D); arguments are as in timm's models, with a mask.

        Args:
            x: As in `forward`.
            mask: Likewise.
            indices: Blocks; a number n for the last n, None for all.
            return_prefix_tokens: Give each as a pair, the class token (B, 1, D) behind the others.
            norm: Apply the Last LN and its position.
            stop_early: Leave out the blocks after the last one asked for.
            intermediates_only: Leave y out.
        """
        take, last = feature_take_indices(len(self.blocks), indices)
        x, positions, real = self.embed(x, mask)
        taken: list[Any] = []
        for i in range(last + 1 if stop_early else len(self.blocks)):
            x = self.run_blocks(x, positions, i, i + 1, real)
            if i in take:
                tokens = self.last_norm(x, positions) if norm else x
                prefix, tokens = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
                taken.append((tokens, prefix) if return_prefix_tokens and self.num_prefix_tokens else tokens)
        return taken if intermediates_only else (self.last_norm(x, positions), taken)

    def set_input_size(self, max_length: int) -> None:
        """Fit the position table for sequences of up to `max_length` steps: a learned one is resampled."""
        check_sizes(max_length=max_length)
        rows = -(-max_length // self.patch_embed.patch_size)
        resized = self.initial_position((rows, 1))
        if self.pos_embed is not None and resized is not None:
            self.pos_embed = nn.Parameter(resized.detach().clone(), requires_grad=self.pos_embed.requires_grad)
        self._set_length(max_length)
        self._model_args = {**getattr(self, "_model_args", {}), "max_length": max_length}

    def is_built_for(self, img_size: Any) -> bool:
        """Return whether `img_size`, here a number of steps, is the one that the table was made for."""
        return img_size == self.max_length

    def filter_checkpoint(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return weights with the table resampled to this model's length, without a class token that it lacks."""
        weights, table = dict(state_dict), state_dict.get("pos_embed")
        has_row = "cls_token" in weights
        if has_row and not self.has_class_token:
            del weights["cls_token"]
            table = None if table is None else table[:, 1:]
            has_row = False
        if table is not None and self.pos_embed is not None:
            grids = (self.patch_embed.num_patches, 1), (table.shape[1] - has_row, 1)
            weights["pos_embed"] = resize_table(table, self.pos_kind, *grids, class_row=has_row)
        return weights

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return what has no weight decay, whatever its shape."""
        return {"pos_embed", "cls_token"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how names fall into layers, as timm's layer decay asks for it."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again on the way back instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new head; see timm."""
        if global_pool is not None:
            check_arguments(self.scheme, self.pos_kind, class_token=None, global_pool=global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        weight: Any = self.norm.weight
        of_type = {"device": weight.device, "dtype": weight.dtype}
        self.head = nn.Linear(self.embed_dim, num_classes, **of_type) if num_classes else nn.Identity()


def first_rows(positions: Positions, rows: int) -> Positions:
    """Return the positions of the first so many tokens; LN' reads row by row, so these are a shorter table's."""
    blocks: list[Tensor | None] = []
    for position in positions.blocks:
        blocks.append(None if position is None else position[:, :rows])
    initial, last = positions.initial, positions.last
    return Positions(None if initial is None else initial[:, :rows], blocks, None if last is None else last[:, :rows])


default_cfgs = generate_default_cfgs(
    # timm asks for the size of an image: here it is channels and steps, and normalising is the data's business
    {"mpvg_sequence": cfg(num_classes=2, input_size=(1, 128, 1), fixed_input_size=False, mean=(0.0,), std=(1.0,))}
)


@register_model
def mpvg_sequence(pretrained: bool = False, *, features_only: bool = False, **kwargs: Any) -> nn.Module:
    """An encoder of 6 blocks of width 64, 4 heads, for token ids (vocab_size=) or series (in_chans=)."""
    if features_only:
        raise ValueError("features_only=True makes maps of images: call forward_intermediates of the model itself.")
    return create(LayerwiseSequence, "mpvg_sequence", pretrained=pretrained, out_indices=None, **kwargs)
