"""How many cores and how much disk keep up with the telescope: a model from what finished groups took. Prints Markdown.

    python bench/capacity.py SITE.yaml    from the results of a site
    python bench/capacity.py              makes full-size groups (11 GB, a calibrator and three targets), images two of them,
                                          and compares what the model says of the other two with what they take

A stage holds the cores that it asks for (all of the machine's, up to its own most) for its seconds, whether it keeps them busy or
not: core-seconds. Work that is enough for all cores then takes the sum of its core-seconds divided by the cores.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from contimg.config import DEFAULT_CONFIG, Config, load
from contimg.indexing import bytes_on_disk, results_of
from contimg.paths import CASA_IMAGES, FITS_IMAGES, Paths
from contimg.run import snakemake_command
from contimg.simulate import Simulation, read_sky, simulate_group

CALIBRATOR, TARGETS = "2026-03-02T20:03:10", ("2026-03-02T20:18:37", "2026-03-02T20:23:46", "2026-03-02T20:28:55")
GROUP_S, YEAR_S, MONTH_S = 309.24, 365.25 * 86400, 30 * 86400
CALIBRATORS_A_DAY = 24  # groups with a calibrator in the beam; each is also an image
WIDE = {"convert": 16, "concat": 16, "prepare": 2, "solve": 2, "apply": 2, "image": 8}
START_S = 2.5  # of Snakemake


def core_seconds(results: dict, cores: int) -> dict[str, float]:
    """What each stage of a group held; concat waits for a core of convert's, to bound what is staged."""
    return {stage: found["seconds"] * min(WIDE.get(stage, 1), cores) for stage, found in results.items()}


def model(site: Path, cores: int) -> float:
    """Tables for all groups of a site; returns the core-seconds of a target."""
    config = load([site])
    paths = Paths.of(config)
    groups = sorted({path.name.split(".")[0] for path in paths.result("x", "index").parent.glob("*.index.json")})
    kinds: dict[bool, list[dict]] = {True: [], False: []}
    for group in groups:
        kinds["solve" in (found := results_of(paths, group))].append(found)
    print("| stage | seconds | processor seconds | memory (GB) | core-seconds held |\n|---|---|---|---|---|")
    stages = {stage: found for found in (*kinds[False][:1], *kinds[True][:1]) for stage, found in found.items()}
    for stage, found in stages.items():
        held = core_seconds({stage: found}, cores)[stage]
        print(f"| {stage} | {found['seconds']:.1f} | {found['cpu_s']:.1f} | {found['memory_gb']:.1f} | {held:.0f} |")
    a_group = {kind: sum(sum(core_seconds(f, cores).values()) for f in found) / len(found) for kind, found in kinds.items()}
    share = CALIBRATORS_A_DAY * GROUP_S / 86400
    mean = share * a_group[True] + (1 - share) * a_group[False]
    print(f"\nA calibrator group holds {a_group[True]:.0f} core-seconds, a target {a_group[False]:.0f}; with "
          f"{CALIBRATORS_A_DAY} calibrator groups a day the mean is {mean:.0f}.")  # fmt: skip
    raw = sum(Path(f).stat().st_size for f in kinds[False][0]["convert"]["files"].values()) if kinds[False] else 0
    ms = bytes_on_disk(paths.ms(groups[-1]))
    images = sum(bytes_on_disk(paths.image(groups[-1], suffix)) for suffix in (*CASA_IMAGES, *FITS_IMAGES))
    plots = sum(path.stat().st_size for path in paths.qa(groups[-1], "x").parent.iterdir())
    day = 86400 / GROUP_S
    print("\n| | cores | disk |\n|---|---|---|")
    print(f"| keep up with the telescope | {mean / GROUP_S:.1f} | a day: {day * raw / 1e9:.0f} GB raw, {day * ms / 1e9:.0f} GB "
          f"Measurement Sets, {day * images / 1e9:.0f} GB images, {day * plots / 1e9:.1f} GB plots |")  # fmt: skip
    print(f"| a year in a month | {YEAR_S / GROUP_S * mean / MONTH_S:.0f} | in all: {YEAR_S / GROUP_S * images / 1e12:.0f} TB "
          f"images; {YEAR_S / GROUP_S * ms / 1e12:.0f} TB Measurement Sets unless retention deletes them |")  # fmt: skip
    return a_group[False]


def run(site: Path, groups: list[str]) -> float:
    """Seconds of one Snakemake run over groups."""
    paths, begin = Paths.of(load([site])), time.perf_counter()
    command = [*snakemake_command("local", [site]), "--", *(str(paths.result(g, "index")) for g in groups)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """See above."""
    cores = psutil.cpu_count()
    if len(sys.argv) > 1:
        model(Path(sys.argv[1]), cores)
        return
    with tempfile.TemporaryDirectory() as work:
        incoming, site = Path(work, "incoming"), Path(work, "site.yaml")
        where = {"incoming": str(incoming), "products": f"{work}/products", "state": f"{work}/state"}
        site.write_text(yaml.safe_dump({"paths": where}))
        lists = Config().catalogues
        for seed, start in enumerate((CALIBRATOR, *TARGETS)):
            options = Simulation(start=start, antennas=96, channels=48, gain_seed=7, seed=seed)
            simulate_group(incoming, options, read_sky(lists.sky, lists.calibrators), lists.stations)
        run(site, [CALIBRATOR, TARGETS[0]])
        held = model(site, cores)
        expected = START_S + len(TARGETS[1:]) * held / cores
        seconds = run(site, list(TARGETS[1:]))
        print(f"\n{len(TARGETS) - 1} other targets in one run here: {seconds:.0f} s measured, {expected:.0f} s by the model.")


if __name__ == "__main__":
    assert DEFAULT_CONFIG.exists(), "from the root of the repository"
    main()
