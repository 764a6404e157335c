"""Text into ids and back: tokenizers that read and write the files of the libraries people use, without torch."""
