"""What CASA's tasks do of calibration: the reference solver, applycal for any tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from contimg.calibration.tables import publishing, quality_of
from contimg.config import CalibrationConfig
from contimg.errors import CalibrationError
from contimg.store.files import remove
from contimg.visibilities import casa, flag_versions
from contimg.visibilities import measurement_set as mset


def solve_casa(
    ms: Path,
    outputs: Mapping[str, Path],
    refant: Sequence[str],
    options: CalibrationConfig,
    logfile: Path | None,
    phase_channels: tuple[int, int],
) -> dict[str, dict]:
    """Solve with CASA for [K,] B and G against MODEL_DATA; tables appear under their names only
    when all are good.

    Pre-bandpass phases per integration (kept out of the final chain), bandpass per channel, then
    one amplitude and phase gain for the group. Nothing is normalised: the product of the tables
    turns correlator units into Jy. Returns quality numbers by kind. Raises CalibrationError when
    solutions are missing or mostly flagged.
    """
    tasks = casa.tasks(logfile)
    common = {
        "vis": str(ms),
        "refant": ",".join(refant[:8]),
        "uvrange": options.uvrange or "",
        "minsnr": options.min_snr,
    }
    phases = outputs["G"].with_name(f".{outputs['G'].name}.prebandpass")
    remove(phases)
    try:
        with publishing(outputs) as partial:
            chain: list[str] = []
            if options.do_k:
                tasks.gaincal(
                    caltable=str(partial["K"]), gaintype="K", solint="inf", parang=False, **common
                )
                _require(partial["K"], "delay")
                chain.append(str(partial["K"]))
            tasks.gaincal(
                caltable=str(phases),
                gaintype="G",
                calmode="p",
                solint="int",
                gaintable=chain,
                spw=f"0:{phase_channels[0]}~{phase_channels[1] - 1}",
                **common,
            )
            _require(phases, "pre-bandpass phase")
            interp = ["nearest"] * len(chain)
            tasks.bandpass(
                caltable=str(partial["B"]),
                bandtype="B",
                solint="inf",
                combine="scan",
                solnorm=False,
                fillgaps=options.fill_channels,
                gaintable=[*chain, str(phases)],
                interp=[*interp, "linear"],
                **common,
            )
            _require(partial["B"], "bandpass")
            tasks.gaincal(
                caltable=str(partial["G"]),
                gaintype="G",
                calmode="ap",
                combine="scan",
                solint=f"{options.gain_interval_s}s" if options.gain_interval_s else "inf",
                gaintable=[*chain, str(partial["B"])],
                interp=[*interp, "nearest"],
                **common,
            )
            _require(partial["G"], "gain")
            quality = {kind: quality_of(path, kind) for kind, path in partial.items()}
        return quality
    finally:
        remove(phases)


def _require(path: Path, what: str) -> None:
    if not path.is_dir():
        raise CalibrationError(
            f"CASA found no {what} solution at all; its log is in the log of this stage"
        )


def apply_casa(ms: Path, tables: Mapping[str, Path], logfile: Path | None) -> None:
    """The same with CASA's applycal, for any tables; the bandpass is linear in frequency, and
    flagged where it is flagged."""
    tasks = casa.tasks(logfile)
    mset.ensure_column(ms, "CORRECTED_DATA")
    flag_versions.restore(ms)
    interp = {"K": "nearest", "B": "nearest,linearflag", "G": "linear"}
    kinds = [kind for kind in ("K", "B", "G") if kind in tables]
    with mset.changing(ms):
        tasks.applycal(
            vis=str(ms),
            gaintable=[str(tables[k]) for k in kinds],
            interp=[interp[k] for k in kinds],
            calwt=False,
            applymode="calflag",
            flagbackup=False,
            parang=False,
        )
