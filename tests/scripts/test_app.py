"""The page for photographs in a browser, as its readers use it."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

import app
from tests.conftest import ROOT
from utils import UserError
from utils.data.dermoscopy import draw_lesion
from utils.inference.findings import NOTICE

SECONDS = 120  # until the page is there


@pytest.fixture(scope="module")
def address(chromium, tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-optional.txt)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("app") / "log.txt"
    command = [sys.executable, ROOT / "app.py", "best", "--port", str(port), "--no-browser"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    url, end = f"http://127.0.0.1:{port}/", time.monotonic() + SECONDS
    try:
        while True:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(30)


def test_a_photograph_goes_in_and_an_outline_and_numbers_come_out(address, page, tmp_path):
    """Nothing is asked of another machine, and nothing is kept; a text file gets a sentence."""
    from playwright.sync_api import expect

    asked, name = [], f"photo-{os.getpid()}.png"
    page.on("request", lambda request: asked.append(request.url))
    cv2.imwrite(str(tmp_path / name), draw_lesion(3, 1, (160, 120))[0][..., ::-1])
    (tmp_path / "notes.txt").write_text("no photograph")
    page.goto(address)
    upload, report = page.locator("#photograph input[type=file]"), page.locator("#report")
    expect(page.locator("body")).to_contain_text(NOTICE)
    upload.set_input_files(tmp_path / name)
    expect(report.locator("h2")).to_have_text(name)
    expect(report.locator("figure img")).to_have_count(2)
    expect(report.locator("progress")).to_have_count(3)
    expect(report).to_contain_text(NOTICE)
    text = report.inner_text()
    values = [float(value) for value in re.findall(r"(?:melanoma|keratosis|nevus) (0\.\d{4}|1\.0000)", text)]
    assert len(values) == 3 and abs(sum(values) - 1) < 2e-4 and "% of the frame" in text
    assert report.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    page.screenshot(path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / "app.png", full_page=True)

    expect(upload).to_be_attached()
    upload.set_input_files(tmp_path / "notes.txt")
    expect(report.locator(".warning")).to_contain_text("notes.txt: truncated or not an image")
    expect(report.locator("figure")).to_have_count(0)
    page.get_by_role("button", name="drawn melanoma").click()
    expect(report.locator("h2")).to_have_text("Drawn by a program, no photograph: melanoma")
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked)
    assert page.evaluate("indexedDB.databases()") == [] == page.evaluate("Object.keys(localStorage)")
    assert not [path for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob(f"app-*/**/{name}")]


def test_a_photograph_is_pasted(address, page):
    from playwright.sync_api import expect

    page.goto(address)
    expect(page.locator("#photograph input[type=file]")).to_be_attached()
    page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 90, height: 60 });
          canvas.getContext("2d").fillRect(20, 20, 30, 20);
          const blob = await new Promise(done => canvas.toBlob(done));
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([blob], "pasted.png", { type: "image/png" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }"""
    )
    expect(page.locator("#report h2")).to_have_text("pasted.png")
    expect(page.locator("#report")).to_contain_text("grey: hardly any colour")


def test_two_networks_of_one_task_are_refused():
    with pytest.raises(UserError, match="two of one task; give one segmenter and one classifier"):
        app.main(["cls-b1", "cls-b1"])
