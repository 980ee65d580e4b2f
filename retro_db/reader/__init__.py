"""Reading a database: NumPy, PyArrow and fsspec alone."""
