"Moved to lab.coverage"
from .lab.coverage import *
from .lab.coverage import main

if __name__ == '__main__': main()
