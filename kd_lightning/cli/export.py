"""``kd-export RUN``: write the network of a run to an ONNX file that is verified.

RUN/exported/model.onnx takes raw uint8 images, N×C×H×W, and returns probabilities and logits; the
normalisation is inside. ONNX Runtime answers all test images from the file, and the answers are
compared with those of the checkpoint: exported/export.json. If they differ, the exit code is 1.
"""

import argparse
from pathlib import Path

from kd_lightning.cli.console import fail, print_line, print_path
from kd_lightning.cli.quiet import quieten
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import EXPORTED


def main() -> None:
    """Entry point of ``kd-export``."""
    arguments = _parser().parse_args()
    quieten()
    try:
        _export(arguments.run, arguments.checkpoint, arguments.trust)
    except UserError as error:
        fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd-export", description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best")
    parser.add_argument(
        "--trust", action="store_true", help="run the code that the run names, such as its network"
    )
    return parser


def _export(path: Path, checkpoint: str, trust: bool) -> None:
    from kd_lightning.runs.export import export  # imported late: torch is slow to import
    from kd_lightning.runs.load import load_run

    record = export(load_run(path, checkpoint, trust=trust), trust=trust)
    print_line(
        f"accuracy on {record['images']:,} test images: {record['accuracy']:.2%} from the file, "
        f"{record['checkpoint_accuracy']:.2%} from the checkpoint"
    )
    print_line(
        f"{record['agreement']:.2%} of the answers agree; logits differ by at most "
        f"{record['largest_difference']:.1e} at a scale of {record['largest_logit']:.3g}"
    )
    print_path("exported", path / EXPORTED / record["file"])
    if not record["passed"]:
        fail("the file does not answer as its checkpoint does: see export.json")


if __name__ == "__main__":
    main()
