"""Run directories in, tables and pictures out. Nothing here imports training code."""
