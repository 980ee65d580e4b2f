"""Apache Beam jobs that build a database, one for each stage, and the command line."""
