"""`python -m verify` is `lrp-verify`."""

from lrp_entry.commands import verify

if __name__ == "__main__":
    verify()
