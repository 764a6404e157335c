"""Modules that hold parameters and call the functions of ``llm_study.functional``; import the module you need."""
