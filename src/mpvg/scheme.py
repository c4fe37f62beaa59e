"""Position schemes: six switches that say how a transformer is told where its tokens are.

With x_l the tokens entering block l, pos_0 the initial position table and d_l the position delivered to block l:

    x_0     = tokens + pos_0                          if join_input,   else tokens
    a_l     = LN_l(x_l) + d_l                         if layerwise,    else LN_l(x_l)
    d_l     = LN'_l(d_{l-1}), starting from pos_0     if hierarchical, else LN'_l(pos_0)
    y       = LN(x_L) + LN'(pos_0 or d_k)             by last_norm,    else LN(x_L)

and `logits` read the class token of y if class_token, else its mean over the tokens (GAP).

Every decision about a scheme is made in this file; the modules only carry out its `Plan`.
Sources: MPVG (AAAI 2025, arXiv 2502.02919), section 3; LaPE (ICCV 2023, arXiv 2212.05262) for `lape`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Union, cast

from mpvg.errors import nearest

Source = Literal["initial", "previous"]
SchemeLike = Union["PositionScheme", str, Mapping[str, Any]]

_UNNAMED: Final = cast(Any, object())  # tells `last_norm` left out from `last_norm` asked for
_POOLED: Final = {"default": "gap", "lape": "lape_gap"}  # what they mean in a family without class tokens


class Plan(NamedTuple):
    """What each place of one model receives: a scheme resolved for a depth.

    join_input: whether x_0 = tokens + pos_0.
    blocks: for each block what its LN' reads: pos_0 ("initial"), the position before it ("previous") or nothing.
    last: what the LN' at the Last LN reads: 0 is pos_0, k >= 1 is what block k receives; None for no term.
    """

    join_input: bool
    blocks: tuple[Source | None, ...]
    last: int | None

    @property
    def uses_positions(self) -> bool:
        return self.join_input or any(self.blocks) or self.last is not None


@dataclass(frozen=True, kw_only=True)
class PositionScheme:
    """How positions reach the tokens; `PositionScheme()` is MPVG.

    Args:
        class_token: Prepend a learned token and read it out. Its row belongs to pos_0. Otherwise GAP after the Last LN.
        join_input: Add pos_0 to the tokens before the first block.
        layerwise: Deliver a position to every block, through a LayerNorm of that block's own.
        hierarchical: Each block's LayerNorm reads the position before it, not pos_0. False unless `layerwise`.
        first_block: Block 0 receives a position too; None leaves it to the model's family. False unless `layerwise`.
        last_norm: What joins the Last LN: None nothing, 0 the initial table, k >= 1 what block k receives.
            With a class token it must be named, since the paper calls the two incompatible.

    Raises:
        ValueError: A value of the wrong type, or a combination that means nothing.

    Source:
        MPVG, figure 3 and tables 5 and 6 (the ablations).
    """

    class_token: bool = False
    join_input: bool = True
    layerwise: bool = True
    hierarchical: bool = True
    first_block: bool | None = None
    last_norm: int | None = _UNNAMED

    def __post_init__(self) -> None:
        for name in ("class_token", "join_input", "layerwise", "hierarchical", "first_block"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "first_block" and value is None):
                raise ValueError(f"{name}={value!r} is not a switch: use True or False.")
        if self.last_norm is _UNNAMED:
            if self.class_token:
                raise ValueError(
                    "class_token=True leaves last_norm open, and MPVG's Last-LN position is made for average pooling: "
                    "name last_norm=None (no term) or last_norm=0 (the initial table) beside it."
                )
            self._set("last_norm", 0)
        if not self.layerwise:
            self._set("hierarchical", False)
            self._set("first_block", False)
        last = self.last_norm
        if last is None:
            return
        if isinstance(last, bool) or not isinstance(last, int) or last < 0:
            raise ValueError(
                f"last_norm={last!r} names no position: use None, 0 (the initial table) or a block's number."
            )
        if last >= 1 and not self.layerwise:
            raise ValueError(
                f"last_norm={last} is what block {last} receives, and layerwise=False delivers nothing to it: "
                "use last_norm=0 (the initial table), last_norm=None or layerwise=True."
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the canonical form of a frozen instance

    @classmethod
    def parse(cls, value: SchemeLike, *, class_tokens: bool = True) -> PositionScheme:
        """Return the scheme that a name, text, mapping or scheme stands for.

        Args:
            value: A preset's name ("lape"), text ("mpvg:last_norm=5,first_block=true"), a mapping
                ({"base": "mpvg", "last_norm": 5}, base "mpvg" unless named) or a PositionScheme.
            class_tokens: Whether the model's family has them. Where it has none, "default" means "gap" and "lape"
                means "lape_gap".

        Returns:
            The scheme in canonical form.

        Raises:
            ValueError: An unknown preset, an unknown field, a combination that means nothing, or a class token in a
                family without.

        Source:
            MPVG, tables 1 to 4: its Default and LaPE read out Swin by average pooling.
        """
        if isinstance(value, cls):
            preset = next((name for name, scheme in SCHEMES.items() if scheme == value), None)
            scheme = value if class_tokens or preset not in _POOLED else SCHEMES[_POOLED[preset]]
        elif isinstance(value, str):
            base, colon, text = value.partition(":")
            named = _read_fields(text, whole=value) if colon else {}
            scheme = cls._override(base.strip(), named, class_tokens)
        elif isinstance(value, Mapping):
            named = dict(value)
            scheme = cls._override(named.pop("base", "mpvg"), named, class_tokens)
        else:
            raise ValueError(
                f"scheme={value!r} is no scheme: use a name ({', '.join(SCHEMES)}), text, a mapping or a scheme."
            )
        if scheme.class_token and not class_tokens:
            raise ValueError(
                f"scheme {str(scheme)!r} has class_token=True, and this model's family reads out the mean over its "
                "tokens: use a scheme without class token, such as 'gap', 'lape_gap', 'pvg' or 'mpvg'."
            )
        return scheme

    @classmethod
    def _override(cls, base: object, named: Mapping[str, Any], class_tokens: bool) -> PositionScheme:
        if not isinstance(base, str) or base not in SCHEMES:
            raise ValueError(f"scheme {base!r} is unknown{nearest(base, SCHEMES)}: use one of {', '.join(SCHEMES)}.")
        switches = asdict(SCHEMES[base if class_tokens else _POOLED.get(base, base)])
        for name in named:
            if name not in switches:
                raise ValueError(
                    f"scheme field {name!r} is unknown{nearest(name, switches)}: use one of {', '.join(switches)}."
                )
        if "last_norm" not in named and switches["last_norm"] is not None:
            del switches["last_norm"]  # inherited, so not asked for beside a class token
        return cls(**{**switches, **named})

    def plan(self, depth: int, *, first_block: bool = False) -> Plan:
        """Resolve the scheme for a number of blocks.

        Args:
            depth: Number of blocks L.
            first_block: The family's default, used where the scheme leaves `first_block` open.

        Returns:
            What each block and the Last LN receive.

        Raises:
            ValueError: The scheme has no meaning at this depth.
        """
        first = 0 if (first_block if self.first_block is None else self.first_block) else 1
        if self.layerwise and first >= depth:
            raise ValueError(
                f"layerwise=True delivers to no block of a model with depth={depth} and first_block=False: "
                "use first_block=True, layerwise=False or a deeper model."
            )
        if self.last_norm is not None and self.last_norm >= max(depth, 1):
            raise ValueError(
                f"last_norm={self.last_norm} is what block {self.last_norm} receives, and depth={depth} ends at block "
                f"{depth - 1}: use None, 0 or a number below {depth}."
            )
        delivered: tuple[Source, ...] = tuple(
            "previous" if self.hierarchical and block > first else "initial" for block in range(first, depth)
        )
        blocks = (None,) * first + delivered if self.layerwise else (None,) * depth
        return Plan(join_input=self.join_input, blocks=blocks, last=self.last_norm)

    def __str__(self) -> str:
        """Return the shortest text that `parse` reads back."""
        candidates = [
            (name, {key: value for key, value in asdict(self).items() if getattr(preset, key) != value})
            for name, preset in SCHEMES.items()
            if preset.class_token == self.class_token
        ]
        name, changed = min(candidates, key=lambda candidate: len(candidate[1]))
        text = ",".join(f"{key}={str(value).lower()}" for key, value in changed.items())
        return f"{name}:{text}" if text else name


SCHEMES: Mapping[str, PositionScheme] = MappingProxyType(
    {
        "mpvg": PositionScheme(),
        "pvg": PositionScheme(last_norm=None),
        "pvg_cls": PositionScheme(class_token=True, last_norm=None),
        "lape": PositionScheme(class_token=True, join_input=False, first_block=True, last_norm=None),
        "lape_gap": PositionScheme(join_input=False, first_block=True, last_norm=None),
        "gap": PositionScheme(layerwise=False, last_norm=None),
        "gap_last": PositionScheme(layerwise=False, last_norm=0),
        "default": PositionScheme(class_token=True, layerwise=False, last_norm=None),
    }
)


def _read_fields(text: str, *, whole: str) -> dict[str, bool | int | None]:
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    named: dict[str, bool | int | None] = {}
    for part in text.split(","):
        name, equals, word = (piece.strip() for piece in part.partition("="))
        word = word.lower()
        if not equals or not (word in words or re.fullmatch(r"-?[0-9]{1,9}", word)):
            raise ValueError(f"scheme {whole!r}: {part!r} is not field=value with true, false, none or a number.")
        if name in named:
            raise ValueError(f"scheme {whole!r} names {name!r} twice: leave one out.")
        named[name] = words[word] if word in words else int(word)
    return named
