"""What is measured: figures, diagnostics, cost."""
