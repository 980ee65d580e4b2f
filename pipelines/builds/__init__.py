"""Whole builds: which stages run over what, and the manifest at their end."""
