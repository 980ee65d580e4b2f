"""The join: every chunk's neighbors, by lists and exactly, for all chunks at once."""
