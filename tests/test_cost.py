"""What schemes cost: torch's counts against closed formulas, and the scheme's own work against what is really done."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mpvg
from families import FAMILIES, SWIN, VIT, Family, build, inputs
from mpvg.cli import main
from mpvg.commands.cost import REFERENCES
from mpvg.cost import Cost, cost, costs, hours
from mpvg.cost.count import FLOAT, as_row, count_kept, count_matrix_products
from mpvg.cost.formulas import block, matrix_products
from mpvg.cost.growth import law, traffic_share
from mpvg.cost.hours import RECIPES, training_flops
from mpvg.cost.own_work import NORM_OPERATIONS, own_work
from mpvg.models.architectures import own_classifiers

COUNTED = Path(__file__).parents[1] / "results" / "cost" / "counted.csv"
# Of the presets those that reach every branch of the formulas; all are counted at their models' own sizes.
SCHEMES = ("mpvg", "gap_last", "mpvg:last_norm=2", "mpvg:hierarchical=false", "mpvg:join_input=false,first_block=true")
WITH_CLASS_TOKEN = ("lape", "pvg_cls:last_norm=2", "default:last_norm=0")
FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.models[0])


def schemes(family: Family) -> list[str]:
    return [*SCHEMES, *(WITH_CLASS_TOKEN if family.class_tokens else ())]


def without_positions(scheme: str) -> dict[str, str]:
    """Return the arguments of the same model without any position."""
    token = mpvg.PositionScheme.parse(scheme).class_token
    return {"scheme": ("default" if token else "gap") + ":join_input=false", "pos_embed": "none"}


def unfused(model: Any) -> Any:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def on_meta(family: Family, scheme: str, **changes: Any) -> Any:
    arguments = {**family.shrunken, **changes}
    return unfused(timm.create_model(family.models[0], scheme=scheme, device="meta", **arguments))


class Operations(TorchDispatchMode):
    """Counts what is added and averaged, and the norms of what has no batch: the positions, where images come in 3."""

    def __init__(self) -> None:
        super().__init__()
        self.added = self.averaged = self.norms = self.norm_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "add" and all(isinstance(part, Tensor) for part in args[:2]):
            self.added += result.numel()
        elif name == "mean":
            self.averaged += args[0].numel()
        elif name == "native_layer_norm" and args[0].shape[0] == 1:
            self.norms += 1
            self.norm_elements += args[0].numel()
        return result


def operations(family: Family, model: Any) -> Operations:
    with torch.no_grad(), Operations() as found:
        model(inputs(family, batch=3))
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * ("_base_" in name or "_small_" in name))
        for name in own_classifiers()
    ],
)
def test_counts_are_the_formulas_and_the_committed_ones(name: str) -> None:
    found = {one.scheme: one for one in costs([name])}
    assert set(found) == {scheme for scheme in mpvg.SCHEMES if scheme != "pvg_cls" or "swin" not in name}
    for one in found.values():
        assert one.matmul == one.matmul_formula
        same_tokens = next(two for two in found.values() if two.norms == 0 and two.tokens == one.tokens)
        assert one.kept_image == same_tokens.kept_image
        assert one.kept_once - same_tokens.kept_once == one.kept_positions - same_tokens.kept_positions
    rows = [as_row(one, {reference: found[reference] for reference in REFERENCES}) for one in found.values()]
    with COUNTED.open(newline="", encoding="utf-8") as file:
        committed = [row for row in csv.DictReader(file) if row["model"] == name]
    assert [{key: str(value) for key, value in row.items()} for row in rows] == committed


@FAMILY
def test_formulas_at_other_sizes_channels_and_batches(family: Family) -> None:
    for scheme in schemes(family):
        model = on_meta(family, scheme, img_size=family.wide)
        once = own_work(model).merging
        assert count_matrix_products(model, 5) == 5 * matrix_products(model) + once
        folded = mpvg.fold(model)
        assert count_matrix_products(folded, 5) == 5 * matrix_products(folded)
        assert (once > 0) == (family is SWIN and any((*model.plan.blocks, model.plan.last is not None)))


@FAMILY
@pytest.mark.parametrize("folded", [False, True], ids=["unfolded", "folded"])
def test_own_work_is_what_the_model_does(family: Family, folded: bool) -> None:
    for scheme in schemes(family):
        model, bare = build(family, scheme), build(family, **without_positions(scheme))
        model = mpvg.fold(model) if folded else model
        found, without, work = operations(family, model), operations(family, bare), own_work(model)
        assert without.norms == 0
        assert found.added - without.added == 3 * work.added
        assert (found.norms, found.norm_elements) == (work.norms, work.norm_elements)
        assert found.averaged - without.averaged == work.averaged
        if folded:
            assert work.merging + work.norm_flops == 0
            assert work.kept == 0


@FAMILY
def test_memory_for_backward_is_the_formula(family: Family) -> None:
    for scheme in schemes(family):
        model, bare = on_meta(family, scheme), on_meta(family, **without_positions(scheme))
        for batch in (2, 7):
            assert count_kept(model, batch) - count_kept(bare, batch) == FLOAT * own_work(model).kept, scheme


def test_own_work_of_deit_tiny_by_hand() -> None:
    (found,) = costs(["mpvg_deit_tiny_patch16_224"], ["mpvg"])
    assert found.norms == 11 + 1
    assert found.norm_flops == NORM_OPERATIONS * 12 * 196 * 192
    assert found.added == (1 + 11 + 1) * 196 * 192
    assert found.folded_added == (1 + 11) * 196 * 192  # the Last-LN term is in the classifier's bias
    assert found.kept_positions == FLOAT * (10 * 196 * 192 + 12 * 2 * 196)  # two norms read the table itself
    assert found.parameters - found.folded_parameters == (12 - 1) * 2 * 192  # a second Last LN, with the constant
    assert found.flops(4) == found.matmul + found.added + found.norm_flops / 4
    assert found.flops(10**12) - found.folded_flops() == pytest.approx(196 * 192)


def test_extras_are_parts_of_the_reference() -> None:
    mpvg_, gap, default = costs(["mpvg_deit_tiny_patch16_224"], ["mpvg", "gap", "default"])
    assert set(gap.extra(gap).values()) == {0.0}
    assert mpvg_.extra(gap, 32)["flops"] == pytest.approx((mpvg_.flops(32) - gap.flops(32)) / gap.flops(32))
    assert mpvg_.extra(gap, 32)["flops"] < 0.0005  # the README's few hundredths of a percent
    assert mpvg_.extra(gap)["matmul"] == 0
    assert mpvg_.extra(gap)["kept"] == pytest.approx(mpvg_.kept_positions / (gap.kept_image + gap.kept_once))
    assert mpvg_.extra(default)["matmul"] < 0  # one token less


def test_fused_attention_is_left_as_it_was() -> None:
    model = timm.create_model("mpvg_vit_nano", device="meta")
    before = [module.attn.fused_attn for module in model.blocks]
    cost(model)
    assert [module.attn.fused_attn for module in model.blocks] == before


@pytest.mark.parametrize("changes", [{"embed_dim": 384}, {"img_size": 448}, {"depth": 24}], ids=str)
@pytest.mark.parametrize("batch", [1, 64])
def test_the_law_of_growth(changes: dict[str, int], batch: int) -> None:
    def counted(scheme: str) -> Cost:
        return cost(timm.create_model("mpvg_deit_tiny_patch16_224", scheme=scheme, device="meta", **changes))

    gap, depth = counted("gap"), changes.get("depth", 12)
    sizes = {"width": changes.get("embed_dim", 192), "tokens": gap.tokens, "batch": batch}
    part = (depth - 1) / depth
    assert counted("mpvg").extra(gap, batch)["flops"] == pytest.approx(law(**sizes), rel=0.05)
    assert counted("pvg").extra(gap, batch)["flops"] == pytest.approx(law(**sizes, added=part, norms=part), rel=0.05)


def test_laws_by_hand() -> None:
    assert block(10, 8, 32) == 24 * 10 * 8**2 + 4 * 10**2 * 8
    assert law(width=8, tokens=10, batch=7) == pytest.approx(2 / (24 * 8 + 4 * 10))
    assert law(width=8, tokens=10, batch=float("inf"), mlp_ratio=2, added=0.5) == pytest.approx(0.5 / (16 * 8 + 40))
    assert traffic_share(width=192, tokens=196, heads=3, fused=True) == pytest.approx(3 / 38)
    assert traffic_share(width=192, tokens=192, heads=3, fused=False) == pytest.approx(3 / 50)


def test_hours() -> None:
    assert hours(1000, gpus=1, epochs=3, images=1_200_000) == pytest.approx(1)
    assert hours(1000, gpus=8, epochs=3, images=1_200_000, efficiency=0.5) == pytest.approx(1 / 4)
    assert training_flops(2.0, epochs=3, images=10) == 180
    assert [recipe.epochs for recipe in RECIPES] == [300] * 5 + [310]
    for wrong in ({"gpus": 0}, {"epochs": 0}, {"efficiency": 1.1}, {"efficiency": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            hours(1000, **{"gpus": 1, "epochs": 1, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images_per_second"):
        hours(float("nan"), gpus=1, epochs=1)


def lines(words: Iterable[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["cost", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_table_csv_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mpvg_vit_nano", "--schemes", "mpvg,mpvg:last_norm=3,first_block=true", "--batch", "16"]
    header, first, second, *_, last = lines([*words, "--csv", str(tmp_path / "cost.csv")], capsys)
    assert header.split()[:4] == ["model", "scheme", "parameters", "products"]
    assert first.split()[:2] == ["mpvg_vit_nano", "mpvg"]
    assert second.split()[1] == "mpvg:first_block=true,last_norm=3"
    assert len({len(line) for line in (header, first, second)}) == 1
    assert "batch of 16" in last
    rows = json.loads("\n".join(lines([*words, "--json"], capsys)))
    assert [row["scheme"] for row in rows] == [first.split()[1], second.split()[1]]
    with (tmp_path / "cost.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    gap = timm.create_model("mpvg_vit_nano", scheme="gap", device="meta")
    assert rows[0]["parameters_vs_gap"] == rows[0]["parameters"] / sum(p.numel() for p in gap.parameters()) - 1


def test_lines_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, lines(["mpvg_swin_small_patch4_window7_224", "--schemes", "mpvg"], capsys))) <= 120


def test_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = json.loads("\n".join(lines(["mpvg_vit_nano", "--schemes", "gap", "--img-size", "16", "--json"], capsys)))
    assert (row["height"], row["width"], row["tokens"]) == (16, 16, 64)


def test_models_that_cannot_take_a_size_are_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "list_models", lambda pattern: ["mpvg_vit_nano", SWIN.models[0]])
    assert main(["cost", "--schemes", "gap", "--img-size", "32", "--json"]) == 0
    printed = capsys.readouterr()
    assert [row["model"] for row in json.loads(printed.out)] == ["mpvg_vit_nano"]
    assert "1 of 2 models cannot take 32 pixels" in printed.err


SEQUENCES = {
    "series": {"in_chans": 2, "patch_size": 3, "max_length": 20},
    "steps": {"in_chans": 1, "max_length": 9},
    "text": {"vocab_size": 11, "max_length": 9},
}
OF_SEQUENCES = pytest.mark.parametrize("kind", SEQUENCES)
TINY = {"embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 7}


def of_sequences(kind: str, scheme: str, **changes: Any) -> Any:
    return timm.create_model("mpvg_sequence", scheme=scheme, **{**TINY, **SEQUENCES[kind], **changes})


def sequences(model: Any, batch: int) -> Tensor:
    if model.patch_embed.vocab_size:
        return torch.zeros(batch, model.max_length, dtype=torch.int64)
    return torch.zeros(batch, model.max_length, model.patch_embed.in_chans)


@OF_SEQUENCES
def test_matrix_products_of_sequences_are_the_formula(kind: str) -> None:
    for scheme in (*SCHEMES, *WITH_CLASS_TOKEN):
        model = unfused(of_sequences(kind, scheme, device="meta"))
        assert count_matrix_products(model, 5) == 5 * matrix_products(model)
        assert count_matrix_products(mpvg.fold(model), 5) == 5 * matrix_products(model)
    tokens, width = 7, 24
    if kind == "series":  # by hand: 20 steps are 7 tokens, of 3 steps in 2 channels each
        blocks = 3 * (8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * 48)
        expected = 2 * tokens * 6 * width + blocks + 2 * width * 7
        assert matrix_products(of_sequences(kind, "mpvg", device="meta")) == expected


@OF_SEQUENCES
@pytest.mark.parametrize("folded", [False, True], ids=["unfolded", "folded"])
def test_own_work_in_sequences_is_what_the_model_does(kind: str, folded: bool) -> None:
    for scheme in (*SCHEMES, *WITH_CLASS_TOKEN):
        model, bare = (
            of_sequences(kind, **arguments).eval() for arguments in ({"scheme": scheme}, without_positions(scheme))
        )
        model = mpvg.fold(model) if folded else model
        found, without, work = Operations(), Operations(), own_work(model)
        for one, counter in ((model, found), (bare, without)):
            with torch.no_grad(), counter:
                one(sequences(one, 3))
        assert found.added - without.added == 3 * work.added, scheme
        assert (found.norms, found.norm_elements) == (work.norms, work.norm_elements), scheme
        assert found.averaged - without.averaged == work.averaged, scheme
        assert (work.averaged > 0) == (model.plan.last is not None and not model.has_class_token)


@pytest.mark.parametrize("kind", ["series", "text"])
def test_memory_for_backward_of_sequences_is_the_formula(kind: str) -> None:
    for scheme in ("mpvg", "mpvg:last_norm=2", "lape", "pvg_cls:last_norm=0"):
        model = unfused(of_sequences(kind, scheme, device="meta"))
        bare = unfused(of_sequences(kind, **without_positions(scheme), device="meta"))
        for batch in (2, 7):
            assert count_kept(model, batch) - count_kept(bare, batch) == FLOAT * own_work(model).kept, scheme


def test_the_last_norms_position_in_sequences_by_hand() -> None:
    mpvg_, pvg = costs(["mpvg_sequence"], ["mpvg", "pvg"])
    assert (mpvg_.height, mpvg_.width, mpvg_.tokens) == (1, 128, 128)
    assert mpvg_.added - pvg.added == 64  # one vector, and no addition to every token
    assert mpvg_.averaged == 128 * 64
    assert mpvg_.norm_flops - pvg.norm_flops == NORM_OPERATIONS * 128 * 64
    assert mpvg_.folded_tables - pvg.folded_tables == 128 * 64
    assert mpvg_.folded_flops(4) - pvg.folded_flops(4) == 64 + 128 * 64 / 4
    assert mpvg_.folded_added == mpvg_.added
    (longer,) = costs(["mpvg_sequence"], ["mpvg"], img_size=500)
    assert longer.tokens == longer.width == 500


def test_sequences_are_counted_by_name_and_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["mpvg_sequence", "--schemes", "mpvg,default", "--img-size", "40", "--json"]
    rows = json.loads("\n".join(lines(words, capsys)))
    assert [(row["scheme"], row["tokens"], row["width"]) for row in rows] == [("mpvg", 40, 40), ("default", 41, 40)]
    assert all(row["matmul"] == row["matmul_formula"] for row in rows)
    assert main(["cost", "mpvg_sequence", "--schemes", "mpvg:last_norm=6"]) == 2
    assert "mpvg_sequence: " in capsys.readouterr().err
    assert "mpvg_sequence" not in own_classifiers()
    assert main(["bench", "--models", "mpvg_vit_nano", "mpvg_sequence"]) == 2
    assert "--models mpvg_sequence: sequences are not measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mpvg_vit_nanno"], "did you mean 'mpvg_vit_nano'?"),
        (["--schemes", "mpvgg"], "did you mean 'mpvg'?"),
        ([SWIN.models[0], "--schemes", "pvg_cls"], "use a scheme without class token"),
        ([VIT.models[0], "--schemes", "mpvg:last_norm=12"], "depth=12"),
        (["mpvg_vit_nano", "--csv", "/nowhere/cost.csv"], "/nowhere/cost.csv"),
        (["mpvg_vit_nano", "--csv", "/"], "is a folder"),
        ([SWIN.models[0], "--img-size", "200"], "--img-size 224"),
        (["--img-size", "7"], "7 x 7"),
        (["mpvg_vit_nano", "--batch", "0"], "--batch"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
