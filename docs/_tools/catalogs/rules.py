"""The rules of catalogs: each is one function from a page to its findings, and ``RULES`` lists them all.

A new rule is a function with the decorator ``rule`` in the module of its subject, with a page that passes and one that
fails in ``tests/tools/test_po_lint.py``.
"""

from catalogs import rules_code, rules_entries, rules_markup, rules_terms, rules_text
from catalogs.page import RULES, Page

__all__ = ["MODULES", "RULES", "Page"]

MODULES = (rules_code, rules_entries, rules_markup, rules_terms, rules_text)
