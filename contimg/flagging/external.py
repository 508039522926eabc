"""Statistical interference flagging by other people's programs, for comparison with
contimg.flagging's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from contimg.visibilities import casa
from contimg.visibilities import measurement_set as mset

AOFLAGGER_STRATEGY = Path(__file__).parents[2] / "config" / "flagging" / "dsa110.lua"


def finder(
    strategy: str, ms: Path, data: np.ndarray, logfile: Path | None
) -> Callable[[np.ndarray], None] | None:
    """A function that adds a strategy's flags to those (time, baseline, channel, polarisation) it
    is given, in place."""
    if strategy == "tfcrop":
        return lambda flags: _tfcrop(ms, flags, logfile)
    if strategy == "aoflagger":
        return lambda flags: _aoflagger(data, flags)
    return None


def _tfcrop(ms: Path, flags: np.ndarray, logfile: Path | None) -> None:
    """CASA's flagdata with its defaults, on the flags so far."""
    mset.write_columns(ms, FLAG=flags)
    with mset.changing(ms):
        casa.tasks(logfile).flagdata(
            vis=str(ms), mode="tfcrop", datacolumn="data", action="apply", flagbackup=False
        )
    flags |= mset.read_grid(ms, "FLAG", flags.shape[0])


def _aoflagger(data: np.ndarray, flags: np.ndarray) -> None:
    """AOFlagger, a baseline at a time, both polarisations together; flagged data are seen as 0."""
    import aoflagger

    flagger = aoflagger.AOFlagger()
    strategy = flagger.load_strategy_file(str(AOFLAGGER_STRATEGY))
    ntime, nbaseline, nchan, npol = data.shape
    images = flagger.make_image_set(ntime, nchan, 2 * npol)
    for b in range(nbaseline):
        if flags[:, b].all():
            continue
        seen = np.where(flags[:, b], 0, data[:, b]).transpose(2, 1, 0)  # (pol, channel, time)
        for p in range(npol):
            images.set_image_buffer(2 * p, np.ascontiguousarray(seen[p].real))
            images.set_image_buffer(2 * p + 1, np.ascontiguousarray(seen[p].imag))
        flags[:, b] |= strategy.run(images).get_buffer().T[..., None]
