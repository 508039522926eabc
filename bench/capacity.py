"""How many cores and how much disk keep up with the telescope: a model from what finished groups
took. Prints Markdown.

    python bench/capacity.py SITE.yaml    from the results of a site
    python bench/capacity.py              makes full-size groups (11 GB, a calibrator and three
                                          targets), images two of them, and compares what the model
                                          says of the other two with what they take

The stages of a group follow one another, and while they do its job holds its cores, busy or not: as
on a cluster, and on a machine with as few cores as its widest stage asks for.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from contimg.config import DEFAULT_CONFIG, Config, load
from contimg.paths import CASA_IMAGES, FITS_IMAGES, Paths
from contimg.products.record import bytes_on_disk, results_of
from contimg.runs.session import snakemake_command
from contimg.simulate import Simulation, read_sky, simulate_group

CALIBRATOR = "2026-03-02T20:03:10"
TARGETS = ("2026-03-02T20:18:37", "2026-03-02T20:23:46", "2026-03-02T20:28:55")
GROUP_S, YEAR_S, MONTH_S = 309.24, 365.25 * 86400, 30 * 86400
CALIBRATORS_A_DAY = 24  # groups with a calibrator in the beam; each is also an image
START_S = 2.5  # of Snakemake


def model(site: Path, cores: int) -> float:
    """Tables for all groups of a site, whose jobs had so many cores; returns the seconds of a
    target."""
    config = load([site])
    paths = Paths.of(config)
    groups = sorted(
        {path.name.split(".")[0] for path in paths.result("x", "index").parent.glob("*.index.json")}
    )
    kinds: dict[bool, list[dict]] = {True: [], False: []}
    for group in groups:
        kinds["solve" in (found := results_of(paths, group))].append(found)
    print("| stage | seconds | processor seconds | memory (GB) |\n|---|---|---|---|")
    stages = {
        stage: found
        for found in (*kinds[False][:1], *kinds[True][:1])
        for stage, found in found.items()
    }
    for stage, found in stages.items():
        print(
            f"| {stage} | {found['seconds']:.1f} | {found['cpu_s']:.1f} | "
            f"{found['memory_gb']:.1f} |"
        )
    a_group = {
        kind: sum(one["seconds"] for f in found for one in f.values()) / len(found)
        for kind, found in kinds.items()
    }
    share = CALIBRATORS_A_DAY * GROUP_S / 86400
    mean = share * a_group[True] + (1 - share) * a_group[False]
    print(
        f"\nWith {cores} cores a calibrator group takes {a_group[True]:.0f} s, a target "
        f"{a_group[False]:.0f} s; with "
        f"{CALIBRATORS_A_DAY} calibrator groups a day the mean is {mean:.0f} s."
    )
    raw = (
        sum(Path(f).stat().st_size for f in kinds[False][0]["convert"]["files"].values())
        if kinds[False]
        else 0
    )
    ms = bytes_on_disk(paths.ms(groups[-1]))
    images = sum(
        bytes_on_disk(paths.image(groups[-1], suffix)) for suffix in (*CASA_IMAGES, *FITS_IMAGES)
    )
    plots = sum(path.stat().st_size for path in paths.qa(groups[-1], "x").parent.iterdir())
    day = 86400 / GROUP_S
    print(f"\n| | groups at a time, of {cores} cores | disk |\n|---|---|---|")
    print(
        f"| keep up with the telescope | {mean / GROUP_S:.2f} | a day: {day * raw / 1e9:.0f} GB "
        f"raw, {day * ms / 1e9:.0f} GB "
        f"Measurement Sets, {day * images / 1e9:.0f} GB images, {day * plots / 1e9:.1f} GB plots |"
    )
    print(
        f"| a year in a month | {YEAR_S / GROUP_S * mean / MONTH_S:.1f} | in all: "
        f"{YEAR_S / GROUP_S * images / 1e12:.0f} TB images; {YEAR_S / GROUP_S * ms / 1e12:.0f} "
        "TB Measurement Sets unless retention deletes them |"
    )
    return a_group[False]


def make_site(folder: Path, starts: list[str], **options) -> Path:
    """A configuration, and groups that wait."""
    incoming, lists = folder / "incoming", Config().catalogues
    for seed, start in enumerate(starts):
        sim = Simulation(start=start, gain_seed=7, seed=seed, **options)
        simulate_group(incoming, sim, read_sky(lists.sky, lists.calibrators), lists.stations)
    where = {
        "incoming": str(incoming),
        "products": str(folder / "products"),
        "state": str(folder / "state"),
    }
    (folder / "site.yaml").write_text(yaml.safe_dump({"paths": where}))
    return folder / "site.yaml"


def run(site: Path, groups: list[str]) -> float:
    """Seconds of one Snakemake run over groups."""
    paths, begin = Paths.of(load([site])), time.perf_counter()
    command = [
        *snakemake_command("local", [site]),
        "--",
        *([str(paths.result(g, "index")) for g in groups] or ["all"]),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """See above."""
    cores = psutil.cpu_count()
    if len(sys.argv) > 1:
        model(Path(sys.argv[1]), cores)
        return
    with tempfile.TemporaryDirectory() as work:
        # numba compiles
        run(make_site(Path(work, "small"), [CALIBRATOR, TARGETS[0]], antennas=12, channels=2), [])
        site = make_site(Path(work), [CALIBRATOR, *TARGETS], antennas=96, channels=48)
        run(site, [CALIBRATOR, TARGETS[0]])
        expected = START_S + len(TARGETS[1:]) * model(site, cores)
        seconds = run(site, list(TARGETS[1:]))
        print(
            f"\n{len(TARGETS) - 1} other targets in one run here: {seconds:.0f} s measured, "
            f"{expected:.0f} s by the model."
        )


if __name__ == "__main__":
    assert DEFAULT_CONFIG.exists(), "from the root of the repository"
    main()
