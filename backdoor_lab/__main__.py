"""Runs the command `python -m backdoor_lab`."""

import signal
import sys

if __name__ == "__main__":
    # Until the handlers of `core.shutdown` are installed, SIGTERM ends the command as SIGINT does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from backdoor_lab.run import main

        main()
    except KeyboardInterrupt:
        from backdoor_lab.core.terminal import print_stopped

        sys.exit(print_stopped())
