"""Put the ports to the vectors and to the verifier: `python ports/check.py --jax PYTHON`, where PYTHON has jax.

Every vector is asked, and a part of the verifier's cases: all of them by `--whole`. A port whose language is not
installed is skipped, with a line that says so. The exit status is the worst of all.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
VECTORS = HERE.parent / "vectors"


def run(*words: str) -> int:
    """Run a command whose output is for the reader."""
    print("$", shlex.join(words), flush=True)
    return subprocess.run(words, check=False).returncode


def check(speak: list[str], answer: list[str], shard: str | None) -> int:
    """Judge one port: its answers to the vectors, and what it says to the verifier."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        words = [*answer, str(VECTORS)]
        print("$", shlex.join(words), flush=True)
        with results.open("wb") as file:
            status = subprocess.run(words, stdout=file, check=False).returncode
        status = status or run("lrp-vectors", "verify", str(results))
    return max(status, run("lrp-verify", "--command", shlex.join(speak), *(["--shard", shard] if shard else [])))


def main() -> int:
    """Check the ports that can run here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jax", metavar="PYTHON", help="an interpreter that has jax")
    parser.add_argument("--whole", action="store_true", help="all cases of the verifier: minutes")
    given = parser.parse_args()
    status = 0
    if node := shutil.which("node"):
        own = HERE / "javascript"
        shard = None if given.whole else "1/12"
        status = check([node, str(own / "main.js")], [node, str(own / "vectors.js")], shard)
    else:
        print("skipped: the port in JavaScript needs Node.js, and there is no `node` on the path", flush=True)
    if given.jax:
        words = [given.jax, str(HERE / "jax" / "main.py")]
        # each shape is compiled first: a part of the cases needs most of the programs
        status = max(status, check(words, words, None if given.whole else "1/16"))
    else:
        print("skipped: the port in JAX needs an interpreter that has jax; name it by --jax", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
