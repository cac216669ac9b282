"The web page: python app.py --bundle DIR"
import sys

from silkworm_app.cli import app_main

if __name__ == '__main__': sys.exit(app_main())
