"""What became of a group's own gains, in words: for plots and pages."""

from collections.abc import Mapping


def summary(refined: Mapping) -> list[str]:
    """The outcome of a refinement, in lines for people."""
    lines = [f"own gains: {refined['refine']} (sky: {refined.get('sky', 'none')})"]
    if scale := refined.get("flux_scale"):
        lines.append(f"flux scale: {scale_words(scale)}")
    if trial := refined.get("trial"):
        lines += [
            f"chi squared a value {trial['chi2_before']:.4f} before, {trial['chi2_after']:.4f} "
            f"after; noise {trial['noise']:.3f} times; phases step by "
            f"{trial['phase_step_deg']:.1f} deg, X and Y part by "
            f"{trial['between_polarisations_deg']:.1f} deg",
            f"fluxes of sources scatter by {trial['flux_scatter_before']:.3f} before, "
            f"{trial['flux_scatter_after']:.3f} after",
        ]
    lines += [one["words"] for one in refined.get("antennas", [])]
    lines += [
        f"{one['name']}, {one['distance_deg']:.0f} deg away, {one['apparent_jy']:.2g} Jy apparent: "
        "taken out"
        for one in refined.get("far_sources", [])
        if one["subtracted"]
    ]
    return lines


def scale_words(scale: Mapping) -> str:
    """Both flux scales, and which was applied."""
    words = f"of the {scale['applied']}"
    if scale.get("catalogue") is not None:
        words += (
            f"; the {scale['sources']} catalogue sources have {scale['catalogue']:.4f} +- "
            f"{scale['catalogue_error']:.4f} of their fluxes on the set's scale"
        )
    if scale.get("set_error") is not None:
        words += f", which is known to {scale['set_error']:.1%}"
    return words
