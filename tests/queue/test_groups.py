from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from contimg.queue.groups import FileGroup, RawFile, form_groups
from contimg.visibilities.uvh5 import Outline, timestamp_s

TOLERANCE_S, WINDOW_S, SUBBANDS = 120, 300, 16
START_S = 1_800_000_000
# skews of a group's names, s
subbands = st.lists(st.integers(0, 65), min_size=SUBBANDS, max_size=SUBBANDS)


def raw(
    second: int, subband: int, start_s: float | None = None, channels: int = 48, reason=None
) -> RawFile:
    """A file by the second of its name and, if it was looked into, the start of its data."""
    name = f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}_sb{subband:02d}.hdf5"
    outline = (
        None
        if start_s is None
        else Outline(start_s / 86400 + 40587, start_s / 86400 + 40587, 16.0, channels)
    )
    return RawFile(
        Path(name), name[:19], subband, checked=outline is not None, outline=outline, reason=reason
    )


def grouped(files, fixed=None) -> list[FileGroup]:
    return form_groups(files, TOLERANCE_S, WINDOW_S, SUBBANDS, fixed)


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(1_700_000_000, 1_900_000_000),
    skews=st.lists(subbands, min_size=1, max_size=6),
    shuffle=st.randoms(),
    looked=st.booleans(),
)
def test_groups_309_s_apart_are_told_apart_whatever_the_skew(start, skews, shuffle, looked):
    expected = [
        {
            sb: raw(start + 309 * g + skew, sb, start + 309.24 * g if looked else None)
            for sb, skew in enumerate(group)
        }
        for g, group in enumerate(skews)
    ]
    files = [file for group in expected for file in group.values()]
    shuffle.shuffle(files)
    found = grouped(files)
    assert [dict(g.members) for g in found] == expected
    assert [g.id for g in found] == [min(f.timestamp for f in group.values()) for group in expected]
    assert all(g.missing(SUBBANDS) == () and g.others == () for g in found)


@settings(max_examples=100, deadline=None)
@given(skews=subbands, late=st.sets(st.integers(0, 15), max_size=15), looked=st.booleans())
def test_a_late_file_joins_the_id_its_group_has(skews, late, looked):
    files = [raw(START_S + skew, sb, START_S if looked else None) for sb, skew in enumerate(skews)]
    (first,) = grouped([f for f in files if f.subband not in late])
    fixed = {first.id: list(first.members.values())}
    (again,) = grouped([f for f in files if f.subband in late], fixed)
    assert again.id == first.id
    assert dict(again.members) == dict(enumerate(files))


@settings(max_examples=200, deadline=None)
@given(
    gap=st.integers(13, 250),
    skews=st.lists(subbands, min_size=2, max_size=2),
    missing=st.sets(st.integers(0, 15), max_size=3),
    shuffle=st.randoms(),
)
def test_headers_part_two_groups_whose_names_run_into_each_other(gap, skews, missing, shuffle):
    """The correlator was restarted: the second group begins before the names of the first have
    ended."""
    files = [
        raw(START_S + g * gap + skew, sb, START_S + g * gap)
        for g, group in enumerate(skews)
        for sb, skew in enumerate(group)
        if g or sb not in missing
    ]
    shuffle.shuffle(files)
    found = grouped(files)
    for group in found:
        starts = {f.outline.start_mjd for f in group.members.values()}
        assert len(starts) == 1
        assert not group.others
    assert sorted(len(g.members) for g in found) == sorted([SUBBANDS - len(missing), SUBBANDS])
    assert len({g.id for g in found}) == 2


@settings(max_examples=100, deadline=None)
@given(
    skews=st.lists(st.integers(0, 290), min_size=SUBBANDS, max_size=SUBBANDS), shuffle=st.randoms()
)
def test_headers_join_a_group_whose_names_are_far_apart(skews, shuffle):
    """One node's clock is minutes off; names alone would make two or three groups."""
    files = [raw(START_S + skew, sb, START_S) for sb, skew in enumerate(skews)]
    shuffle.shuffle(files)
    (group,) = grouped(files)
    assert dict(group.members) == {f.subband: f for f in files}
    assert group.id == min(f.timestamp for f in files)


@settings(max_examples=100, deadline=None)
@given(
    files=st.lists(
        st.builds(
            raw,
            st.integers(START_S, START_S + 1500),
            st.integers(0, 15),
            st.none() | st.sampled_from([START_S, START_S + 20, START_S + 309, START_S + 618]),
            st.sampled_from([48, 48, 24]),
            st.sampled_from([None, None, "truncated"]),
        ),
        max_size=60,
        unique_by=lambda f: f.path,
    ),
    fix=st.booleans(),
)
def test_whatever_comes_every_file_is_in_one_group_and_the_same_twice(files, fix):
    found = grouped(files)
    placed = [f.path for g in found for f in (*g.members.values(), *g.others)]
    assert sorted(placed) == sorted(f.path for f in files)
    assert len({g.id for g in found}) == len(found)
    assert grouped(reversed(files)) == found
    assert all(f.reason for g in found for f in g.others)
    assert all(f.reason is None and sb == f.subband for g in found for sb, f in g.members.items())
    if fix:  # what has left `collecting` keeps its id and its files
        fixed = {g.id: list(g.members.values()) for g in found if g.members}
        taken = {f.path for members in fixed.values() for f in members}
        again = {g.id: g for g in grouped([f for f in files if f.path not in taken], fixed)}
        for group, members in fixed.items():
            assert {f.path for f in members} <= {
                f.path for f in (*again[group].members.values(), *again[group].others)
            }


def test_complete_is_the_set_not_the_number():
    files = [raw(START_S, sb) for sb in range(15)] + [raw(START_S + 1, 3)]
    (group,) = grouped(files)
    assert group.missing(SUBBANDS) == (15,)
    assert [(f.path, f.reason) for f in group.others] == [
        (files[-1].path, f"{files[-1].path.name}: duplicate of {files[3].path.name}")
    ]


def test_a_good_copy_counts_where_the_first_one_is_bad():
    bad = raw(START_S, 3, reason="truncated")
    files = [raw(START_S, sb) for sb in range(16) if sb != 3]
    (group,) = grouped([*files, bad])
    assert (group.missing(SUBBANDS), group.others) == ((3,), (bad,))
    assert "missing 03; truncated" in group.shortage(SUBBANDS)
    (group,) = grouped([*files, bad, raw(START_S + 2, 3)])
    assert group.missing(SUBBANDS) == ()


def test_a_bad_file_does_not_draw_a_group_apart():
    """Another telescope's file, 100 s early, would be the anchor."""
    stray = raw(START_S - 100, 5, reason="telescope 'VLA'")
    files = [raw(START_S + 4 * sb, sb) for sb in range(16)]
    (group,) = grouped([stray, *files])
    assert group.id == files[0].timestamp
    assert group.missing(SUBBANDS) == ()
    assert group.others == (stray,)


def test_an_odd_channel_count_is_named():
    files = [raw(START_S, sb, START_S, 24 if sb == 4 else 48) for sb in range(16)]
    (group,) = grouped(files)
    assert group.missing(SUBBANDS) == (4,)
    assert "24 channels, the other files of its group have 48" in group.shortage(SUBBANDS)


def test_a_file_of_another_observation_is_another_group_whatever_its_name():
    files = [raw(START_S, sb, START_S) for sb in range(15)] + [raw(START_S, 15, START_S + 309)]
    first, other = grouped(files)
    assert first.missing(SUBBANDS) == (15,)
    assert [f.subband for f in other.members.values()] == [15]
    assert other.id == f"{first.id[:-1]}1"  # a second later: one id cannot name two groups


def test_midnight_and_a_leap_second_are_times_like_others():
    names = [
        "2026-12-31T23:59:50_sb00.hdf5",
        "2026-12-31T23:59:60_sb01.hdf5",
        "2027-01-01T00:00:20_sb02.hdf5",
    ]
    (group,) = grouped([RawFile.named(Path(name)) for name in names])
    assert group.id == "2026-12-31T23:59:50"
    assert [p.name for p in group.files.values()] == names
    assert timestamp_s("2027-01-01T00:00:00") == timestamp_s("2026-12-31T23:59:60")


def test_unfinished_and_foreign_names_are_passed_over():
    names = [
        "2026-01-25T22:26:05_sb00_incomplete.hdf5",
        ".2026-01-25T22:26:05_sb00.hdf5.x7",
        "notes.txt",
        "2026-01-25T12:00:60_sb00.hdf5",
        "2026-02-30T00:00:00_sb01.hdf5",
    ]
    assert [RawFile.named(Path(name)) for name in names] == [None] * 5
