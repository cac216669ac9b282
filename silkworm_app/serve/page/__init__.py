"The web page: python app.py --bundle DIR."
