"python -m silkworm_app.train: the command silkworm-train"
import sys

from .fit import main

if __name__ == '__main__': sys.exit(main())
