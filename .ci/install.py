"""Runs pip for the Makefile: ``install.py ARGUMENTS``, as for ``pip install``.

Prints the names of the packages in a paragraph while pip collects them. pip itself prints nothing, or several lines for
each package. Its errors go to standard error.
"""

import re
import subprocess
import sys

#: Columns of the paragraph.
WIDTH = 78


def main() -> int:
    pip = [sys.executable, "-u", "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    with subprocess.Popen([*pip, *sys.argv[1:]], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        column = 0
        for line in process.stdout:
            if found := re.match(r" *Collecting ([\w.-]+)", line):
                name = found[1]
                start = "  " if column == 0 else " "
                if column + len(start) + len(name) > WIDTH:
                    start, column = "\n  ", -1
                print(f"{start}{name}", end="", flush=True)
                column += len(start) + len(name)
            elif line.startswith("Installing collected packages"):
                print("\n" if column else "", "  Installing them …", sep="", flush=True)
                column = 0
        if column:
            print(flush=True)
    return process.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # pip has got it, too
        sys.exit(130)
