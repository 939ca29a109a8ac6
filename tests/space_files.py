"""Search spaces in files, as users write them."""

from kdtune.tuning.search.space import load_space


def write_space(folder, text):
    """Write a file with a search space, and load it."""
    path = folder / "space.py"
    path.write_text(f'"""Mine."""\nfrom ray import tune\n{text}\n')
    return load_space(path)
