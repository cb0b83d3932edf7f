"""python tools/train STAGE: trains the model that ships inside the package."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # As for the other tools, whose folder it is: `import localcoder` finds the installed one, with its C core.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from train.commands import main

    main()
