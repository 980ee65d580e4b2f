"""One store of tokens, written and read for `benchmarks/stores.py` in a separate process.

    python stores_reader.py NAME TOKENS.npy PLACE

Writes the tokens, uint16 [chunks, 64], to the folder PLACE, opens them, makes sure that what is read is
right and prints `ready`. Reads `BATCHES.npy SECONDS` from standard input, ids [batches, n] and at least how
long to read them, a line for each turn; prints `rate` and the rows [N, F] a second.
"""

import itertools
import sys
import time
from pathlib import Path

import numpy as np

TOKENS = 64
GROUP_ROWS = 4096


def pairs(rows):
    """Returns [N, F] from rows of all N, then all F."""
    return rows.reshape(2, -1, TOKENS).transpose(1, 0, 2).reshape(-1, 2 * TOKENS)


def with_following(ids):
    """Returns ids of all N, then of all F."""
    return np.concatenate([ids, ids + 1])


def retro_db(tokens, place):
    """Opens a database that exists already."""
    import retro_db

    return retro_db.open(str(place)).chunks.values


def memmap(tokens, place):
    """Writes and opens a bare array."""
    np.save(place / "tokens.npy", tokens)
    array = np.load(place / "tokens.npy", mmap_mode="r")
    return lambda ids: np.concatenate([array[ids], array[ids + 1]], axis=1)


def hdf5(tokens, place):
    """Writes a contiguous dataset of HDF5, whose fancy indexing takes ids in order without repetition."""
    import h5py

    with h5py.File(place / "tokens.h5", "w") as file:
        file.create_dataset("tokens", data=tokens)
    dataset = h5py.File(place / "tokens.h5", "r")["tokens"]

    def read(ids):
        wanted, places = np.unique(with_following(ids), return_inverse=True)
        return pairs(dataset[wanted][places])

    return read


def parquet(tokens, place):
    """Writes rows of plain bytes in Parquet; reads the row groups that it needs, then takes their rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(2 * TOKENS), len(tokens), [None, pa.py_buffer(tokens)]
    )
    pq.write_table(
        pa.table({"tokens": column}),
        place / "tokens.parquet",
        row_group_size=GROUP_ROWS,
        compression="none",
        use_dictionary=False,
    )
    file = pq.ParquetFile(place / "tokens.parquet", memory_map=True)

    def read(ids):
        wanted = with_following(ids)
        groups, places = np.unique(wanted // GROUP_ROWS, return_inverse=True)
        table = file.read_row_groups(groups.tolist())
        taken = table["tokens"].take(places * GROUP_ROWS + wanted % GROUP_ROWS).combine_chunks()
        return pairs(np.frombuffer(taken.buffers()[1], np.uint16))

    return read


def datasets(tokens, place):
    """Writes Hugging Face's dataset and loads it from disk, a batch as NumPy arrays."""
    from datasets import Dataset, Features, List, Value, disable_progress_bars, load_from_disk

    disable_progress_bars()
    features = Features({"tokens": List(Value("uint16"), length=TOKENS)})
    Dataset.from_dict({"tokens": tokens}, features=features).save_to_disk(place)
    dataset = load_from_disk(place).with_format("numpy", dtype=np.uint16)
    return lambda ids: pairs(dataset[with_following(ids)]["tokens"])


def datasets_arrow(tokens, place):
    """Writes and loads the same, a batch as an Arrow table."""
    from datasets import load_from_disk

    datasets(tokens, place)
    dataset = load_from_disk(place).with_format("arrow")

    def read(ids):
        column = dataset[with_following(ids)]["tokens"].combine_chunks()
        return pairs(column.flatten().to_numpy())

    return read


def streaming(tokens, place):
    """Opens MosaicML's StreamingDataset over local MDS files; it gives one item at a time."""
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(
        out=str(place / "mds"), columns={"tokens": f"ndarray:uint16:{TOKENS}"}
    ) as writer:
        for row in tokens:
            writer.write({"tokens": row})
    dataset = StreamingDataset(local=str(place / "mds"), batch_size=1)
    return lambda ids: pairs(
        np.stack([dataset[number]["tokens"] for number in with_following(ids).tolist()])
    )


STORES = {
    "retro-db": retro_db,
    "np.memmap": memmap,
    "HDF5": hdf5,
    "Parquet": parquet,
    "datasets": datasets,
    "datasets-arrow": datasets_arrow,
    "streaming": streaming,
}


def check(tokens, read):
    """Ends the process if a store gives other tokens."""
    ids = np.random.default_rng(0).integers(0, len(tokens) - 1, GROUP_ROWS)
    values = read(ids)
    chunks, following = values[:, :TOKENS], values[:, TOKENS:]
    # Ours has nothing but padding after a document's last chunk.
    right = (following == tokens[ids + 1]).all(axis=1) | (following == 0).all(axis=1)
    if not (np.array_equal(chunks, tokens[ids]) and right.all() and following.any()):
        raise SystemExit("the store gave other tokens than were written")


def main():
    """Writes, then reads until the input ends."""
    name, tokens, place = sys.argv[1:]
    tokens = np.load(tokens, mmap_mode="r")
    read = STORES[name](tokens, Path(place))
    check(tokens, read)
    print("ready", flush=True)
    for line in sys.stdin:
        path, seconds = line.split()
        batches = np.load(path)
        start, rows = time.perf_counter(), 0
        for ids in itertools.cycle(batches):
            rows += len(read(ids))
            taken = time.perf_counter() - start
            if taken >= float(seconds):
                break
        print(f"rate {rows / taken}", flush=True)


if __name__ == "__main__":
    main()
