"""A page on this machine to try photographs on: python app.py [RUN ...], as predict.py takes them (best).

Drop or paste a photograph: its outline, its probabilities, what they rest on, and warnings. Needs Gradio
(requirements-optional.txt). Only this machine reaches the page unless --host says otherwise; photographs stay in memory
where the system has a folder there (/dev/shm), are deleted once they are predicted, and nothing is sent anywhere. For
research, not a medical device.
"""

import argparse
import base64
import html
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from utils import UserError
from utils.command_line import at_least
from utils.data.dermoscopy import draw_lesion
from utils.data.isic import CLASSES
from utils.device import find_device, find_precision
from utils.inference.findings import NOTICE, Reader, examine, load
from utils.inference.trained import chosen_runs, run_label
from utils.logger import log, run_script
from utils.visualize.overlay import jpeg, pictures

STYLE = Path(__file__).parent / "utils" / "visualize" / "app.css"
PASTE = """<script>document.addEventListener("paste", event => {
  const input = document.querySelector("#photograph input[type=file]");
  if (!input || !event.clipboardData.files.length) return;
  input.files = event.clipboardData.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
})</script>"""  # in the page's head: there before what it pastes into


def report(readers: Sequence[Reader], path: Path, title: str) -> str:
    """What is said of a photograph, as HTML; a sentence when it cannot be read."""
    try:
        loaded = load(readers, path)
    except UserError as error:
        return f'<p class="warning">{html.escape(str(error).replace(str(path), title))}</p>'
    finding = examine(readers, loaded)
    row = finding.row()
    parts = [f"<h2>{html.escape(title)}</h2>"]
    parts += [f'<p class="warning">{html.escape(each)}</p>' for each in row["warnings"].split("; ") if each]
    for name in finding.classes:
        words = html.escape(name.replace("_", " "))
        parts.append(f'<p><progress aria-label="{words}" value={row[name]}></progress> {words} <b>{row[name]}</b></p>')
    if finding.lesion is not None:
        border = "reaches" if row["touches_border"] == "yes" else "does not reach"
        parts.append(f"<p>lesion on <b>{float(row['lesion_share']):.1%}</b> of the frame; it {border} the border</p>")
    for what, image in pictures(loaded.shown, finding).values():
        source = base64.b64encode(jpeg(image)).decode()
        parts.append(
            f'<figure><img alt="{what}" src="data:image/jpeg;base64,{source}"><figcaption>{what}</figcaption></figure>'
        )
    return "".join([*parts, f"<p><strong>{NOTICE}.</strong></p>"])


def page(readers: Sequence[Reader]) -> Any:
    """The page as `gradio.Blocks`."""
    import gradio

    def predict(upload: str | None) -> tuple[str, None]:
        if upload is None:
            return gradio.skip()
        try:
            return report(readers, Path(upload), Path(upload).name), None
        finally:
            Path(upload).unlink()

    def draw(label: int) -> str:
        index = next(i for i in range(100) if draw_lesion(0, i, (64, 64))[2] == label)
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            Image.fromarray(draw_lesion(0, index)[0]).save(file.name)
            return report(readers, Path(file.name), f"Drawn by a program, no photograph: {CLASSES[label]}")

    with gradio.Blocks(title="Skin lesions", analytics_enabled=False) as blocks:
        gradio.Markdown(
            f"# Skin lesions\n**{NOTICE}.** Networks: {' and '.join(run_label(each.run) for each in readers)}"
        )
        with gradio.Row():
            with gradio.Column(scale=1):
                upload = gradio.File(label="Drop, paste or choose a photograph", elem_id="photograph", height=180)
                gradio.Markdown("Or an example that a program has drawn:")
                drawn = [gradio.Button(f"drawn {name.replace('_', ' ')}") for name in CLASSES]
            with gradio.Column(scale=2):
                shown = gradio.HTML("<p>What is found appears here.</p>", elem_id="report", min_height=400)
        upload.upload(predict, upload, [shown, upload], api_visibility="private")
        for label, button in enumerate(drawn):
            button.click(lambda label=label: draw(label), None, shown, api_visibility="private")
    return blocks


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="*", default=["best"], help="a run's folder, a row's name, or best (best): one of each task")
    add("--host", default="127.0.0.1", help="address (127.0.0.1); 0.0.0.0: for every machine that reaches this one")
    add("--port", type=at_least(1), default=7860, help="of that address (7860)")
    add("--megabytes", type=at_least(1), default=50, help="largest photograph (50)")
    add("--no-browser", action="store_true", help="do not open the page")
    add("--device", help="cuda, cuda:1, mps, cpu … (the first of these that is there)")
    args = parser.parse_args(argv)
    runs = [run for name in args.runs for run in chosen_runs(name)]
    if len({run.task for run in runs}) < len(runs):
        raise UserError(f"{', '.join(map(run_label, runs))}: two of one task; give one segmenter and one classifier")
    precision = find_precision(find_device(args.device))
    readers = [Reader(run, precision) for run in runs]
    quiet = ("GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY")  # the second would keep photographs in the browser
    os.environ |= dict.fromkeys(quiet, "False") | {"HF_HUB_DISABLE_TELEMETRY": "1"}
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="app-", dir=memory) as folder:
        tempfile.tempdir = os.environ["GRADIO_TEMP_DIR"] = folder
        serve(readers, args)


def serve(readers: Sequence[Reader], args: argparse.Namespace) -> None:
    """Until it is stopped. UserError when Gradio is absent, or the port is taken."""
    try:
        import gradio
    except ImportError as error:
        way = "pip install -r requirements-optional.txt -c requirements.lock"
        raise UserError(f"the page needs Gradio ({error}): {way}") from error
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    log.info("http://%s:%d (Ctrl-C ends it)", args.host, args.port)
    try:
        page(readers).launch(
            server_name=args.host, server_port=args.port, inbrowser=not args.no_browser, quiet=True, share=False,
            max_file_size=f"{args.megabytes}mb", theme=theme, css_paths=STYLE, head=PASTE, footer_links=[],
            ssr_mode=False, mcp_server=False,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"port {args.port} of {args.host} cannot be had: choose another --port") from error


if __name__ == "__main__":
    run_script(main)
