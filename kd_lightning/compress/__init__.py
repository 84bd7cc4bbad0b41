"""From a checkpoint to a device: exports and their verification."""
