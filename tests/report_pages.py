"""Sweeps in every state, for tests of what is shown of them, and a parser of pages."""

from html.parser import HTMLParser

from report_sweeps import Sweep, diverged_seed, four_cells, half_confirmed, one_method, one_model

from kdtune.reports.page.page import write_report

HOSTILE = "<script>alert(1)</script> & a|b \x1b[2J"


def render_report(folders):
    """Write a page into the first folder, and return its text."""
    return write_report(folders, None, None).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tables, words, ids and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tables, self.words = text, [], []
        self.ids, self.links, self.open = [], [], []
        self._in = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[key] for key in ("src", "href", "xlink:href") if key in given]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "br"):
            self._in.append(tag)

    def handle_endtag(self, tag):
        if tag in self._in:
            while self._in.pop() != tag:
                pass

    def handle_data(self, data):
        if {"style", "script"} & set(self._in):
            return
        self.words.append(data)
        if {"td", "th"} & set(self._in):
            self.tables[-1][-1][-1] += data

    @property
    def said(self):
        return " ".join("".join(self.words).split())

    def table(self, *heads):
        """The rows of the table that has these headings, by heading."""
        [found] = [table for table in self.tables if set(heads) <= set(table[0])]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def sweep_of(scores):
    return Sweep().search("at", "A", *scores).search("fitnets", "A", *scores)


def no_student():
    sweep = Sweep()
    for method, accuracy in (("at", 0.9), ("fitnets", 0.7)):
        sweep.search(method, "A", 0.7).confirm(method, "A", 0, [accuracy] * 5)
    return sweep


STATES = {
    "only opened": (Sweep, "No trial has started yet."),
    "one trial": (lambda: Sweep().search("at", "A", 0.5), "There is only one method."),
    "all failed": (
        lambda: sweep_of(["diverged", "crashed"]),
        "4 of 4 trials failed: 2 diverged, 2 crashed.",
    ),
    "not confirmed": (lambda: sweep_of([0.5, 0.6]), "Not confirmed: A has search scores only,"),
    "half confirmed": (half_confirmed, "Rows without test %: best single runs"),
    "one method": (one_method, "AT reaches 74.8 ± 9.2 % on A."),
    "one model": (one_model, "AT is better than FitNets on A by "),
    "no student": (
        no_student,
        "Without the method student, what is gained over plain training is",
    ),
    "no test images": (lambda: sweep_of([0.5, 0.6]), "without test images it cannot be confirmed"),
    "a seed diverged": (diverged_seed, "student diverged in 1 of 4 seeds on A"),
    "three seeds": (four_cells, "With 3 seeds the false-alarm rate is about 7 %."),
}
