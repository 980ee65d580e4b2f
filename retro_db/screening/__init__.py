"""Finds documents that are too close to evaluation texts, or to one another."""
