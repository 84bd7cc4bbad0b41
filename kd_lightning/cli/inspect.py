"""``kd-inspect net@teacher=… net@student=… data=…``: print both networks, layer by layer.

The command shows the output shape and cost of each layer, and proposes pairs of layers for
methods that compare them, as arguments to paste after ``train.py``.
"""

import hydra
from omegaconf import DictConfig
from rich import box
from rich.table import Table
from torch import nn

from kd_lightning.cli.console import console
from kd_lightning.cli.job import find_plugins
from kd_lightning.cli.outcome import run_job
from kd_lightning.cli.paths import CONF
from kd_lightning.cli.quiet import quieten
from kd_lightning.metrics.cost import count_parameters, multiply_adds
from kd_lightning.nets.taps import embedding, layers, pairs
from kd_lightning.runs.build import build_data, build_task, make
from kd_lightning.runs.checks import check_section
from kd_lightning.runs.networks import with_own_parts
from kd_lightning.utils.networks import Inputs


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="inspect")
def main(cfg: DictConfig) -> None:
    """Entry point of ``kd-inspect``."""
    quieten()
    find_plugins()
    run_job(lambda: inspect(cfg))


def inspect(cfg: DictConfig) -> float:
    """Print both configured networks and the proposed pairs of layers."""
    cfg = with_own_parts(cfg)
    for section in ("task", "data", "student", "teacher"):
        check_section(cfg, section)
    task = build_task(cfg, build_data(cfg))
    example = task.example()
    assert example is not None
    sample = example.inputs
    nets = {name: task.build(make(cfg[name], name)) for name in ("student", "teacher")}
    print_side_by_side([network_table(name, net, sample) for name, net in nets.items()])
    for line in proposals(nets["student"], nets["teacher"], sample):
        console().print(line, soft_wrap=True, highlight=False, markup=False)
    return 0.0


def print_side_by_side(tables: list[Table]) -> None:
    """Print tables side by side, or below each other if the terminal is too narrow."""
    # Measured at an unlimited width, since rich otherwise folds the paths to make tables fit.
    grid = Table.grid(padding=(0, 4))
    grid.add_row(*tables)
    screen = console()
    needed = screen.measure(grid, options=screen.options.update(max_width=10_000)).maximum
    for table in [grid] if needed <= screen.width else tables:
        screen.print(table)


def network_table(name: str, net: nn.Module, sample: Inputs) -> Table:
    """Return a table with path, output shape, parameters and multiply-adds of each layer.

    Args:
        name: role of the network, for the title.
        net: the network.
        sample: a batch of inputs of any content; shapes and costs are those of one sample.
    """
    counted = multiply_adds(net, sample)
    table = Table(title=f"{name}: {type(net).__name__}", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("path", "output", "parameters", "multiply-adds"):
        left = column == "path"  # the only column that may wrap
        table.add_column(
            column,
            justify="left" if left else "right",
            no_wrap=not left,
            overflow="fold" if left else "ellipsis",
        )
    shown: set[str] = set()
    for layer in layers(net, sample):
        path = layer.path.partition(":")[0]
        # Costs are shown once per layer: a layer with several outputs has several rows.
        costs = () if path in shown else (count_parameters(layer.module), counted.get(path, 0))
        shown.add(path)
        table.add_row(layer.path, "×".join(map(str, layer.shape)), *map(in_short, costs))
    whole = count_parameters(net)
    table.add_row("total", "", f"{whole:,}", in_short(counted[""]), style="bold")
    return table


def in_short(count: int) -> str:
    """Abbreviate a count: ``1.18 M`` for 1,179,776; an empty string for 0."""
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count or "")


def proposals(student: nn.Module, teacher: nn.Module, sample: Inputs) -> list[str]:
    """Return lines of arguments that name corresponding layers, ready to paste."""
    of_student, of_teacher = layers(student, sample), layers(teacher, sample)
    matched = [(s.path, t.path) for s, t in pairs(of_student, of_teacher)]
    last = (embedding(of_student).path, embedding(of_teacher).path)
    lines = []
    if matched:
        # Of the pairs, the last is the default of these methods, see transfer.term.propose().
        lines += ["one pair of maps (fitnet, at, nst, vid, sp):", _paste("fitnet", matched[-1:])]
        lines += ["all pairs of maps (fsp, review):", _paste("review", matched)]
    return [*lines, "embeddings (rkd, cc, pkt, crd):", _paste("rkd", [last])]


def _paste(method: str, found: list[tuple[str, str]]) -> str:
    words = []
    for network, paths in zip(("student", "teacher"), zip(*found, strict=True), strict=True):
        named = [_as_text(path) for path in paths]
        value = named[0] if len(named) == 1 else f"[{','.join(named)}]"
        word = f"method.transfer.{method}.{network}={value}"
        words.append(repr(word) if set("'[") & set(value) else word)  # quoted for the shell
    return f"  method={method} {' '.join(words)}"


def _as_text(path: str) -> str:
    """Return a path, quoted if Hydra would read it as a number, such as 0.1."""
    return f"'{path}'" if path.replace(".", "", 1).isdigit() else path


if __name__ == "__main__":
    main()
