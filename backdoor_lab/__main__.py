"""Runs the command `python -m backdoor_lab`."""

from backdoor_lab.run import main

if __name__ == "__main__":
    main()
