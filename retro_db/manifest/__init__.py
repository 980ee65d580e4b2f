"""The manifest: what it says, which checks it passes, and the parts that it lists."""
