"""Pretrained weights: which file belongs to which network, where it comes from, and loading it strictly."""

import io
import pickle
import re
import socket
import urllib.error
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, nn

import nets
from nets.pretrained import PRETRAINED, Pretrained, digest_in
from utils import UserError
from utils.files import check_file, sha256, written_whole
from utils.logger import log

MAX_PICKLE = 8 << 20  # bytes of names, shapes and plain values in a file; read, they take up to a hundred times as many
_PLAIN = {  # what the checkpoints of state dicts, optimizers and schedulers are made of, beside dtypes and storages
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
    *("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter", "torch.Size", "torch.device"),
    *("collections.Counter", "builtins.set", "__builtin__.set", "builtins.complex"),
}
_ITEM_BYTES = {
    **{"UntypedStorage": 1, "BoolStorage": 1, "ByteStorage": 1, "CharStorage": 1, "HalfStorage": 2, "ShortStorage": 2},
    **{"BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "LongStorage": 8, "DoubleStorage": 8},
}


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
        def names(keys: tuple[str, ...]) -> str:
            return f"{len(keys)} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" if keys else "none"

        source = f" ({self.source})" if self.source else ""
        found = f"{self.loaded} tensors loaded, missing {names(self.missing)}, unused {names(self.left_over)}"
        return f"{self.file}{source}: {found}"


def find_weights(source: Pretrained, *folders: Path) -> Path:
    """The first of `source.files` that lies in one of `folders`, else the first one, downloaded to the last of them.

    The SHA-256 of a download must start as its name says; a file that was there before is only warned about.
    Raises UserError naming the file, the URL and the folder when the file cannot be had.
    """
    folder = folders[-1]
    for path in (folder / name for folder in folders for name in source.files):
        if path.is_file():
            name = path.name
            wanted = digest_in(name)
            if wanted and not sha256(path).startswith(wanted):
                log.warning("%s: its SHA-256 does not start with %s as its name says; going on with it", path, wanted)
            return path
    name = source.files[0]
    if source.url is None:
        raise UserError(
            f"{name} not found in {' or '.join(map(str, folders))}: python cls_main.py -n arl18 trains it; "
            "or train without it (-p 0), "
            "or start from ImageNet's ResNet-18 (--weights model/resnet18-f37072fd.pth)"
        )
    url = source.url + name
    log.info("%s: downloading from %s", folder / name, url)
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(30)
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(folder / name), hash_prefix=digest_in(name), progress=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"{name} could not be downloaded ({error}): fetch {url} yourself and put it in {folder}, "
            "or train without it (-p 0)"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return folder / name


def load_pretrained(model: nn.Module, net: str, path: str | Path) -> LoadReport:
    """Load a state dict into a classifier, or into the encoder of a segmenter, strictly.

    Accepted are torchvision's files, a state dict of the encoder alone, and checkpoints that keep one under
    "model". Missing may be nothing but the classifier, which always starts from random weights, and the α of all ARL
    blocks together; left over nothing but the classifier, and α where a
    variant of an ARL network has none that is learnt.

    Raises UserError naming the file and the names or shapes that do not fit, or values that are not finite; the network
    is as it was then.
    """
    path = Path(path)
    encoder = getattr(model, "encoder", model)
    target = getattr(encoder, "backbone", encoder)
    outside = PRETRAINED[net].classifier if net in PRETRAINED else Pretrained.classifier
    learnt = dict(target.named_parameters())
    new = {
        name
        for name in target.state_dict()
        if name in outside or (name.endswith("attention.alpha") and name not in learnt)
    }
    wanted = {name: tensor for name, tensor in target.state_dict().items() if name not in new}
    state = read_state_dict(path)
    if all(name.startswith("module.") for name in state):  # saved from DataParallel
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {_current_name(name): tensor for name, tensor in state.items()}
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):  # torchvision's older files have none
            state.setdefault(name, torch.zeros_like(tensor))
    alphas = {name for name in wanted if name.endswith("attention.alpha")}
    missing, left_over = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    whose = f"{path}: not the weights of {net}" + ("" if encoder is model else "'s encoder")
    if missing not in (set(), alphas):
        raise UserError(f"{whose}, it lacks {_some(missing - alphas or missing)}")
    foreign = left_over - outside
    if net in nets.ATTENTIVE:  # with another attention than the file's
        foreign = {name for name in foreign if not name.endswith("attention.alpha")}
    if foreign:
        raise UserError(f"{whose}, which has no {_some(foreign)}")
    for name in wanted.keys() & state.keys():
        if wanted[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(wanted[name].shape)}"
            raise UserError(f"{whose}, {name} is {shapes}")
        if state[name].is_floating_point() != wanted[name].is_floating_point():
            raise UserError(f"{whose}, {name} is {state[name].dtype}, expected {wanted[name].dtype}")
    loaded = {name: state[name] for name in wanted if name in state}
    if broken := {name for name, tensor in loaded.items() if not bool(tensor.isfinite().all())}:
        raise UserError(
            f"{path}: NaN or infinite values in {_some(broken)}; training would go on from them, take others"
        )
    nn.Module.load_state_dict(target, loaded, strict=False)
    missing, left_over = tuple(sorted(missing | (new & outside))), tuple(sorted(left_over))
    return LoadReport(path.name, sha256(path), len(loaded), missing, left_over, _source(path))


def export_arl18(model: nn.Module, folder: Path, source: Mapping[str, Any]) -> None:
    """Leave a classifier's weights in `folder`/arl18.pth, where the ARL-UNet looks for its encoder.

    source: plain values that tell where they come from; whoever loads the file is told them. A file that is there is
    left alone: runs may have started from it.
    """
    path = folder / PRETRAINED["arl_unet"].files[0]
    if not path.exists():
        with written_whole(path) as file:
            torch.save({"model": model.state_dict(), "source": dict(source)}, file)
        log.info("weights for the ARL-UNet's encoder (seg-5): %s", path)
    elif _source(path) != ", ".join(f"{name} {value}" for name, value in source.items()):
        there = _source(path) or "of unknown origin"
        log.info("%s stays as it is (%s); --weights FILE takes this run's best.pth instead", path, there)


def _source(path: Path) -> str:
    content = load_file(path)
    source = content.get("source") if isinstance(content, dict) else None
    plain = isinstance(source, dict) and all(isinstance(value, str | int | float) for value in source.values())
    return quoted(", ".join(f"{name} {value}" for name, value in source.items()), 400) if plain else ""


def load_file(path: str | Path | BinaryIO, shown: str | Path | None = None) -> Any:
    """What `torch.save` wrote: tensors (on the CPU) and plain values, never a pickled object (`weights_only=True`).

    Memory stays within about twice the file's size and what MAX_PICKLE allows, whatever sizes the file claims.
    Raises UserError when there is no such file, or it is damaged or holds anything else; it names `shown` or the file.
    """
    shown = shown or path
    is_path = isinstance(path, str | Path)
    try:
        with check_file(path).open("rb") if is_path else nullcontext(path) as file:
            _check_claims(file)
            file.seek(0)
            return torch.load(path if is_path else file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{shown}: not readable ({error.strerror})") from error
    except Exception as error:  # of bytes that nobody wrote on purpose, decoders raise nearly anything
        reason = quoted(str(error).splitlines()[0], 120) if str(error).strip() else type(error).__name__
        raise UserError(f"{shown}: truncated, or not a PyTorch file of plain weights ({reason})") from error


class _Claims(pickle._Unpickler):
    """Reads what a pickle says without doing it: no object is made, no storage is allocated.

    In Python, since the C unpickler reserves memory for whatever numbers a file names.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[Any, int] = {}  # bytes by key
        self._left = MAX_PICKLE

    def load_reduce(self) -> None:
        """A call copies its arguments, and five bytes of a file repeat it: all together are as bounded as the file."""
        self._left -= _length(self.stack[-1])
        if self._left < 0:
            raise pickle.UnpicklingError(f"calls with more than {MAX_PICKLE} values")
        super().load_reduce()

    dispatch: ClassVar = {**pickle._Unpickler.dispatch, pickle.REDUCE[0]: load_reduce}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" == "collections.OrderedDict":
            return OrderedDict
        if f"{module}.{name}" == "_codecs.encode":
            return _bytes
        if module in ("torch", "torch.storage") and name in _ITEM_BYTES:
            return _ITEM_BYTES[name]
        if f"{module}.{name}" in _PLAIN or (module == "torch" and isinstance(getattr(torch, name), torch.dtype)):
            return _Inert
        raise pickle.UnpicklingError(f"{module}.{name} is none of the plain types")

    def persistent_load(self, pid: Any) -> None:
        kind, itemsize, key, _, count, *_ = pid
        if kind not in ("storage", b"storage") or count < 0:
            raise pickle.UnpicklingError("a reference to something else than numbers")
        self.storages[key] = max(self.storages.get(key, 0), itemsize * count)


def _length(arguments: Any) -> int:
    return 1 + sum(
        len(each) for each in arguments if isinstance(each, str | bytes | list | tuple | dict | set | _Inert)
    )


def _bytes(text: str, codec: str) -> bytes:
    """How old pickles hold bytes. Other codecs make them longer at each call ("hex"), or read what is none of ours."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"text in {codec!r}")
    return text.encode(codec)


class _Inert:
    """Stands for what `_Claims` does not make."""

    def __init__(self, *args: Any) -> None:
        self._size = _length(args)

    def __len__(self) -> int:
        return self._size

    def __setstate__(self, state: Any) -> None:
        pass


def _check_claims(file: BinaryIO) -> None:
    """Raises for a file that asks for objects, or for more bytes than it holds; before torch allocates them."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise ValueError("its archive is compressed")
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise ValueError(f"its archive claims more than the {size} bytes of the file")
            (name,) = (name for name in entries if name.endswith("/data.pkl"))
            if entries[name].file_size > MAX_PICKLE:
                raise ValueError(f"more than {MAX_PICKLE} bytes of names and plain values")
            claims = _Claims(io.BytesIO(archive.read(name)))
            claims.load()
        there = {key: entries[f"{name.removesuffix('data.pkl')}data/{key}"].file_size for key in claims.storages}
        if any(claims.storages[key] > there[key] for key in there):
            raise ValueError("a tensor claims more bytes than it has")
        return
    file.seek(0)
    front = io.BytesIO(file.read(MAX_PICKLE))  # of PyTorch before 1.6: five pickles, then the numbers
    if _Claims(front).load() != torch.serialization.MAGIC_NUMBER:
        raise ValueError("it does not begin like one")
    claimed = 0
    for _ in range(4):
        claims = _Claims(front)
        claims.load()
        claimed += sum(claims.storages.values())
    if claimed > size:
        raise ValueError(f"its tensors claim {claimed} bytes, the file has {size}")


def read_state_dict(path: str | Path | BinaryIO, shown: str | Path | None = None) -> dict[str, Tensor]:
    """The state dict in a file, or under "model" or "state_dict" in it. UserError as `load_file`, or for none."""
    state = load_file(path, shown)
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{shown or path}: no state dict (names and tensors) in this file")
    if odd := {quoted(name) for name, tensor in state.items() if not isinstance(name, str) or not _is_plain(tensor)}:
        raise UserError(f"{shown or path}: no state dict of plain tensors: {_some(odd)}")
    return dict(state)


def _is_plain(tensor: Tensor) -> bool:
    """Whether its numbers lie in memory: none is quantized, sparse, complex, or shown more often than it is stored."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    return (
        dense
        and not tensor.is_complex()
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _current_name(name: str) -> str:
    """torchvision's DenseNet files say `norm.1` where today's layers are called `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def _some(names: set[str]) -> str:
    names = sorted(names)
    return ", ".join(map(quoted, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def quoted(name: Any, longest: int = 80) -> str:
    """A name from a file as a message may quote it: on one line and not too long."""
    text = name if isinstance(name, str) and name.isprintable() else repr(name)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
