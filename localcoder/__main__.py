"""`python -m localcoder` is the command `localcoder`."""

from localcoder.cli.main import main

if __name__ == "__main__":
    main()
