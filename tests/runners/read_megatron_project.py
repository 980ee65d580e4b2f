"""Reads a project with Megatron-LM's own reader, as its pretrain_retro.py does.

    python read_megatron_project.py PROJECT NEIGHBORS FOLDER

with megatron-core on the path; what is read of each split goes to FOLDER, as NumPy files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.retro.query.multi_split_gpt_dataset import (
    MultiSplitGPTDataset,
    MultiSplitGPTDatasetConfig,
)
from megatron.core.datasets.retro.query.retro_dataset import get_retro_datasets
from megatron.core.datasets.utils import get_blend_from_list
from transformers import AutoTokenizer

SPLITS = ("train", "valid", "test")


class HuggingFaceTokenizer:
    """What Megatron's tokenizer of that name is to the datasets."""

    def __init__(self, path: Path) -> None:
        self.eod = AutoTokenizer.from_pretrained(path).eos_token_id
        self.unique_identifiers = {"class": "HuggingFaceTokenizer", "tokenizer_path": str(path)}


def read(project: Path, neighbors: int, folder: Path) -> None:
    saved = SimpleNamespace(**json.loads((project / "config.json").read_text()))
    # As load_retro_args in megatron/training/arguments.py.
    blend = list(saved.retro_gpt_data_path)
    blend[1::2] = [str(project / "data" / prefix) for prefix in blend[1::2]]
    tokenizer = HuggingFaceTokenizer(project / saved.retro_gpt_tokenizer_model)
    # As get_train_valid_test_num_samples in megatron/training/training.py.
    batch, iterations = saved.retro_gpt_global_batch_size, saved.retro_gpt_eval_iters
    evaluations = saved.retro_gpt_train_samples // batch // saved.retro_gpt_eval_interval + 1
    sizes = [saved.retro_gpt_train_samples, evaluations * iterations * batch, iterations * batch]
    config = MultiSplitGPTDatasetConfig(
        random_seed=saved.retro_gpt_seed,
        sequence_length=saved.retro_gpt_seq_length,
        blend=get_blend_from_list(blend),
        split=saved.retro_gpt_split,
        split_preprocessing=saved.retro_gpt_split,
        path_to_cache=saved.retro_gpt_data_cache_path,
        return_document_ids=False,
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    built = BlendedMegatronDatasetBuilder(MultiSplitGPTDataset, sizes, lambda: True, config).build()
    # RetroConfig itself asks for Transformer Engine.
    retro = SimpleNamespace(
        retro_project_dir=str(project),
        retro_block_size=saved.retro_block_size,
        retro_chunk_length=saved.retro_gpt_chunk_length,
        retro_neighbor_dirs=saved.retro_neighbor_dirs,
        retro_num_neighbors=neighbors,
        retro_num_retrieved_chunks=2,
        retro_verify_neighbor_count=True,
    )
    pairs = dict(zip(SPLITS, zip(built, sizes, strict=True), strict=True))
    found = get_retro_datasets(retro, pairs, saved.retro_gpt_seq_length, tokenizer.eod)
    for split, size, dataset in zip(SPLITS, sizes, found, strict=True):
        if dataset is not None:
            samples = [dataset[number] for number in range(size)]
            for name in ("text", "neighbor_chunks", "neighbor_tokens"):
                np.save(folder / f"{split}-{name}.npy", np.stack([one[name] for one in samples]))


if __name__ == "__main__":
    read(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
