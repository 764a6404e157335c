"""The oracles download nothing; they read the setting when they are imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
