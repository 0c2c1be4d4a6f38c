"""How every command line ends: user errors as one line and exit code 2, Ctrl-C as 130."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path


def command_line(main: Callable[[], None]) -> None:
    """Run a command's `main`; ValueError and OSError become one line on stderr, warnings too."""
    name = Path(sys.argv[0]).stem
    warnings.showwarning = lambda message, *_: print(f"{name}: warning: {message}", file=sys.stderr)
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
