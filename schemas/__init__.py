"""The contracts of every file in a database, as JSON beside this module."""
