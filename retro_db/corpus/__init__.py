"""Text in: the files of a corpus, their division into shards, and the documents in them."""
