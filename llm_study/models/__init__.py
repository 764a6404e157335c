"""Whole models, with the parameter names of Hugging Face where they belong to one of its families."""
