"""Changes to a finished database: removal and compaction."""
