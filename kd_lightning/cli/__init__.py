"""The commands, and what stands between Hydra and Lightning."""
