"""Searching an index, tuning the search, and what is found."""
