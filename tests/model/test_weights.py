"""Pretrained weights: found, fetched and loaded strictly, or one line that says what is wrong."""

import argparse
import copy
import hashlib
import http.server
import pickle
import re
import threading
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

import nets
from nets.pretrained import LAST_LAYERS, PRETRAINED, find_pretrained
from utils import UserError
from utils.model.weights import export_arl18, find_weights, load_file, load_pretrained

FC = {"fc.bias", "fc.weight"}
ALPHAS = {f"layer{stage}.{block}.attention.alpha" for stage in (1, 2, 3, 4) for block in (0, 1)}


@cache
def network(net: str) -> torch.nn.Module:
    return nets.create_model(net)


@cache
def resnet18() -> dict[str, torch.Tensor]:
    return dict(torchvision.models.resnet18(weights=None).state_dict())


def arl18() -> dict[str, torch.Tensor]:
    return network("arl18").state_dict() | dict.fromkeys(ALPHAS, torch.tensor(0.25))


def without(state: dict, ending: str) -> dict:
    return {name: tensor for name, tensor in state.items() if not name.endswith(ending)}


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(content: object, path: Path) -> Path:
    (safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


@pytest.mark.parametrize("net,name", [("res_unet", "resnet18"), ("dense_unet", "densenet121")])
def test_torchvisions_weights_give_its_features(tmp_path, net, name):
    """Those of DenseNet as they are published, with names such as `denselayer1.norm.1.weight`."""
    reference = getattr(torchvision.models, name)(weights=None).eval()
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor
        for name, tensor in reference.state_dict().items()
    }
    path, model = saved(state, tmp_path / ("a.pth" if net == "res_unet" else "a.safetensors")), nets.create_model(net)
    report = load_pretrained(model, net, path)
    assert (report.missing, len(report.left_over)) == ((), 2) and LAST_LAYERS.issuperset(report.left_over)
    assert report.loaded == len(state) - 2 and report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    body = torch.nn.Sequential(*list(reference.children())[: -2 if name == "resnet18" else -1])
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.encoder.eval().features(x)[-1], body(x))


@pytest.mark.parametrize(
    "net,options,content,missing,left_over",
    [
        ("resnet18", {}, resnet18, FC, FC),
        ("arl18", {}, resnet18, FC | ALPHAS, FC),
        ("arl18", {}, lambda: {"state_dict": arl18()}, FC, FC),
        ("arl_unet", {}, lambda: {"model": arl18(), "epoch": 3}, set(), FC),
        ("arl_unet", {"attention": "none"}, arl18, set(), FC | ALPHAS),
        ("arl_unet", {"alpha": "fixed"}, arl18, set(), FC | ALPHAS),
        *(("res_unet", {}, lambda prefix=prefix: under(prefix, resnet18()), set(), FC) for prefix in (
            "module._orig_mod.", "encoder.",  # of wrappers, and of others' networks
        )),
        ("resnet18", {}, lambda: {"model_state_dict": resnet18(), "epoch": 3, "opt": {"state": {}}}, FC, FC),
        ("arl18", {}, lambda: {"state_dict": under("model.", arl18()), "loops": {}}, FC, FC),
        ("mobilenet_unet", {}, lambda: network("mobilenet").state_dict(), set(), FC),  # this project's own
        ("res_unet", {}, lambda: without(resnet18(), "num_batches_tracked"), set(), FC),
        ("unet", {}, lambda: network("unet").encoder.state_dict(), set(), set()),
    ],
)  # fmt: skip
def test_what_fits_is_loaded(tmp_path, net, options, content, missing, left_over):
    content, model = content(), nets.create_model(net, **options)
    report = load_pretrained(model, net, saved(content, tmp_path / "file.pth"))
    assert (set(report.missing), set(report.left_over)) == (missing, left_over)
    loaded = getattr(model, "encoder", model).state_dict()
    assert report.loaded == len(loaded.keys() - missing - left_over)
    state = next((value for value in content.values() if isinstance(value, dict)), content)
    for name, tensor in state.items():
        name = re.sub("^((module|_orig_mod|model|encoder)[.])*", "", name)
        assert (name in loaded and torch.equal(loaded[name], tensor)) == (name not in left_over), name


@pytest.mark.parametrize(
    "net,content,message",
    [
        ("res_unet", lambda: resnet18() | dict.fromkeys("dbac", torch.ones(1)), "which has no a, b, c and 1 more"),
        ("res_unet", lambda: resnet18() | {"a\n\x1b[2J": torch.ones(1)}, r"which has no 'a\n\x1b[2J'"),
        ("res_unet", lambda: without(resnet18(), "layer4.1.bn2.bias"), "it lacks layer4.1.bn2.bias"),
        ("res_unet", arl18, "which has no layer1.0.attention.alpha"),
        ("arl_unet", lambda: without(arl18(), "layer2.0.attention.alpha"), "it lacks layer2.0.attention.alpha"),
        ("res_unet", lambda: resnet18() | {"bn1.bias": torch.ones(1, 64)}, "bn1.bias is (1, 64), expected (64,)"),
        ("res_unet", lambda: resnet18() | {"bn1.bias": torch.full((64,), torch.nan)},
            "NaN or infinite values in bn1.bias; training would go on"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_changes_nothing(tmp_path, net, content, message):
    path, before = saved(content(), tmp_path / "file.pth"), copy.deepcopy(network(net).state_dict())
    with pytest.raises(UserError) as caught:
        load_pretrained(network(net), net, path)
    whose = "" if "NaN" in message else f"not the weights of {net}'s encoder, "
    assert str(caught.value).startswith(f"{path}: {whose}{message}") and str(caught.value).isprintable()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network(net).state_dict().items())


def test_other_content_is_no_state_dict(tmp_path):
    for content in ({"epoch": 3}, {}, [torch.ones(1)]):
        with pytest.raises(UserError, match=r"file.pth: no state dict \(names and tensors\) in this file"):
            load_pretrained(network("res_unet"), "res_unet", saved(content, tmp_path / "file.pth"))


def test_of_several_state_dicts_the_named_one_is_taken_or_none(tmp_path):
    state, model = resnet18(), network("res_unet")
    load_pretrained(model, "res_unet", saved({"ema": {"a": torch.ones(1)}, "model": state}, tmp_path / "file.pth"))
    with pytest.raises(
        UserError, match=r"file.pth: 2 state dicts in this file \(net, ema\); save the one that is meant"
    ):
        load_pretrained(model, "res_unet", saved({"net": state, "ema": state}, tmp_path / "file.pth"))


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


def test_files_that_are_no_weights_are_one_line_and_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved({"a": torch.ones(9)}, Path("b.safetensors")).rename("b.pth")
    assert torch.equal(load_file("b.pth")["a"], torch.ones(9))
    Path("b.pth").unlink()
    whole, tensors = saved({"a": torch.ones(9)}, Path("whole.pth")), saved({"a": torch.ones(9)}, Path("a.safetensors"))
    for name, content in {
        "empty.pth": b"", "html.pth": b"<html>not found</html>", "code.pth": pickle.dumps(Payload()),
        "cut pickle.pth": pickle.dumps({"a": 1})[:-3], "half.pth": whole.read_bytes()[:-400],
        "half.safetensors": tensors.read_bytes()[:-9], "html.safetensors": b"<html>not found</html>",
    }.items():  # fmt: skip
        Path(name).write_bytes(content)
    saved({"a": Payload()}, Path("code in it.pth"))
    saved(torch.nn.Linear(2, 2), Path("model.pth"))
    saved({"a": torch.ones(9), "args": argparse.Namespace()}, Path("args.pth"))
    Path("pointer.pth").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'5c' * 32}\nsize 7\n")
    messages = {
        "code in it.pth": "getattr in it besides",
        "model.pth": "torch.nn.modules.linear.Linear in it besides tensors and plain values, which could run code",
        "args.pth": "argparse.Namespace in it besides",
        "pointer.pth": "a Git LFS pointer instead of the file; git lfs pull fetches it",
    }
    for path in set(Path().iterdir()) - {whole, tensors}:
        message = messages.get(path.name, "truncated, or not a (PyTorch|safetensors) file")
        with pytest.raises(UserError, match=f"{path}: {message}") as caught:
            load_file(path)
        assert str(caught.value).isprintable()
    assert not Path("owned").exists() and torch.equal(load_file(whole)["a"], load_file(tensors)["a"])


def test_arl18_is_left_once_and_says_where_it_comes_from(tmp_path, caplog):
    caplog.set_level("INFO", logger="isic2017")
    export_arl18(network("arl18"), tmp_path, {"run": "a\n\x1b[2J", "seed": 1})
    export_arl18(nets.create_model("arl18"), tmp_path, {"run": "b", "seed": 2})
    assert caplog.messages[-1].startswith(f"{tmp_path / 'arl18.pth'} is kept as it was (")
    report = load_pretrained(network("arl_unet"), "arl_unet", find_weights(PRETRAINED["arl_unet"], tmp_path))
    assert torch.equal(network("arl_unet").encoder.conv1.weight, network("arl18").conv1.weight)
    assert str(report).startswith(r"arl18.pth ('run a\n\x1b[2J, seed 1')") and str(report).isprintable()


@pytest.fixture
def server(tmp_path):
    """The URL of a local server of the files in tmp_path."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def source(url: str):
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    return replace(PRETRAINED["res_unet"], files=(f"net-{digest}.pth", "net-old.pth"), url=url)


def test_a_download_is_kept_and_a_file_that_is_there_comes_first(tmp_path, server):
    (tmp_path / source(server).files[0]).write_bytes(b"weights")
    runs, model = tmp_path / "runs", tmp_path / "model"
    path = find_weights(source(server), runs, model)
    assert path.read_bytes() == b"weights" and list(model.iterdir()) == [path]
    assert find_weights(source("http://127.0.0.1:9/"), runs, model) == path  # where nothing listens
    runs.mkdir()
    (runs / "net-old.pth").write_bytes(b"others")
    assert find_weights(source(server), runs, model) == runs / "net-old.pth"


def test_timms_weights_come_from_its_hub_unless_a_package_of_them_is_there(tmp_path, server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.removesuffix("/"))
    hub, model = tmp_path / "timm/tf_efficientnet_lite0.in1k/resolve/main", tmp_path / "model"
    source = find_pretrained("timm_unet/tf_efficientnet_lite0")
    with pytest.raises(UserError, match=r"fetch http.*lite0.in1k/resolve/main/model.safetensors .*\(--weights FILE\)"):
        find_weights(source, model)
    hub.mkdir(parents=True)
    (hub / "model.safetensors").write_bytes(b"weights")
    path = find_weights(source, model)
    assert path == model / "tf_efficientnet_lite0.safetensors" and path.read_bytes() == b"weights"
    path.rename(model / "efficientnet-lite0-57934424.pth")
    assert find_weights(source, model).name == "efficientnet-lite0-57934424.pth"
    with pytest.raises(UserError, match=r"timm has no weights for lcnet_035: start from a file \(--weights FILE\)"):
        find_weights(find_pretrained("timm/lcnet_035"), model)


@pytest.mark.parametrize("served", [b"other bytes", None, "offline"], ids=["wrong bytes", "404", "offline"])
def test_a_failed_download_says_what_to_do_and_leaves_nothing(tmp_path, server, served):
    url = "http://127.0.0.1:9/" if served == "offline" else server
    name, target = source(url).files[0], tmp_path / "model"
    if isinstance(served, bytes):
        (tmp_path / name).write_bytes(served)
    with pytest.raises(UserError) as caught:
        find_weights(source(url), target)
    assert f"fetch {url}{name} yourself as {target / name}, start from another file (--weights" in str(caught.value)
    assert str(caught.value).isprintable() and list(target.iterdir()) == []


def test_arl18_is_not_downloaded_and_another_file_under_a_known_name_is_warned_about(tmp_path, caplog):
    with pytest.raises(UserError, match=r"arl18.pth not found in .*: python cls_main.py -n arl18 trains it"):
        find_weights(PRETRAINED["arl_unet"], tmp_path)
    (tmp_path / source("").files[0]).write_bytes(b"weights of somebody else")
    find_weights(source(""), tmp_path)
    assert "SHA-256 does not start with" in caplog.text
