"""`python -m verify` is `lrp-verify`."""

from verify.faces.cli import main

if __name__ == "__main__":
    main()
