"""The command `prune-run`: help at once, one line for a user's mistake, exit codes that tell.

0: done, or done before. 1: a run failed; what it had computed is kept. 2: the configuration is wrong.
130, 143: stopped by Ctrl-C or SIGTERM, after a checkpoint.
"""

import sys

from prunebench import overview


def main() -> None:
    """Entry point of `prune-run`."""
    arguments = sys.argv[1:]
    answer = overview.answer(arguments)
    if answer is not None:
        text, code = answer
        print(text, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
    from prunebench import launch

    sys.exit(launch.launch(arguments))


if __name__ == "__main__":
    main()
