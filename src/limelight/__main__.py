"""`python -m limelight`, and the command `limelight`."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C while it is still being imported just ends it: nothing has begun."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli.app import main as run

    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
