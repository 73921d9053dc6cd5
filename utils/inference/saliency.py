"""Where a classifier looks: class activation maps, Grad-CAM, and the attention that an ARL network computes itself.

For the classifiers of `nets`. Images are normalised, float [B, 3, H, W], on the model's device
(`utils.data.loader.to_input`), and the maps lie there too. Every function computes in float32 and eval mode, also under
autocast or `no_grad`, and leaves the model as it was: its modes, hooks, gradients and `requires_grad`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from nets.arl import ARLAttention

Classes = int | Sequence[int] | Tensor | None  # one for all images, one an image, or None: the predicted ones


def class_activation_maps(model: nn.Module, images: Tensor, classes: Classes = None) -> Tensor:
    """Class activation maps, Σ_k w_ck · f_k(x, y): what each position adds to the logit of a class.

    Zhou, Khosla, Lapedriza, Oliva, Torralba, CVPR 2016 (arXiv:1512.04150). w is h·w times the logit's gradient: the
    weights of the linear layer where a network ends in average pooling and that alone. Then the mean of a map over its
    positions plus the bias of the class is the logit; of other networks (some of timm's) that holds at first order.

    Returns:
        float32 [B, h, w], positive and negative, at the size of the last feature map (H/32, W/32).

    Raises:
        ValueError: a class that the model does not have, or not one an image.
    """
    with _evaluation(model, images):
        features = model.features(images.float())[-1]  # [B, C, h, w]
        with torch.enable_grad():
            logits = model.classify(features.requires_grad_())
            classes = _class_of_each(logits, classes)
            (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features)
        return (features * gradients).sum(1).detach() * features[0, 0].numel()


def grad_cam(model: nn.Module, images: Tensor, layer: str, classes: Classes = None) -> Tensor:
    """Grad-CAM: the channels of a layer, each weighted by the mean gradient of the class's logit, summed; then ReLU.

    Selvaraju et al., ICCV 2017 (arXiv:1610.02391). At the last layer of a network that ends in global average pooling
    and one linear layer it is the positive part of the class activation map, divided by the number of positions h·w.

    Args:
        model: images → logits [B, classes]; its parameters need not require gradients.
        layer: name of a module (`model.named_modules()`) whose output is [B, C, h, w], such as "layer4", "layer2.0" or
            "conv1". If it runs more than once in a pass, as the ReLU of a block does, the last output counts.

    Returns:
        float32 [B, h, w] ≥ 0, at the size of the layer's output.

    Raises:
        ValueError: a layer without such an output (the message names those that have one); a class as for CAM.
    """
    outputs: dict[str, Tensor | None] = {}  # by layer, in the order they ran; only the chosen one is kept

    def cut(name: str, _module: nn.Module, _inputs: tuple, output: object) -> Tensor | None:
        if not isinstance(output, Tensor) or output.ndim != 4:
            return None
        outputs[name] = output.detach().requires_grad_() if name == layer else None
        # The graph starts at the chosen layer, as nothing before it needs a gradient. What follows gets a copy,
        # because an in-place ReLU would overwrite the values.
        return outputs[name].clone() if name == layer else None

    with _evaluation(model, images, gradients=True), ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(partial(cut, name)))
        logits = model(images.float().clone())  # a copy: inference tensors cannot be saved for a gradient
        if layer not in outputs:
            names = ", ".join(name for name in outputs if name.count(".") < 2)
            raise ValueError(f"layer {layer!r} puts out no [B, C, h, w]: choose one of {names}, or a module inside one")
        classes = _class_of_each(logits, classes)
        total = logits.gather(1, classes[:, None]).sum()  # in eval mode images do not mix: one pass for all
        (gradients,) = torch.autograd.grad(total, outputs[layer])
        return torch.einsum("bc,bchw->bhw", gradients.mean((2, 3)), outputs[layer].detach()).relu()


def attention_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The attention R(F(x)) of every ARL block by its name ("layer1.0"), in order; empty for a network without any.

    float32 [B, h, w] each. Of a softmax over positions: the mean over channels, which sums to 1 over the positions.
    Of a softmax over channels: the maximum over channels, because the mean is the same everywhere.
    """
    maps = {}

    def keep(block: str, attention: ARLAttention, inputs: tuple[Tensor, Tensor]) -> None:
        weights = attention.weights(inputs[0])  # [B, C, h, w]
        maps[block] = weights.amax(1) if attention.over == "channel" else weights.mean(1)

    with _evaluation(model, images), ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, ARLAttention):
                block = name.rpartition(".")[0]
                hooks.enter_context(module.register_forward_pre_hook(partial(keep, block)))
        model.features(images.float())
    return maps


@contextmanager
def _evaluation(model: nn.Module, images: Tensor, gradients: bool = False) -> Iterator[None]:
    """Eval mode and float32, gradients on or off; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    float32 = torch.autocast(images.device.type, enabled=False)
    as_written: AbstractContextManager = nullcontext()
    if "torch._dynamo" in sys.modules:  # hooks would have a compiled model compiled for each layer
        as_written = torch.compiler.set_stance("force_eager")
    try:
        model.eval()
        with torch.inference_mode(False), torch.set_grad_enabled(gradients), float32, as_written:
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _class_of_each(logits: Tensor, classes: Classes) -> Tensor:
    """int64 [B], indices into logits [B, classes]."""
    batch, count = logits.shape
    chosen = logits.argmax(1) if classes is None else torch.as_tensor(classes, device=logits.device)
    if chosen.ndim == 0:
        chosen = chosen.expand(batch)
    if chosen.is_floating_point() or chosen.shape != (batch,) or not ((chosen >= 0) & (chosen < count)).all():
        raise ValueError(f"classes {classes}: expected None, or one or {batch} whole numbers from 0 to {count - 1}")
    return chosen.long()
