"""Commands, and the glue between Hydra and Lightning."""
