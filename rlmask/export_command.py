"""`rlmask export`: a run's policy as a file for other programs."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from rlmask.display import writing
from rlmask.export import ExportError, Format, export_run
from rlmask.flags import parse


@dataclass(frozen=True)
class Export:
    """Write the greedy policy of a run's newest checkpoint as one file, masks included.

    The graph's inputs are `obs` and `action_mask` [rows, actions]; its outputs `action`, the best
    valid one, and `scores` [rows, actions].
    """

    run: Positional[Path]
    """The run directory."""
    format: Format = "onnx"
    """onnx: for onnxruntime and others (pip install 'rlmask[export]'); pt2: torch.export.load."""
    int8: bool = False
    """Store weights as int8: a quarter of the size. Exact for a student of weight_bits <= 8."""
    output: Path | None = None
    """The file; otherwise RUN/policy.onnx, or .pt2."""


def export(arguments: list[str]) -> None:
    """`rlmask export`.

    Raises:
        ExportError: if the file's ending is that of another format.
    """
    options = parse(Export, "export", arguments)
    path = options.output or options.run / f"policy.{options.format}"
    if path.suffix != f".{options.format}":
        raise ExportError(f"{path} does not end on .{options.format}; see --format")
    said = export_run(options.run, path, options.format, options.int8)
    with writing():
        print(*said, sep="\n")
