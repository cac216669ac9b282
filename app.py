"The web page: python app.py --bundle DIR"
from silkworm_app.serve.page.server import main

if __name__ == '__main__': main()
