"""How soon the command answers: ``hlnet --help`` against a hello-world of Typer's, and what two commands import.

    python benchmarks/start.py --out start.json             about a minute; leave the machine idle

Wall time of whole processes, taking turns; both show their help page. Of ``profile`` and ``predict`` it tells which
libraries are imported once their work is done, and how long importing torch and timm alone takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hlnet.files import replacing

HELLO = '''
import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    """Say hello."""
    typer.echo(f"Hello, {name}")


@app.command()
def goodbye(name: str = "world") -> None:
    """Say goodbye."""
    typer.echo(f"Goodbye, {name}")


app()
'''
WATCHED = """
import json, sys
from hlnet.cli.main import main
sys.argv = ["hlnet", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    assert not error.code
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names)), file=sys.stderr)
"""


def imported(*arguments: str) -> list[str]:
    """Libraries that a command has imported when it is done."""
    command = [sys.executable, "-W", "ignore", "-c", WATCHED, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    names: list[str] = json.loads(done.stderr.splitlines()[-1])
    return [name for name in names if not name.startswith("_")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("start.json"))
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hello, net, photo = (Path(folder) / name for name in ("hello.py", "net.safetensors", "photo.png"))
        hello.write_text(HELLO)
        python = [sys.executable, "-W", "ignore"]
        forms = {
            "Typer hello-world --help": [*python, str(hello), "--help"],
            "hlnet --help": [*python, "-m", "hlnet", "--help"],
            "hlnet tree --help": [*python, "-m", "hlnet", "tree", "--help"],
            "import torch": [*python, "-c", "import torch"],
            "import timm": [*python, "-c", "import timm"],
        }
        times: dict[str, list[float]] = {name: [] for name in forms}
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            for name, command in forms.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times[name].append(time.perf_counter() - start)
        seconds = {name: {"median": statistics.median(v), "least": min(v), "most": max(v)} for name, v in times.items()}
        make = "import hlnet; from PIL import Image; hlnet.save_checkpoint("
        make += f"hlnet.create_model('resnet18', tree=['cat', 'dog']), {str(net)!r}); "
        make += f"Image.new('RGB', (64, 64)).save({str(photo)!r})"
        subprocess.run([*python, "-c", make], check=True)
        found: dict[str, Any] = {
            "seconds": seconds,
            "hlnet over hello-world": seconds["hlnet --help"]["median"] / seconds["Typer hello-world --help"]["median"],
            "imported by predict": imported("predict", str(net), str(photo)),
            "imported by profile": imported("profile", str(net)),
        }
    with replacing(args.out) as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
