"""Chunks to embeddings: a frozen BERT averaged over time (paper, section 2.3)."""
