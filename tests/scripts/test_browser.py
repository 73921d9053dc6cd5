"""The notebooks in JupyterLab and a browser, as their readers use them: run all cells, and look."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NOTEBOOKS = ["Segmentation", "Evaluation-Seg"]  # the second compares what the first leaves
SECONDS = 240  # for all cells of a notebook
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # Every cell is in the page, not only those in view.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "scrollPastEnd": False},
}
TOO_WIDE = "outputs => outputs.filter(output => output.scrollWidth > output.clientWidth + 1).length"
BROKEN_IMAGES = "images => images.filter(image => !(image.complete && image.naturalWidth > 0)).length"
HEIGHT = "panel => panel.querySelector('.jp-WindowedPanel-outer').scrollHeight + 200"
FAULTS = ("Traceback", "Error displaying widget", "Loading widget", "HBox(children", "Javascript Error")


@pytest.fixture(scope="module")
def server(chromium, checkout, tmp_path_factory) -> Iterator[dict]:
    """JupyterLab on loopback, at a port and with a token of its own choice, without the user's settings."""
    home = tmp_path_factory.mktemp("jupyter")
    (home / "labconfig").mkdir()
    (home / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "MPLBACKEND"))}
    environment |= {f"JUPYTER_{kind}_DIR": str(home) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment |= {"IPYTHONDIR": str(home / "ipython"), "SMOKE": "1"}
    options = ["--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root", f"--ServerApp.root_dir={checkout}"]
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=checkout, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    file, end = home / f"jpserver-{process.pid}.json", time.monotonic() + 60
    try:
        while not (file.exists() and file.read_text().endswith("}")):
            assert process.poll() is None and time.monotonic() < end, (home / "log.txt").read_text()
            time.sleep(0.2)
        yield json.loads(file.read_text())
    finally:
        process.terminate()  # it stops its kernels
        process.wait(30)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_all_cells_run_in_the_browser(name, page, server, checkout, tmp_path):
    """No error, every figure is there, no table is wider than its cell.

    Screenshots go to the folder SCREENSHOTS of the environment.
    """
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(checkout / f"{name}.ipynb", 4).cells)
    page.goto(f"{server['url']}doc/workspaces/{name}/tree/{name}.ipynb?token={server['token']}")
    panel = page.locator(".jp-NotebookPanel")
    idle = panel.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    prompts = panel.locator(".jp-CodeCell .jp-InputPrompt")
    playwright.expect(prompts).to_have_count(cells, timeout=60_000)
    playwright.expect(idle).to_have_count(1, timeout=60_000)
    for _ in range(3):  # a click while the page still settles can go nowhere
        with suppress(playwright.TimeoutError, AssertionError):
            page.keyboard.press("Escape")
            page.locator("#jp-MainMenu .lm-MenuBar-itemLabel", has_text="Run").click(timeout=10_000)
            page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click(timeout=10_000)
            playwright.expect(prompts.first).not_to_have_text("[ ]:", timeout=20_000)
            break
    numbers = [f"[{number}]:" for number in range(1, cells + 1)]  # "[ ]:" has not run, "[*]:" runs or waits
    try:
        playwright.expect(prompts).to_have_text(numbers, timeout=1000 * SECONDS)
        playwright.expect(idle).to_have_count(1)
    finally:
        page.set_viewport_size({"width": page.viewport_size["width"], "height": panel.evaluate(HEIGHT)})
        page.screenshot(path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"{name}.png")

    shown = panel.locator(".jp-OutputArea-output img")
    assert shown.count() >= 4 and shown.evaluate_all(BROKEN_IMAGES) == 0
    assert panel.locator(".jp-OutputArea-output.jp-RenderedHTMLCommon").evaluate_all(TOO_WIDE) == 0
    for fault in FAULTS:
        assert not panel.locator(".jp-OutputArea-output", has_text=fault).count(), fault
    for kind in ("error", "stderr"):
        assert not panel.locator(f".jp-OutputArea-output [data-mime-type='application/vnd.jupyter.{kind}']").count()
