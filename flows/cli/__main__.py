"""`python -m flows.cli.main` is the `olmo2` command."""

from flows.cli.main import main

if __name__ == "__main__":
    main()
