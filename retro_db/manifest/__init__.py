"""The manifest: its content, its checks, its files, and the parts that it lists."""
