"""Which models of transformers are converted, what a converted one has, and what the refused are told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from encoders import DEPTH, SHAPE, TWO, build, converted, tokens
from helpers import perturb, relative
from mpvg import convert, fold

transformers = pytest.importorskip("transformers")


def test_keys_modes_and_what_is_frozen() -> None:
    for kind, layers, norm in (
        ("Bert", "encoder.layer", "output.LayerNorm"),
        ("DistilBert", "transformer.layer", "output_layer_norm"),
    ):
        source = build(kind).double().train()
        source.embeddings.requires_grad_(False)
        for layer in source.get_submodule(layers):
            layer.get_submodule(norm).eps = 1e-3  # another than that of the embeddings
        ours, plain = convert(source), convert(source, preserve=False)
        new = {f"{layers}.{i}.norm_pos.{part}" for i in range(1, DEPTH) for part in ("weight", "bias")}
        new |= {"norm_pos.weight", "norm_pos.bias"}
        assert plain.state_dict().keys() - source.state_dict().keys() == new
        gates = {f"{layers}.{i}.ls_pos.gamma" for i in range(1, DEPTH)}
        assert ours.state_dict().keys() - source.state_dict().keys() == new | gates
        assert source.state_dict().keys() <= plain.state_dict().keys()
        for key in new:
            assert (plain.get_parameter(key) == float(key.endswith("weight"))).all()
            assert (ours.get_parameter(key) == float(key.endswith("weight") and "layer" in key)).all()
        frozen = {key for key, value in ours.named_parameters() if not value.requires_grad}
        assert frozen == {key for key, value in source.named_parameters() if not value.requires_grad}
        assert {value.dtype for value in ours.parameters()} == {torch.float64}
        for training in (True, False):
            assert all(module.training is training for module in convert(source.train(training)).modules())
        assert {part.eps for key, part in ours.named_modules() if key.endswith("norm_pos")} == {1e-3}
        assert convert(source, {"base": "mpvg", "last_norm": None}).norm_pos is None


def test_what_is_lost_is_told() -> None:
    for scheme in ("lape", "lape_gap", "mpvg:join_input=false"):
        with pytest.warns(UserWarning, match=rf"scheme '{scheme}'.*no longer joins the input") as told:
            ours = convert(build("Bert"), scheme)
        assert told[0].filename == __file__
        assert ours.embeddings.position_embeddings.weight.requires_grad
    with pytest.warns(UserWarning, match="no longer joins"):
        ours = convert(build("Bert"), "gap:join_input=false")
    assert not ours.embeddings.position_embeddings.weight.requires_grad


@pytest.mark.parametrize("kind", [*TWO, "Roberta", "Electra"])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForMaskedLM"])
def test_a_head_stays_on_its_encoder(kind: str, head: str) -> None:
    source = build(kind, head=head)
    ours = convert(source)
    assert type(ours) is type(source)
    assert ours.base_model.plan.last == 0
    assert relative(tokens(ours), tokens(source)) <= 1e-6
    words = ours.get_input_embeddings().weight
    output = ours.get_output_embeddings()
    assert output is None or output.weight is words
    perturb(ours, seed=1)
    folded = fold(ours)
    assert relative(tokens(folded), tokens(ours)) <= 1e-6
    assert relative(tokens(ours), tokens(source)) > 1e-3
    assert folded.get_output_embeddings() is None or (
        folded.get_output_embeddings().weight is folded.get_input_embeddings().weight
    )


class OfTheUser(transformers.BertModel):  # type: ignore[misc, name-defined]
    """A class of one's own."""


class TestRefusals:
    def test_decoders(self) -> None:
        for crosses in (False, True):
            with pytest.raises(ValueError, match=r"BertModel is a decoder.*use a config without"):
                convert(build("Bert", is_decoder=True, add_cross_attention=crosses))

    def test_other_positions(self) -> None:
        source = build("Bert")
        source.config.position_embedding_type = "relative_key"
        with pytest.raises(ValueError, match=r"type 'relative_key'.*position_embedding_type='absolute'"):
            convert(source)
        with pytest.raises(ValueError, match=r"embedding_size=16.*hidden_size=32.*the two are equal"):
            convert(build("Electra", embedding_size=16))
        mpnet = transformers.MPNetModel(transformers.MPNetConfig(**SHAPE))
        t5 = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
        )
        modern = transformers.ModernBertModel(transformers.ModernBertConfig(**{**SHAPE, "num_hidden_layers": 1}))
        for model in (mpnet, t5, modern):
            with pytest.raises(ValueError, match=rf"{type(model).__name__}.*relative or rotary.*only BertModel"):
                convert(model)

    def test_other_classes(self) -> None:
        with pytest.raises(ValueError, match=r"OfTheUser.*something else than BertModel.*only BertModel"):
            convert(OfTheUser(build("Bert").config))
        holder = nn.ModuleDict({"text": build("DistilBert")})
        with pytest.raises(ValueError, match=r"ModuleDict.*model\.text = mpvg\.convert\(model\.text"):
            convert(holder)
        holder["text"] = converted("DistilBert")
        assert relative(tokens(fold(holder)["text"]), tokens(holder["text"])) <= 1e-6
        vision = transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32)
        with pytest.raises(ValueError, match=r"ViTModel of transformers.*is not known.*only BertModel"):
            convert(transformers.ViTModel(vision))

    def test_converted_ones(self) -> None:
        for ours in (converted("Bert"), fold(converted("Bert")), convert(build("Bert", head="ForMaskedLM"))):
            with pytest.raises(ValueError, match=r"converted already, to scheme 'mpvg'.*that it was made from"):
                convert(ours)

    def test_a_forward_of_its_own(self) -> None:
        source = build("Bert")
        attention = source.encoder.layer[1].attention.self
        attention.forward = attention.forward
        assert relative(tokens(convert(source)), tokens(source)) <= 1e-6
        assert torch.equal(tokens(perturb(convert(source), seed=1)), tokens(converted("Bert")))
        attention.forward = lambda *args, **kwargs: None
        with pytest.raises(ValueError, match=r"encoder\.layer\.1\.attention\.self has a forward of its own.*take it"):
            convert(source)

    def test_old_versions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = build("Bert")
        monkeypatch.setattr(type(source.encoder), "forward", lambda self, hidden_states, head_mask=None: None)
        with pytest.raises(ValueError, match=r"transformers [0-9.]+ hands nothing.*use transformers>=5"):
            convert(source)

    def test_a_scheme_that_the_depth_cannot_have(self) -> None:
        with pytest.raises(ValueError, match=r"last_norm=7.*depth=4"):
            convert(build("Bert"), "mpvg:last_norm=7")


def test_the_code_of_the_documents() -> None:
    page = (Path(__file__).parents[1] / "docs" / "finetuning.md").read_text()
    section = page.partition("## Encoders of transformers")[2].partition("\n## ")[0]
    found: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    exec(compile(code, "finetuning.md", "exec"), found)
    plain, model, again, ids = (found[name] for name in ("plain", "model", "again", "ids"))
    assert relative(tokens(model, ids, None), tokens(plain, ids, None)) <= 1e-6
    assert torch.equal(tokens(again.eval(), ids, None), tokens(model, ids, None))
    assert relative(tokens(found["folded"], ids, None), tokens(model, ids, None)) <= 1e-6
