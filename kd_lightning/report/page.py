"""The report as files: one HTML page, Markdown with its pictures, CSV."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType

from kd_lightning.cli.console import percent
from kd_lightning.report import accuracy, evidence
from kd_lightning.report.answer import headline, mood
from kd_lightning.report.causes import causes
from kd_lightning.report.compare import Report, Row
from kd_lightning.report.links import links
from kd_lightning.report.markdown import as_it_is, pipe_table
from kd_lightning.report.pictures import Picture, style
from kd_lightning.report.read import Run
from kd_lightning.report.stats import HELPS, HURTS, NO_DIFFERENCE
from kd_lightning.report.table import (
    DIFFERENCE,
    Table,
    errors_table,
    main_table,
    more_table,
    write_csv,
)
from kd_lightning.report.template import PAGE
from kd_lightning.report.words import METHOD, common, notes
from kd_lightning.utils.errors import UserError


def write_report(report: Report, folder: Path) -> None:
    """Leave ``report.html``, ``report.md``, ``report.csv`` and ``pictures/`` in a folder."""
    pictures = draw(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = _write_pngs(pictures, folder)
        (folder / "report.html").write_text(html(report, pictures), encoding="utf-8")
        (folder / "report.md").write_text(_markdown(report, pictures, files), encoding="utf-8")
        write_csv(report, folder / "report.csv")
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error}") from error


def draw(report: Report) -> list[Picture]:
    """Every picture that there are data for."""
    with style():
        return [
            *accuracy.temperature_and_alpha(report),
            *accuracy.size(report),
            *accuracy.learning_curves(report),
            *links(report),
            *evidence.pictures(report),
        ]


def html(report: Report, pictures: Sequence[Picture]) -> str:
    """The page, whole in itself."""
    return PAGE.substitute(
        headline=escape(headline(report)),
        mood=mood(report),
        causes="\n".join(f'<p class="cause">{escape(cause)}</p>' for cause in causes(report)),
        table=_main_table(report),
        method=escape(METHOD),
        notes="\n".join(f'<p class="note">{escape(note)}</p>' for note in _remarks(report)),
        pictures=_section("Pictures", f'<div class="pictures">{_figures(pictures)}</div>')
        if pictures
        else "",
        more="\n".join(_section(title, _html_table(t)) for title, t in _further(report)),
        runs=_section("Runs", _html_table(_run_table(report))) if report.runs else "",
    )


def _remarks(report: Report) -> list[str]:
    typed = common(report)
    return [*notes(report), *([f"The same for all runs: {typed}"] if typed else [])]


def _main_table(report: Report) -> str:
    """The table, with the intervals drawn as well."""
    table = main_table(report)
    marks = {}
    if DIFFERENCE in table.header:
        column = table.header.index(DIFFERENCE)
        reach = max((_reach(row) for row in report.rows), default=0.0)
        for i, row in enumerate(report.rows):
            marks[i, column] = _whisker(row, reach)
    return _html_table(table, marks) if table.rows else ""


def _reach(row: Row) -> float:
    delta = row.difference
    return max(abs(x) for x in (delta.mean, delta.low or 0, delta.high or 0)) if delta else 0.0


def _whisker(row: Row, reach: float) -> str:
    """The difference and its interval beside zero, on one scale for all rows."""
    delta = row.difference
    if delta is None or not reach:
        return ""
    low, at, high = (
        60 * (delta.mean if x is None else x) / reach for x in (delta.low, delta.mean, delta.high)
    )
    return (
        '<svg class="whisker" viewBox="-66 -6 132 12" stroke="currentColor" aria-hidden="true">'
        f'<path d="M{low:.1f} 0H{high:.1f}" stroke-width="2"/>'
        f'<circle cx="{at:.1f}" r="3.5" fill="currentColor" stroke="none"/>'
        '<path d="M0-6V6" opacity=".6"/></svg>'
    )


def _html_table(table: Table, marks: Mapping[tuple[int, int], str] = MappingProxyType({})) -> str:
    """A table; ``marks`` come below the text of a row's cell."""
    names = table.header.index("n") if "n" in table.header else 1
    head = "".join(_cell("th", i < names, name) for i, name in enumerate(table.header))
    body = [
        f'<tr class="teacher">{"".join(_cell("td", i < names, c) for i, c in enumerate(row))}</tr>'
        for row in table.teachers
    ]
    for n, row in enumerate(table.rows):
        cells = (_cell("td", i < names, c, marks.get((n, i), "")) for i, c in enumerate(row))
        body.append(f"<tr>{''.join(cells)}</tr>")
    rows = "\n".join(body)
    whole = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{whole}</div>'


def _cell(tag: str, is_name: bool, text: str, mark: str = "") -> str:
    kind = "name" if is_name else text if text in (HELPS, HURTS) else ""
    kind = "verdict" if text == NO_DIFFERENCE else kind
    css = f' class="{kind}"' if kind else ""
    return f"<{tag}{css}>{_lines(text)}{mark}</{tag}>"


def _lines(cell: str) -> str:
    first, _, second = cell.partition("\n")
    return escape(first) + (f"<small>{escape(second)}</small>" if second else "")


def _figures(pictures: Sequence[Picture]) -> str:
    """Narrow pictures go two by two; one that is left over has a row of its own."""
    narrow = [picture for picture in pictures if not picture.is_wide]
    lone = narrow[-1] if len(narrow) % 2 else None
    figures = []
    for p in pictures:
        css = ' class="wide lone"' if p is lone else ' class="wide"' if p.is_wide else ""
        head = f'<figure{css} id="{p.name}"><h3>{escape(p.title)}</h3>'
        figures.append(f"{head}{p.svg()}<figcaption>{escape(p.caption)}</figcaption></figure>")
    return "\n".join(figures)


def _further(report: Report) -> list[tuple[str, Table]]:
    """The tables below the pictures, with their titles."""
    errors, more = errors_table(report), more_table(report)
    found = [("Test errors", errors)] if errors.rows else []
    title = "Fidelity, calibration and cost (validation)"
    return [*found, *([(title, more)] if len(more.header) > 1 else [])]


def _run_table(report: Report) -> Table:
    """Every run that was counted, and where it lies."""
    rows = []
    for row in report.rows:
        for seed, run in row.group.runs.items():
            scores = [_share(run, f"{split}/accuracy") for split in ("val", "test")]
            rows.append([row.group.label, seed, *scores, str(run.path)])
    return Table(["group", "seed", "validation", "test", "directory"], [], rows)


def _share(run: Run, name: str) -> str:
    found = run.number(name)
    return "" if found is None else percent(found)


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}"


def _write_pngs(pictures: Sequence[Picture], folder: Path) -> list[Path]:
    if not pictures:
        return []
    (folder / "pictures").mkdir(exist_ok=True)
    return [picture.write_png(folder / "pictures") for picture in pictures]


def _markdown(report: Report, pictures: Sequence[Picture], files: Sequence[Path]) -> str:
    said = [headline(report), *causes(report)]
    parts = ["# Did distillation help?", *map(as_it_is, said)]
    parts += [_pipes(main_table(report))] if report.rows else []
    parts += [METHOD, *map(as_it_is, _remarks(report))]
    for picture, file in zip(pictures, files, strict=True):
        parts.append(f"## {picture.title}\n\n![{picture.title}](pictures/{file.name})")
        parts.append(as_it_is(picture.caption))
    parts += [f"## {title}\n\n{_pipes(table)}" for title, table in _further(report)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _pipes(table: Table) -> str:
    return pipe_table(table.header, table.lines)
