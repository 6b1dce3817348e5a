import sys

from conlst.cli import main

sys.exit(main())
