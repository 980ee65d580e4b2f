"""Reading a database: needs NumPy, PyArrow and fsspec alone."""
