"""Trains RETRO-pytorch's model on a database, with neighbors and without, and compares on held-out text.

    python examples/train_retro_pytorch.py DB [--steps 800] [--seed 0]

DB needs a validation split. The trained models predict its documents, and the script prints the bits that
they need for a token: with neighbors, with the neighbors of other chunks instead, and without any, for the
model that was trained without. If the content of neighbors helps, true neighbors are better than exchanged
ones.

The first figure counts all tokens that a neighbor can help to predict, the second only the tokens of *held*
chunks: chunks of which at least half is, as one run, in the neighbors that the model has while it predicts
them.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from retro_pytorch.retro_pytorch import RETRO
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

import retro_db
from retro_db.reader.dataset import Example
from retro_db.report.leakage import longest_common

SEQ_LEN, NEIGHBORS, BATCH = 512, 2, 2
HELD_OUT = 128  # at most how many validation sequences the models predict
IGNORED = -100  # a target that cross_entropy passes over


@dataclass(frozen=True)
class Batch:
    """The input of the model for b sequences of l chunks.

    Attributes:
        tokens: int64 [b, seq_len].
        targets: int64 [b, seq_len - 1], the token after each; IGNORED where it is padding.
        retrieved: int64 [b, l, k, 2 m]. Row u has the neighbors of chunk u, as in the database; the model
            shifts them. It reads them from the last token of chunk u on, which predicts the first
            of chunk u + 1.
    """

    tokens: Tensor
    targets: Tensor
    retrieved: Tensor

    @classmethod
    def of(cls, example: dict[str, Tensor], pad_id: int) -> Batch:
        """Makes a batch from an example of a loader.

        RETRO-pytorch marks padding by an id, and a database by its masks, since its pad id may be a
        real token too. So the padding of neighbors becomes an id that no token has.
        """
        tokens, neighbors = example["tokens"].long(), example["neighbors"].long()
        return cls(
            tokens,
            tokens[:, 1:].masked_fill(~example["mask"][:, 1:], IGNORED),
            neighbors.masked_fill(~example["neighbor_mask"], pad_id),
        )


def new_model(database: retro_db.Database, seed: int) -> RETRO:
    """Returns a small model, with one more token than the database has: the padding."""
    torch.manual_seed(seed)
    chunk = database.manifest.chunk
    model = RETRO(
        num_tokens=chunk.vocab_size + 1,
        pad_id=chunk.vocab_size,
        chunk_size=chunk.tokens,
        max_seq_len=SEQ_LEN,
        enc_dim=128,
        enc_depth=1,
        dec_dim=128,
        dec_depth=2,
        dec_cross_attn_layers=(1, 2),
        dim_head=32,
    )
    # With RETRO-pytorch's N(0, 1), the layers add little to the embeddings, and learn late.
    torch.nn.init.normal_(model.token_emb.weight, std=0.3)
    torch.nn.init.normal_(model.pos_emb.weight, std=0.1)
    return model


def batches(dataset: retro_db.RetroDataset, seed: int, pad_id: int) -> Iterator[Batch]:
    """Yields the batches of epoch after epoch."""
    sampler = retro_db.RetroSampler(dataset, BATCH, seed=seed, drop_last=True)
    loader = DataLoader(dataset, batch_sampler=sampler)
    # Each time that the loader is asked to begin, the sampler goes on to the next epoch.
    for example in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield Batch.of(example, pad_id)


def optimizers(model: RETRO) -> list[torch.optim.Optimizer]:
    """Returns Muon for the layers' matrices, which learn to copy in a few hundred steps, and AdamW."""
    outer = (model.token_emb, model.pos_emb, model.to_logits)
    rest = {id(parameter) for module in outer for parameter in module.parameters()}
    rest |= {id(parameter) for parameter in model.parameters() if parameter.ndim < 2}
    return [
        torch.optim.Muon([p for p in model.parameters() if id(p) not in rest], lr=0.02),
        torch.optim.AdamW([p for p in model.parameters() if id(p) in rest], lr=5e-3),
    ]


def train(
    dataset: retro_db.RetroDataset, steps: int, seed: int, *, with_neighbors: bool
) -> tuple[RETRO, list[float]]:
    """Returns a trained model, and the loss of each step in bits a token."""
    model = new_model(dataset.database, seed)
    used = optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            optimizer.param_groups[0]["lr"],
            total_steps=steps,
            pct_start=0.1,
            cycle_momentum=False,
        )
        for optimizer in used
    ]
    losses: list[float] = []
    for batch in itertools.islice(batches(dataset, seed, model.pad_id), steps):
        logits = model(batch.tokens, batch.retrieved if with_neighbors else None)
        loss = functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch.targets)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*used, *schedules):
            part.step()
        losses.append(loss.item() / math.log(2))
        if len(losses) % 100 == 0:
            print(f"step {len(losses)}: {np.mean(losses[-100:]):.3f} bits a token", flush=True)
    return model.eval(), losses


def held_chunks(example: Example) -> np.ndarray:
    """Finds chunks of which at least half is in the neighbors of the chunk before them: bool [b, l]."""
    b, l, k, width = example["neighbors"].shape  # noqa: E741 - as in the paper
    m = width // 2
    common = longest_common(
        example["tokens"].reshape(b, l, m)[:, 1:].reshape(-1, m),
        example["mask"].reshape(b, l, m)[:, 1:].sum(axis=-1).reshape(-1),
        example["neighbors"][:, :-1].reshape(-1, k, width),
        example["neighbor_mask"].reshape(b, l, k, 2, m)[:, :-1].sum(axis=-1).reshape(-1, k, 2),
    )
    enough = common.max(axis=-1).reshape(b, l - 1) >= m // 2
    return np.concatenate([np.zeros((b, 1), bool), enough], axis=1)


@torch.no_grad()
def bits(model: RETRO, batch: Batch, retrieved: Tensor | None) -> Tensor:
    """Returns the bits that the model needs for each target: [b, seq_len - 1], 0 at padding."""
    parts = []
    for start in range(0, len(batch.tokens), 8):
        rows = slice(start, start + 8)
        logits = model(batch.tokens[rows], None if retrieved is None else retrieved[rows])
        parts.append(
            functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), batch.targets[rows], reduction="none"
            )
        )
    return torch.cat(parts) / math.log(2)


def exchanged(retrieved: Tensor, seed: int) -> Tensor:
    """Gives each chunk the neighbors of another one, drawn from all sequences."""
    rows = retrieved.flatten(0, 1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order].view_as(retrieved)


def compare(reading: RETRO, plain: RETRO, held_out: retro_db.RetroDataset, seed: int) -> None:
    """Prints the bits that each model needs for the held-out text."""
    example = held_out[list(range(min(len(held_out), HELD_OUT)))]
    tensors = {name: torch.from_numpy(values) for name, values in example.items()}
    batch = Batch.of(tensors, reading.pad_id)
    m = held_out.database.manifest.chunk.tokens
    counted = batch.targets != IGNORED
    counted[:, : m - 1] = False  # the first chunk, before which there are no neighbors
    alone = counted & torch.from_numpy(held_chunks(example).repeat(m, axis=1)[:, 1:])
    needed = {
        "true neighbors": bits(reading, batch, batch.retrieved),
        "exchanged neighbors": bits(reading, batch, exchanged(batch.retrieved, seed)),
        "trained without neighbors": bits(plain, batch, None),
    }
    print(f"\n{'bits a held-out token':<26} {'all chunks':>11} {'held chunks':>12}")
    for name, values in needed.items():
        print(f"{name:<26} {values[counted].mean():>11.3f} {values[alone].mean():>12.3f}")
    print(f"{'tokens':<26} {counted.sum():>11,} {alone.sum():>12,}")


def main() -> None:
    """Trains two models and compares them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    database = retro_db.open(options.database)
    dataset = retro_db.RetroDataset(database, SEQ_LEN, NEIGHBORS)
    held_out = retro_db.RetroDataset(database, SEQ_LEN, NEIGHBORS, split="validation")
    print(f"{len(dataset):,} sequences to train with, {len(held_out):,} held out")
    trained = []
    for with_neighbors in (True, False):
        print(f"training {'with' if with_neighbors else 'without'} neighbors", flush=True)
        model, losses = train(dataset, options.steps, options.seed, with_neighbors=with_neighbors)
        print(f"first {losses[0]:.3f}, last {np.mean(losses[-20:]):.3f} bits a token", flush=True)
        trained.append(model)
    compare(*trained, held_out, options.seed)


if __name__ == "__main__":
    main()
