"""`contimg simulate` on the command line."""

import json

from typer.testing import CliRunner

from contimg.cli import app


def test_every_option_of_the_simulator_is_on_the_command_line(tmp_path):
    small = ["--antennas", "4", "--channels", "2", "--integrations", "1"]
    command = ["simulate", str(tmp_path), "--start", "2026-01-25T22:26:05", *small]
    more = ["beam_wider=[1.2,1.1]", "header_dec_deg=16.5", 'brighter=[["3C454.3",1.3]]']
    ran = CliRunner().invoke(app, [*command, *(w for one in more for w in ("--with", one))])
    assert ran.exit_code == 0, ran.output
    (truth,) = tmp_path.glob("*.json")
    said = json.loads(truth.read_text())["simulation"]
    assert said["beam_wider"] == [1.2, 1.1]
    assert said["header_dec_deg"] == 16.5
    assert said["brighter"] == [["3C454.3", 1.3]]
    wrong = CliRunner().invoke(app, [*command, "--with", "beam=3"])
    assert wrong.exit_code == 1
    assert "expected one of" in wrong.output
    assert "beam_wider" in wrong.output
