"""One file for each stage that a build prints."""

# What `retro-db stage` takes, in the order of a build, and the stages that each runs.
STAGES = {
    "tokenizer": ("tokenizer",),
    "screen": ("screen",),
    "chunk": ("chunk",),
    "embed": ("embed",),
    "train": ("train",),
    "encode": ("encode",),
    "assemble": ("assemble",),
    "tune": ("tune",),
    "index": ("train", "encode", "assemble", "tune"),
    "neighbors": ("neighbors",),
}
