"""The index: trained once, filled shard by shard, searched as one."""
