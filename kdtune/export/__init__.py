"""Export of trained students as files, and evaluation of such files."""
