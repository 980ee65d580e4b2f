"""One file for each stage that a build prints."""

# Names that `retro-db stage` takes, and the stages that each runs. Their order is decided in
# builds/stage_order.py.
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
