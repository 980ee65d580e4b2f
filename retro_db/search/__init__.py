"""Searching an index, tuning the search, and showing the chunks that it finds."""
