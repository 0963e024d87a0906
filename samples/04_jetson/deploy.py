"""From a checkpoint to a Jetson: build and verify here, copy, build the engines there, run and measure there.

    python samples/04_jetson/deploy.py                       # the host's part; prints what is left to do
    python samples/04_jetson/deploy.py --device user@jetson  # all of it, over ssh and rsync

Run from the repository's root; the student is the one that `make demo` makes, unless --student names another.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
THERE = "eecompile-bundle"  # in the home directory of the device


def run(*words: object) -> None:
    """Run a command, showing it; ends with its status where that is not 0."""
    command = [str(word) for word in words]
    print(f"\n$ {shlex.join(command)}", flush=True)
    if command[0] == "eecompile":
        command[:1] = [sys.executable, "-m", "eecompile"]
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """The whole walk."""
    parser = argparse.ArgumentParser(description="Build a bundle for a device and take it there.")
    parser.add_argument("--student", type=Path, default=Path("build/demo/student"))
    parser.add_argument("--bundle", type=Path, default=Path("build/jetson/bundle"))
    parser.add_argument("--target", default="jetson-orin", help="see `eecompile targets`")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--device", help="user@host, with ssh, rsync and eecompile; nothing is copied without it")
    chosen = parser.parse_args()

    run("eecompile", "build", chosen.student, "--target", chosen.target, "--precision", chosen.precision,
        "-o", chosen.bundle)  # fmt: skip
    run("eecompile", "verify", chosen.bundle, "--tokens", 8)  # ONNX Runtime is the oracle for every device
    device = chosen.device or "user@jetson"
    left = [
        ["rsync", "-a", f"{chosen.bundle}/", f"{device}:{THERE}/"],
        ["rsync", "-a", HERE / "device.sh", f"{device}:"],
        ["ssh", "-t", device, f"sh device.sh {THERE}"],
        ["rsync", "-a", f"{device}:{THERE}/report.html", chosen.bundle.parent],
    ]
    if chosen.device is None:
        print("\nLeft to do, with the device at hand:")
    for command in left:
        if chosen.device is None:
            print("  " + shlex.join(map(str, command)))
        else:
            run(*command)


if __name__ == "__main__":
    main()
