"""The alerts for Prometheus: accepted by its own tool, and raised when they should be."""

import shutil
import subprocess

import pytest
import yaml

from tests.conftest import ROOT

RULES = ROOT / "docs" / "contimg-alerts.yml"
PROMTOOL = shutil.which("promtool")
FINE = {
    'up{job="contimg"}': 1,
    "contimg_watcher_up": 1,
    "contimg_behind_seconds": 300,
    'contimg_groups{state="failed"}': 0,
    'contimg_groups{state="waiting"}': 0,
    "contimg_calibration_valid_seconds": 40000,
    "contimg_disk_hours_left": 800,
}
RAISED = {
    "ContimgDown": {'up{job="contimg"}': 0},
    "ContimgNoWatcher": {
        "contimg_watcher_up": 0,
        'contimg_wrong{level="warn", kind="nowatcher"}': 1,
    },
    "ContimgBehind": {
        "contimg_behind_seconds": 3700,
        'contimg_wrong{level="fail", kind="behind"}': 1,
    },
    "ContimgGroupsFailed": {
        'contimg_groups{state="failed"}': 2,
        'contimg_wrong{level="fail", kind="failed"}': 1,
    },
    "ContimgNoCalibration": {
        "contimg_calibration_valid_seconds": 0,
        'contimg_groups{state="waiting"}': 3,
    },
    "ContimgDiskFull": {
        "contimg_disk_hours_left": 20,
        'contimg_wrong{level="fail", kind="disk"}': 1,
    },
    "ContimgNoRunBegins": {'contimg_wrong{level="fail", kind="refused"}': 1},
}


def promtool(*arguments) -> subprocess.CompletedProcess:
    if not PROMTOOL:
        pytest.skip("NOT TESTED: promtool is not installed (apt install prometheus)")
    return subprocess.run([PROMTOOL, *map(str, arguments)], capture_output=True, text=True)


def names() -> list[str]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    assert all(set(one["annotations"]) == {"summary", "remedy"} for one in group["rules"])
    return [one["alert"] for one in group["rules"]]


def test_prometheus_accepts_the_rules():
    outcome = promtool("check", "rules", RULES)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("alert", [None, *RAISED])
def test_an_alert_is_raised_by_its_cause_and_by_nothing_else(alert, tmp_path):
    assert names() == list(RAISED)
    values = FINE | RAISED.get(alert, {})
    series = [{"series": name, "values": f"{value}x30"} for name, value in values.items()]
    test = {
        "rule_files": [str(RULES)],
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": 'count(ALERTS{alertstate="firing"}) by (alertname)',
                        "eval_time": "20m",
                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}]
                        if alert
                        else [],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(test))
    outcome = promtool("test", "rules", file)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
