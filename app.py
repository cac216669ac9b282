"The web page: python app.py --bundle DIR"
from silkworm_app.cli import page_main

if __name__ == '__main__': page_main()
