"""Which tier a loader's windows come from: streamed, mapped or resident on the device.

All give the same batches, so that the choice is one of speed and of memory, and a run may resume on another tier. With
`auto` frames are resident where the split, decoded, takes at most a quarter of a CUDA device's free memory; mapped from
the cache where the datasets take at most half of the main memory that is available; and streamed otherwise. Frames that
stand in the way of a higher tier (damaged ones, for which an error or a replacement is due in its turn) are streamed.
"""

import logging
from typing import Literal

import torch

from pipelines.decode import DamagedEpisodeError, StreamedWindows
from pipelines.episodes import EpisodeTable
from pipelines.framecache import CacheError, decoded_bytes
from pipelines.mapped import MappedWindows
from pipelines.memory import available_device_memory, available_memory
from pipelines.resident import ResidentWindows, TierError
from pipelines.source import WindowSource
from pipelines.windows import WindowSpec

_log = logging.getLogger(__name__)

Tier = Literal["auto", "stream", "memmap", "gpu"]


def choose_tier(table: EpisodeTable, device: torch.device) -> Literal["stream", "memmap", "gpu"]:
    """What `auto` comes to."""
    split = int((table.lengths + 1).sum()) * table.size**2 * 3
    if device.type == "cuda" and split <= available_device_memory(device) // 4:
        return "gpu"
    if sum(map(decoded_bytes, table.datasets)) <= available_memory() // 2:
        return "memmap"
    return "stream"


def open_source(
    tier: Tier,
    table: EpisodeTable,
    spec: WindowSpec,
    device: torch.device,
    *,
    with_state: bool,
    threads: int,
) -> WindowSource:
    """The windows of a table on a tier, frames decoded first where the tier needs them so; logged.

    A tier that was asked for and does not fit is a ValueError (`CacheError`, `TierError`); `auto` streams then.
    """
    chosen = choose_tier(table, device) if tier == "auto" else tier
    source: WindowSource | None = None
    try:
        if chosen == "gpu":
            source = ResidentWindows(table, spec, device, with_state=with_state, threads=threads)
        elif chosen == "memmap":
            source = MappedWindows(table, spec, with_state=with_state, threads=threads)
    except DamagedEpisodeError as error:
        _log.warning("streaming, because a frame cannot be decoded ahead: %s", error)
    except (CacheError, TierError) as error:
        if tier != "auto":
            raise
        _log.warning("streaming, because %s", error)
    source = source or StreamedWindows(table, spec)
    _log.info("windows come from tier %s%s", source.tier, " (chosen by auto)" if tier == "auto" else "")
    return source
