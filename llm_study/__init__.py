"""The algorithms of large language models, each as its formula, as fast code, and with its proof.

Importing the package does not import torch; import the module you need.
"""

__version__ = "0.1.0"
