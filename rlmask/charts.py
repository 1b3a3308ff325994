"""Pictures of an experiment, as SVG to be put into a page."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlmask.scores import Curve, Estimate, Results, Scores, mean_return

STUDENT, TEACHER, INK = "#2f7ed8", "#e08a1e", "#8a919e"  # legible on light and on dark
STYLE: dict[Any, Any] = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rlmask",
    "font.family": "sans-serif",
    "font.size": 11,
}


def bar_chart(results: Results, scores: Scores) -> str:
    """Return a bar a game, the student's score: 0 is the random player's, 100 the teacher's."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, game in enumerate(results.games):
            found = scores.of_game[game]
            if found is None:
                axes.text(place, 2, "no score", ha="center", va="bottom")
                continue
            value, low, high = (100 * x for x in found)
            axes.bar(place, value, width=0.55, color=STUDENT)
            axes.plot([place, place], [low, high], color=INK, linewidth=1.6)
            top = max(value, high, 0)
            top = 100 if 88 < top < 100 else top  # not across the line
            axes.text(place, top + 2, f"{value:.0f} %", ha="center", va="bottom")
        axes.axhline(100, color=TEACHER, linewidth=1.6, linestyle="--")
        beside = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "center"}
        axes.text(1.01, 100, "teacher", color=TEACHER, **beside)
        axes.axhline(0, color=INK, linewidth=1)
        axes.set_xticks(range(len(results.games)), results.games)
        axes.set_xlim(-0.6, len(results.games) - 0.4)
        axes.set_ylabel("random-normalised, %")
        axes.margins(y=0.12)
        bare(axes)

    return svg((max(5.0, 2.0 * len(results.games) + 1), 3.6), draw)


def variants_chart(rows: Sequence[tuple[str, Estimate | None, Estimate | None]]) -> str:
    """Return name, median and worst game of each student, one below the other.

    Each is a point with its interval, in % as in `bar_chart`; None is left out.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for column, (label, color, marker) in enumerate(
            (("median", STUDENT, "o"), ("worst game", INK, "s")), 1
        ):
            places = [place for place, row in enumerate(rows) if row[column] is not None]
            points = np.array([row[column] for row in rows if row[column] is not None]) * 100
            if not len(points):
                continue
            height = np.array(places) + 0.24 * (column - 1.5)
            value, low, high = points.T
            axes.hlines(height, low, high, color=color, linewidth=1.6)
            axes.plot(value, height, marker, color=color, label=label)
        axes.axvline(100, color=TEACHER, linewidth=1.6, linestyle="--", label="teacher")
        axes.axvline(0, color=INK, linewidth=1.2, linestyle=":", label="random valid moves")
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("random-normalised, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color=INK, alpha=0.25)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)

    return svg((9.0, 0.42 * len(rows) + 1.3), draw)


def curve_chart(results: Results) -> str:
    """Return the learning curves of teachers and students, a panel a game."""
    columns = min(3, len(results.games))
    rows = -(-len(results.games) // columns)

    def draw(figure: Figure) -> None:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, game in zip(panels, results.games, strict=False):
            for curve in results.curves:
                if curve.game == game:
                    plot_curve(axes, curve)
            for player in results.players:
                if player.kind in ("teacher", "random") and game in player.played:
                    style = "--" if player.kind == "teacher" else ":"
                    color = TEACHER if player.kind == "teacher" else INK
                    level = mean_return(player.played[game])
                    axes.axhline(level, color=color, linestyle=style, linewidth=1.2)
            axes.set_title(game, loc="left", fontsize=11)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            bare(axes)
        for axes in panels[len(results.games) :]:
            axes.axis("off")
        for axes in panels[:: len(panels) // rows]:
            axes.set_ylabel("return")
        for axes in panels[: len(results.games)][-columns:]:
            axes.set_xlabel("env steps of the game")
        panels[0].plot([], [], color=TEACHER, label="expert in training")
        panels[0].plot([], [], color=TEACHER, linestyle="--", label="expert, evaluated")
        panels[0].plot([], [], color=STUDENT, label="student, a line a seed")
        panels[0].plot([], [], color=INK, linestyle=":", label="random valid moves")
        figure.legend(loc="outside lower center", ncols=4, frameon=False)

    return svg((11.0, 2.9 * rows + 0.6), draw)


def transfer_chart(lines: Sequence[tuple[str, np.ndarray]]) -> str:
    """Return the learning curves of initialisations, [seeds, 10] each, with their spread."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (init, means), color in zip(lines, (INK, TEACHER, STUDENT), strict=True):
            place = 100 * (np.arange(means.shape[1]) + 0.5) / means.shape[1]
            axes.plot(place, means.mean(0), color=color, linewidth=1.8, label=init)
            axes.fill_between(place, means.min(0), means.max(0), color=color, alpha=0.15)
        axes.set_xlabel("% of the training")
        axes.set_ylabel("return, mean and range of seeds")
        axes.legend(frameon=False)
        bare(axes)

    return svg((7.0, 4.0), draw)


def plot_curve(axes: Axes, curve: Curve) -> None:
    """Draw one line."""
    is_teacher = curve.player == "teacher"
    axes.plot(
        curve.steps,
        curve.returns,
        color=TEACHER if is_teacher else STUDENT,
        linewidth=1.6 if is_teacher else 1.2,
        alpha=0.9 if is_teacher else 0.75,
    )


def bare(axes: Axes) -> None:
    """Take away what says nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=INK, alpha=0.25)
    axes.set_axisbelow(True)


def svg(size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Return what is drawn on a figure of so many inches, as an SVG element."""
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
