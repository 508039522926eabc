"""Conversion by pyuvdata's own code: slow, for one or two subbands, and a check on
contimg.visibilities.conversion.

pyuvdata (3.2.8) takes a drift file for unprojected data at the zenith. It is told here what the
correlator tracked: hour angle 0 at the apparent declination of the header. Its own `phase` then
turns the visibilities.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from contimg.store.files import replacing
from contimg.visibilities import measurement_set as mset
from contimg.visibilities.conversion import GroupPlan, Seconds, full_samples
from contimg.visibilities.uvh5 import POLARIZATIONS, SubbandHeader

_SMALL_ANGLE_RAD = 1e-5


def read_phased(header: SubbandHeader, phase_centre_deg: tuple[float, float]):
    """A subband file as a UVData object, moved to `phase_centre_deg` (ICRS); channels ascend."""
    from pyuvdata import UVData
    from pyuvdata.utils import phasing

    uv = UVData()
    uv.read_uvh5(header.path, polarizations=list(POLARIZATIONS), run_check=False)
    where = uv.telescope.location
    from_zenith = header.app_dec_rad - where.lat.rad
    uv.phase_center_id_array[:] = uv._add_phase_center(
        "meridian",
        cat_type="driftscan",
        cat_frame="altaz",
        cat_epoch=2000.0,
        cat_lon=0.0 if from_zenith > 0 else np.pi,
        cat_lat=np.pi / 2 - abs(from_zenith),
    )
    uv._clear_unused_phase_centers()
    uv.phase_center_app_ra = uv.lst_array.copy()
    uv.phase_center_app_dec = np.full(uv.Nblts, header.app_dec_rad)
    uv.phase_center_frame_pa = np.zeros(uv.Nblts)
    _recompute_uvw(uv)  # in float64; the file's are float32
    lon, lat = np.radians(phase_centre_deg)
    uv.phase(cat_name="centre", lon=lon, lat=lat, phase_frame="icrs", cat_type="sidereal")
    # `phase` finds north with a step of half a degree, which turns the uvw by 2e-6 and more.
    uv.phase_center_frame_pa = phasing.calc_frame_pos_angle(
        time_array=uv.time_array,
        app_ra=uv.phase_center_app_ra,
        app_dec=uv.phase_center_app_dec,
        telescope_loc=where,
        ref_frame="icrs",
        offset_pos=_SMALL_ANGLE_RAD,
    )
    _recompute_uvw(uv)
    uv.reorder_freqs(channel_order="freq")
    return uv


def _recompute_uvw(uv) -> None:
    with warnings.catch_warnings():
        # the phases are those of these uvw
        warnings.filterwarnings("ignore", "Recalculating uvw_array")
        uv.set_uvws_from_antenna_positions(update_vis=False)


def convert(plan: GroupPlan, output: Path) -> dict:
    """Write one Measurement Set with the channels of all subbands; returns seconds by step and by
    subband the number of visibilities that are not zero."""
    seconds = Seconds()
    nchan = len(plan.reference.freq_hz)
    order = sorted(plan.lowest_hz, key=plan.lowest_hz.get)
    ntime, nbaseline = plan.rows.shape
    shape = (ntime, nbaseline, len(order) * nchan, 2)
    columns = {
        name: np.full(shape, name == "FLAG", dtype) for name, dtype in mset.SPECTRUM_COLUMNS.items()
    }
    uvw_m = plan.rows.uvw_m.copy()
    nonzero = {}
    full = max(full_samples(header.path) for header in plan.headers.values()) or 1.0
    for place, sb in enumerate(order):
        if sb not in plan.headers:
            continue
        uv = read_phased(plan.headers[sb], plan.observation.phase_centre_deg)
        uv.conjugate_bls(np.flatnonzero(np.tile(~plan.conjugate, len(plan.headers[sb].time_mjd))))
        seconds.spent("phase_s")
        data, flags, samples = (
            array.reshape(-1, nbaseline, nchan, 2)
            for array in (uv.data_array, uv.flag_array, uv.nsample_array)
        )
        times = np.flatnonzero(plan.places(sb) >= 0)
        here = times, slice(None), slice(place * nchan, (place + 1) * nchan)
        good = np.isfinite(data) & (samples > 0)
        # As pyuvdata's write_ms does: conjugated, uvw reversed.
        columns["DATA"][here] = np.where(good, data.conj(), 0)
        nonzero[sb] = int(np.count_nonzero(data[good]))
        columns["FLAG"][here] = flags | ~good
        columns["WEIGHT_SPECTRUM"][here] = np.where(good & ~flags, samples / full, 0)
        uvw_m[times] = -uv.uvw_array.reshape(-1, nbaseline, 3)
    observation = replace(
        plan.observation, freq_hz=np.concatenate([plan.channels_hz(sb) for sb in order])
    )
    rows = replace(plan.rows, uvw_m=uvw_m)
    with replacing(output) as partial, mset.creating(partial, observation, rows, nchan) as table:
        for name, values in columns.items():
            table.putcol(name, values.reshape(-1, *shape[2:]))
        mset.put_row_weights(table, columns["WEIGHT_SPECTRUM"].mean(axis=2).reshape(-1, 2))
    seconds.spent("write_s")
    return {**seconds.by_step, "nonzero": nonzero}
