"""Where a teacher comes from, the store of trained teachers, the cache of their outputs."""
