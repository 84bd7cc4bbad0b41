"""``kd-export RUN format=onnx quantize=int8``: write a run's network to files that are verified.

A file takes raw uint8 images, N×C×H×W, and returns probabilities and logits; the normalisation is
inside. Its own runtime answers all test images from the file, and the answers are compared with
those of the checkpoint: exported/export.json. If they differ, the exit code is 1.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_lightning.cli.console import fail, print_line, print_path
from kd_lightning.cli.quiet import quieten
from kd_lightning.utils.errors import UserError
from kd_lightning.utils.run_directory import EXPORTED, is_run, jobs_of

INT8 = {"none": False, "int8": True}  # values of quantize=


def main() -> None:
    """Entry point of ``kd-export``."""
    arguments = _parser().parse_args()
    quieten()
    try:
        _export(arguments.run, arguments.trust, **_words(arguments.settings))
    except UserError as error:
        fail(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kd-export", description=__doc__)
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="format=onnx (or several, as in format=onnx,pt2); quantize=int8 or none, by default "
        "as the run is quantised",
    )
    parser.add_argument(
        "--trust", action="store_true", help="run the code that the run names, such as its network"
    )
    return parser


def _words(settings: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in settings:
        if "=" not in word:
            raise UserError(f"{word} is no setting: kd-export takes one run, format=, quantize=")
        name, _, found[name] = word.partition("=")
    if unknown := [name for name in found if name not in ("format", "quantize")]:
        raise UserError(
            f"{unknown[0]}={found[unknown[0]]}: kd-export has only format= and quantize="
        )
    return found


def _precisions(quantize: str | None) -> list[bool | None]:
    """Return whether files compute in int8; None as the run is quantised."""
    kinds = quantize.split(",") if quantize is not None else []
    if unknown := [kind for kind in kinds if kind not in INT8]:
        raise UserError(f"quantize={unknown[0]} is none of {', '.join(INT8)}")
    return [INT8[kind] for kind in kinds] or [None]


def _export(path: Path, trust: bool, format: str = "onnx", quantize: str | None = None) -> None:
    from kd_lightning.runs.export import check_exportable, export  # imported late: torch is slow
    from kd_lightning.runs.load import load_run

    if not is_run(path) and (jobs := jobs_of(path)):
        raise UserError(f"{path} is a sweep: name one of its jobs, such as {jobs[0]}")
    precisions = _precisions(quantize)
    run, passed = load_run(path, trust=trust), True
    wanted = [(form, int8) for form in format.split(",") for int8 in precisions]
    for form, int8 in wanted:  # all of them, before the first is written
        check_exportable(run, form, int8)
    for form, int8 in wanted:
        record = export(run, form, int8=int8, trust=trust)
        _print(record, path)
        passed &= record["passed"]
    if not passed:
        fail("a file does not answer as its checkpoint does: see export.json")


def _print(record: dict[str, Any], path: Path) -> None:
    print_path("exported", path / EXPORTED / record["file"])
    print_line(
        f"accuracy on {record['images']:,} test images: {record['accuracy']:.2%} from the file, "
        f"{record['checkpoint_accuracy']:.2%} from the checkpoint"
    )
    print_line(
        f"{record['agreement']:.2%} of the answers agree; logits differ by at most "
        f"{record['largest_difference']:.1e} at a scale of {record['largest_logit']:.3g}"
    )
    if record["int8"]:
        print_line(f"{record['int8_share']:.0%} of the layers with weights compute in int8")


if __name__ == "__main__":
    main()
