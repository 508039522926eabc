"""What data may do that the software assumes they do not: each an option of the simulator, with
what is said of it; and how large it may be and pass unnoticed, with what it then costs."""

from dataclasses import dataclass, field

CALIBRATOR = "2253+161"  # 3C454.3


@dataclass(frozen=True)
class Row:
    """One violation.

    size, target, calibrator  caught: in words for people, and as options of the simulator
    words     all of these expressions are in what is said
    small     the largest that passes unnoticed (verdict good), and `small_target` its options; none
              where every size is noticed
    harmless  it is taken out, so that the image is right and may be good
    """

    name: str
    size: str
    words: tuple[str, ...]
    target: dict = field(default_factory=dict)
    calibrator: dict = field(default_factory=dict)
    small: str = ""
    small_target: dict = field(default_factory=dict)
    small_calibrator: dict = field(default_factory=dict)
    harmless: bool = False
    both: bool = False  # the same in the calibrator's group

    @property
    def of_calibrator(self) -> dict:
        return self.target if self.both else self.calibrator


ROWS = (
    Row(
        "beam wider",
        "10 %",
        (r"as if the beam were [23]\.\d\d x [23]\.\d\d deg wide",),
        {"beam_wider": (1.1, 1.1)},
        small="2 %",
        small_target={"beam_wider": (1.02, 1.02)},
        both=True,
    ),
    Row(
        "beam far wider",
        "30 %",
        (r"as if the beam were 3\.\d\d x 3\.\d\d deg wide",),
        {"beam_wider": (1.3, 1.3)},
        both=True,
    ),
    Row(
        "beam elliptical",
        "15 % wider east-west, 5 % narrower north-south",
        (r"as if the beam were 3\.\d\d x 2\.[56]\d deg wide",),
        {"beam_wider": (1.15, 0.95)},
        both=True,
    ),
    Row(
        "array points aside",
        "0.15 deg east",
        (r"as if the dishes pointed 0\.1\d deg to the east",),
        {"pointing_deg": (0.15, 0.0)},
        small="0.05 deg",
        small_target={"pointing_deg": (0.05, 0.0)},
        both=True,
    ),
    Row(
        "dishes point aside",
        "0.15 deg rms, each its own way",
        (r"own gains: ap",),
        {"pointing_scatter_deg": 0.15},
        harmless=True,
        both=True,
    ),
    Row(
        "declination of the header",
        "0.4 deg wrong",
        (r"sources match; all of them lie 0\.\d+ deg .*declination in the header\?",),
        {"header_dec_deg": 16.55},
        small="1.8 arcsec",
        small_target={"header_dec_deg": 16.1505},
    ),
    Row(
        "clock jumped since the calibrator",
        "2 s",
        (r"as if the sky were (2[6-9]|3\d)\.\d arcsec off .*a clock that is off by [12]\.\d+ s",),
        {"clock_s": 2.0},
        small="0.1 s",
        small_target={"clock_s": 0.1},
    ),
    Row(
        "clock is off, in all groups",
        "60 s",
        (r"as if the dishes pointed 0\.2\d deg to the west",),
        {"clock_s": 60.0},
        small="2 s",
        small_target={"clock_s": 2.0},
        both=True,
    ),
    Row(
        "times are those of integrations' beginnings",
        "6.44 s, since the calibrator",
        (r"a clock that is off by 6\.[34]\d s",),
        {"clock_s": -6.442},
    ),
    Row(
        "data conjugated",
        "all",
        (r"(signal to noise of the gains|the model explains)",),
        {"conjugated": True},
        both=True,
    ),
    Row(
        "data conjugated since the calibrator",
        "all",
        (r"bright catalogue sources are not found",),
        {"conjugated": True},
    ),
    Row(
        "cables exchanged",
        "two antennas, since the calibrator",
        (r"30 and 42: exchanged",),
        {"exchanged": ((30, 42),)},
    ),
    Row(
        "polarisations exchanged on an antenna",
        "one, since the calibrator",
        (r"42: .*X and Y",),
        {"exchanged_polarisations": (42,)},
    ),
    Row(
        "a station is not where the list says",
        "1 m, in all groups",
        (),
        {"displaced": ((50, 1.0, 0.0, 0.0),)},
        harmless=True,
        both=True,
    ),
    Row(
        "subbands exchanged",
        "two, since the calibrator",
        (r"fluxes at 14(34|46) MHz are 0\.\d+ times those of the rest",),
        {"exchanged_subbands": ((3, 4),)},
    ),
    Row(
        "a subband is an integration late",
        "one",
        (r"fluxes at 1434 MHz are 0\.\d+ times those of the rest",),
        {"late_subbands": (5,)},
    ),
    Row(
        "gains drift",
        "40 deg rms in the group, 30 deg and 5 % since the calibrator",
        (r"own gains: ap",),
        {"drift_deg": 40.0, "moved_deg": 30.0, "moved_share": 0.05},
        harmless=True,
    ),
    Row(
        "calibrator varied",
        "30 % brighter",
        (r"calibrated data have 7\d% of the amplitude",),
        calibrator={"brighter": ((CALIBRATOR, 1.3),)},
        small="9 %",
        small_calibrator={"brighter": ((CALIBRATOR, 1.09),)},
    ),
    Row(
        "calibrator resolved",
        "30 arcsec",
        (r"its calibration set: signal to noise of the gains is",),
        calibrator={"resolved": ((CALIBRATOR, 30.0),)},
    ),
    Row(
        "antennas gone",
        "30 %",
        (r"34 of 48 antennas are in the image",),
        {"dead": (1, 3, 5, 7, 9, 12, 14, 16, 19, 24, 69, 71, 73, 75)},
        small="12 %",
        small_target={"dead": (1, 3, 5, 7, 9)},
    ),
    Row(
        "Sun and Cas A in the far sidelobes",
        "20 and 6 Jy",
        (r"Cas A, \d+ deg away, .* Jy apparent: taken out",),
        {"far": ("Sun", "Cas A")},
        harmless=True,
    ),
    Row(
        "interference on one antenna",
        "a channel in four, half of the time, 20 times the noise",
        (),
        {"jammed": (42,)},
        harmless=True,
    ),
    Row(
        "samples lost",
        "30 % of integrations of each subband",
        (r"7\d % of the visibilities are left",),
        {"lost": 0.3},
        small="10 %",
        small_target={"lost": 0.1},
    ),
)
