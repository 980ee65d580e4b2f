"""The language model's tokenizer: loaded, converted or trained."""
