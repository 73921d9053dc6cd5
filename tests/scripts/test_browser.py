"""The notebooks in JupyterLab and a browser, as their readers use them: run all cells, look, save."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.conftest import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.usefixtures("chromium")  # asked for first: without it no server is started
# Those that compare runs come after those that make them.
NOTEBOOKS = sorted((path.stem for path in ROOT.glob("*.ipynb")), key=lambda name: (name.startswith("Evaluation"), name))
FIGURES = {"ARL-CNN": 7}  # at least; 4 in the others
SECONDS = 240  # for all cells of a notebook
WIDTH = 1200  # of the window, pixels
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # Every cell is in the page, not only those in view.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "scrollPastEnd": False},
}
PROMPTS = "prompts => prompts.map(prompt => prompt.textContent)"
BROKEN_IMAGES = "images => images.filter(image => !(image.complete && image.naturalWidth > 0)).length"
HEIGHT = """panel => {
    const outer = panel.querySelector('.jp-WindowedPanel-outer');
    return Math.ceil(window.innerHeight + outer.scrollHeight - outer.clientHeight);
}"""


@pytest.fixture(scope="module")
def chromium() -> str:
    """The program: the system's, else the one that `playwright install chromium` has left."""
    with playwright.sync_playwright() as tools:
        found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        path = next(found, tools.chromium.executable_path)
    if not Path(path).exists():
        pytest.skip("no Chromium is installed")
    return path


class Server:
    """JupyterLab over a folder: on loopback, at a port and with a token of its own choice, without the user's settings.

    folder: the server's root. home: an empty folder for settings, sockets and the log.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        (home / "labconfig").mkdir()
        (home / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(SETTINGS))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON", "MPLBACKEND"))}
        own = {f"JUPYTER_{kind}_DIR": str(home) for kind in ("CONFIG", "DATA", "RUNTIME")}
        options = ["--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root", f"--ServerApp.root_dir={folder}"]
        self.log = home / "log.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options],
                cwd=folder,
                env=kept | own | {"IPYTHONDIR": str(home / "ipython"), "SMOKE": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.info: dict[str, Any] = {}
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        try:
            wait_for(lambda: self._answers(home), 60, lambda: f"JupyterLab: {self.log.read_text()}")
        except BaseException:
            self.stop()
            raise

    def _answers(self, home: Path) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.info = json.loads((home / f"jpserver-{self.process.pid}.json").read_text())
            return "started" in self.ask("status")
        except (OSError, ValueError):  # not there yet, half-written, or nobody listens yet
            return False

    def ask(self, path: str, method: str = "GET") -> Any:
        """What the server's REST interface answers."""
        request = urllib.request.Request(f"{self.info['url']}api/{path}", method=method)
        request.add_header("Authorization", f"token {self.info['token']}")
        with self._open(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def kernel_state(self, path: str) -> str | None:
        """ "idle", "busy", "starting" …; None when the notebook has no kernel."""
        states = [s["kernel"]["execution_state"] for s in self.ask("sessions") if s["path"] == path and s["kernel"]]
        return states[0] if states else None

    def stop_kernels(self) -> None:
        for kernel in self.ask("kernels"):
            self.ask(f"kernels/{kernel['id']}", "DELETE")

    def stop(self) -> None:
        self.process.terminate()  # it stops its kernels; those whose server dies stop by themselves
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(checkout, tmp_path_factory) -> Iterator[Server]:
    server = Server(checkout, tmp_path_factory.mktemp("jupyter"))
    yield server
    server.stop()


@pytest.fixture
def page(chromium, server) -> Iterator["playwright.Page"]:
    """An empty page of a browser without a past."""
    options = ["--disable-dev-shm-usage"]  # containers often have a small one
    if hasattr(os, "getuid") and os.getuid() == 0:
        options.append("--no-sandbox")  # Chromium refuses to start for root otherwise
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(30_000)
        yield page
        browser.close()
    server.stop_kernels()


def wait_for(
    condition: Callable[[], Any], seconds: float, state: Callable[[], str], pause: Callable[[float], None] = time.sleep
) -> None:
    """Ask until the condition holds; AssertionError with the state when the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {state()}"
        pause(0.2)


class Lab:
    """A notebook open in JupyterLab."""

    def __init__(self, page: "playwright.Page", server: Server, name: str) -> None:
        self.page, self.server, self.path = page, server, f"{name}.ipynb"
        self.file = Path(server.info["root_dir"]) / self.path
        self.panel = page.locator(".jp-NotebookPanel")
        self.cells = sum(cell.cell_type == "code" for cell in nbformat.read(self.file, 4).cells)
        page.goto(f"{server.info['url']}doc/workspaces/{name}/tree/{self.path}?token={server.info['token']}")
        self._wait(lambda: len(self.prompts()) == self.cells and self._idle(), 90)

    def _wait(self, condition: Callable[[], Any], seconds: float) -> None:
        def checked() -> bool:
            dialog = self.page.locator(".jp-Dialog-content")
            assert not dialog.count(), f"JupyterLab asks: {dialog.inner_text()}"
            return condition()

        wait_for(checked, seconds, self._state, lambda seconds: self.page.wait_for_timeout(1000 * seconds))

    def _state(self) -> str:
        return f"{self.path}: kernel {self.server.kernel_state(self.path)}, cells {self.prompts()}"

    def _idle(self) -> bool:
        indicator = self.panel.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
        return self.server.kernel_state(self.path) == "idle" and indicator.count() == 1

    def prompts(self) -> list[str]:
        """Of the code cells: "[ ]:" not run, "[*]:" runs or waits, "[3]:" has run."""
        return self.panel.locator(".jp-CodeCell .jp-InputPrompt").evaluate_all(PROMPTS)

    def _begun(self) -> bool:
        return set(self.prompts()) != {"[ ]:"}

    def run_all(self, seconds: float) -> None:
        """Run ▸ Run All Cells, until the last one has ended, or one of them with an error."""
        menu = self.page.locator("#jp-MainMenu .lm-MenuBar-itemLabel", has_text="Run")
        entry = self.page.locator(".lm-Menu-item[data-command='runmenu:run-all']")
        for _ in range(3):  # a click while the page still settles can go nowhere
            with suppress(playwright.TimeoutError, AssertionError):
                self.page.keyboard.press("Escape")
                menu.click(timeout=10_000)
                entry.click(timeout=10_000)
                self._wait(self._begun, 20)
                break
        self._wait(self._begun, 5)
        self._wait(lambda: "[*]:" not in self.prompts() and self._idle(), seconds)

    def save(self) -> nbformat.NotebookNode:
        """File ▸ Save by its key; what the file holds then."""
        before = self.file.stat().st_mtime_ns
        self.panel.press("Control+s")
        self._wait(lambda: self.file.stat().st_mtime_ns != before, 30)
        self._wait(lambda: not self.page.locator(".jp-mod-dirty").count(), 30)
        return nbformat.read(self.file, 4)

    def screenshot(self, path: Path) -> None:
        """The whole notebook, however long, in a window as high as that."""
        self.page.set_viewport_size({"width": WIDTH, "height": self.panel.evaluate(HEIGHT)})
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=path)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_all_cells_run_in_the_browser(name, page, server, tmp_path):
    """No error, every figure is there; screenshots go to the folder SCREENSHOTS of the environment."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(page, server, name)
    try:
        lab.run_all(SECONDS)
    finally:
        lab.screenshot(folder / f"{name}.png")
    saved = [cell for cell in lab.save().cells if cell.cell_type == "code"]
    outputs = [output for cell in saved for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert [cell.execution_count for cell in saved] == list(range(1, lab.cells + 1))
    assert not [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert figures >= FIGURES.get(name, 4)

    shown = lab.panel.locator(".jp-OutputArea-output img")
    assert shown.count() == figures
    assert shown.evaluate_all(BROKEN_IMAGES) == 0
    for fault in ("Traceback", "Error displaying widget", "Loading widget", "HBox(children", "Javascript Error"):
        assert not lab.panel.locator(".jp-OutputArea-output", has_text=fault).count(), fault
    for kind in ("error", "stderr"):
        assert not lab.panel.locator(f".jp-OutputArea-output [data-mime-type='application/vnd.jupyter.{kind}']").count()
