"""From a config to what `fit` takes: the network with its weights, its trainer and loader, and the run's folder."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.utils.data import DataLoader

import nets
from nets.fast import kernel
from nets.pretrained import find_pretrained
from utils import UserError, distributed
from utils.config import MODEL, Config
from utils.data.cache import ImageCache, JoinedCache
from utils.data.extra import licence
from utils.data.isic import SPLITS, SYNTHETIC
from utils.data.loader import train_loader
from utils.data.splits import Data
from utils.data.transforms import Transforms
from utils.device import Precision, use_deterministic_kernels
from utils.logger import log
from utils.model.graphs import find_record
from utils.model.run import Run, digest, environment, read_config
from utils.model.trainer import Schedule, Trainer
from utils.model.weights import find_weights, load_pretrained


def build_model(config: Config) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network with its weights pretrained as asked, and what was loaded (`LoadReport`).

    Pretrained weights are looked for among the runs (`output`, where `cls_main.py` leaves arl18.pth) and in model/.
    A run that will be continued needs them no more: its checkpoint replaces them. UserError when there is no such
    network or file, or they do not fit each other.
    """
    classes = len(config.classes) or None
    try:
        model = nets.create_model(config.net, classes, attention=config.attention, alpha=config.alpha)
    except ValueError as error:  # of timm's names
        raise UserError(str(error)) from error
    weights, origin = None, "random weights"
    if config.weights:
        seen = "if these weights have seen ISIC 2018 (task 1) or 2019, they have seen most test images"
        log.info("%s: %s", config.weights, seen)
    if config.resume and not config.weights and (config.folder / "last.pth").is_file():
        weights, origin = read_config(config.folder)["settings"].get("weights"), str(config.folder)
    elif config.weights or config.pretrained:
        path = config.weights or find_weights(find_pretrained(config.net), config.output, MODEL)
        origin = load_pretrained(model, config.net, path)
        weights = asdict(origin)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("network %s, %.1f million parameters, starts from %s", config.net, parameters / 1e6, origin)
    return model, weights


def build_training(
    config: Config,
    model: nn.Module,
    criterion: nn.Module,
    cache: ImageCache | JoinedCache,
    transforms: Transforms,
    precision: Precision,
) -> tuple[Trainer, DataLoader]:
    """What `fit` takes: the model's trainer, and the loader of the training images.

    UserError when the batch cannot be shared out, or a setting needs another device.
    """
    device = precision.device
    if config.deterministic:
        use_deterministic_kernels()
    if config.sync_batchnorm:
        if device.type != "cuda":
            raise UserError(f"--sync-batchnorm needs CUDA devices, not {device.type}: leave it away")
        model = convert_sync_batchnorm(model)  # timm's, which keeps the activations of its own layers
    batches = (config.batch_size, config.seed, device, config.workers, config.accumulate, config.extra_share)
    loader = train_loader(cache, transforms, *batches)
    model.to(device, memory_format=torch.channels_last)
    schedule = Schedule(config.epochs, config.lr, config.weight_decay, config.patience, config.optimizer)
    steps, record = loader.batch_sampler.steps, find_record(config.graphs, precision)
    return Trainer(model, criterion, schedule, steps, precision, config.on_nan, record), loader


def start_run(
    config: Config,
    data: Data,
    weights: Mapping[str, Any] | None,
    precision: Precision,
    caches: Mapping[str, ImageCache],
) -> Run:
    """The run's folder, with its settings and what it is made with written to config.json."""
    settings = {**config.settings(), "weights": weights}
    settings |= {f"{split}_images": digest(data[split]) for split in ("train", "validation", "extra") if split in data}
    facts = {"data": str(config.data), "test_images": digest(data["test"]), "message": config.message}
    if "extra" in data:
        facts |= {"licence": licence(each.id for each in data["extra"])}
    facts |= {"prepared": {split: caches[split].path.stem for split in SPLITS if split in caches}}
    if config.net in nets.ATTENTIVE and precision.device.type == "cpu":
        facts |= {"arl_kernel": kernel.load(precision.dtype or torch.float32) is not None}
    facts |= {"synthetic": any((config.data / name).is_file() for name in SYNTHETIC)}
    facts |= {"precision": str(precision), "processes": distributed.processes(), "accumulate": config.accumulate}
    facts |= environment(precision.device)
    run = Run(config.folder, settings, facts, resume=config.resume)
    together = f", {distributed.processes()} processes" if distributed.processes() > 1 else ""
    log.info("%s: loss %s, %d×%d pixels, on %s%s", run.folder, config.loss, *config.size, precision, together)
    return run
