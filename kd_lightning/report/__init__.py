"""Reports: from run directories to tables, plots and verdicts.

read.py         reading of run directories and sweep directories
groups.py       groups of runs that differ only in their seed, and their baselines
statistics.py   means, intervals, differences and tests, as pure functions of numbers
compare.py      comparison of each group with its baseline
verdicts.py     the headline, the comparison with controls, the notes
table.py        the table class, and the formatting of numbers
tables.py       the tables of a report;  sweep.py: those of a run, a chain or a sweep
plots/          one file for each kind of plot
page.py         report.html, report.md, report.csv

Nothing here imports training code, reads configurations or prints: facts come from
``run.json``, figures from ``metrics.json``, and :mod:`kd_lightning.cli.console` prints.
"""
