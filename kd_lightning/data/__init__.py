"""Data sets, each a LightningDataModule that holds its samples in memory."""
