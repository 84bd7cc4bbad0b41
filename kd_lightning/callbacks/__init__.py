"""What watches a run: one concern a file."""
