"""Run the speed checks one after the other and keep what they print in docs/speed.md.

    python Testing/benchmarks/run_all.py [NAME ...]

`python3 run.py test --long` ends with this. Figures are ratios measured in one run each, on this machine as it was;
with names, only those scripts are run and the others' last results stay.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from COVIDLesionSegLib.files import write_text
from COVIDLesionSegLib.inference.devices import cpu_name

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "speed.md"
# section (a script, and what sets it apart from another section of the same script) -> its arguments, and the bar that
# it is held to
CHECKS = {
    "coplenet_ct": (
        [],
        "network phase at least 3 times faster than the plain loop with bfloat16, masks agree >= 0.995",
    ),
    "coplenet_ct at full resolution": (
        ["--full-resolution"],
        "as above; the lungs and reading and writing together take less than the network",
    ),
    "peak_memory": ([], "below 2.5 GB for 512 x 512 x 300 on the processor"),
    "caresunet_forward": ([], "at least 2 times faster than the unfold form, at most a third of its peak memory"),
    "reading": (["--repeat", "1"], "reading is dominated by decoding"),
    "lungs": ([], "bars of its own: sick chests, experts' lungs, 5 s for 512 x 512 x 300; faster than the network"),
    "metrics": (
        ["--repeat", "3"],
        "Dice, RVE, HD95 at least 15 times faster than MONAI, same numbers; update below 0.3 s",
    ),
    "quantification": ([], "a whole CT with its lungs below 2 s"),
    "training_step": (
        [],
        "at least 1.5 times faster than the plain loop; self-ensembling at most 1.5 times plain training",
    ),
    "worker_overhead": (
        [],
        "overhead of the worker below 1 s for 512 x 512 x 300, table after an edit below 0.5 s",
    ),
    "panel": ([], "opens in 0.5 s, result into the scene with surfaces below 3 s, table after a stroke below 0.5 s"),
    "clicks": ([], "a correction by a click below 0.3 s for 512 x 512 x 300"),
    "case_store": ([], "next of 1000 cases below 0.5 s, a revision of 512 x 512 x 300 saved below 1 s"),
}
HEAD = """# Speed and memory

Each section is what one script printed, with its command, the machine and the day. Ratios come from one run; seconds
are those of the machine as it was. `python3 run.py test --long` makes this page anew.
"""


def sections() -> dict[str, str]:
    """The page's last results, script -> section."""
    if not PAGE.is_file():
        return {}
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1].strip() for part in parts}


def main(names: list[str]) -> int:
    results, failed = sections(), 0
    for name in names or CHECKS:
        arguments, bar = CHECKS[name]
        script = f"{name.split()[0]}.py"
        print(f"{name} ...", flush=True)
        done = subprocess.run([sys.executable, str(HERE / script), *arguments], capture_output=True, text=True)
        failed += done.returncode != 0
        said = done.stdout.strip() if done.returncode == 0 else f"failed:\n{done.stderr.strip()[-2000:]}"
        command = " ".join(["python", f"Testing/benchmarks/{script}", *arguments])
        load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
        where = f"{datetime.now(UTC):%Y-%m-%d}, {cpu_name()}, {os.cpu_count()} cores{load}"
        # a temporary folder says nothing to the page's reader
        said = re.sub(re.escape(tempfile.gettempdir()) + r"/\S*/", "", said)
        results[name] = f"Bar: {bar}.\n\n`{command}` ({where})\n\n```\n{said}\n```"
        page = [HEAD, *(f"## {key}\n\n{results[key]}\n" for key in CHECKS if key in results)]
        write_text(PAGE, "\n".join(page))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
