"""Where a classifier looks: class activation maps, Grad-CAM, and the attention that an ARL network computes itself.

For the classifiers of `nets`. Images are normalised, float32 [B, 3, H, W], on the model's device
(`utils.data.loader.to_input`), and the maps lie there too. The model is put into eval mode.
"""

from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from nets.arl import ARLAttention

Classes = int | Tensor  # index of one class for all images, or int64 [B]


def class_activation_maps(model: nn.Module, images: Tensor, classes: Classes) -> Tensor:
    """Class activation maps, Σ_k w_ck · f_k(x, y): what each position adds to the logit of a class.

    Zhou, Khosla, Lapedriza, Oliva, Torralba, CVPR 2016 (arXiv:1512.04150). w is h·w times the logit's gradient: the
    weights of the linear layer where a network ends in average pooling and that alone. Then the mean of a map over its
    positions plus the bias of the class is the logit; of other networks (some of timm's) that holds at first order.
    Returns float32 [B, h, w], positive and negative, at the size of the last feature map (H/32, W/32).
    """
    with torch.no_grad():
        features = model.eval().features(images)[-1]  # [B, C, h, w]
    (gradients,) = torch.autograd.grad(_logits(model, features.requires_grad_(), classes), features)
    return (features * gradients).sum(1).detach() * features[0, 0].numel()


def grad_cam(model: nn.Module, images: Tensor, layer: str, classes: Classes) -> Tensor:
    """Grad-CAM: the channels of a layer, each weighted by the mean gradient of the class's logit, summed; then ReLU.

    Selvaraju et al., ICCV 2017 (arXiv:1610.02391). At the last layer of a network that ends in global average pooling
    and one linear layer it is the positive part of the class activation map, divided by the number of positions h·w.
    layer: name of a module whose output is [B, C, h, w]. Returns float32 [B, h, w] ≥ 0, at that size.
    """
    kept = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # an in-place ReLU would overwrite the values

    with model.eval().get_submodule(layer).register_forward_hook(keep):
        total = _logits(model, model.features(images)[-1], classes)
    (gradients,) = torch.autograd.grad(total, kept[-1])
    return torch.einsum("bc,bchw->bhw", gradients.mean((2, 3)), kept[-1].detach()).relu()


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The attention R(F(x)) of every ARL block by its name ("layer1.0"), in order; empty for a network without any.

    float32 [B, h, w] each. Of a softmax over positions: the mean over channels, which sums to 1 over the positions.
    Of a softmax over channels: the maximum over channels, because the mean is the same everywhere.
    """
    maps = {}

    def keep(block: str, attention: ARLAttention, inputs: tuple[Tensor, Tensor]) -> None:
        weights = attention.weights(inputs[0])  # [B, C, h, w]
        maps[block] = weights.amax(1) if attention.over == "channel" else weights.mean(1)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, ARLAttention):
                block = name.rpartition(".")[0]
                hooks.enter_context(module.register_forward_pre_hook(partial(keep, block)))
        model.eval().features(images)
    return maps


def _logits(model: nn.Module, features: Tensor, classes: Classes) -> Tensor:
    """The logits of the images' classes, summed: in eval mode images do not mix, so one gradient serves all."""
    chosen = torch.as_tensor(classes, device=features.device).expand(len(features))
    return model.classify(features).gather(1, chosen[:, None]).sum()
