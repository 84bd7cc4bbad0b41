"""Teachers: their sources, the store of trained ones, and the cache of their outputs."""
