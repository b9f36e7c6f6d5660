"""The files of a split, on disk and on the Hub: written piece by piece, streamed shard by shard.

A split is a folder of Arrow files of bounded size (shards), which `datasets` opens, and of `index.arrow`, which has a
record batch for each shard with the length, weight and composer of its pieces. From the index follows where each token
is, so that a stream can start anywhere and downloads only the shard that it needs.
"""

import json
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa

FEATURES = datasets.Features(
    {
        "name": datasets.Value("string"),
        "composer": datasets.Value("string"),
        "title": datasets.Value("string"),
        "weight": datasets.Value("float32"),
        "input_ids": datasets.List(datasets.Value("uint16")),
    }
)
INDEX = pa.schema({"length": pa.uint32(), "weight": pa.float32(), "composer": pa.string()})

# 16 million tokens: streaming keeps a whole shard in memory, and shuffles the windows within a shard.
SHARD_BYTES = 32_000_000

# Pieces are written in record batches, large enough to read fast and small enough to keep one for every split.
BATCH_BYTES = 2_000_000

# Shards that streaming keeps in memory: two, because batches may cross from one to the next.
SHARDS_KEPT = 2


class SplitWriter:
    """Writes a split in bounded memory.

    Args:
        folder: The folder of the split, which is created.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self._files: list[str] = []
        self._shard, self._shard_bytes, self._shard_index = None, 0, []
        self._rows, self._bytes = [], 0
        self._index = pa.ipc.new_stream(pa.OSFile(str(folder / "index.arrow"), "wb"), INDEX)

    def write(self, row: dict) -> None:
        """Add a piece.

        Args:
            row: A value for each of FEATURES, `input_ids` as an array of uint16, `[L]`.
        """
        self._rows.append(row)
        self._bytes += row["input_ids"].nbytes
        if self._bytes >= min(BATCH_BYTES, SHARD_BYTES):
            self._write_batch()

    def close(self, fingerprint: str) -> None:
        """Write the last pieces, and the metadata that `datasets` reads.

        Args:
            fingerprint: Identifies the split in the cache of `datasets`.
        """
        # A split without pieces needs a file without rows to be loaded.
        self._write_batch()
        self._end_shard()
        self._index.close()
        datasets.DatasetInfo(features=FEATURES).write_to_directory(self.folder)
        # The file that `save_to_disk` writes; calling it would write the whole split again.
        state = {
            "_data_files": [{"filename": name} for name in self._files],
            "_fingerprint": fingerprint,
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": self.folder.name,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")

    def _write_batch(self) -> None:
        if self._shard and self._shard_bytes + self._bytes > SHARD_BYTES:
            self._end_shard()
        if self._shard is None:
            self._files.append(f"data-{len(self._files):05}.arrow")
            sink = pa.OSFile(str(self.folder / self._files[-1]), "wb")
            self._shard = pa.ipc.new_stream(sink, FEATURES.arrow_schema)
        schema = FEATURES.arrow_schema
        ids = [row["input_ids"] for row in self._rows]
        lengths = [len(of_piece) for of_piece in ids]
        columns = {
            field.name: pa.array([row[field.name] for row in self._rows], field.type)
            for field in schema
            if field.name != "input_ids"
        }
        tokens = np.concatenate([*ids, np.empty(0)], dtype=np.uint16, casting="unsafe")
        columns["input_ids"] = pa.ListArray.from_arrays(
            pa.array(np.cumsum([0, *lengths]), pa.int32()), pa.array(tokens), type=schema.field("input_ids").type
        )
        self._shard.write_batch(pa.RecordBatch.from_pydict(columns, schema))
        self._shard_index.append(
            pa.RecordBatch.from_pydict({"length": pa.array(lengths, pa.uint32())} | columns, INDEX)
        )
        self._shard_bytes += self._bytes
        self._rows, self._bytes = [], 0

    def _end_shard(self) -> None:
        self._shard.close()
        self._index.write_batch(pa.concat_batches(self._shard_index))
        self._shard, self._shard_bytes, self._shard_index = None, 0, []


class StreamedPieces:
    """A remote split, downloaded shard by shard as its tokens are read.

    Args:
        url: The folder of the split as a URL of fsspec: `hf://datasets/user/name/train`.

    Raises:
        OSError: It does not exist, or cannot be reached.
    """

    def __init__(self, url: str):
        self.url = url
        with fsspec.open(f"{url}/index.arrow") as file, pa.ipc.open_stream(file.read()) as index:
            shards = list(index)
        self.lengths = np.concatenate([shard["length"].to_numpy() for shard in shards]).astype(np.int64)
        self.weights = np.concatenate([shard["weight"].to_numpy() for shard in shards])
        # Published before it was part of the index, a corpus has no composers here.
        named = "composer" in shards[0].schema.names
        self.composers = [name for shard in shards for name in shard["composer"].to_pylist()] if named else []
        self.composers = self.composers or [""] * len(self.lengths)
        self.shard_of_row = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
        # Where each piece begins in its shard.
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._starts -= self._starts[np.searchsorted(self.shard_of_row, self.shard_of_row)]
        self._tokens: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: tuple[int, slice]) -> np.ndarray:
        """Return tokens of a piece, `uint16 [L]`: `pieces[row, start:stop]`."""
        row, tokens = place
        start, stop, _ = tokens.indices(self.lengths[row])
        first = self._starts[row]
        return self._shard(int(self.shard_of_row[row]))[first + start : first + stop]

    def _shard(self, number: int) -> np.ndarray:
        """Return the tokens of a shard, from memory or downloaded."""
        tokens = self._tokens.pop(number, None)
        if tokens is None:
            with fsspec.open(f"{self.url}/data-{number:05}.arrow") as file, pa.ipc.open_stream(file.read()) as shard:
                tokens = np.concatenate([batch["input_ids"].flatten().to_numpy() for batch in shard])
            if len(tokens) != self.lengths[self.shard_of_row == number].sum():
                raise ValueError(f"{self.url}: shard {number} is not the one that its index describes.")
        while len(self._tokens) >= SHARDS_KEPT:
            del self._tokens[next(iter(self._tokens))]
        self._tokens[number] = tokens
        return tokens

    def __reduce__(self):
        # A spawned worker opens the URL itself.
        return StreamedPieces, (self.url,)
