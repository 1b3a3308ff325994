import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from rlmask.report import read_results, sentence, write_report
from rlmask.scores import Curve, Fidelity, Played, Player, Results
from rlmask.words import number

GAMES = ("Snake", "Sokoban & <b>more</b>", "Tetris")


def played(mean, seeds=1, invalid=0):
    rng = np.random.default_rng(0)
    return tuple(
        Played(
            returns=tuple((mean + rng.normal(0, 0.1, 20)).tolist()),
            lengths=(7,) * 20,
            invalid_actions=invalid,
        )
        for _ in range(seeds)
    )


def fidelity(seeds):
    one = Fidelity(
        agreement=0.9,
        weighted_agreement=0.97,
        kl=0.012,
        teacher_entropy=0.5,
        student_entropy=0.6,
        invalid_mass=0.25,
        states=400,
    )
    return (one,) * seeds


def results(**changes):
    of = {
        "teacher": ("teacher", (13.4, 3.0, 3.5), 1),
        "random": ("random", (2.1, -3.0, 0.03), 1),
        "student": ("student", (12.8, 2.9, 3.6), 3),
        "cold": ("variant", (9.0, 2.0, 3.0), 1),
        "multi-task": ("baseline", (6.0, -1.0, 1.0), 1),
    }
    players = [
        Player(
            name=name,
            kind=kind,
            played={g: played(m, seeds) for g, m in zip(GAMES, means, strict=True)},
            fidelity={g: fidelity(seeds) for g in GAMES} if kind in ("student", "variant") else {},
            note="temperature 0.01" if kind == "variant" else "",
            env_steps=1_500_000,
            seconds=125.0,
        )
        for name, (kind, means, seeds) in of.items()
    ]
    curves = [
        Curve(game=game, player=who, seed=0, steps=(0, 1000, 2000), returns=(0.0, 1.0, 2.5))
        for game in GAMES
        for who in ("teacher", "student")
    ]
    whole = Results(
        title="A <title>",
        games=GAMES,
        players=tuple(players),
        curves=tuple(curves),
        protocol={"episodes of each game": 20, "seeds": [0, 1, 2]},
        temperatures=dict.fromkeys(GAMES, 1.0),
        seconds={"experts": 400.0},
        versions={"torch": "2.13.0"},
    )
    return replace(whole, **changes)


class Page(HTMLParser):
    """Collects tags, what they refer to, and the text of each table's cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.cells, self.links = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "path", "use", "rect", "line", "br"):
            self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    write_report(tmp_path, results())
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert all(link.startswith("#") for link in page.links)
    assert not {"script", "link", "img", "iframe", "b"} & set(page.tags)
    assert page.tags.count("svg") == 3  # games, learning curves, variants
    assert page.tags.count("table") == 4
    assert "@import" not in text
    assert "A &lt;title&gt;" in text


def test_tables_say_what_was_measured(tmp_path):
    write_report(tmp_path, results())
    page = Page((tmp_path / "report.html").read_text())
    for cell in ("0.90", "0.97", "0.012", "0.250", "cold: temperature 0.01", "1,500,000"):
        assert cell in page.cells
    text = (tmp_path / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| Snake")]
    # (12.8 - 2.1) / (13.4 - 2.1) = 95 %, 12.8 / 13.4 = 96 %
    assert "| 96 | 95 [" in rows[0]
    assert "## Variants and baselines" in text


def test_the_json_is_the_whole_of_it(tmp_path):
    whole = results()
    write_report(tmp_path, whole)
    again = read_results(tmp_path / "report.json")
    assert again.players == whole.players
    assert again.curves == whole.curves
    assert again.games == whole.games
    scores = json.loads((tmp_path / "report.json").read_text())["scores"]
    assert scores["student"]["minimum"][0] == pytest.approx(0.947, abs=0.02)


def test_what_is_missing_is_left_out(tmp_path):
    few = [p for p in results().players if p.kind in ("student", "teacher", "random")]
    bare = [replace(p, fidelity={}) for p in few]
    write_report(tmp_path, results(players=tuple(bare), curves=()))
    text = (tmp_path / "report.md").read_text()
    assert "Variants" not in text
    assert "| – | – | – | – | 0 |" in text
    assert Page((tmp_path / "report.html").read_text()).tags.count("svg") == 1
    with pytest.raises(ValueError, match="no student"):
        write_report(tmp_path, results(players=tuple(bare[:2])))


def test_a_single_game_and_hopeless_teachers(tmp_path):
    one = results(games=GAMES[:1])
    write_report(tmp_path, one)
    assert "worst game, Snake" in sentence(one)
    hopeless = [replace(p, played=results().players[1].played) for p in results().players]
    assert "No teacher is better" in sentence(results(players=tuple(hopeless)))
    write_report(tmp_path, results(players=tuple(hopeless)))
    assert "no score" in (tmp_path / "report.html").read_text()


def test_invalid_actions_are_said():
    players = [
        replace(p, played={g: played(1.0, 1, 2) for g in GAMES}) if p.kind == "student" else p
        for p in results().players
    ]
    assert "took 6 invalid actions!" in sentence(results(players=tuple(players)))
    assert "no invalid action." in sentence(results())


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_report(tmp_path, results())
    before = (tmp_path / "report.json").read_bytes()

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlmask.checkpoint.write_synced", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, results(title="another"))
    assert (tmp_path / "report.json").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("value", "said"),
    [(7027.3, "7,027"), (13.44, "13.4"), (-1.234, "-1.23"), (0.0314, "0.031"), (0.0, "0")],
)
def test_numbers_have_the_figures_that_matter(value, said):
    assert number(value) == said
