"""Files of a database: written whole or not at all, read through views."""
