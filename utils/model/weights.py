"""Pretrained weights: found or fetched, and loaded strictly by name and shape."""

import io
import os
import re
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import nets
from nets.pretrained import LAST_LAYERS, PRETRAINED, Pretrained, digest_in
from utils import UserError
from utils.files import LFS_POINTER, check_file, listed, quoted, sha256, written_whole
from utils.logger import log

TIMEOUT = 30  # seconds without a byte, after which a download fails


@dataclass(frozen=True)
class LoadReport:
    """What a weights file gave to a network or its encoder; all names are the network's own."""

    file: str
    sha256: str
    loaded: int
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    source: str = ""  # what the file says of where it comes from

    def __str__(self) -> str:
        missing, unused = (f"{len(x)} ({listed(x)})" if x else "none" for x in (self.missing, self.left_over))
        source = f" ({self.source})" if self.source else ""
        return f"{self.file}{source}: {self.loaded} tensors loaded, missing {missing}, unused {unused}"


def find_weights(source: Pretrained, *folders: Path) -> Path:
    """The first of `source.files` that lies in one of `folders`, else the first one, fetched into the last of them.

    The SHA-256 of a download must start as its name says; a file that was there before is only warned about.
    Raises UserError naming the file, the URL and the folder when the file cannot be had.
    """
    for path in (folder / name for folder in folders for name in source.files):
        if path.is_file():
            digest = digest_in(path.name)
            if digest and not sha256(path).startswith(digest):
                log.warning("%s: its SHA-256 does not start with %s as its name says; going on with it", path, digest)
            return path
    name = source.files[0]
    if source.hub:
        return _download(_url_at_hub(source.hub), folders[-1] / name)
    if source.url is None:
        raise UserError(
            f"{name} not found in {' or '.join(map(str, folders))}: python cls_main.py -n arl18 trains it; "
            "or train without it (-p 0), or start from ImageNet's ResNet-18 (--weights model/resnet18-f37072fd.pth)"
        )
    return _download(source.url + name, folders[-1] / name)


def _url_at_hub(name: str) -> str:
    import timm  # takes seconds, as few networks need it
    from huggingface_hub import hf_hub_url

    config = timm.get_pretrained_cfg(name)
    if not config.hf_hub_id:
        raise UserError(f"timm has no weights for {name}: start from a file (--weights FILE), or without any (-p 0)")
    file, mirror = config.hf_hub_filename or "model.safetensors", os.environ.get("HF_ENDPOINT")
    return hf_hub_url(config.hf_hub_id, file, endpoint=mirror)


def _download(url: str, path: Path) -> Path:
    log.info("%s: downloading from %s", path, url)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch.hub takes none
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest_in(path.name))
    except (OSError, RuntimeError) as error:  # RuntimeError: another digest
        raise UserError(
            f"{path.name} could not be downloaded ({error}): fetch {url} yourself as {path}, start from another file "
            "(--weights FILE), or train without it (-p 0)"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def load_pretrained(model: nn.Module, net: str, path: str | Path) -> LoadReport:
    """Load a state dict into a classifier, or into the encoder of a segmenter, strictly.

    Accepted are torchvision's files, a state dict of the encoder alone, and checkpoints that keep one state dict under
    any name, as PyTorch or safetensors write them; also with a prefix before the network's names ("module.", "model."),
    and the same layers in the same order under other names (`_in_order`). What may be missing: batch norm's counts,
    the classifier, which always starts from random weights, and the α of all ARL blocks together. What may be left
    over: the classifier, of one of timm's networks what follows the encoder's last level, and α where a variant of an
    ARL network has none that is learnt.

    Raises UserError, the network unchanged: names or shapes that do not fit, or values that are not finite.
    """
    path = Path(path)
    content = load_file(path)
    state = _with_current_names(_state_dict_in(content, path))
    encoder = getattr(model, "encoder", model)
    target = getattr(encoder, "backbone", encoder)
    classifier = LAST_LAYERS | getattr(encoder, "classifier", frozenset())
    learnt = dict(target.named_parameters())
    wanted = {
        name: tensor
        for name, tensor in getattr(encoder, "whole", target.state_dict()).items()
        if name not in classifier and (name in learnt or not _is_alpha(name))
    }
    state, misfit = _without_prefix(state, wanted), ""
    if 2 * len(state.keys() & wanted.keys()) < len(wanted):
        state, classifier, misfit = _in_order(state, wanted, classifier)
    for name in wanted:
        if _is_count(name):  # torchvision's older files have none
            state.setdefault(name, torch.tensor(0))
    own = target.state_dict().keys()
    needed = {name: tensor for name, tensor in wanted.items() if name in own or name in state}
    if misfit := misfit or _misfit(state, needed, net, classifier):
        whose = f"{net}'s encoder" if hasattr(model, "encoder") else net
        raise UserError(f"{path}: not the weights of {whose}, {misfit}")
    loaded = {name: state[name] for name in wanted if name in state and name in own}
    if broken := [name for name, tensor in loaded.items() if not bool(tensor.isfinite().all())]:
        raise UserError(
            f"{path}: NaN or infinite values in {listed(broken)}; training would go on from them, take others"
        )
    nn.Module.load_state_dict(target, loaded, strict=False)  # some encoders' own looks for a classifier
    missing = (needed.keys() - state.keys()) | (own & classifier)
    left_over = state.keys() - loaded.keys()
    return LoadReport(
        path.name, sha256(path), len(loaded), tuple(sorted(missing)), tuple(sorted(left_over)), _source_in(content)
    )


def _misfit(state: dict[str, Tensor], wanted: dict[str, Tensor], net: str, classifier: frozenset[str]) -> str:
    """In what a file's state dict does not fit what the network wants, in words; "" where it fits."""
    alphas = {name for name in wanted if _is_alpha(name)}
    missing = wanted.keys() - state.keys()
    if missing and missing != alphas:
        return f"it lacks {listed(sorted(missing - alphas or missing))}"
    foreign = state.keys() - wanted.keys() - classifier
    if net in nets.ATTENTIVE:  # with another attention than the file's
        foreign = {name for name in foreign if not _is_alpha(name)}
    if foreign:
        return f"which has no {listed(sorted(foreign))}"
    for name, expected in wanted.items():
        found = state.get(name, expected)
        if found.shape != expected.shape:
            return f"{name} is {tuple(found.shape)}, expected {tuple(expected.shape)}"
    return ""


def _in_order(
    state: dict[str, Tensor], wanted: dict[str, Tensor], classifier: frozenset[str]
) -> tuple[dict[str, Tensor], frozenset[str], str]:
    """A file's tensors under the network's names, where it has the same layers in the same order under other names.

    They are the same when their kinds (weight, bias, running_mean, …) and shapes follow each other alike; α and batch
    norm's counts are left aside. What follows them in the file is not the network's: a classifier, or the decoder of a
    segmenter whose encoder it is. What cannot be seen: two neighbours of the same kinds and shapes in swapped places.
    Files that keep no order, as safetensors, hardly ever fit.

    Returns: the tensors, the names of those that are not the network's, and in words the first tensor that does not
        fit, or "".
    """

    def described(side: dict[str, Tensor], name: str | None) -> str:
        return "no more" if name is None else f"{quoted(name)} {tuple(side[name].shape)}"

    own = [name for name in wanted if not _is_alpha(name) and not _is_count(name)]
    theirs = [name for name in state if name not in classifier and not _is_count(name)]
    theirs, others = theirs[: len(own)], classifier | {*theirs[len(own) :]}
    for number, (one, other) in enumerate(zip_longest(own, theirs), start=1):
        ends = [name and (name.rpartition(".")[2], side[name].shape) for name, side in ((one, wanted), (other, state))]
        if ends[0] != ends[1]:
            found, expected = described(state, other), described(wanted, one)
            return state, classifier, f"under other names and in order its tensor {number} is {found}, not {expected}"
    left = {name: state[name] for name in others if name in state}
    return left | dict(zip(own, map(state.get, theirs), strict=True)), others, ""


def _is_alpha(name: str) -> bool:
    return name.endswith("attention.alpha")


def _is_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _without_prefix(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors without what a wrapper put before the names ("module.", "_orig_mod.", "model.", "backbone.", …).

    That is the prefix, if any, under which most of the network's names are found.
    """
    first = next(iter(wanted))
    prefixes = ["", *(name.removesuffix(first) for name in state if name.endswith(f".{first}"))]
    prefix = max(prefixes, key=lambda prefix: sum(prefix + name in state for name in wanted))
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _with_current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's `norm.1` as today's `norm1`."""
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    return {old.sub(r"\1\2.", name): tensor for name, tensor in state.items()}


def export_arl18(model: nn.Module, folder: Path, source: Mapping[str, Any]) -> None:
    """Leave a classifier's weights in `folder`/arl18.pth, where the ARL-UNet looks for its encoder.

    source: plain values that tell where they come from; whoever loads the file is told them. A file that is there is
    left alone: runs may have started from it.
    """
    path = folder / PRETRAINED["arl_unet"].files[0]
    content = {"model": model.state_dict(), "source": dict(source)}
    if not path.exists():
        save_file(content, path)
        log.info("weights for the ARL-UNet's encoder (seg-5): %s", path)
    elif (there := _source_in(load_file(path))) != _source_in(content):
        there = there or "of unknown origin"
        log.info("%s is kept as it was (%s); to start from this run, give its best.pth to --weights", path, there)


def _source_in(content: Any) -> str:
    """What a file says of where its weights come from, on one line; "" where it says nothing."""
    source = content.get("source") if isinstance(content, dict) else None
    if not isinstance(source, dict):
        return ""
    return quoted(", ".join(f"{name} {value}" for name, value in source.items()), 400)


def save_file(content: Any, path: Path) -> None:
    """Write tensors and plain values for `load_file`, whole or not at all."""
    made = io.BytesIO()
    torch.save(content, made)  # in memory: its own errors on a full disk hide what the system says
    with written_whole(path) as file:
        file.write(made.getbuffer())


def load_file(path: str | Path) -> Any:
    """What `save_file`, `torch.save` or safetensors wrote, on the CPU.

    Tensors and plain values alone: a file with any other object is refused, and no code in it runs.
    Raises UserError when there is no such file, or it is damaged or refused.
    """
    start, is_safetensors = b"", check_file(path).suffix == ".safetensors"
    try:
        with Path(path).open("rb") as file:
            start = file.read(32)
        is_safetensors = is_safetensors or start[8:9] == b"{"  # a header in JSON after its length
        if is_safetensors:
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that it may not read: then it raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from error
    except Exception as error:  # of bytes that nobody wrote on purpose, decoders raise nearly anything
        if start.startswith(LFS_POINTER):
            raise UserError(f"{path}: a Git LFS pointer instead of the file; git lfs pull fetches it") from error
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"{quoted(found[1])} in it besides tensors and plain values, which could run code"
            raise UserError(f"{path}: {what}; save the state dict alone, torch.save(model.state_dict(), …)") from error
        kind = "safetensors file" if is_safetensors else "PyTorch file of plain weights"
        reason = quoted(str(error).partition("\n")[0]) or type(error).__name__
        raise UserError(f"{path}: truncated, or not a {kind} ({reason})") from error


def _state_dict_in(content: Any, shown: str | Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, dict) and not _is_state_dict(content):
        held = {name: value for name, value in content.items() if _is_state_dict(value)}
        if len(held) > 1:
            raise UserError(
                f"{shown}: {len(held)} state dicts in this file ({listed(held)}); save the one that is meant"
            )
        content = next(iter(held.values()), None)
    if not _is_state_dict(content):
        raise UserError(f"{shown}: no state dict (names and tensors) in this file")
    return dict(content)


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(each, Tensor) for each in content.values())
