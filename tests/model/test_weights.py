"""Pretrained weights: found, fetched and loaded strictly, or one line that says what is wrong."""

import hashlib
import http.server
import io
import pickle
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

import nets
from utils import UserError
from utils.model.weights import PRETRAINED, find_weights, load_file, load_pretrained

RESNET18 = torchvision.models.resnet18


def saved(state: dict, path: Path) -> Path:
    torch.save(state, path)
    return path


def features(model, x):
    with torch.no_grad():
        return model.encoder.eval().features(x)[-1]


def test_torchvision_resnet18(tmp_path):
    reference = RESNET18(weights=None).eval()
    model = nets.create_model("res_unet")
    report = load_pretrained(model, "res_unet", saved(reference.state_dict(), tmp_path / "resnet18.pth"))
    assert (report.missing, report.left_over) == ((), ("fc.bias", "fc.weight"))
    assert report.loaded == len(reference.state_dict()) - 2
    assert report.sha256 == hashlib.sha256((tmp_path / "resnet18.pth").read_bytes()).hexdigest()
    x = torch.randn(1, 3, 64, 64)
    body = torch.nn.Sequential(*list(reference.children())[:-2])
    with torch.no_grad():
        assert torch.equal(features(model, x), body(x))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = saved({"a": torch.ones(1)}, tmp_path / "mine.pth")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match=r"mine\.pth: not readable \(Permission denied\)"):
        load_file(path)


def test_what_data_parallel_saved_is_loaded(tmp_path):
    state = {f"module.{name}": tensor for name, tensor in RESNET18(weights=None).state_dict().items()}
    report = load_pretrained(nets.create_model("res_unet"), "res_unet", saved(state, tmp_path / "parallel.pth"))
    assert report.loaded == len(state) - 2 and report.missing == ()


@pytest.mark.parametrize("old_names", [False, True])
def test_torchvision_densenet121(tmp_path, old_names):
    """torchvision's published file has names such as `denselayer1.norm.1.weight`."""
    reference = torchvision.models.densenet121(weights=None).eval()
    state = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name) if old_names else name: tensor
        for name, tensor in reference.state_dict().items()
    }
    assert any(".norm.1." in name for name in state) == old_names
    model = nets.create_model("dense_unet")
    report = load_pretrained(model, "dense_unet", saved(state, tmp_path / "densenet.pth"))
    assert (report.missing, report.left_over) == ((), ("classifier.bias", "classifier.weight"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(features(model, x), reference.features(x))


def test_arl_unet_takes_the_classifier_with_its_alphas(tmp_path):
    classifier = nets.create_model("arl18")
    for name, tensor in classifier.state_dict().items():
        if name.endswith("alpha"):
            tensor.fill_(0.25)
    model = nets.create_model("arl_unet")
    report = load_pretrained(model, "arl_unet", saved({"model": classifier.state_dict()}, tmp_path / "arl18.pth"))
    assert (report.missing, report.left_over) == ((), ("fc.bias", "fc.weight"))
    alphas = [float(tensor) for name, tensor in model.state_dict().items() if name.endswith("alpha")]
    assert alphas == [0.25] * 8


@pytest.mark.parametrize("alpha,value", [("learn", 0.25), ("fixed", 0.001), ("0", 0.0)])
def test_only_a_learnt_alpha_comes_from_the_file(tmp_path, alpha, value):
    classifier = nets.create_model("arl18")
    for name, tensor in classifier.state_dict().items():
        if name.endswith("alpha"):
            tensor.fill_(0.25)
    model = nets.create_model("arl_unet", alpha=alpha)
    load_pretrained(model, "arl_unet", saved(classifier.state_dict(), tmp_path / "arl18.pth"))
    alphas = [float(tensor) for name, tensor in model.state_dict().items() if name.endswith("alpha")]
    assert alphas == pytest.approx([value] * 8)
    assert torch.equal(model.encoder.layer4[1].conv2.weight, classifier.layer4[1].conv2.weight)


def test_a_network_without_attention_takes_the_rest(tmp_path):
    classifier = nets.create_model("arl18")
    model = nets.create_model("arl_unet", attention="none")
    report = load_pretrained(model, "arl_unet", saved(classifier.state_dict(), tmp_path / "arl18.pth"))
    assert report.missing == () and len([name for name in report.left_over if name.endswith("alpha")]) == 8


def test_arl_unet_from_resnet18_lacks_exactly_the_alphas(tmp_path):
    model = nets.create_model("arl_unet")
    report = load_pretrained(model, "arl_unet", saved(RESNET18(weights=None).state_dict(), tmp_path / "r.pth"))
    assert len(report.missing) == 8 and all(name.endswith("attention.alpha") for name in report.missing)


def test_an_encoder_alone_and_files_without_batch_counters(tmp_path):
    state = nets.create_model("unet").encoder.state_dict()
    report = load_pretrained(nets.create_model("unet"), "unet", saved(state, tmp_path / "encoder.pth"))
    assert (report.missing, report.left_over) == ((), ())
    old = {n: t for n, t in RESNET18(weights=None).state_dict().items() if not n.endswith("num_batches_tracked")}
    assert load_pretrained(nets.create_model("res_unet"), "res_unet", saved(old, tmp_path / "old.pth")).missing == ()


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    "net,state,message",
    [
        ("res_unet", lambda: torchvision.models.resnet34(weights=None).state_dict(), "has no layer1.2"),
        ("res_unet", lambda: without(RESNET18().state_dict(), "layer4.1.bn2.bias"), "lacks layer4.1.bn2.bias"),
        ("res_unet", lambda: RESNET18().state_dict() | {"neck": torch.ones(1)}, "has no neck"),
        ("res_unet", lambda: nets.create_model("arl18").state_dict(), "has no layer1.0.attention.alpha"),
        (
            "arl_unet",
            lambda: without(nets.create_model("arl18").state_dict(), "layer2.0.attention.alpha"),
            "lacks layer2.0.attention.alpha",
        ),
        ("unet", lambda: RESNET18().state_dict(), "lacks levels.0.0.weight"),
        (
            "res_unet",
            lambda: RESNET18().state_dict() | {"conv1.weight": torch.ones(64, 1, 7, 7)},
            r"conv1.weight is \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_and_changes_nothing(tmp_path, net, state, message):
    model = nets.create_model(net)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=f"file.pth: not the weights of {net}'s encoder.*{message}"):
        load_pretrained(model, net, saved(state(), tmp_path / "file.pth"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", pickle.dumps(Payload()), pickle.dumps({"a": 1})[:-3]],
    ids=["empty", "html", "code", "cut pickle"],
)
def test_files_that_are_no_weights(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.pth: truncated, or not a PyTorch file"):
        load_file(tmp_path / "file.pth")
    assert not (tmp_path / "owned").exists()


def test_a_pickled_model_and_a_truncated_file_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    content = saved(RESNET18().state_dict(), tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    for name in ("whole.pth", "cut.pth"):
        with pytest.raises(UserError, match=f"{name}: truncated, or not a PyTorch file of plain weights"):
            load_file(tmp_path / name)


@pytest.fixture
def server(tmp_path):
    """A local file server; yields (its folder, its URL, the paths it was asked for)."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, format, *args):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/", asked
        running.shutdown()


def source(url: str, content: bytes = b"weights", name: str = "net"):
    digest = hashlib.sha256(content).hexdigest()[:8]
    return replace(PRETRAINED["res_unet"], files=(f"{name}-{digest}.pth", f"{name}-old.pth"), url=url)


def test_a_file_in_the_folder_comes_first(tmp_path, server):
    _, url, asked = server
    for name in reversed(source(url).files):
        (tmp_path / name).write_bytes(b"weights")
        assert find_weights(source(url), tmp_path) == tmp_path / name
    assert asked == []


def test_a_download_is_checked_and_kept(tmp_path, server):
    folder, url, asked = server
    (folder / source(url).files[0]).write_bytes(b"weights")
    target = tmp_path / "model"
    path = find_weights(source(url), target)
    assert path.read_bytes() == b"weights" and list(target.iterdir()) == [path]
    assert find_weights(source(url), target) == path and len(asked) == 1


@pytest.mark.parametrize("served", [b"other bytes", None], ids=["wrong bytes", "404"])
def test_a_failed_download_says_what_to_do_and_leaves_nothing(tmp_path, server, served):
    folder, url, _ = server
    name = source(url).files[0]
    if served:
        (folder / name).write_bytes(served)
    target = tmp_path / "model"
    with pytest.raises(UserError) as caught:
        find_weights(source(url), target)
    message = str(caught.value)
    assert name in message and url + name in message and str(target) in message and "-p 0" in message
    assert "\n" not in message and list(target.iterdir()) == []


def test_offline(tmp_path):
    with pytest.raises(UserError, match=r"fetch http://127.0.0.1:9/net-\w{8}.pth yourself and put it in"):
        find_weights(source("http://127.0.0.1:9/"), tmp_path)


def test_arl18_is_ours_and_not_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"arl18.pth not found in .*: python cls_main.py -n arl18 trains it"):
        find_weights(PRETRAINED["arl_unet"], tmp_path)


def test_another_file_under_a_known_name_is_warned_about(tmp_path, caplog):
    (tmp_path / source("").files[0]).write_bytes(b"weights of somebody else")
    with caplog.at_level("WARNING", logger="isic2017"):
        find_weights(source(""), tmp_path)
    assert "SHA-256 does not start with" in caplog.text


@pytest.mark.parametrize("old", [False, True])
def test_all_that_our_checkpoints_and_those_of_others_hold_is_loaded(tmp_path, old):
    """Also from memory; the format of PyTorch before 1.6 is torchvision's of older files."""
    content = {
        "model": {"a": torch.ones(2, 3), "b": torch.nn.Parameter(torch.zeros(2).bfloat16()), "c": torch.tensor(7)},
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).state_dict(),
        "random": torch.get_rng_state(),
        "plain": [
            1,
            2.5,
            None,
            True,
            "text",
            (1, 2),
            {3},
            b"bytes",
            torch.Size([2]),
            torch.float16,
            torch.device("cpu"),
        ],
        "shared": [tensor := torch.arange(6), tensor[2:4], tensor.view(2, 3).T],
    }
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=not old)
    for source in (tmp_path / "file.pth", io.BytesIO((tmp_path / "file.pth").read_bytes())):
        loaded = load_file(source, shown="file.pth")
        assert loaded["plain"] == content["plain"] and loaded["optimizer"] == content["optimizer"]
        assert torch.equal(loaded["random"], content["random"])
        assert all(torch.equal(a, b) for a, b in zip(loaded["shared"], content["shared"], strict=True))
        assert all(torch.equal(loaded["model"][name], tensor) for name, tensor in content["model"].items())


def test_what_a_file_says_of_its_origin_stays_on_its_line(tmp_path):
    model = nets.create_model("res_unet")
    content = {"model": RESNET18().state_dict(), "source": {"run": "x\n\x1b[2Jerased"}}
    report = load_pretrained(model, "res_unet", saved(content, tmp_path / "file.pth"))
    assert report.source == r"'run x\n\x1b[2Jerased'"


def test_code_does_not_run_even_where_the_look_before_loading_lets_it_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.model.weights._check_claims", lambda file: None)
    torch.save({"a": Payload()}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file\.pth: truncated, or not a PyTorch file of plain weights"):
        load_file(tmp_path / "file.pth")
    assert not (tmp_path / "owned").exists()
