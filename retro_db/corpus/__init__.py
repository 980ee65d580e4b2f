"""Text in: which files there are, how they are divided into shards, and the documents in them."""
