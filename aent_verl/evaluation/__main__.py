"""``python -m aent_verl.evaluation key=value ...``, which is `aent-verl evaluate`."""

import sys

from aent_verl.evaluation.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
