"""What others read the same windows with: stock WebDataset, and a torch DataLoader over HDF5.

Each is an endless iterator of windows (frames (U, h, w, 3) uint8, action (H, A) and the episode they are of), or of
batches of them. WebDataset has no random access: a visit of an episode decodes all of it, whatever number of its
windows is then taken. What many windows a visit gain in speed they lose in variety: a batch holds few episodes.

Under WebLoader there are two ways: windows cross from the worker processes one by one, each through a queue, with a
task of its own; or the workers make batches, and those cross. The first is what an unbatched pipeline does, and why
WebLoader can be several times slower than the bare pipeline in one process: a window's crossing takes longer than
cutting it out of an episode that is already decoded.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset.compat import WebDataset, WebLoader

from pipelines.windows import WindowSpec
from shards.dataset import Dataset

Window = tuple[np.ndarray, np.ndarray, int]


def web_windows(dataset: Dataset, spec: WindowSpec, visit: int, seed: int) -> Any:
    """The stock pipeline: shards in random order, images decoded by `decode("rgb8")`, `visit` random windows of each
    episode in turn (0: all of them)."""
    urls = [str(path) for path in sorted((dataset.path / "shards").glob("*.tar"))]
    pipeline: Any = WebDataset(urls, shardshuffle=len(urls), seed=seed, empty_check=False)
    return pipeline.repeat().decode("rgb8").compose(_Cut(spec, visit, seed))


def web_loader(pipeline: Any, workers: int, batch: int) -> Any:
    """The pipeline under WebLoader: windows one by one with `batch` 0, else batches made by the workers."""
    if batch:
        pipeline = pipeline.batched(batch, collation_fn=collate)
    return WebLoader(pipeline, batch_size=None, num_workers=workers)


class _Cut:
    """Windows of decoded samples. (A class, so that it could also be pickled to a worker.)"""

    def __init__(self, spec: WindowSpec, visit: int, seed: int) -> None:
        self.spec, self.visit, self.seed = spec, visit, seed

    def __call__(self, samples: Iterator[dict[str, Any]]) -> Iterator[Window]:
        rng = np.random.default_rng(self.seed)
        for sample in samples:
            frames = [sample[name] for name in sorted(name for name in sample if name.endswith(".jpg"))]
            starts = self.spec.first_start + np.arange(self.spec.count(len(frames) - 1))
            chosen = starts if self.visit == 0 else rng.choice(starts, min(self.visit, len(starts)), replace=False)
            episode = hash(sample["__key__"])
            for start in chosen:
                images = np.stack([frames[t] for t in start + self.spec.unique_offsets])
                yield images, sample["action.npy"][start : start + self.spec.steps], episode


def collate(windows: list[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch as tensors, which cross between processes in shared memory."""
    frames, action, episode = zip(*windows, strict=True)
    return torch.from_numpy(np.stack(frames)), torch.from_numpy(np.stack(action)), torch.tensor(episode)


def write_hdf5(dataset: Dataset, path: Path, on_episode: Callable[[int], None]) -> None:
    """The dataset as one HDF5 file of flat columns with Blosc-compressed frames, as the authors' datasets are."""
    import h5py
    import hdf5plugin

    lengths = dataset.lengths + 1
    size = dataset.size
    with h5py.File(path, "w") as file:
        shape = (int(lengths.sum()), size, size, 3)
        pixels = file.create_dataset("pixels", shape, np.uint8, chunks=(1, size, size, 3), **hdf5plugin.Blosc())
        action = file.create_dataset("action", (shape[0], dataset.action_size), np.float32)
        offsets = np.cumsum(lengths) - lengths
        file["ep_len"], file["ep_offset"] = lengths, offsets
        for i, (begin, rows) in enumerate(zip(offsets, lengths, strict=True)):
            episode = dataset.read_episode(i)
            pixels[begin : begin + rows] = episode.frames
            action[begin : begin + rows - 1] = episode.action
            on_episode(i + 1)


class Hdf5Windows(torch.utils.data.Dataset):
    """Random access to the windows of such a file; each worker opens it for itself."""

    def __init__(self, path: Path, lengths: np.ndarray, spec: WindowSpec) -> None:
        self._path, self._spec = path, spec
        self._file: Any = None
        self._first = np.cumsum(lengths + 1) - (lengths + 1)
        self._ends = np.cumsum(spec.counts(lengths))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> Window:
        if self._file is None:
            import h5py
            import hdf5plugin  # noqa: F401  registers the decompressor

            self._file = h5py.File(self._path, "r")
        episode = int(np.searchsorted(self._ends, number, side="right"))
        start = number - (int(self._ends[episode - 1]) if episode else 0) + self._spec.first_start
        at = int(self._first[episode]) + start
        offsets = self._spec.unique_offsets
        # h5py reads a slice much faster than an index array: read the span, then take the frames.
        span = self._file["pixels"][at + offsets[0] : at + offsets[-1] + 1]
        frames = span if len(span) == len(offsets) else span[offsets - offsets[0]]
        return frames, self._file["action"][at : at + self._spec.steps], episode


def hdf5_loader(windows: Hdf5Windows, workers: int, batch: int, seed: int) -> Any:
    """A shuffled torch DataLoader."""
    generator = torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(
        windows, batch, shuffle=True, num_workers=workers, collate_fn=collate, drop_last=True, generator=generator
    )
