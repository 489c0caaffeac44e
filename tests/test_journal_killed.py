"""kill -9 at random moments: nothing that was reported as recorded is lost, and the order is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = max(50, int(os.environ.get("PYSOUP_KILLS", "0")))


def test_records_survive_kills_at_random_moments(tmp_path: Path) -> None:
    script = Path(__file__).with_name("journal_records_run.py")
    done = subprocess.run([sys.executable, script, tmp_path, str(KILLS), "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["records"] >= KILLS // 2, told
