from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from contimg.groups import cluster, timestamp_s

SPAN_S = 120


def name(second: int, subband: int) -> Path:
    from datetime import UTC, datetime

    return Path(f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}_sb{subband:02d}.hdf5")


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(1_700_000_000, 1_900_000_000),
    skews=st.lists(st.lists(st.integers(0, 65), min_size=16, max_size=16), min_size=1, max_size=6),
    shuffle=st.randoms(),
)
def test_groups_309_s_apart_are_told_apart_whatever_the_skew(start, skews, shuffle):
    expected = [
        {sb: name(start + 309 * g + skew, sb) for sb, skew in enumerate(group)} for g, group in enumerate(skews)
    ]
    files = [path for group in expected for path in group.values()]
    shuffle.shuffle(files)
    found = cluster(files, SPAN_S)
    assert [dict(g.files) for g in found] == expected
    assert [g.id for g in found] == [min(p.name for p in group.values())[:19] for group in expected]
    assert all(g.missing(16) == () and g.duplicates == () for g in found)


@settings(max_examples=100, deadline=None)
@given(skews=st.lists(st.integers(0, 65), min_size=16, max_size=16), late=st.sets(st.integers(0, 15), max_size=15))
def test_a_late_file_joins_the_id_its_group_has(skews, late):
    files = [name(1_800_000_000 + skew, sb) for sb, skew in enumerate(skews)]
    early = [f for sb, f in enumerate(files) if sb not in late]
    first = cluster(early, SPAN_S)[0]
    again = cluster(files, SPAN_S, {first.id: first.files})
    assert len(again) == 1
    assert again[0].id == first.id
    assert dict(again[0].files) == dict(enumerate(files))


def test_complete_is_the_set_not_the_number():
    files = [name(1_800_000_000, sb) for sb in range(15)] + [name(1_800_000_001, 3)]
    (group,) = cluster(files, SPAN_S)
    assert group.missing(16) == (15,)
    assert group.duplicates == (name(1_800_000_001, 3),)


def test_a_group_over_midnight_is_one():
    files = [Path("2026-01-25T23:59:50_sb00.hdf5"), Path("2026-01-26T00:00:20_sb01.hdf5")]
    (group,) = cluster(files, SPAN_S)
    assert group.id == "2026-01-25T23:59:50"
    assert timestamp_s("2026-01-26T00:00:20") - timestamp_s(group.id) == 30


def test_unfinished_and_foreign_names_are_passed_over():
    names = ["2026-01-25T22:26:05_sb00_incomplete.hdf5", ".2026-01-25T22:26:05_sb00.hdf5.x7", "notes.txt"]
    assert cluster(map(Path, names), SPAN_S) == []
