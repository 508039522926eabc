"""Observing nights for the watcher: groups of small valid files that arrive as badly as the real
ones, and faster."""

import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np

SUBBANDS = 16
START = datetime(2026, 1, 25, 22, 26, 5, tzinfo=UTC)
SPACING_S = 309.24
DEC_RAD = np.radians(16.15)


def template(start_jd: float, folder: Path) -> bytes:
    """A valid file without data: 2 antennas, 2 integrations, 4 channels; nothing was ever written
    to `visdata`."""
    path = folder / "template.hdf5"
    with h5py.File(path, "w") as file:
        header, data = file.create_group("Header"), file.create_group("Data")
        numbers = {
            "Nblts": 6,
            "Nbls": 3,
            "Ntimes": 2,
            "Nfreqs": 4,
            "Npols": 2,
            "phase_center_app_dec": DEC_RAD,
        }
        for key, value in numbers.items():
            header[key] = value
        header["telescope_name"] = np.bytes_("OVRO_MMA")
        header["time_array"] = np.repeat(start_jd + np.array([0, 12.885]) / 86400, 3)
        header["polarization_array"] = np.array([-5, -6])
        for key in (
            "ant_1_array",
            "ant_2_array",
            "antenna_names",
            "antenna_numbers",
            "antenna_positions",
            "channel_width",
            "freq_array",
            "integration_time",
            "longitude",
        ):
            header[key] = 0
        for key, kind in (("visdata", "c8"), ("flags", "?"), ("nsamples", "f4")):
            data.create_dataset(key, (6, 1, 4, 2), kind, chunks=(6, 1, 4, 2))
    return path.read_bytes()


@dataclass
class Night:
    """Groups, what happens to their files, and what must become of each."""

    folder: Path
    groups: int
    seed: int
    every_s: float = 0.4  # of real time
    late_s: float = 25.0  # after the time-out
    trouble: bool = True
    # when, what, path, content
    events: list[tuple[float, str, Path, bytes]] = field(default_factory=list)
    # group: (state, words of the reason)
    expected: dict[str, tuple[str, str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        chance = random.Random(self.seed)
        fates = ["whole"] * self.groups
        # 1 % of the groups lack subbands; the rest of the trouble is rarer, and each kind must be
        # there.
        unlucky = (
            {
                "missing": max(1, self.groups // 100),
                "truncated for ever": 2,
                "truncated, then copied again": 3,
                "empty": 1,
                "duplicate": 4,
                "never renamed": 1,
                "late": 2,
            }
            if self.trouble
            else {}
        )
        places = chance.sample(range(self.groups), sum(unlucky.values()))
        for fate, number in unlucky.items():
            for _ in range(number):
                fates[places.pop()] = fate
        for number, fate in enumerate(fates):
            self._observe(number, fate, chance)
        self.counts = {fate: fates.count(fate) for fate in sorted(set(fates))}
        self.events.sort(key=lambda event: event[0])

    def _observe(self, number: int, fate: str, chance: random.Random) -> None:
        begin = START + timedelta(seconds=number * SPACING_S)
        content = template(begin.timestamp() / 86400 + 2440587.5, self.folder)
        most_s = 65 if chance.random() < 0.02 else 30
        names = {sb: begin + timedelta(seconds=chance.uniform(0, most_s)) for sb in range(SUBBANDS)}
        renamed = chance.random() < 0.25  # seen while they are written
        lacking = chance.sample(range(SUBBANDS), chance.randint(1, 4))
        clock = number * self.every_s
        arrived = []
        for sb, name_time in names.items():
            path = self.folder / f"{name_time:%Y-%m-%dT%H:%M:%S}_sb{sb:02d}.hdf5"
            # out of order, also against the next group
            when = clock + chance.uniform(0, 2 * self.every_s)
            unfinished = path.with_name(path.name.replace(".hdf5", "_incomplete.hdf5"))
            if sb in lacking and fate == "missing":
                continue
            if sb in lacking[:1] and fate == "late":
                self.events.append((clock + self.late_s, "write", path, content))
                continue
            if sb in lacking[:1] and fate == "never renamed":
                self.events.append((when, "write", unfinished, content[:1000]))
                continue
            bad = {
                "truncated for ever": content[:-300],
                "truncated, then copied again": content[:-300],
                "empty": b"",
            }
            if sb in lacking[:1] and fate in bad:
                self.events.append((when, "write", path, bad[fate]))
                if fate == "truncated, then copied again":
                    self.events.append((when + 4, "write", path, content))
            elif renamed:
                self.events.append((when, "write", unfinished, content[:1000]))
                self.events.append((when + 0.3, "rename", path, content))
            else:
                self.events.append((when, "write", path, content))
            arrived.append((name_time, sb))
            if sb in lacking[:1] and fate == "duplicate":
                twin = path.with_name(
                    f"{name_time + timedelta(seconds=2):%Y-%m-%dT%H:%M:%S}_sb{sb:02d}.hdf5"
                )
                self.events.append((when + 0.2, "write", twin, content))
        good = [
            t
            for t, sb in arrived
            if not (sb in lacking[:1] and fate in ("truncated for ever", "empty"))
        ]
        group = f"{min(good if fate != 'whole' else names.values()):%Y-%m-%dT%H:%M:%S}"
        reasons = {
            "missing": "subbands; missing",
            "truncated for ever": "truncated",
            "empty": "the file is empty",
            "never renamed": "15 of 16 subbands; missing",
        }
        self.expected[group] = ("failed", reasons[fate]) if fate in reasons else ("completed", "")

    def play(self) -> threading.Thread:
        """Let the files arrive, in a thread of their own."""
        thread = threading.Thread(target=self._play, daemon=True)
        thread.start()
        return thread

    def _play(self) -> None:
        begin = time.monotonic()
        for when, what, path, content in self.events:
            time.sleep(max(0.0, begin + when - time.monotonic()))
            unfinished = path.with_name(path.name.replace(".hdf5", "_incomplete.hdf5"))
            if what == "rename":
                unfinished.write_bytes(content)
                unfinished.rename(path)
            else:
                path.write_bytes(content)
