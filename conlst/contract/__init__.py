"""What every part agrees on: labels, configuration, artifact folders. Imports nothing else of conlst."""
