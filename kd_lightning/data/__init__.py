"""Data sets, each a LightningDataModule."""
