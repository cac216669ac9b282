"The web page: python app.py --bundle DIR"
from silkworm_app.cli import app_main

if __name__ == '__main__': app_main()
