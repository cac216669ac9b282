"The web page: python app.py --bundle DIR"
from silkworm_app.web import main

if __name__ == '__main__': main()
