"python -m silkworm_app.train: the command silkworm-train"
import sys

from silkworm_app.cli import train_main

if __name__ == '__main__': sys.exit(train_main())
