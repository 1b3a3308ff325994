"""The report of an experiment: report.json, report.md and a page report.html that needs nothing."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlmask.charts import bar_chart, curve_chart, variants_chart
from rlmask.checkpoint import replace_synced
from rlmask.scores import (
    Curve,
    Fidelity,
    Player,
    Results,
    Scores,
    mean_fidelity,
    mean_return,
    percent_of_teacher,
    read_played,
    scores_of,
)
from rlmask.words import duration, markdown_table, percent, text_of, with_error, with_interval

Row = Sequence[str]
Section = tuple[str, Row, list[Row]]  # title, head, rows

STYLE = """
:root { color-scheme: light dark; --text: #1d2129; --faint: #5f6672; --line: #d9dce2; --back: #fff }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ec; --faint: #9aa1ad; --line: #3a3f49; --back: #16181d }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 80rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.result { font-size: 1.1rem } .faint { color: var(--faint) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom }
svg { max-width: 100%; height: auto }
"""


def write_report(directory: Path, results: Results) -> None:
    """Write report.json, report.md and report.html.

    Raises:
        OSError: if one cannot be written; an older one stays whole.
        ValueError: if there is no student, teacher or random player.
    """
    sections = sections_of(results)
    pages = {
        "report.json": json.dumps(asdict(results) | {"scores": scores_json(results)}, indent=1),
        "report.md": markdown(results, sections),
        "report.html": page(results, sections),
    }
    for name, text in pages.items():
        replace_synced(directory / name, text.encode())


def read_results(path: Path) -> Results:
    """Return the results that a report.json holds.

    Raises:
        OSError, ValueError, KeyError, TypeError: if it is no such file.
    """
    raw = json.loads(path.read_text())
    players = [
        Player(
            **{
                **player,
                "played": {
                    game: tuple(map(read_played, seeds)) for game, seeds in player["played"].items()
                },
                "fidelity": {
                    game: tuple(Fidelity(**seed) for seed in seeds)
                    for game, seeds in player["fidelity"].items()
                },
            }
        )
        for player in raw["players"]
    ]
    curves = [
        Curve(**one | {k: tuple(one[k]) for k in ("steps", "returns")}) for one in raw["curves"]
    ]
    del raw["scores"]
    plain = {**raw, "games": tuple(raw["games"])}
    return Results(**{**plain, "players": tuple(players), "curves": tuple(curves)})


def one_of(results: Results, kind: str) -> Player:
    """Return the player of a kind.

    Raises:
        ValueError: if there is none.
    """
    for player in results.players:
        if player.kind == kind:
            return player
    raise ValueError(f"the results have no {kind}")


def scores(results: Results, player: Player) -> Scores:
    """Return the scores of a player among the others of an experiment."""
    return scores_of(player, one_of(results, "teacher"), one_of(results, "random"), results.games)


def scores_json(results: Results) -> dict[str, Any]:
    """Return the scores of every student, variant and baseline, as plain values."""
    return {
        player.name: scores(results, player)._asdict()
        for player in results.players
        if player.kind not in ("teacher", "random")
    }


def sections_of(results: Results) -> list[Section]:
    """Return title, head and rows of each table."""
    sections: list[Section] = [
        ("Games", *games_table(results)),
        ("Over all games", *aggregates_table(results)),
    ]
    if has_variants(results):
        sections.append(("Variants and baselines", *variants_table(results)))
    facts = {f"temperature, {game}": value for game, value in results.temperatures.items()}
    times = {f"wall time, {stage}": duration(s) for stage, s in results.seconds.items() if s}
    everything = {**results.protocol, **facts, **times, **results.versions}
    rows: list[Row] = [(name, text_of(value)) for name, value in everything.items()]
    return [*sections, ("How it was measured", ("what", ""), rows)]


def has_variants(results: Results) -> bool:
    """Whether there is more than the student."""
    return any(player.kind in ("variant", "baseline") for player in results.players)


def variants_picture(results: Results) -> str:
    """Return the picture of the student, its variants and the baselines."""
    rows = []
    for player in results.players:
        if player.kind not in ("teacher", "random"):
            found = scores(results, player)
            rows.append((player.name, found.median, found.minimum))
    return variants_chart(rows)


def games_table(results: Results) -> tuple[Row, list[Row]]:
    """Return the table of the student against its teachers, a row a game."""
    student, teacher, random = (one_of(results, kind) for kind in ("student", "teacher", "random"))
    of_game = scores(results, student).of_game
    head = (
        "game",
        "teacher",
        "student",
        "random",
        "% of teacher",
        "normalised",
        "agreement",
        "by gap",
        "KL",
        "invalid mass",
        "invalid actions",
    )
    rows = []
    for game in results.games:
        percent = percent_of_teacher(
            mean_return(student.played[game]), mean_return(teacher.played[game])
        )
        invalid = sum(seed.invalid_actions for seed in student.played[game])
        rows.append(
            (
                game,
                with_error(teacher.played[game]),
                with_error(student.played[game]),
                with_error(random.played[game]),
                "–" if percent is None else f"{percent:.0f}",
                with_interval(of_game[game]),
                *fidelity_cells(student.fidelity.get(game, ())),
                f"{invalid}",
            )
        )
    return head, rows


def aggregates_table(results: Results) -> tuple[Row, list[Row]]:
    """Return the table of the student's median, capped mean and minimum."""
    student = one_of(results, "student")
    found = scores(results, student)
    num_seeds = max(len(seeds) for seeds in student.played.values())
    rows: list[Row] = [
        (name, with_interval(getattr(found, key)), str(num_seeds))
        for name, key in (
            ("median", "median"),
            ("mean, each cut at 100 %", "capped_mean"),
            ("worst game", "minimum"),
        )
    ]
    return ("random-normalised score", "% [95 %]", "seeds"), rows


def variants_table(results: Results) -> tuple[Row, list[Row]]:
    """Return the table of everything that was trained, a row each."""
    head = (
        "",
        "median",
        "capped mean",
        "worst game",
        *results.games,
        "agreement",
        "KL",
        "invalid mass",
        "env steps",
        "time",
        "seeds",
    )
    rows = []
    for player in results.players:
        if player.kind in ("teacher", "random"):
            continue
        found = scores(results, player)
        every = [one for seeds in player.fidelity.values() for one in seeds]
        agreement, _, kl, mass = fidelity_cells(every)
        name = f"{player.name}: {player.note}" if player.note else player.name
        rows.append(
            (
                name,
                *(with_interval(x) for x in (found.median, found.capped_mean, found.minimum)),
                *(percent(found.of_game[game]) for game in results.games),
                agreement,
                kl,
                mass,
                f"{player.env_steps:,}" if player.env_steps else "–",
                duration(player.seconds) if player.seconds else "–",
                str(max(len(seeds) for seeds in player.played.values())),
            )
        )
    return head, rows


def fidelity_cells(fidelity: Sequence[Fidelity]) -> tuple[str, str, str, str]:
    """Return agreement, agreement weighted by gap, KL and invalid mass as text."""
    if not fidelity:
        return "–", "–", "–", "–"
    mean = mean_fidelity(fidelity)
    return (
        f"{mean.agreement:.2f}",
        f"{mean.weighted_agreement:.2f}",
        f"{mean.kl:.3f}",
        f"{mean.invalid_mass:.3f}",
    )


def sentence(results: Results) -> str:
    """Return the result in one sentence."""
    student = one_of(results, "student")
    found = scores(results, student)
    known = {game: e.value for game, e in found.of_game.items() if e is not None}
    invalid = sum(s.invalid_actions for seeds in student.played.values() for s in seeds)
    taken = "It took no invalid action." if not invalid else f"It took {invalid} invalid actions!"
    if not known:
        return f"No teacher is better than random valid moves. {taken}"
    worst = min(known, key=lambda game: known[game])
    return (
        f"One student of {len(results.games)} games reaches a median of "
        f"{with_interval(found.median)} % of its teachers (0 % is random valid moves), and "
        f"{percent(found.of_game[worst])} % in the worst game, {worst}. {taken}"
    )


def markdown(results: Results, sections: Sequence[Section]) -> str:
    """Return the report as Markdown."""
    parts = [f"# {results.title}", sentence(results)]
    for title, head, rows in sections:
        parts += [f"## {title}", markdown_table(head, rows), *notes(title)]
    return "\n\n".join(parts) + "\n"


def page(results: Results, sections: Sequence[Section]) -> str:
    """Return the report as one HTML page, pictures and style included."""
    student = one_of(results, "student")
    charts = {
        "Games": bar_chart(results, scores(results, student)),
        "Over all games": curve_chart(results) if results.curves else "",
        "Variants and baselines": variants_picture(results) if has_variants(results) else "",
    }
    body = [
        f"<h1>{html.escape(results.title)}</h1>",
        f'<p class="result">{html.escape(sentence(results))}</p>',
    ]
    for title, head, rows in sections:
        body.append(f"<h2>{html.escape(title)}</h2>")
        body.append(table_html(head, rows))
        body += [f'<p class="faint">{html.escape(note)}</p>' for note in notes(title)]
        body.append(charts.get(title, ""))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(results.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def table_html(head: Row, rows: Sequence[Row]) -> str:
    """Return a table that scrolls sideways on a narrow screen."""

    def line(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    lines = [line(head, "th"), *(line(row, "td") for row in rows)]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def notes(title: str) -> list[str]:
    """Return what a reader of a table has to know."""
    return {
        "Games": [
            "Mean return ± standard error over seeds (of one seed: over episodes). Normalised: "
            "(student − random) / (teacher − random) in %, with the bootstrap interval of 95 % "
            "over seeds and episodes. Agreement, KL(teacher || student) in nats, and the mass that "
            "a softmax without the mask gives to invalid actions: on states that the student "
            "visits."
        ],
        "Variants and baselines": [
            "Random-normalised scores in %. Differences within the intervals say nothing. KL is "
            "comparable only between equal temperatures."
        ],
    }.get(title, [])
