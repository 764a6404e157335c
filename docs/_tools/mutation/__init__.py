"""What ``mutants.py`` is made of: blocks of a page, changes of their code, trials in processes of their own."""
