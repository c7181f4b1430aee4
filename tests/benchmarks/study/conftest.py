"""The study is a folder of scripts that import each other, so its tests need the folder on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
