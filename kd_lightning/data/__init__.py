"""Data sets: each a LightningDataModule that keeps its samples in memory."""
