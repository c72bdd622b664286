"""The mechanical mutants are not in the wheel: where the wheel is tested, they come from the checkout."""

from pathlib import Path

import verify.selftests

CHECKOUT = str(Path(__file__).parents[3] / "verify" / "selftests")
if CHECKOUT not in verify.selftests.__path__:
    verify.selftests.__path__.append(CHECKOUT)
