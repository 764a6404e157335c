"""Warn of a catalog that cannot be read whole, which under ``-W`` stops the build.

Sphinx skips a file that is not UTF-8 with a warning, and of one with an unterminated string it silently drops the rest.
"""

from pathlib import Path

from catalogs.storage import BrokenCatalogError, catalogs, read
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

logger = logging.getLogger(__name__)


def read_all(app: Sphinx, config: Config) -> None:
    """Read every catalog of the language, before Sphinx does."""
    for locale in config.locale_dirs:
        for domain, path in catalogs(Path(app.srcdir, locale).resolve(), config.language).items():
            try:
                read(path, config.language, domain)
            except BrokenCatalogError as error:
                logger.warning("found %s; %s", error.found, error.mend, location=f"{path}:{error.line}", type="catalog")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Look before anything is read."""
    app.connect("config-inited", read_all, priority=10)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
