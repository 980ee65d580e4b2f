"""The report: one HTML page about a database. Needs the extra `build`."""
