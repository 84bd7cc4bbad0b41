"""Run directories in; tables, plots and verdicts out.

read.py         run directories and sweep directories
groups.py       runs that differ in their seed alone form a group; each group has a baseline
statistics.py   means, intervals, differences and tests, as pure functions of numbers
compare.py      each group beside its baseline
verdicts.py     the headline, the comparison with controls, the notes
table.py        the one table class, and how numbers are written
tables.py       the tables of a report;  sweep.py: of a run, a chain or a sweep
plots/          one kind of plot a file
page.py         report.html, report.md, report.csv

Nothing here imports training code, reads configurations or prints: the facts are in
``run.json``, the figures in ``metrics.json``, and :mod:`kd_lightning.cli.console` prints.
"""
