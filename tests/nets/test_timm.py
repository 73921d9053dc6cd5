"""timm's networks: what is theirs stays as it is, the normalisation and the classifier are ours."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import nets
from tests.nets.test_nets import NAMES, images, with_random_statistics
from tests.small import CPU, same
from utils import UserError
from utils.data.loader import to_input
from utils.model.weights import load_pretrained


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_is_timms_on_images_normalised_as_its_weights_expect(name):
    torch.manual_seed(0)
    theirs = with_random_statistics(timm.create_model(name, num_classes=3)).eval()
    model = nets.create_model(f"timm/{name}").eval()
    model.backbone.load_state_dict(theirs.state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 65, 96, 3), dtype=np.uint8)
    mean, std = (np.float32(theirs.default_cfg[each]) for each in ("mean", "std"))
    expected = theirs(torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2))
    x = to_input(torch.from_numpy(pixels), CPU)
    assert torch.allclose(model(x), expected, rtol=1e-3, atol=1e-4) and expected.std(0).max() > 1e-3
    encoder = nets.create_model(f"timm_unet/{name}").encoder.eval()
    encoder.backbone.load_state_dict(theirs.state_dict(), strict=False)
    for own, other in zip(encoder.features(x)[:-1], model.features(x)[:-1], strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_loss_is_that_of_a_guess(name):
    """Old fault: 13 in place of log 3."""
    torch.manual_seed(0)
    loss = nn.functional.cross_entropy(nets.create_model(f"timm/{name}")(images(24, 3, 64, 64)), torch.arange(24) % 3)
    assert abs(float(loss.detach()) - np.log(3)) < 0.2


def under_other_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As other codes of the same layers have them, without batch norm's counts."""
    names = {name: name.rpartition(".") for name in state if not name.endswith("num_batches_tracked")}
    return {f"_{layer.replace('.', '_')}.{kind}": state[name] for name, (layer, _, kind) in names.items()}


@pytest.mark.parametrize("family", ["timm", "timm_unet"])
def test_files_of_the_whole_network_are_loaded_under_any_names(family, tmp_path):
    """With ImageNet's classifier, with the decoder of a larger model, or alone; what there is no use for is told."""
    theirs = with_random_statistics(timm.create_model("tf_efficientnet_lite0")).eval()
    net, whole, x = f"{family}/tf_efficientnet_lite0", theirs.state_dict(), images(1, 3, 64, 64)
    other = under_other_names(whole)
    alone = dict([*other.items()][:-2])
    decoder = {"decoder.weight": torch.ones(4, 3), "decoder.bias": torch.ones(1)}
    for state, following in (
        (whole, {"classifier"}),
        (other, {"classifier"}),
        (alone, set()),
        (alone | decoder, {"decoder"}),
    ):
        torch.save(state, tmp_path / "file.pth")
        model = nets.create_model(net).eval()
        report, encoder = load_pretrained(model, net, tmp_path / "file.pth"), getattr(model, "encoder", model)
        unused = {name.rpartition(".")[0].strip("_") for name in report.left_over}
        above = {"conv_head", "bn2"} if nets.is_segmenter(net) else set()
        assert unused == above | following
        assert set(report.missing) == (set() if above else {"classifier.weight", "classifier.bias"})
        assert report.loaded == len(encoder.backbone.state_dict()) - len(report.missing) == (288 if above else 294)
        maps = theirs.forward_intermediates(encoder.renormalised(x), intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(encoder.features(x)[:4], maps, strict=False))
        assert encoder.backbone.bn1.weight.unique().numel() > 1, "as drawn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[:8] + items[9:], r"tensor 9 is _blocks_0_0_bn1.running_var \(32,\), not blocks.0.0.bn1.r"),
        (lambda items: items[:-7], r"tensor 241 is no more, not conv_head.weight \(1280, 320, 1, 1\)"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named_and_nothing_is_loaded(change, message, tmp_path):
    items = [*under_other_names(timm.create_model("tf_efficientnet_lite0").state_dict()).items()]
    torch.save(dict(change(items)), tmp_path / "file.pth")
    model = nets.create_model("timm_unet/tf_efficientnet_lite0")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=f"not the weights of timm_unet/.* under .* in order its {message}"):
        load_pretrained(model, "timm_unet/tf_efficientnet_lite0", tmp_path / "file.pth")
    assert same(model.state_dict(), before)
