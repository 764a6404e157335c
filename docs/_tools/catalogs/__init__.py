"""What ``po.py`` is made of: extraction, merging, storage and the rules of catalogs."""
