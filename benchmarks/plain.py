"""Pipelines to compare with: the plain one of the project before this one, and those of two libraries' documentation.

The plain pipeline decodes each full-size original with OpenCV in the training process every epoch, draws the same
random views of it as the project does of its prepared images, and trains in float32 with contiguous tensors, its ARL
blocks summed operation by operation.
"""

import random
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nets.arl import ARLAttention
from utils.config import Experiment
from utils.data.isic import Sample
from utils.data.loader import MEAN, STD
from utils.data.transforms import Transforms
from utils.device import cores
from utils.loss import create_loss


def plain_image(sample: Sample) -> np.ndarray:
    """The photograph as uint8 [H, W, 3], RGB, at full size."""
    return cv2.cvtColor(cv2.imread(str(sample.image)), cv2.COLOR_BGR2RGB)


def plain_mask(sample: Sample) -> np.ndarray:
    """The lesion mask as uint8 [H, W] of 0 and 1, at full size."""
    return (cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE) > 128).astype(np.uint8)


class PlainSet(Dataset):
    """Originals, read anew each time: an image float32 [3, H, W], normalised, and mask [H, W] or class index.

    views: the project's training views (with masks, `SegmentationTransforms`); None leaves the originals whole and as they are, and
    size resizes them to (width, height).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        masks: bool,
        views: Transforms | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.samples, self.masks, self.views, self.size = samples, masks, views, size
        self.drawn = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.samples[index]
        self.drawn += 1
        pixels, target = plain_image(sample), plain_mask(sample) if self.masks else np.int64(sample.label)
        if self.views is None:
            pixels = cv2.resize(pixels, self.size)
            target = cv2.resize(target, self.size, interpolation=cv2.INTER_NEAREST) if self.masks else target
        elif self.masks:
            self.views.transforms.set_random_state(np.random.default_rng(self.drawn), random.Random(self.drawn))
            drawn = self.views.transforms(image=pixels, mask=target)
            pixels, target = drawn["image"], drawn["mask"]
        else:
            pixels, _ = self.views(pixels, sample, self.drawn)
        image = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), torch.as_tensor(target)


class PlainAttention(nn.Module):
    """The sum of an ARL block as its formula says it, [B, C, H, W] each: F + s + α · softmax over positions(F) ⊙ s."""

    def __init__(self, alpha: nn.Parameter) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, residual: Tensor, shortcut: Tensor, relu: bool = False) -> Tensor:
        attention = residual.flatten(2).softmax(-1).view_as(residual)
        total = residual + shortcut + self.alpha * attention * shortcut
        return total.relu() if relu else total


def with_plain_attention(model: nn.Module) -> nn.Module:
    """The model, changed: the same weights, its ARL blocks (spatial) with `PlainAttention`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ARLAttention):
                setattr(module, name, PlainAttention(child.alpha))
    return model


class Plain:
    """A network in training as simple code has it: float32, contiguous, no autocast.

    Args:
        criterion: called with (logits, targets).
        loader: batches of (images float32 [B, 3, H, W], targets).
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        device: torch.device,
    ) -> None:
        self.model, self.criterion, self.optimizer = model.train(), criterion, optimizer
        self.loader, self.device = loader, device

    @property
    def images(self) -> int:
        """Images of one epoch."""
        return len(self.loader) * self.loader.batch_size

    def step(self, images: Tensor, targets: Tensor) -> None:
        loss = self.criterion(self.model(images.to(self.device)), targets.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def warm_up(self) -> None:
        """Starts the loader's processes and takes one step."""
        batches = list(self.loader)  # all of them: what a loader's processes have ready counts to no later epoch
        self.step(*batches[0])

    def epoch(self) -> None:
        for images, targets in self.loader:
            self.step(images, targets)


def plain_training(
    row: Experiment, model: nn.Module, samples: Sequence[Sample], views: Transforms, device: torch.device
) -> Plain:
    """The row's network, loss, batch size and optimizer, over originals that the training process reads."""
    loader = DataLoader(
        PlainSet(samples, row.task == "segmentation", views),
        row.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=0,
        generator=torch.Generator().manual_seed(0),
    )
    model = with_plain_attention(model).to(device)
    criterion = create_loss(row.loss, class_weights=row.class_weights).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=row.lr, weight_decay=row.weight_decay)
    return Plain(model, criterion, optimizer, loader, device)


def smp_training(row: Experiment, encoder: str, samples: Sequence[Sample], device: torch.device) -> Plain:
    """segmentation_models.pytorch's U-Net as its example for pets trains it: Dice loss, Adam, one worker a core."""
    import segmentation_models_pytorch as smp  # imports slowly

    dice = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
    model = smp_unet(encoder).to(device)
    workers = cores()
    loader = DataLoader(
        PlainSet(samples, masks=True, size=row.size),
        row.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(0),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    return Plain(model, lambda logits, masks: dice(logits, masks[:, None].float()), optimizer, loader, device)


def smp_unet(encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)


class TorchvisionResNet50:
    """torchvision's ResNet-50, its step as in its reference training: float32, contiguous, SGD with momentum."""

    def __init__(self, batch_size: int, size: tuple[int, int], device: torch.device) -> None:
        from torchvision.models import resnet50

        self.model = resnet50(weights=None).to(device).train()
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn((batch_size, 3, size[1], size[0]), generator=generator).to(device)
        self.targets = torch.randint(1000, (batch_size,), generator=generator).to(device)

    def step(self) -> None:
        loss = self.criterion(self.model(self.images), self.targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
