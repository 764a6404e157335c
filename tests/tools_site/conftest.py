"""The built site, for the tools that check it."""

from ..site.conftest import site_root

__all__ = ["site_root"]
