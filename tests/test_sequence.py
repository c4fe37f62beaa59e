"""The encoder of sequences: against the reference, one sequence at a time, and through the battery of all models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor

import mpvg
from helpers import images, perturb, relative, timm_records_arguments
from mpvg import SCHEMES, PositionScheme, fold
from mpvg.errors import UserError
from mpvg.scheme import SchemeLike
from reference import Switches, encoder

DEPTH, HEADS, WIDTH = 4, 3, 24
LENGTHS = (20, 7, 13, 1)
STEPS = max(LENGTHS)
KINDS: dict[str, dict[str, Any]] = {
    "text": {"vocab_size": 50},
    "series": {"in_chans": 3},
    "patches": {"in_chans": 2, "patch_size": 3},
}
SIZES = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5, "max_length": 25}
ABLATIONS: list[SchemeLike] = [
    *({"base": "mpvg", "last_norm": block} for block in (1, DEPTH - 1)),
    {"base": "mpvg", "first_block": True},
    {"base": "mpvg", "hierarchical": False},
    {"base": "mpvg", "join_input": False},
    {"base": "pvg_cls", "last_norm": 0},
]

each_kind = pytest.mark.parametrize("kind", KINDS)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def build(kind: str, scheme: SchemeLike, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model("mpvg_sequence", scheme=scheme, **{**SIZES, **KINDS[kind], **changes})
    return perturb(model).eval()


def batch(kind: str, *, steps: int = STEPS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sequences of `LENGTHS` and which of their steps are real."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(steps) < torch.tensor(LENGTHS)[:, None]
    if kind == "text":
        return torch.randint(0, 50, (len(LENGTHS), steps), generator=generator), mask
    return images(len(LENGTHS), steps, KINDS[kind]["in_chans"], dtype=dtype), mask


def reference_tokens(weights: dict[str, Tensor], kind: str, x: Tensor) -> Tensor:
    """The tokens of one sequence without padding, by a loop over them."""
    if kind == "text":
        return torch.stack([weights["patch_embed.proj.weight"][one] for one in x])[None]
    step = KINDS[kind].get("patch_size", 1)
    tokens = []
    for start in range(0, len(x), step):
        piece = torch.zeros(step, x.shape[1], dtype=x.dtype)
        piece[: len(x[start : start + step])] = x[start : start + step]
        tokens.append(weights["patch_embed.proj.weight"] @ piece.flatten() + weights["patch_embed.proj.bias"])
    return torch.stack(tokens)[None]


def reference(model: Any, kind: str, x: Tensor, mask: Tensor, switches: Switches) -> Tensor:
    """The logits of each sequence, computed alone."""
    weights = dict(model.state_dict())
    logits = []
    for one, real in zip(x, mask, strict=True):
        tokens = reference_tokens(weights, kind, one[real])
        of_length = {**weights}
        if "pos_embed" in weights:
            of_length["pos_embed"] = weights["pos_embed"][:, : tokens.shape[1] + int(switches.class_token)]
        logits.append(encoder(of_length, tokens, switches, depth=DEPTH, heads=HEADS)["logits"][0])
    return torch.stack(logits)


def switches_of(scheme: SchemeLike) -> Switches:
    of = PositionScheme.parse(scheme)
    return Switches(of.class_token, of.join_input, of.layerwise, of.hierarchical, bool(of.first_block), of.last_norm)


@each_kind
@pytest.mark.parametrize("scheme", [*SCHEMES, *ABLATIONS], ids=str)
def test_every_sequence_of_a_batch_is_what_the_equations_make_of_it_alone(kind: str, scheme: SchemeLike) -> None:
    model = build(kind, scheme, dtype=torch.float64)
    x, mask = batch(kind, dtype=torch.float64)
    expected = reference(model, kind, x, mask, switches_of(scheme))
    assert relative(model(x, mask), expected) < 1e-12
    assert relative(model(x[:1]), expected[:1]) < 1e-12  # without a mask all are real


@pytest.mark.parametrize(
    "wrong",
    [
        {"join_input": False},
        {"hierarchical": False},
        {"first_block": True},
        {"last_norm": None},
        {"last_norm": 1},
        {"reverse_chain": True},
        {"layerwise": False},
    ],
    ids=str,
)
def test_the_reference_disagrees_when_a_switch_is_wrong(wrong: dict[str, Any]) -> None:
    model = build("text", "mpvg", dtype=torch.float64)
    weights = model.state_dict()  # what wrong switches ask for beside
    weights |= {f"blocks.0.norm_pos.{part}": weights[f"blocks.1.norm_pos.{part}"] for part in ("weight", "bias")}
    x, mask = batch("text")
    model.state_dict = lambda: weights
    assert relative(model(x, mask), reference(model, "text", x, mask, replace(switches_of("mpvg"), **wrong))) > 1e-3


@each_kind
@each_scheme
def test_padding_contributes_nothing(kind: str, scheme: str) -> None:
    model = build(kind, scheme)
    x, mask = batch(kind)
    weights: Tensor = model.patch_embed.proj.weight
    with torch.no_grad():
        expected = model(x, mask)
        for garbage in (1e4, -1e4):
            padded = x.clone()
            padded[~mask] = int(garbage) if kind == "text" else garbage
            assert torch.equal(model(padded, mask), expected)
            assert torch.equal(model.forward_features(padded, mask), model.forward_features(x, mask))
            more = padded.new_full((len(x), 4, *x.shape[2:]), int(garbage) if kind == "text" else garbage)
            longer = torch.cat([padded, more], dim=1), torch.cat([mask, mask.new_zeros(len(x), 4)], dim=1)
            assert relative(model(*longer), expected) < 1e-6
            head = model.forward_head(model.forward_features(padded, mask), mask=mask)
            assert relative(head, expected) < 1e-6
    if kind == "text":
        return
    padded = padded.requires_grad_()
    model(padded, mask).square().sum().backward()
    assert padded.grad is not None
    assert not padded.grad[~mask].any()
    assert padded.grad[mask].all()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


def test_a_mean_over_padding_too_would_be_seen() -> None:
    model, (x, mask) = build("series", "mpvg"), batch("series")
    with torch.no_grad():
        right = model(x, mask)
        features = model.forward_features(x, mask)
        assert relative(model.forward_head(features), right) > 1e-2
        assert relative(model(x), right) > 1e-2


@each_kind
@each_scheme
def test_gradients(kind: str, scheme: str) -> None:
    model, (x, mask) = build(kind, scheme, max_length=STEPS), batch(kind)
    if kind == "text":
        x = torch.arange(4 * STEPS).view(4, STEPS) % 50  # all words
        mask[:, :13] = True
    logits = model.train()(x, mask)
    assert logits.shape == (len(LENGTHS), 5)
    (logits * images(*logits.shape, seed=1)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@each_scheme
def test_numbers_of_parameters(scheme: str) -> None:
    of, width, hidden, rows = SCHEMES[scheme], WIDTH, 2 * WIDTH, 25
    block = 4 * width * width + 4 * width + 2 * width * hidden + hidden + width + 4 * width
    receivers = (DEPTH - (0 if of.first_block else 1)) if of.layerwise else 0
    norms = 2 * width * (receivers + int(of.last_norm is not None))
    token = width * int(of.class_token)
    expected = DEPTH * block + 50 * width + 2 * width + 5 * (width + 1) + (rows * width + token) + token + norms
    assert sum(parameter.numel() for parameter in build("text", scheme).parameters()) == expected


@each_kind
@each_scheme
def test_folded(kind: str, scheme: str) -> None:
    model, (x, mask) = build(kind, scheme), batch(kind)
    folded = fold(model)
    with torch.no_grad():
        assert relative(folded(x, mask), model(x, mask)) <= 1e-6
        for length in LENGTHS:  # the Last-LN term is another constant for each
            assert relative(folded(x[:, :length]), model(x[:, :length])) <= 1e-6
        assert torch.equal(folded.forward_features(x, mask), model.forward_features(x, mask))
        assert not [key for key in folded.state_dict() if "norm_pos" in key]
        assert relative(torch.jit.script(folded)(x, mask), folded(x, mask)) < 1e-6
        longer = fold(model, 30)
        model.set_input_size(30)
        assert relative(longer(x, mask), model(x, mask)) <= 1e-6
    assert fold(longer, 30) is longer
    with pytest.raises(ValueError, match="img_size=31: a folded model has one size"):
        fold(longer, 31)


def test_what_folding_keeps_of_the_last_norm_depends_on_the_length() -> None:
    """So a constant in the bias would be wrong for all lengths but one."""
    model, (x, _) = build("text", "mpvg"), batch("text")
    with torch.no_grad():
        last = model.positions().last
        without = build("text", "pvg")
        shared = without.state_dict().keys()
        without.load_state_dict({name: value for name, value in model.state_dict().items() if name in shared})
        without.reset_classifier(0)
        model.reset_classifier(0)
        for length in (3, 20):
            added = model(x[:, :length]) - without(x[:, :length])
            assert relative(added, last[:, :length].mean(dim=1).expand_as(added)) < 1e-4
        assert relative(last[:, :3].mean(dim=1), last[:, :20].mean(dim=1)) > 0.1
    assert fold(model).pooled_norm is None


@pytest.mark.parametrize("pos_embed", ["learn", "sincos1d"])
def test_longer_tables(pos_embed: str) -> None:
    for scheme in ("mpvg", "lape"):
        model, (x, mask) = build("patches", scheme, pos_embed=pos_embed), batch("patches")
        if pos_embed == "sincos1d":
            model.init_weights()  # a perturbed sinusoid is none
        before = model(x, mask)
        old = model.pos_embed.detach().clone()
        model.set_input_size(40)
        assert model.pos_embed.shape[1] == 14 + model.num_prefix_tokens
        assert model.pos_embed.requires_grad == (pos_embed == "learn")
        assert torch.equal(model.pos_embed[:, : model.num_prefix_tokens], old[:, : model.num_prefix_tokens])
        same_rows = torch.allclose(model.pos_embed[:, : old.shape[1]], old)
        assert same_rows == (pos_embed == "sincos1d")  # made longer; a learned table is stretched
        assert (relative(model(x, mask), before) < 1e-5) == same_rows
        longer = torch.cat([x, x], dim=1)
        assert model(longer).isfinite().all()


def test_words_for_what_is_wrong() -> None:
    text, series = build("text", "mpvg"), build("patches", "default")
    ids, mask = batch("text")
    numbers, _ = batch("patches")
    nothing = mask.clone()
    nothing[2] = False
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: text(numbers), r"x of shape \[4, 20, 2\] and torch.float32: this model takes token ids \[B, T\]"),
        (lambda: text(ids.float()), r"torch.float32: this model takes token ids"),
        (lambda: series(ids), r"x of shape \[4, 20\].*series \[B, T, 2\]"),
        (lambda: series(numbers[..., :1]), r"\[4, 20, 1\].*series \[B, T, 2\]"),
        (lambda: series(numbers.long()), r"torch.int64.*series"),
        (lambda: text(ids.repeat(1, 2)), r"sequences of 40 steps: .* for 1 to 25.*set_input_size\(40\)"),
        (lambda: text(ids[:, :0]), r"\[4, 0\]: sequences of no step"),
        (lambda: text(ids.to(torch.uint8)), "torch.uint8: this model takes token ids"),
        (lambda: build("series", "mpvg", num_heads=5), "embed_dim=24 with num_heads=5"),
        (lambda: text(ids, mask[:, 1:]), r"mask of shape \[4, 19\]"),
        (lambda: text(ids, mask.long()), r"torch.int64 for x of .*use a bool for each of \[4, 20\]"),
        (lambda: text(ids, nothing), "sequence 2 of the batch has no real place"),
        (lambda: series(numbers, nothing), "sequence 2 of the batch has no real place"),
        (lambda: text(ids + 49), "token id 98: this model knows 0 to 49"),
        (lambda: text(ids - 9), "token id -9: .*vocab_size=50"),
        (lambda: build("text", "mpvg", in_chans=2), "vocab_size=50 with in_chans=2"),
        (lambda: build("text", "mpvg", patch_size=2), "vocab_size=50 with in_chans=1 and patch_size=2"),
        (lambda: build("series", "mpvg", max_length=0), "max_length=0: use a whole number from 1"),
        (lambda: build("series", "mpvg", pos_embed="sincos2d"), "a sequence has one dimension, use 'learn'"),
        (lambda: build("series", "mpvg", pos_embed="rope"), "pos_embed='rope' is unknown"),
        (lambda: build("series", "mpvg", pos_embed="none"), "there is no table to deliver"),
        (lambda: build("series", "mpgv"), "'mpgv' is unknown: did you mean 'mpvg'|mpgv.*mpvg"),
        (lambda: build("series", "gap", class_token=True), "class_token=True contradicts"),
        (lambda: build("series", "mpvg", features_only=True), "call forward_intermediates"),
        (lambda: text.set_input_size(-1), "max_length=-1"),
        (lambda: text.reset_classifier(3, "token"), "global_pool='token' contradicts"),
    ]
    for act, words in cases:
        with pytest.raises(ValueError, match=words):
            act()


@each_kind
@each_scheme
def test_through_the_battery(kind: str, scheme: str) -> None:
    """Intermediates, checkpointing, another classifier, TorchScript and low precision."""
    model, (x, mask) = build(kind, scheme), batch(kind)
    with torch.no_grad():
        logits = model(x, mask)
        final, taken = model.forward_intermediates(x, mask)
        assert torch.equal(final, model.forward_features(x, mask))
        tokens = -(-STEPS // model.patch_embed.patch_size)
        assert [one.shape for one in taken] == DEPTH * [(len(x), tokens, WIDTH)]
        (early,) = model.forward_intermediates(x, mask, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(early, taken[1])
        (normed,) = model.forward_intermediates(x, mask, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(normed, final[:, model.num_prefix_tokens :])
        (pair,) = model.forward_intermediates(x, mask, indices=1, return_prefix_tokens=True, intermediates_only=True)
        assert isinstance(pair, tuple) == bool(model.num_prefix_tokens)
        scripted = torch.jit.script(model)
        assert relative(scripted(x, mask), logits) < 1e-6
        assert relative(scripted(x), model(x)) < 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(model(x, mask).float(), logits) < 0.1
        low = build(kind, scheme).to(torch.bfloat16)
        assert low(x if kind == "text" else x.bfloat16(), mask).dtype == torch.bfloat16
    grads = []
    for enable in (False, True):
        trained = build(kind, scheme).train()
        trained.set_grad_checkpointing(enable)
        trained(x, mask).square().mean().backward()
        grads.append([parameter.grad for parameter in trained.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)
    pooled = model.forward_head(model.forward_features(x, mask), pre_logits=True, mask=mask)
    model.reset_classifier(3)
    assert model(x, mask).shape == (len(x), 3)
    model.reset_classifier(0)
    assert relative(model(x, mask), pooled) < 1e-6
    model.reset_classifier(0, "")
    assert torch.equal(model(x, mask), model.forward_features(x, mask))


@pytest.mark.parametrize("scheme", ["mpvg", "lape"])
@pytest.mark.parametrize("kind", ["text", "patches"])
def test_compile_and_export(kind: str, scheme: str) -> None:
    torch._dynamo.reset()
    model, (x, mask) = build(kind, scheme), batch(kind)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert relative(compiled(x, mask), model(x, mask)) < 1e-5
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: 3 * torch.export.Dim("third", min=2, max=8)}
    x, mask = x[:, :18], mask[:, :18]
    program = torch.export.export(model, (x, mask), dynamic_shapes=(sizes, sizes))
    shorter = x[:2, :9], mask[:2, :9]
    assert relative(program.module()(*shorter), model(*shorter)) < 1e-5


@each_scheme
def test_one_seed_gives_shared_parameters_the_same_values(scheme: str) -> None:
    def start(scheme: str) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return timm.create_model("mpvg_sequence", scheme=scheme, vocab_size=9, **SIZES).state_dict()

    ours, gap = start(scheme), start("gap")
    assert torch.equal(ours["pos_embed"][:, -25:], gap["pos_embed"])
    assert all(torch.equal(ours[key], gap[key]) for key in (set(ours) & set(gap)) - {"pos_embed"})
    assert {key for key in set(ours) ^ set(gap) if "norm_pos" not in key} <= {"cls_token"}


def test_late_initialisation() -> None:
    for pos_embed in ("learn", "sincos1d"):
        options = {**SIZES, "scheme": "default", "in_chans": 3, "pos_embed": pos_embed}
        model = timm.create_model("mpvg_sequence", device="meta", dtype=torch.float64, **options)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        model = model.to_empty(device="cpu").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        model.init_weights()
        assert model(batch("series", dtype=torch.float64)[0]).isfinite().all()


@each_scheme
def test_optimiser_groups(scheme: str) -> None:
    model = build("series", scheme)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    skipped = model.no_weight_decay()
    scales = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=skipped)
        for parameter in group["params"]
    }
    assert set(scales) == set(names.values())
    for key, scale in scales.items():
        if "norm_pos" in key:
            assert scale == scales[key.replace("norm_pos", "norm1" if "blocks" in key else "norm")]
    assert scales["pos_embed"] == scales["patch_embed.proj.weight"] == min(scales.values())
    plain = {
        names[id(parameter)]
        for group in param_groups_weight_decay(model, 0.05, no_weight_decay_list=skipped)
        for parameter in group["params"]
        if group["weight_decay"] == 0
    }
    assert plain == {key for key in names.values() if model.get_parameter(key).ndim <= 1} | (skipped & set(scales))


@pytest.mark.skipif(not timm_records_arguments(), reason="this timm needs model_args in save_for_hf")
def test_saved_folder_gives_the_model_back(tmp_path: Any) -> None:
    model, (x, mask) = build("patches", "mpvg:last_norm=2"), batch("patches")
    for length in (25, 40):
        model.set_input_size(length)
        save_for_hf(model, tmp_path)
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert loaded.scheme == model.scheme
        assert loaded.max_length == length
        assert torch.equal(loaded(x, mask), model(x, mask))


def test_weights_of_another_length(tmp_path: Any) -> None:
    model, (x, mask) = build("text", "mpvg"), batch("text")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    sizes = {**SIZES, **KINDS["text"], "max_length": 40}
    loaded = mpvg.create_model("mpvg_sequence", pretrained=tmp_path / "weights.safetensors", **sizes).eval()
    model.set_input_size(40)
    assert torch.equal(loaded(x, mask), model(x, mask))
    token = build("text", "default")
    save_file(token.state_dict(), tmp_path / "token.safetensors")
    with pytest.warns(UserWarning, match="class token is dropped"):
        pooled = mpvg.create_model("mpvg_sequence", scheme="gap", pretrained=tmp_path / "token.safetensors", **sizes)
    token.set_input_size(40)
    assert torch.equal(pooled.pos_embed, token.pos_embed[:, 1:])
    with pytest.raises(UserError, match="does not fit mpvg_sequence"):
        mpvg.create_model("mpvg_sequence", pretrained=tmp_path / "weights.safetensors", **{**sizes, "vocab_size": 9})


def test_positions_are_computed_once() -> None:
    model, (x, mask) = build("text", "mpvg"), batch("text")
    calls: list[int] = []
    model.blocks[1].norm_pos.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        for length in (20, 5, 20):
            model(x[:, :length], mask[:, :length])
        assert len(calls) == 1
        model.set_input_size(30)
        model(x, mask)
        assert len(calls) == 2
