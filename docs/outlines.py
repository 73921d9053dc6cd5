"""The picture in README, outlines.jpg: validation images of a run, chosen by their rank among all Jaccards alone.

python -m docs.outlines results/seg-b5/seed1 --data Data/ISIC2017
"""

import argparse
from pathlib import Path

from utils.data.isic import read_split
from utils.evaluation.runs import read_run
from utils.logger import log, run_script
from utils.visualize.examples import photograph
from utils.visualize.figures import plot_contours

RANKS = {"best": 1.0, "75 %": 0.75, "median": 0.5, "25 %": 0.25, "10 %": 0.1, "worst": 0.0}  # share that is worse


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.outlines", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a segmentation run with its validation masks")
    parser.add_argument("--data", type=Path, default=Path("Data/ISIC2017"), help="data folder (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/outlines.jpg"), help="JPEG file (%(default)s)")
    args = parser.parse_args(argv)
    run = read_run(args.run)
    samples = {sample.id: sample for sample in read_split(args.data, "validation", with_labels=False)}
    table = run.per_image("validation").sort_values("jaccard", kind="stable", ignore_index=True)
    panels = []
    for name, share in RANKS.items():
        line = table.loc[round(share * (len(table) - 1))]
        title = f"{name}, Jaccard {line['jaccard']:.3f}\n{line['image_id']}"
        mask = run.predicted_mask("validation", line["image_id"])
        panels.append(photograph(samples[line["image_id"]], title, 256, mask))
    figure = plot_contours(panels, columns=len(panels), width=2.0)
    figure.set_figheight(2.8)  # enough for squares
    figure.savefig(args.output, dpi=100, bbox_inches="tight", pad_inches=0.03, pil_kwargs={"quality": 85})
    log.info("%s: %.0f kB", args.output, args.output.stat().st_size / 1e3)


if __name__ == "__main__":
    run_script(main)
